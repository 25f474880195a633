"""The model hub: what is downloaded already is not asked for, and the hub is asked once, for its
libraries retry for minutes.
"""

import difflib
import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from datasets import config as datasets_config
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .model_files import FILES, INDEX, SINGLE, TORCH_FILES, Unfit, first_line, is_whole, torch_files

# libraries through which the hub is spoken to
CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")
SECONDS = 5  # to wait for the hub's first answer
STALLED = 3  # seconds to wait for more of a file


def model_folder(
    name: str,
    bundled: Sequence[str] = (),
    whole: Callable[[Path], bool] = is_whole,
    also: Sequence[str] = (),
) -> Path:
    """The folder of the model called `name`: a local one, what an earlier session has downloaded,
    or a download.

    A download that is complete is taken as it is, without asking the hub, so that it needs no
    network and stays the same.

    Args:
        name: a local folder or a hub id.
        bundled: names that would have been known before; one that is nearly `name` is suggested.
        whole: whether a downloaded folder is complete.
        also: patterns of files that are needed beside weights, configuration and tokenizer.

    Raises Unfit, saying what is the matter.
    """
    if (folder := local_folder(name, bundled)) is not None:
        return folder
    if (folder := _downloaded(name, whole)) is not None:
        return folder
    reach(name, "model", bundled)
    patterns = [*FILES, *also]
    try:
        with _impatient():
            folder = Path(snapshot_download(name, allow_patterns=patterns))
            needless = (SINGLE, INDEX, "adapter_config.json")
            if not any((folder / file).is_file() for file in needless):
                # a model of before safetensors
                folder = Path(snapshot_download(name, allow_patterns=[*patterns, *TORCH_FILES]))
    except Exception as error:  # the hub's library has a dozen of them
        raise Unfit(cause(error, "model")) from error
    return _from_torch(folder, name) or folder


def _from_torch(folder: Path, name: str) -> Path | None:
    """A download that has PyTorch's files of weights and no safetensors, converted in the store;
    None if it has others, or not all.
    """
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file() or not torch_files(folder):
        return None
    from .converted import from_torch  # only now: it needs torch

    return from_torch(folder, name)


@contextmanager
def _impatient() -> Iterator[None]:
    """Inside, a connection that stalls is given up within half a minute: the hub's library waits
    `STALLED` seconds for data, and again five times.
    """
    before = constants.HF_HUB_DOWNLOAD_TIMEOUT
    constants.HF_HUB_DOWNLOAD_TIMEOUT = min(before, STALLED)
    try:
        yield
    finally:
        constants.HF_HUB_DOWNLOAD_TIMEOUT = before


def local_folder(name: str, bundled: Sequence[str] = ()) -> Path | None:
    """The local folder called `name`, or None if it may be a hub id. Raises Unfit if it can be
    neither.
    """
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
        if folder.exists():
            raise Unfit("is a file: name the folder that holds it")
    except (RuntimeError, OSError) as error:  # ~nobody; a name of a thousand letters
        raise Unfit(
            "is not a folder that can be opened"
            f" ({getattr(error, 'strerror', None) or first_line(error)})"
        ) from error
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise Unfit(f"is not there: no such folder{_meant(name, bundled)}") from error
    return None


def _meant(name: str, bundled: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, bundled, 1)
    return f"; did you mean {near[0]!r}" if near else ""


def _downloaded(name: str, whole: Callable[[Path], bool]) -> Path | None:
    """A complete download of a model, if there is one: its main branch, or the hub's conversion of
    it.
    """
    refs = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "refs")
    for revision in ("main", *sorted(f"refs/pr/{file.name}" for file in refs.glob("refs/pr/*"))):
        try:
            folder = Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=list(FILES), local_files_only=True
                )
            )
        except (OSError, ValueError):  # nothing there, or a part only
            continue
        if whole(folder):
            return folder
        if converted := _from_torch(folder, name):
            return converted
    return None


