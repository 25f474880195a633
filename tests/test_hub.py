"""The hub is asked once, only for what is neither here nor downloaded, and its silence is refused at once."""

from urllib.error import HTTPError, URLError

import pytest
from huggingface_hub import constants

from warp_lib import hub
from warp_lib.experiment import Experiment
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
    """Guards: half a minute of the hub library's retries before a report says that it has no network."""
    with pytest.raises(ValueError, match=rf"^{setting}='some/name' is neither a bundled name nor a local folder, and the hub cannot be"):
        Experiment(Settings.profile("smoke", **{setting: "some/name"}))
    assert len(asked) == 1


def test_an_answer_is_an_answer(asked, monkeypatch):
    """A hub that refuses the question is there."""

    def urlopen(request, timeout):
        raise HTTPError(constants.ENDPOINT, 403, "forbidden", None, None)

    monkeypatch.setattr(hub, "urlopen", urlopen)
    hub.check("policy", "some/name")


def test_nothing_is_asked_for_what_is_here(asked, tmp_path):
    """Local folders and downloads need no network."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "models--some--name").mkdir()
    hub.check("policy", str(tmp_path / "folder"))
    hub.check("policy", "some/name")
    assert not asked
    with pytest.raises(ValueError):
        hub.check("reviews", "some/name", "dataset")
