"""The model hub, asked once and briefly: its libraries go on trying for most of a minute when there is no network."""

import os
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

SECONDS = 5  # to wait for the hub's first answer


def check(setting: str, name: str, kind: str = "model") -> None:
    """Raise ValueError at once if `name` can only be a hub id and the hub cannot be reached.

    Args:
        setting: the setting that names it, for the message.
        name: a local folder, what an earlier session has downloaded, or a hub id.
        kind: "model" or "dataset".
    """
    downloaded = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}")
    if Path(os.path.expanduser(name)).is_dir() or downloaded.is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
    except HTTPError:
        return  # whatever it says, it answered
    except OSError as error:
        raise ValueError(
            f"{setting}={name!r} is neither a bundled name nor a local folder, and the hub cannot be reached ({type(error).__name__}): "
            f"check the name and the network."
        ) from error