def reach(name: str, kind: str, bundled: Sequence[str] = ()) -> None:
    """Raise Unfit within seconds if the hub cannot be asked for `name`, which is not here.

    Args:
        kind: "model" or "dataset".
        bundled: names that would have been known before.
    """
    part = Path(constants.HF_HUB_CACHE, f"{kind}s--{name.replace('/', '--')}").is_dir()
    here = (
        "is downloaded in part only"
        if part
        else f"is neither a bundled name nor a local folder{_meant(name, bundled)}"
    )
    if constants.HF_HUB_OFFLINE:
        raise Unfit(
            f"{here}, and HF_HUB_OFFLINE forbids to ask the hub: unset it, or download it elsewhere"
            " and name its folder"
        )
    if (error := unreachable()) is not None:
        raise Unfit(
            f"{here}, and the hub cannot be reached ({error}): check the"
            f" {'network' if part else 'name and the network'}"
        )


def unreachable() -> str | None:
    """Why the hub does not answer; None if it does."""
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
    except HTTPError:
        return None  # whatever it says, it answered
    except OSError as error:
        why = getattr(error, "reason", error)  # urllib wraps what happened
        return first_line(why) if isinstance(why, OSError) else str(why)
    return None


@contextmanager
def dataset_access(name: str) -> Iterator[None]:
    """Where the data set called `name` can be loaded: from the hub, or offline if it is downloaded
    and the hub cannot be reached.

    Raises Unfit if neither will do, at once; and for what goes wrong inside with the hub.
    """
    downloaded = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").is_dir()
    if not downloaded:
        reach(name, "dataset", ("imdb",))
    before = constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE
    if downloaded and not constants.HF_HUB_OFFLINE and unreachable() is not None:
        constants.HF_HUB_OFFLINE = datasets_config.HF_HUB_OFFLINE = True
    try:
        with _impatient():
            yield
    except Unfit:
        raise
    except Exception as error:  # of datasets, of the hub's library, of the file formats
        raise Unfit(cause(error, "data set")) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets_config.HF_HUB_OFFLINE = before


def cause(error: BaseException, kind: str) -> str:
    """What happened while something was downloaded, and what to do, as the rest of a sentence.

    Args:
        kind: "model" or "data set".
    """
    chain: list[BaseException] = []
    earlier: BaseException | None = error
    while earlier is not None and earlier not in chain:
        chain.append(earlier)
        earlier = earlier.__cause__ or earlier.__context__
    statuses = [
        e.response.status_code
        for e in chain
        if isinstance(e, HfHubHTTPError) and e.response is not None
    ]
    status = statuses[0] if statuses else None
    absent = any(
        isinstance(e, RepositoryNotFoundError) or type(e).__name__ == "DatasetNotFoundError"
        for e in chain
    )
    if any(isinstance(e, GatedRepoError) for e in chain):
        return "is gated: accept its terms on its page at the hub, then log in with `hf auth login`"
    if absent or status in (401, 404):
        if any(isinstance(e, RevisionNotFoundError) for e in chain):
            return "is empty on the hub: it has no main branch"
        return (
            f"is not a local folder, and the hub has no such {kind} or keeps it private: check the"
            " name, or log in with `hf auth login`"
        )
    if status == 403:
        return (
            "is refused by the hub (403): log in with `hf auth login`, with a token that may"
            " read it"
        )
    if status == 429:
        return (
            "cannot be downloaded now: the hub has had too many requests from here (429); wait some"
            " minutes and start again"
        )
    if status is not None and status >= 500:
        return f"cannot be downloaded now: the hub itself fails ({status}); try again later"
    if any(getattr(e, "errno", None) == errno.ENOSPC for e in chain):
        return f"cannot be downloaded: the disk of {constants.HF_HUB_CACHE} is full"
    if any(isinstance(e, PermissionError) for e in chain):
        return f"cannot be downloaded: {constants.HF_HUB_CACHE} cannot be written"
    if any(isinstance(e, OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(e) for e in chain):
        return (
            "is not completely downloaded, and the hub is not to be asked or cannot be reached:"
            " start again with a network"
        )
    if broken := [e for e in chain if _interrupted(e)]:
        return (
            f"was not downloaded completely ({first_line(broken[0])}): start again, and it goes on"
            " where it stopped"
        )
    return f"cannot be loaded from the hub ({type(chain[0]).__name__}: {first_line(chain[0])})"


def _interrupted(error: BaseException) -> bool:
    """Whether it is a connection that broke or stalled, in any of the libraries that download."""
    module, name = type(error).__module__.split(".")[0], type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError) or name in (
        "XetDownloadError",
        "IncompleteSnapshotError",
    ):
        return True
    return "Consistency check failed" in str(error) or (
        module in CLIENTS and not isinstance(error, HfHubHTTPError)
    )
