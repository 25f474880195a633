"""Which commit the loaded code is of, for records."""

import os
import subprocess

from .paths import ROOT


def _commit() -> str:
    """The repository's commit, with a + where files were changed since; "unknown" outside a
    repository.
    """
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


# of the code that is loaded, for the files may change while it runs; or of where it was sent from
COMMIT = os.environ.get("WARP_COMMIT") or _commit()
