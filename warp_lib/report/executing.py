"""papermill's command line, by ``python -m warp_lib.report.executing``, with kernels that listen at
files and not at ports.

Jupyter looks for free ports before a kernel takes them. Of kernels that begin side by side one may
find its port taken, and dies before its first cell (nteract/papermill issue 511).
"""

import os
from tempfile import TemporaryDirectory
from typing import Any

from papermill.cli import papermill
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config


class AtFiles(NBClientEngine):
    """papermill's own engine, but for where its kernels listen."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **given: Any) -> Any:
        # not in a TMPDIR: a socket's path has at most some hundred characters
        with TemporaryDirectory(prefix="warp-", dir="/tmp") as folder:
            at = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
            return super().execute_managed_notebook(nb_man, kernel_name, config=at, **given)


if __name__ == "__main__":
    if os.name == "posix":  # Windows has ports only
        papermill_engines.register(None, AtFiles)
    papermill()
