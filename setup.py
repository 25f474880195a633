"""Only an editable install works: data/ and notebooks/ lie beside the package, not in it. All else
about the package is in pyproject.toml.
"""

import sys

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class NoWheel(bdist_wheel):
    def run(self) -> None:
        sys.exit(
            "warp-report cannot be installed from a wheel, which would lack its data and notebooks:"
            " in a clone run `make setup` or `pip install -e .` instead."
        )


setup(cmdclass={"bdist_wheel": NoWheel})
