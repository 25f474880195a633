"""The hub is asked once, only for what is neither here nor downloaded, and its silence is refused
at once.
"""

import importlib
import shutil
import time
from pathlib import Path
from urllib.error import HTTPError, URLError

import datasets
import pytest
import torch
from huggingface_hub import constants

from warp_lib.__main__ import main
from warp_lib.experiment import Experiment
from warp_lib.policy import Policy
from warp_lib.runs import hub
from warp_lib.runs.model_files import Unfit
from warp_lib.settings import Settings


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list:
    """What is asked of the hub, which cannot be reached; a cache of downloads that is empty."""
    requests = []

    def urlopen(request, timeout):
        requests.append(request)
        raise URLError("no route to host")

    monkeypatch.setattr(hub, "urlopen", urlopen)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return requests


@pytest.mark.parametrize("setting", ["policy", "encoder", "reviews"])
def test_no_network(asked, setting):
    """Guards: half a minute of the hub library's retries before a report says that it has no
    network.
    """
    with pytest.raises(
        ValueError,
        match=(
            rf"^{setting}='some/name' is neither a bundled name nor a local folder, and the hub"
            r" cannot be"
        ),
    ):
        Experiment(Settings.profile("smoke", **{setting: "some/name"}))
    assert len(asked) == 1


def test_an_answer_is_an_answer(asked, monkeypatch):
    """A hub that refuses the question is there."""

    def urlopen(request, timeout):
        raise HTTPError(constants.ENDPOINT, 403, "forbidden", None, None)

    monkeypatch.setattr(hub, "urlopen", urlopen)
    assert hub.unreachable() is None
    hub.reach("some/name", "model")


def downloaded(
    cache: Path, name: str, folder: str | Path, revision: str = "main", kind: str = "model"
) -> Path:
    """A download as the hub's library keeps it: a snapshot of links into blobs."""
    at = cache / f"{kind}s--{name.replace('/', '--')}"
    ref, snapshot, blobs = at / "refs" / revision, at / "snapshots" / ("c" * 40), at / "blobs"
    for needed in (ref.parent, snapshot, blobs):
        needed.mkdir(parents=True, exist_ok=True)
    ref.write_text("c" * 40)
    for file in Path(folder).iterdir():
        shutil.copyfile(file, blobs / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    return snapshot


@pytest.mark.parametrize("revision", ["main", "refs/pr/7"])
def test_nothing_is_asked_for_what_is_here(asked, folders, tmp_path, revision):
    """Local folders and complete downloads need no network, the hub's own conversions to
    safetensors included.
    """
    assert hub.model_folder(folders["policy"]) == Path(folders["policy"])
    snapshot = downloaded(tmp_path, "some/name", folders["policy"], revision)
    assert hub.model_folder("some/name") == snapshot
    began = time.monotonic()
    policy = Policy.from_name("some/name")
    assert all(
        torch.equal(w, policy.weights()[n])
        for n, w in Policy.from_name(folders["policy"]).weights().items()
    )
    assert not asked and time.monotonic() - began < 5


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json", "config.json"])
def test_an_interrupted_download_goes_on(asked, folders, tmp_path, monkeypatch, gone):
    """Guards: a part of a download taken for all of it. Without a network one sentence says so;
    with one, the download goes on.
    """
    snapshot = downloaded(tmp_path, "some/name", folders["policy"])
    for file in [gone, *(f.name for f in snapshot.glob("vocab*") if gone == "tokenizer.json")]:
        (snapshot / file).unlink()
    says = (
        r"^policy='some/name' is downloaded in part only, and the hub cannot be reached \(no route"
        r" to host\): check the network\.$"
    )
    with pytest.raises(ValueError, match=says):
        Policy.from_name("some/name")
    assert len(asked) == 1
    gives = []

    def download(
        name: str, *, allow_patterns: list[str], local_files_only: bool = False, **_
    ) -> str:
        if local_files_only:
            return str(snapshot)
        gives.append(allow_patterns)
        return folders["policy"]

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert str(hub.model_folder("some/name")) == folders["policy"] and len(gives) == 1
    assert not [
        pattern for pattern in gives[0] if "bin" in pattern or pattern in ("*", "*.pt", "*.py")
    ]


def test_a_model_of_before_safetensors(asked, folders, tmp_path, monkeypatch):
    """The hub's own conversion is taken; where there is none, one sentence says so."""
    pickled, revisions = tmp_path / "pickled", []
    shutil.copytree(folders["policy"], pickled, ignore=shutil.ignore_patterns("*.safetensors"))

    def download(name: str, *, revision: str = "main", local_files_only: bool = False, **_) -> str:
        if local_files_only:
            raise FileNotFoundError
        revisions.append(revision)
        return str(pickled) if revision == "main" else folders["policy"]

    monkeypatch.setattr(hub, "unreachable", lambda: None)
    monkeypatch.setattr(hub, "snapshot_download", download)
    converter = importlib.import_module("transformers.safetensors_conversion")
    monkeypatch.setattr(converter, "get_conversion_pr_reference", lambda api, name: "refs/pr/3")
    assert str(hub.model_folder("some/name")) == folders["policy"] and revisions == [
        "main",
        "refs/pr/3",
    ]
    monkeypatch.setattr(converter, "get_conversion_pr_reference", lambda api, name: 1 / 0)
    with pytest.raises(
        ValueError,
        match=(
            r"^policy='some/name' has no safetensors weights on the hub \(\.bin files can run code"
            r" .*\.$"
        ),
    ):
        Policy.from_name("some/name")


@pytest.mark.parametrize("here", [True, False])
def test_a_data_set_that_is_downloaded_is_loaded_offline(asked, tmp_path, here):
    """Guards: two minutes of retries for what is here; libraries left offline afterwards."""
    if not here:
        with (
            pytest.raises(Unfit, match="the hub cannot be reached"),
            hub.dataset_access("some/name"),
        ):
            raise AssertionError("it went on")
    else:
        (tmp_path / "datasets--some--name").mkdir()
        with hub.dataset_access("some/name"):
            assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    assert len(asked) == 1 and not constants.HF_HUB_OFFLINE


def test_merge_takes_a_download(asked, folders, tmp_path):
    """Guards: the cache's own links taken for links that leave the folder."""
    downloaded(tmp_path, "some/base", folders["policy"])
    assert main(["merge", "some/base", folders["policy"], "--out", str(tmp_path / "out")]) == 0
    assert not asked and not [file for file in (tmp_path / "out").iterdir() if file.is_symlink()]
