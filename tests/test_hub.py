"""The hub is asked once, only for what is neither here nor downloaded, and its silence is refused
at once.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError

import datasets
import pytest
import torch
from conftest import online, reviews
from huggingface_hub import constants
from local_hub import local_hub
from safetensors.torch import load_file
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from warp_lib.__main__ import main
from warp_lib.experiment import Experiment
from warp_lib.models import hub
from warp_lib.models.model_files import Unfit
from warp_lib.policy import Policy
from warp_lib.runs import paths
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


# The protocol, spoken by a hub on loopback


CARD = """---
configs:
- config_name: plain_text
  data_files:
  - {split: train, path: plain_text/train-*}
  - {split: test, path: plain_text/test-*}
  - {split: unsupervised, path: plain_text/unsupervised-*}
  default: true
---
"""
CHAIN = """
import sys
from warp_lib.experiment import Experiment
from warp_lib.report import checks
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings
from warp_lib.warp import RunId

small = dict(reward_layers=1, reward_trained=1, reward_steps=2, max_new_tokens=8, steps=1)
settings = Settings.profile("gpt2-imdb", test_prompts=4, test_samples=1, batch_size=4, **small)
experiment = Experiment(settings)
print(type(experiment.policy.model).__name__, len(experiment.reviews.train))
if sys.argv[1:]:
    rewards = experiment.rewards(Progress()) | checks.stock_classifier(experiment)
    accuracies = checks.accuracies(experiment, rewards, Progress())
    print(*accuracies["scorer"].unique())
    align = experiment.aligner(rewards["reward"], Progress())
    run = align(experiment.theta_sft, RunId(0, "warp", 1, 1))
    print(len(run.history), experiment.evaluate(run.weights, rewards).scores["reward"].shape)
"""


def pickled(folder: str, to: Path) -> Path:
    """A copy of a model's folder as before safetensors, its tied tensors in one memory."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(f"{folder}/model.safetensors")
    if "transformer.wte.weight" in tensors:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(tensors, to / "pytorch_model.bin")
    return to


@pytest.fixture(scope="module")
def imdb(folders, tmp_path_factory) -> dict[str, Path]:
    """The repositories of the profile gpt2-imdb: classes, files and columns as the hub has them;
    tiny and random.
    """
    base = tmp_path_factory.mktemp("hub")
    columns = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    (base / "imdb" / "plain_text").mkdir(parents=True)
    (base / "imdb" / "README.md").write_text(CARD)
    for split, labels in {"train": (0, 1), "test": (0, 1), "unsupervised": (-1, -1)}.items():
        rows = [
            {"text": f"{split}. {text}", "label": labels[label]} for text, label in reviews(300)
        ]
        table = datasets.Dataset.from_list(rows, features=columns)
        table.to_parquet(base / "imdb" / "plain_text" / f"{split}-00000-of-00001.parquet")
    config = DistilBertConfig.from_pretrained(
        folders["encoder"], num_labels=2, id2label={0: "NEGATIVE", 1: "POSITIVE"}
    )
    shutil.copytree(folders["encoder"], base / "classifier")
    DistilBertForSequenceClassification(config).save_pretrained(base / "classifier")
    return {
        "models/lvwerra/gpt2-imdb": pickled(folders["policy"], base / "policy"),
        "models/lvwerra/distilbert-imdb": base / "classifier",
        "models/distilbert/distilbert-base-cased": Path(folders["encoder"]),
        "datasets/stanfordnlp/imdb": base / "imdb",
    }


def in_a_process(address: str, home: Path, *words: str, script: str = CHAIN) -> list[str]:
    """Lines that a script prints, in a process whose hub is at this address."""
    around = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    around |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "WARP_RUNS": str(home / "runs")}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=around,
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_the_students_models_by_name(imdb, tmp_path):
    """The profile gpt2-imdb from an empty cache, and again once the hub has gone. Guards: reviews
    of another split than `train`; a model converted twice, or without a word.
    """
    with local_hub(imdb) as hub:
        said = in_a_process(hub.address, tmp_path, "train")
        assert said[:3] == [
            "GPT2LMHeadModel 276",
            "reward judge_tfidf distilbert-imdb",
            "1 torch.Size([4, 1])",
        ]
        once = "lvwerra/gpt2-imdb has only pytorch_model.bin: its tensors are rewritten as"
        assert sum(line.startswith(once) for line in said) == 1
        fetched = [line for line in hub.asked if line.startswith("GET") and "resolve" in line]
        assert not [line for line in fetched if line.endswith((".py", "training_args.bin"))]
    assert in_a_process(hub.address, tmp_path)[0] == said[0]


def test_pickles_give_their_tensors_and_nothing_else(asked, folders, tmp_path, monkeypatch, capfd):
    """In one file or several: the policy is the one that safetensors hold. Guards: a pickle that
    runs what it names; tied tensors lost.
    """
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    plain = Policy.from_name(folders["policy"]).weights()
    whole = pickled(folders["policy"], tmp_path / "whole")
    shutil.copytree(whole, parts := tmp_path / "parts")
    tensors, places = torch.load(parts / "pytorch_model.bin", weights_only=True), {}
    for k, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"pytorch_model-0000{k}-of-00002.bin"
        torch.save({name: tensors[name] for name in names}, parts / file)
        places |= dict.fromkeys(names, file)
    (parts / "pytorch_model.bin").unlink()
    (parts / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    for name, folder in {"some/whole": whole, "some/parts": parts}.items():
        downloaded(tmp_path, name, folder)
        for _ in range(2):
            weights = Policy.from_name(name).weights()
            assert all(torch.equal(w, plain[n]) for n, w in weights.items()) and not asked
    assert capfd.readouterr().err.count("are rewritten as safetensors, once.") == 2

    shutil.copytree(whole, evil := tmp_path / "evil")
    torch.save({"weight": RunsCode(tmp_path / "was run")}, evil / "pytorch_model.bin")
    downloaded(tmp_path, "some/evil", evil)
    with pytest.raises(
        ValueError, match=r"^policy='some/evil' has a pytorch_model\.bin that holds"
    ):
        Policy.from_name("some/evil")
    assert not (tmp_path / "was run").exists()


class RunsCode:
    """Opened by Python's own unpickler, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_connection_that_stalls_is_given_up(folders, tmp_path, monkeypatch):
    """And the download goes on once there is more. Guards: the hub library's own patience, a
    minute.
    """
    assert 6 * hub.STALLED + 5 < 30  # six times, with a second between them
    monkeypatch.setattr(hub, "STALLED", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with local_hub({"models/some/name": Path(folders["policy"])}) as served:
        online(monkeypatch, served.address)
        served.stalls.add("model.safetensors")
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"^policy='some/name' was not downloaded completely"):
            Policy.from_name("some/name")
        assert time.monotonic() - began < 10
        served.stalls.clear()
        assert Policy.from_name("some/name").eos_ids
        assert constants.HF_HUB_DOWNLOAD_TIMEOUT == constants.DEFAULT_DOWNLOAD_TIMEOUT


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
