"""papermill's command line, ``python -m warp_lib.report.executing``, with kernels on Unix sockets
instead of TCP ports.

Jupyter picks free ports before the kernel binds them. When kernels start side by side, another
process may bind one first, and the kernel dies before its first cell (nteract/papermill issue 511).
"""

import os
from tempfile import TemporaryDirectory
from typing import Any

from papermill.cli import papermill
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config


class OnSockets(NBClientEngine):
    """papermill's own engine, but its kernels listen on Unix sockets."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **given: Any) -> Any:
        # not in TMPDIR: a socket's path may have a hundred characters or so
        with TemporaryDirectory(prefix="warp-", dir="/tmp") as folder:
            at = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
            return super().execute_managed_notebook(nb_man, kernel_name, config=at, **given)


if __name__ == "__main__":
    if os.name == "posix":  # Windows keeps its ports
        papermill_engines.register(None, OnSockets)
    papermill()
