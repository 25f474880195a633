"""The memory of runs: computed once under a key made of the inputs, whole or not there; a killed
training goes on bit for bit.
"""

import errno
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from test_reward import save_encoder, toy_reviews
from torch import nn

import warp_lib.aligner as aligner_module
import warp_lib.evaluate as evaluate_module
import warp_lib.models.scorers as scorers_module
import warp_lib.reinforce as reinforce_module
import warp_lib.reward as reward_module
from warp_lib.fast import machine
from warp_lib.models.scorers import untrained
from warp_lib.policy import Policy
from warp_lib.runs import checkpoint, paths
from warp_lib.runs import store as memory
from warp_lib.runs.checkpoint import Checkpoint, weights_of
from warp_lib.runs.errors import Explained
from warp_lib.runs.progress import Progress, Stopped
from warp_lib.runs.store import NotStored, digest, memoise, only_stored, save_tensors, write_json
from warp_lib.settings import Settings
from warp_lib.warp import RunId

STEPS = 7
FIRST = RunId(0, "warp", 1, 1)
PROMPTS = [[1, 2], [4, 5, 6], [7], [8, 9, 10], [11, 0], [2, 2, 2]]
TINY = Settings.profile(
    "smoke", batch_size=4, max_new_tokens=5, learning_rate=0.03, mu=0.2, beta=0.3
)
# like spawn, nothing is inherited; but the libraries are imported once for all
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["warp_lib.experiment"])


class Make:
    """A computation that counts how often it ran."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder: Path) -> dict:
        self.calls += 1
        save_tensors(
            folder / "model.safetensors",
            {"w": torch.arange(64.0), "b": torch.ones(3, dtype=torch.bfloat16)},
        )
        return {"pair": (1, 2), 3: "three", "history": [{"reward": 0.125}]}


class Reward:
    """A reward that reads the words: the higher their numbers, the better."""

    identity = "the words' numbers"

    def __call__(self, texts) -> torch.Tensor:
        return torch.tensor([sum(int(word[1:]) for word in text.split()) / 20 for text in texts])


class Watch(Progress):
    """Notes where each loop began, and asks to stop after so many steps."""

    def __init__(self, stop_after: int | None = None):
        super().__init__()
        self.left, self.began = stop_after, []

    def begin(self, title: str, done: int, total: int) -> None:
        self.began.append(done)

    def advance(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.stop.set()


class Die(Progress):
    """Kills the process within the step that follows so many whole ones, after its weights have
    moved.
    """

    def __init__(self, whole_steps: int):
        super().__init__()
        self.left = whole_steps

    def log(self, **numbers: float) -> None:
        self.left -= 1
        if self.left < 0:
            os._exit(9)


def entries(folder: Path) -> list[Path]:
    """What lies in the store besides locks."""
    return sorted(f for f in (folder / "store").iterdir() if f.suffix != ".lock")


def in_process(target, *args):
    """Start `target` in a process of its own, on as many threads as here."""
    process = PROCESSES.Process(
        target=_with_store, args=(target, args, paths.RUNS, torch.get_num_threads())
    )
    process.start()
    return process


def _with_store(target, args, runs: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    paths.RUNS = runs
    target(*args)


# --- Once -----------------------------------------------------------------------------------------


def test_computes_once(store):
    """The second call computes nothing, and returns what the first did: record and tensors."""
    make = Make()
    first, second = (memoise("thing", {"a": 1}, make) for _ in range(2))
    assert make.calls == 1
    assert first == second and first.record == {
        "pair": [1, 2],
        "3": "three",
        "history": [{"reward": 0.125}],
    }
    assert all(
        torch.equal(first.tensors("model")[n], t) for n, t in second.tensors("model").items()
    )
    assert second.tensors("model")["b"].dtype == torch.bfloat16
    assert [e.name for e in entries(store)] == [first.folder.name]
    assert sorted(f.name for f in first.folder.iterdir()) == ["model.safetensors", "record.json"]


def test_another_input_another_entry(store):
    """Another input or another kind is another computation; the order of the inputs is nothing."""
    make = Make()
    for kind, inputs in [
        ("a", {"x": 1, "y": 2}),
        ("a", {"x": 1, "y": 3}),
        ("a", {"x": 1}),
        ("b", {"x": 1}),
        ("a", {"y": 2, "x": 1}),
    ]:
        memoise(kind, inputs, make)
    assert make.calls == len(entries(store)) == 4


MACHINE = [
    (memory, "FORMAT", 10_000),
    (torch, "__version__", "0.1"),
    (machine, "device_name", lambda: "another device"),
    (machine, "fast_dtype", lambda: torch.float16),
]


@pytest.mark.parametrize("owner, name, value", MACHINE, ids=[name for _, name, _ in MACHINE])
def test_another_machine_another_entry(store, monkeypatch, owner, name, value):
    """Format, torch version, device and dtype are part of every key, and stand in the record."""
    make = Make()
    memoise("thing", {}, make)
    monkeypatch.setattr(owner, name, value)
    entry = memoise("thing", {}, make)
    assert make.calls == 2
    assert {"format", "torch", "device", "dtype"} <= json.loads(
        (entry.folder / "record.json").read_text()
    )["inputs"].keys()


def test_other_threads_find_it(store, monkeypatch):
    """What one number of threads has stored is not made again by another; which it was stands in
    the record.
    """
    make, before = Make(), torch.get_num_threads()
    memoise("thing", {}, make)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    entry = memoise("thing", {}, make)
    assert (
        make.calls == 1
        and json.loads((entry.folder / "record.json").read_text())["threads"] == before
    )


class Looked(Exception):
    """Instead of a computation: its key."""


def key(module, call, **arguments) -> str:
    """The key under which `call` would look for its result."""

    def look(kind, inputs, make):
        raise Looked(kind, digest(inputs))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Looked) as looked:
        patch.setattr(module, "memoise", look)
        call(**arguments)
    return looked.value.args


def nudged(weights):
    """The same weights but for the last bit of one number."""
    name = list(weights)[-1]
    other = {n: w.clone() for n, w in weights.items()}
    other[name].view(-1)[0] = torch.nextafter(other[name].view(-1)[0], torch.tensor(9.0))
    return other


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory) -> str:
    """A tiny policy, saved."""
    # not above: the child processes import this file, and conftest makes a folder
    from conftest import tiny_policy

    folder = tmp_path_factory.mktemp("policy")
    policy = tiny_policy()
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> str:
    """A tiny encoder, saved."""
    return save_encoder(tmp_path_factory.mktemp("encoder"))


def test_run_key(policy_folder):
    """Every input of a run is in its key; what WARP and the evaluation do with runs is not, so that
    a changed η trains nothing.
    """
    policy, other = Policy.from_name(policy_folder), Policy.from_name(policy_folder)
    other.model.config.layer_norm_epsilon *= 10
    theta = policy.weights()
    base = dict(
        theta_init=theta,
        run_id=FIRST,
        policy=policy,
        theta_sft=theta,
        prompts=PROMPTS,
        reward=Reward(),
        settings=TINY,
        steps=4,
        keep_every=2,
        progress=Progress(),
    )
    rewarded = Reward()
    rewarded.identity = "another"
    moved = {
        "max_new_tokens": 6,
        "temperature": 0.8,
        "batch_size": 8,
        "completions_per_prompt": 2,
        "baseline": "none",
        "learning_rate": 0.02,
        "beta": 0.4,
        "mu": 0.1,
    }
    changes = [
        dict(theta_init=nudged(theta)),
        dict(theta_sft=nudged(theta)),
        dict(run_id=RunId(0, "warp", 1, 2)),
        dict(run_id=RunId(1, "warp", 1, 1)),
        dict(prompts=PROMPTS[:-1]),
        dict(prompts=PROMPTS[::-1]),
        dict(reward=rewarded),
        dict(steps=5),
        dict(keep_every=None),
        dict(policy=other),
        *(dict(settings=Settings.profile(**TINY.asdict() | {n: v})) for n, v in moved.items()),
    ]
    of = partial(key, aligner_module, reinforce_module.reinforce)
    keys = [of(**base), *(of(**base | change) for change in changes)]
    assert len(set(keys)) == 1 + len(changes)
    elsewhere = dict(
        name="x",
        iterations=5,
        runs=5,
        eta=0.1,
        merge="lerp",
        slerp_per="model",
        test_prompts=9,
        front_points=9,
        seed=5,
    )
    assert of(**base | dict(settings=Settings.profile(**TINY.asdict() | elsewhere))) == keys[0]


def test_another_aligner_is_another_run(policy_folder):
    """Guards: a new aligner, whose inputs are those of an old one, that is given its weights."""
    policy = Policy.from_name(policy_folder)

    def first(t, learner, anchor): ...

    def second(t, learner, anchor): ...

    def of(loss) -> str:
        return key(
            aligner_module,
            aligner_module.train,
            loss=loss,
            inputs={},
            theta_init=policy.weights(),
            run_id=FIRST,
            policy=policy,
            settings=TINY,
            steps=4,
            keep_every=None,
            progress=Progress(),
        )

    assert of(first) == of(first) != of(second)


def test_evaluation_key(policy_folder):
    """Every input of an evaluation is in its key."""
    policy, sft, moved = (Policy.from_name(policy_folder) for _ in range(3))
    theta = policy.weights()
    moved.load(nudged(theta))
    other = Reward()
    other.identity = "another"
    rewards = {"reward": Reward(), "judge": other}
    base = dict(
        theta=theta,
        policy=policy,
        sft=sft,
        prompts=PROMPTS,
        split="test",
        samples=2,
        new=4,
        temperature=0.7,
        rewards=rewards,
    )
    changes = [
        dict(theta=nudged(theta)),
        dict(sft=moved),
        dict(prompts=PROMPTS[1:]),
        dict(samples=3),
        dict(new=5),
        dict(temperature=0.8),
        dict(rewards={"reward": other, "judge": other}),
        dict(rewards={"reward": Reward()}),
        dict(split="validation"),
        dict(precision="split"),
    ]
    of = partial(key, evaluate_module, evaluate_module.evaluate)
    assert len({of(**base), *(of(**base | change) for change in changes)}) == 1 + len(changes)


def test_reward_key(encoder_folder, tmp_path, monkeypatch):
    """Every input of the reward model's training is in its key, the constants of its code among
    them.
    """
    reviews = toy_reviews(40)
    relabelled = toy_reviews(40).map(lambda row: {"label": 1 - row["label"]})
    base = dict(
        encoder=encoder_folder,
        layers=2,
        trained=2,
        reviews=reviews,
        steps=3,
        learning_rate=1e-3,
        seed=("reward",),
        progress=Progress(),
    )
    changes = [
        dict(encoder=save_encoder(tmp_path, seed=1)),
        dict(layers=1),
        dict(trained=1),
        dict(reviews=reviews.select(range(39))),
        dict(reviews=relabelled),
        dict(steps=4),
        dict(learning_rate=2e-3),
        dict(seed=("judge",)),
    ]
    of = partial(key, reward_module, reward_module.train_encoder_scorer)
    keys = [of(**base), *(of(**base | change) for change in changes)]
    for name, value in [
        ("CROPPED", 8),
        ("WHOLE", 2),
        ("WORDS", (24, 100)),
        ("WHOLE_EVERY", 5),
        ("LONGEST", 16),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(scorers_module if name == "LONGEST" else reward_module, name, value)
            keys.append(of(**base))
    assert len(set(keys)) == len(changes) + 6


def _reworded(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(
        file.read_text().replace('"good"', '"x"').replace('"bad"', '"good"').replace('"x"', '"bad"')
    )


def _more_heads(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))


@pytest.mark.parametrize("change", [_reworded, _more_heads])
def test_reward_key_sees_tokenizer_and_architecture(tmp_path, change):
    """The same weights that read other words, or split their width otherwise, are another reward
    model.
    """
    for name in ("a", "b"):
        save_encoder(tmp_path / name)
    change(tmp_path / "b")
    text = ["good word1 word2 great bad bad"]
    a, b = (untrained(str(tmp_path / name), 2, ("reward",)) for name in ("a", "b"))
    assert not torch.equal(a(text), b(text))
    assert a.identity != b.identity


# --- Whole or not there ---------------------------------------------------------------------------


def flip(file: Path, at: int = -1) -> None:
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _drop(folder: Path, *names: str) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(
        json.dumps({k: v for k, v in record.items() if k not in names})
    )


DAMAGE = {
    "a flipped bit in the tensors": lambda folder: flip(folder / "model.safetensors"),
    "a flipped bit in the header": lambda folder: flip(folder / "model.safetensors", 12),
    "a truncated file": _cut,
    "an empty file": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "a missing file": lambda folder: (folder / "model.safetensors").unlink(),
    "no record": lambda folder: (folder / "record.json").unlink(),
    "an empty record": lambda folder: (folder / "record.json").write_text(""),
    "half a record": (
        lambda folder: (folder / "record.json").write_text(
            (folder / "record.json").read_text()[:99]
        )
    ),
    "a record that is no text": (
        lambda folder: (folder / "record.json").write_bytes(b"\xff\xfe\x00")
    ),
    "a record of nothing": lambda folder: (folder / "record.json").write_text("{}"),
    "a record that is a list": lambda folder: (folder / "record.json").write_text("[]"),
    "a record without result": lambda folder: _drop(folder, "result"),
    "a record without digests": lambda folder: _drop(folder, "files"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_redone(store, damage):
    """A damaged entry is computed anew, once, and an intact one beside it is left alone."""
    make, beside = Make(), Make()
    good = memoise("thing", {}, make)
    memoise("beside", {}, beside)
    damage(good.folder)
    again = memoise("thing", {}, make)
    assert make.calls == 2
    assert again == good and torch.equal(again.tensors("model")["w"], torch.arange(64.0))
    memoise("thing", {}, make)
    memoise("beside", {}, beside)
    assert (make.calls, beside.calls) == (2, 1)


def test_a_changed_number_in_the_record_is_noticed(store):
    """A record that still is JSON but not what was written is redone."""
    make = Make()
    file = memoise("thing", {}, make).folder / "record.json"
    file.write_text(file.read_text().replace("0.125", "0.625"))
    assert memoise("thing", {}, make).record["history"] == [{"reward": 0.125}]


def test_failure_leaves_no_entry(store):
    """After an exception there is no entry; what the computation had kept is there for the next
    attempt, and in its folder only.
    """
    seen = []

    def make(folder: Path) -> dict:
        seen.append(sorted(f.name for f in folder.iterdir()))
        if len(seen) == 1:
            save_tensors(folder / "half.safetensors", {"w": torch.ones(2)})
            raise RuntimeError("the power went")
        (folder / "half.safetensors").rename(folder / "whole.safetensors")
        return {}

    with pytest.raises(RuntimeError):
        memoise("thing", {}, make)
    assert [e.suffix for e in entries(store)] == [".part"]
    entry = memoise("thing", {}, make)
    assert seen == [[], ["half.safetensors"]] and entries(store) == [entry.folder]
    assert torch.equal(entry.tensors("whole")["w"], torch.ones(2))


def test_entries_appear_whole(store, monkeypatch):
    """Nothing stands under an entry's name until one rename puts all of it there, digests
    included.
    """
    rename, renamed = Path.rename, []

    def make(folder: Path) -> dict:
        assert entries(store) == [folder] and folder.suffix == ".part"
        return Make()(folder)

    def watched(self: Path, target: Path):
        assert not target.exists() and memory._intact(self)["result"]["3"] == "three"
        renamed.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watched)
    assert renamed == [memoise("thing", {}, make).folder]


@pytest.mark.parametrize("file, write", [("a.json", write_json), ("a.safetensors", save_tensors)])
def test_files_appear_whole(tmp_path, monkeypatch, file, write):
    """A write that dies in the middle leaves the old file as it was."""
    content = {"w": torch.ones(4)} if write is save_tensors else {"w": 1}
    write(tmp_path / file, content)
    before = (tmp_path / file).read_bytes()

    def half(*args, **kwargs):
        next(a for a in args if isinstance(a, Path)).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(memory, "save_file", half)
    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError):
        write(tmp_path / file, content)
    assert (tmp_path / file).read_bytes() == before


def test_killed_before_the_rename(store, monkeypatch):
    """A process killed between the record and the rename costs one computation, not two."""
    make, rename = Make(), Path.rename
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
        memoise("thing", {}, make)
    assert Path.rename is rename
    memoise("thing", {}, make)
    memoise("thing", {}, make)
    assert make.calls <= 2


def _slowly(meet, counter: Path) -> None:
    """Compute an entry that takes a while, at the same time as another process."""

    def make(folder: Path) -> dict:
        with counter.open("a") as file:
            file.write("x")
        time.sleep(0.5)
        return Make()(folder)

    meet.wait(60)
    assert memoise("slow", {}, make).record["3"] == "three"


def test_two_processes_compute_once(store, tmp_path):
    """Of two processes that ask for the same result at the same time, one computes and the other
    waits for it.
    """
    meet = PROCESSES.Barrier(2)
    processes = [in_process(_slowly, meet, tmp_path / "counter") for _ in range(2)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "counter").read_text() == "x" and len(entries(store)) == 1


def test_size_line(store):
    """How many results are stored, and how much they take, unfinished ones included."""
    for k in range(3):
        memoise("thing", {"k": k}, Make())
    (store / "store" / "x.part").mkdir()
    (store / "store" / "x.part" / "checkpoint.safetensors").write_bytes(b"0" * 5_000_000)
    assert re.fullmatch(
        r".* holds 3 stored results in 5 MB; `make clean` frees it\.", paths.size_line()
    )


# --- Digests --------------------------------------------------------------------------------------


def test_digest_sees_everything():
    """Values, shape, dtype, names and structure all count."""
    ones = torch.ones(4)
    parts = [
        (ones,),
        (nudged({"w": ones})["w"],),
        (ones.view(2, 2),),
        (ones.view(4, 1),),
        (torch.ones(4, dtype=torch.int32),),
        (torch.tensor([1.0] * 4).view(torch.int32),),
        (ones, ones),
        (torch.ones(8),),
        (-ones,),
        (torch.ones(0),),
        (torch.tensor(1.0),),
        ({"a": ones},),
        ({"b": ones},),
        ({"a": ones, "b": ones},),
        ({"a": ones, "b": -ones},),
        ({"a": -ones, "b": ones},),
        ({"a": 1},),
        ({"a": 1.0},),
        ({"a": "1"},),
        ("a",),
        (["a"],),
        ([1, 2],),
        ([2, 1],),
        (None,),
        (True,),
        ({},),
        (torch.ones(4, dtype=torch.bfloat16),),
        (torch.ones(4, dtype=torch.float16),),
        (torch.tensor([True, False]),),
        (torch.tensor([1, 0], dtype=torch.uint8),),
    ]
    digests = [digest(*p) for p in parts]
    assert len(set(digests)) == len(parts) and all(re.fullmatch("[0-9a-f]{24}", d) for d in digests)


def test_digest_sees_nothing_else():
    """Memory layout, gradients and the order of names do not count."""
    square = torch.arange(6.0).view(2, 3)
    same = [
        square,
        square.t().contiguous().t(),
        nn.Parameter(square),
        torch.arange(12.0).view(2, 6)[:, :3] + torch.tensor([[0.0], [-3.0]]),
    ]
    assert (
        {digest(t) for t in same}
        == {digest(square)}
        != {digest(square.t())}
        == {digest(square.t().contiguous())}
    )
    assert digest({"a": square, "b": square}) == digest({"b": square, "a": square})
    assert digest({"x": 1, "y": [2, "ü"]}) == digest({"y": [2, "ü"], "x": 1})


def test_digest_keeps_parts_apart():
    """A reward's mean and sd must not run into each other."""
    assert digest(1, 23) != digest(12, 3)


def test_no_pickle(store, policy_folder):
    """Nothing in the package, the benchmarks or the notebooks can unpickle more than tensors, which
    is done in one place; and a training leaves safetensors and JSON only.
    """
    able = (
        r"pickle|torch\.(load|save)\(|joblib|\bdill\b|shelve|marshal|np\.load|numpy\.load"
        r"|weights_only"
    )
    sources = [
        *(paths.ROOT / "warp_lib").rglob("*.py"),
        *(paths.ROOT / "benchmarks").glob("*.py"),
        *paths.ROOT.glob("notebooks/*.ipynb"),
    ]
    texts = {file.name: file.read_text() for file in sources}
    only = 'torch.load(file, "cpu", weights_only=True)'
    assert texts["converted.py"].count(only) == 1
    texts["converted.py"] = texts["converted.py"].replace(only, "")
    assert len(texts) > 15 and not [name for name, text in texts.items() if re.search(able, text)]
    train_run(policy_folder, Progress())
    assert {f.suffix for f in store.rglob("*") if f.is_file()} == {".safetensors", ".json", ".lock"}


# --- Resuming -------------------------------------------------------------------------------------


def train_run(folder: str, progress: Progress, reward: Reward | None = None) -> dict:
    """A short REINFORCE run, its weights along the way kept: everything that must come out the
    same.
    """
    policy = Policy.from_name(folder)
    sft = policy.weights()
    run = reinforce_module.reinforce(
        {n: 1.1 * w for n, w in sft.items()},
        FIRST,
        policy=policy,
        theta_sft=sft,
        prompts=PROMPTS,
        reward=reward or Reward(),
        settings=TINY,
        steps=STEPS,
        keep_every=2,
        progress=progress,
    )
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]
    return {"weights": run.weights, "history": history} | {
        f"after {t}": weights for t, weights in run.checkpoints.items()
    }


def train_reward(folder: str, progress: Progress) -> dict:
    """A short training of a reward model: everything that must come out the same."""
    scorer = reward_module.train_encoder_scorer(
        folder,
        1,
        1,
        toy_reviews(40),
        steps=STEPS,
        learning_rate=0.01,
        seed=("reward",),
        progress=progress,
    )
    return {"weights": weights_of(scorer.model), "history": scorer.history}


def _killed(train, folder: str, whole_steps: int) -> None:
    checkpoint.SECONDS = 0
    train(folder, Die(whole_steps))


TRAININGS = {"run": (train_run, "policy_folder"), "reward": (train_reward, "encoder_folder")}


@pytest.fixture(params=TRAININGS)
def training(request, tmp_path, monkeypatch):
    """A training (progress → what must come out the same), its arguments for another process, and
    what comes out uninterrupted.
    """
    train, folder = TRAININGS[request.param]
    folder = request.getfixturevalue(folder)
    with monkeypatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path / "uninterrupted")
        whole = train(folder, Progress())
    return partial(train, folder), (train, folder), whole


def assert_same(resumed: dict, whole: dict) -> None:
    """Bit for bit."""
    assert resumed.keys() == whole.keys()
    assert resumed["history"] == whole["history"] and len(whole["history"]) == STEPS
    for part in whole.keys() - {"history"}:
        assert resumed[part].keys() == whole[part].keys()
        assert not [n for n, w in whole[part].items() if not torch.equal(w, resumed[part][n])], part


def assert_tidy(folder: Path) -> None:
    """Nothing of the training's own state is left."""
    (entry,) = entries(folder)
    assert {f.name for f in entry.iterdir()} <= {
        "policy.safetensors",
        "model.safetensors",
        "record.json",
    } | {f"step-{t}.safetensors" for t in range(2, STEPS, 2)}


def test_stopped_and_resumed(store, training):
    """Stopped twice, after random numbers of steps, a training goes on where it stood and ends as
    if it had not been.
    """
    train, _, whole = training
    first, second = sorted(random.sample(range(1, STEPS), 2))
    print(f"stopped after {first} and {second} steps")
    began = []
    for stop_after in (first, second - first):
        watch = Watch(stop_after)
        with pytest.raises(Stopped):
            train(watch)
        began += watch.began
    watch = Watch()
    assert_same(train(watch), whole)
    assert began + watch.began == [0, first, second]
    assert_tidy(store)
    assert_same(train(watch := Watch()), whole)
    assert watch.began == []  # taken from the store


class StopWithin(Watch):
    """Asks to stop when it has been asked so many times: within a step, between two tokens or
    before the optimiser.
    """

    def __init__(self, checks: int):
        super().__init__()
        self.checks, self.logged = checks, 0

    def check(self) -> None:
        self.checks -= 1
        if self.checks == 0:
            self.stop.set()
        super().check()

    def log(self, **numbers: float) -> None:
        self.logged += 1


def test_stopped_within_a_step(store, policy_folder, tmp_path, monkeypatch):
    """Stopped before a step, between each two of its tokens and before it learns: that step alone
    is lost, and the end is the same.
    """
    with monkeypatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path / "uninterrupted")
        whole = train_run(policy_folder, Progress())
    sampled = 1 + TINY.max_new_tokens  # asked before the step and before each of its tokens
    a_step = sampled + 4  # and around the scoring, and before the optimiser
    done = 0
    for checks in (2 * a_step + 1, 3, *range(sampled, a_step + 1)):
        watch = StopWithin(checks)
        with pytest.raises(Stopped):
            train_run(policy_folder, watch)
        assert watch.began == [done] and watch.logged == (checks - 1) // a_step
        done += watch.logged
    assert done == 2
    assert_same(train_run(policy_folder, watch := Watch()), whole)
    assert watch.began == [done]
    assert_tidy(store)


def test_killed_and_resumed(store, training):
    """Killed within a random step, a training goes on from its last checkpoint and ends as if it
    had not been.
    """
    train, arguments, whole = training
    whole_steps = random.randrange(1, STEPS)
    print(f"killed after {whole_steps} whole steps")
    process = in_process(_killed, *arguments, whole_steps)
    process.join(120)
    assert process.exitcode == 9
    (part,) = entries(store)
    assert part.suffix == ".part" and (part / "checkpoint.safetensors").exists()
    assert_same(train(watch := Watch()), whole)
    assert watch.began == [whole_steps]
    assert_tidy(store)


def test_damaged_checkpoint_starts_over(store, training):
    """A checkpoint with one wrong bit is not used: the training begins anew and ends the same."""
    train, _, whole = training
    with pytest.raises(Stopped):
        train(Watch(random.randrange(1, STEPS)))
    (file,) = store.rglob("checkpoint.safetensors")
    at = random.randrange(file.stat().st_size)
    print(f"flipped a bit of byte {at}")
    flip(file, at)
    assert_same(train(watch := Watch()), whole)
    assert watch.began == [0]
    assert_tidy(store)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["a flipped bit", "a missing file"])
def test_damaged_snapshot_is_redone(store, policy_folder, damage):
    """Weights kept along the way that were damaged while the training stood still are never used,
    nor is their absence final.
    """
    with pytest.raises(Stopped):
        train_run(policy_folder, Watch(3))
    damage(next(store.rglob("step-2.safetensors")))
    resumed = train_run(policy_folder, Progress())
    shutil.rmtree(store / "store")
    assert_same(resumed, train_run(policy_folder, Progress()))


def _trained(folder: Path, steps: int) -> tuple[Checkpoint, nn.Module]:
    """A two-number model and its checkpoint after so many more steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(2, 1, bias=False)
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)
    saved = Checkpoint(folder, {"m": model}, [optimiser])
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.tensor([1.0, 2.0])).sum().backward()
        optimiser.step()
        saved.history.append({"loss": 0.5})
    return saved, model


def test_no_damage_to_a_checkpoint_is_believed(tmp_path):
    """With any one byte changed, or cut anywhere, a checkpoint is refused without an error and
    leaves everything at its beginning.
    """
    saved, model = _trained(tmp_path, 3)
    start = _trained(tmp_path, 0)[1].weight.clone()
    saved.save()
    file = tmp_path / "checkpoint.safetensors"
    resumed, again = _trained(tmp_path, 0)
    assert (
        len(resumed.history) == 3
        and torch.equal(again.weight, model.weight)
        and not torch.equal(start, model.weight)
    )
    content = file.read_bytes()
    changed = [
        content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :] for k in range(len(content))
    ]
    for damaged in changed + [content[:k] for k in range(0, len(content), 7)]:
        file.write_bytes(damaged)
        resumed, again = _trained(tmp_path, 0)
        assert resumed.history == [] and torch.equal(again.weight, start)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_checkpoint_that_cannot_be_read_is_left_alone(store, policy_folder, monkeypatch, number):
    """Guards: a training that starts over, and writes over its checkpoint, because the disk, or a
    permission, refused for a moment.
    """
    with pytest.raises(Stopped):
        train_run(policy_folder, Watch(2))
    (file,) = store.rglob("checkpoint.safetensors")
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint, "load_file", lambda _: _raise(OSError(number, os.strerror(number)))
        )
        with pytest.raises(Explained, match=f"^{file} cannot be read: {os.strerror(number)}"):
            train_run(policy_folder, Progress())
    assert file.read_bytes() == before
    train_run(policy_folder, watch := Watch())
    assert watch.began == [2]


def test_checkpoint_once_a_minute(tmp_path, monkeypatch):
    """A checkpoint is written when the last one is a minute old, not at every step."""
    saved, clock, saves = _trained(tmp_path, 0)[0], [0.0], []
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    saved.saved = 0.0
    save = saved.save
    monkeypatch.setattr(saved, "save", lambda: (saves.append(clock[0]), save()))
    for step in saved.steps(Progress(), 10, "steps"):
        clock[0] = 25.0 * (step + 1)
    assert saves == [75.0, 150.0, 225.0]


def test_half_written_checkpoint_goes_too(store, policy_folder):
    """Killed while it saved, a training leaves no optimiser state behind when it is done."""
    with pytest.raises(Stopped):
        train_run(policy_folder, Watch(2))
    (file,) = store.rglob("checkpoint.safetensors")
    file.with_name(f"{file.name}.tmp").write_bytes(file.read_bytes()[:100])
    train_run(policy_folder, Progress())
    assert_tidy(store)


# --- Nothing lost, nothing silently wrong ---------------------------------------------------------


class Spoilt(Reward):
    """A reward that gives `value` to one completion at its fourth call."""

    def __init__(self, value: float):
        self.value, self.calls = value, 0

    def __call__(self, texts) -> torch.Tensor:
        self.calls += 1
        scores = super().__call__(texts)
        if self.calls == 4:
            scores[1] = self.value
        return scores


@pytest.mark.parametrize(
    "value, cause",
    [
        (math.nan, "reward is nan"),
        (math.inf, "reward is inf"),
        (1e38, "(loss is|gradient overflows)"),
    ],
)
def test_a_number_that_is_not_finite_stops_a_run(
    store, policy_folder, tmp_path, monkeypatch, value, cause
):
    """Guards: weights that are all NaN, kept as finished; the steps before lost. With the reward
    mended it ends as if nothing had been.
    """
    with monkeypatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path / "uninterrupted")
        whole = train_run(policy_folder, Progress())
    with pytest.raises(
        checkpoint.NotFinite, match=f"^warp, i = 1, m = 1 stopped before step 4: its {cause}"
    ) as said:
        train_run(policy_folder, Progress(), Spoilt(value))
    assert "\n" not in str(said.value) and "3 steps before it are kept" in str(said.value)
    assert [entry.suffix for entry in entries(store)] == [".part"]
    assert_same(train_run(policy_folder, watch := Watch()), whole)
    assert watch.began == [3]


def test_a_reward_model_that_diverges_is_not_kept(store, encoder_folder, monkeypatch):
    monkeypatch.setattr(reward_module.F, "logsigmoid", lambda margins: margins * math.nan)
    with pytest.raises(
        checkpoint.NotFinite, match="^reward · 1 layers stopped before step 1: its loss is nan"
    ):
        train_reward(encoder_folder, Progress())
    assert [entry.suffix for entry in entries(store)] == [".part"]


@pytest.mark.parametrize("scores", [[3.0, 3.0, 3.0], [1.0, math.nan, 2.0], [1.0, math.inf, 2.0]])
def test_a_reward_that_tells_nothing_apart_is_refused(store, scores):
    """Guards: r̃ that is NaN for every text, from a model that gives one score to all."""

    class Raw:
        identity = "flat"

        def __call__(self, texts):
            return torch.tensor(scores)

    for _ in range(2):  # nor is it kept
        with pytest.raises(ValueError, match="^r̃ cannot be standardised: "):
            reward_module.Reward.standardised(Raw(), ["a", "b", "c"])


def test_damage_is_moved_aside_and_said(store, capsys):
    """Guards: what a person might still want removed without a word."""
    make = Make()
    for number in range(2):
        folder = memoise("thing", {}, make).folder
        _cut(folder)
        memoise("thing", {}, make)
        (aside,) = (f for f in entries(store) if f.name == f"{folder.name}.damaged{number or ''}")
        assert aside.name in capsys.readouterr().err and (aside / "record.json").exists()
    assert make.calls == 3 and len(list(memory.records("thing"))) == 1


@pytest.mark.parametrize("name", ["record.json", "model.safetensors"])
def test_what_cannot_be_read_is_left_alone(store, monkeypatch, name):
    """Guards: hours of training deleted because the disk, or a permission, refused for a moment."""
    make = Make()
    folder = memoise("thing", {}, make).folder
    refused = OSError(errno.EIO, os.strerror(errno.EIO))
    for method in ("open", "read_text"):
        usual = getattr(Path, method)

        def wrapped(self, *args, usual=usual, **kwargs):
            return usual(self, *args, **kwargs) if self.name != name else _raise(refused)

        monkeypatch.setattr(Path, method, wrapped)
    with pytest.raises(ValueError, match=f"^{folder} cannot be read: Input/output error"):
        memoise("thing", {}, make)
    monkeypatch.undo()
    monkeypatch.setattr(paths, "RUNS", store)
    memoise("thing", {}, make)
    assert make.calls == 1


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize("refused", ["mkdir", "replace", "rename"])
def test_writing_is_tried_before_computing(store, monkeypatch, refused):
    """Guards: hours of training that cannot be put into the store, each time anew."""
    make = Make()
    if refused == "rename":  # a damaged entry that cannot be moved
        _cut(memoise("thing", {}, make).folder)
        make.calls = 0
    monkeypatch.setattr(
        Path,
        refused,
        lambda *_, **__: _raise(PermissionError(errno.EACCES, os.strerror(errno.EACCES))),
    )
    with pytest.raises(ValueError, match="cannot be written: Permission denied"):
        memoise("thing", {}, make)
    assert make.calls == 0


def test_a_store_that_is_a_file(store):
    (store / "store").write_text("")
    make = Make()
    with pytest.raises(ValueError, match="/store cannot be written: "):
        memoise("thing", {}, make)
    assert make.calls == 0


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a disk that is always full")
    for write, content in ((write_json, {"w": 1}), (save_tensors, {"w": torch.ones(4)})):
        file = tmp_path / "a"
        (tmp_path / f"a.{os.getpid()}.tmp").symlink_to("/dev/full")
        monkeypatch.setattr(
            memory,
            "save_file",
            lambda *_: _raise(SafetensorError("I/O error: No space left on device (os error 28)")),
        )
        with pytest.raises(
            ValueError, match=f"^{file} cannot be written: .*No space left on device"
        ) as said:
            write(file, content)
        assert "\n" not in str(said.value) and not file.exists()


def test_killed_between_the_training_and_its_record(store, training, monkeypatch):
    """Guards: a checkpoint that goes before the result is in the store: a kill between the two lost
    the run.
    """
    train, _, whole = training
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "SECONDS", 0)
        patch.setattr(memory, "write_json", lambda *_: _raise(KeyboardInterrupt()))
        train(Progress())
    assert_same(train(watch := Watch()), whole)
    assert watch.began == [STEPS]
    assert_tidy(store)


def test_killed_between_the_record_and_the_rename(store, training, monkeypatch):
    """What is on record is only put into its place."""
    train, _, whole = training
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", lambda *_: _raise(KeyboardInterrupt()))
        train(Progress())
    assert_same(train(watch := Watch()), whole)
    assert watch.began == []
    assert_tidy(store)


def test_a_damaged_record_of_another_run_is_named_once(store, capsys):
    """Guards: one half-written file that breaks every question about what runs there are."""
    first, second = (memoise("thing", {"k": k}, Make()).folder for k in range(2))
    (first / "record.json").write_text((first / "record.json").read_text()[:50])
    for _ in range(2):
        assert [record["inputs"]["k"] for record in memory.records("thing")] == [1]
    assert capsys.readouterr().err.count(str(first)) == 1


def test_a_store_that_is_only_asked(store):
    """Guards: a lock, a folder or a result where only a look was meant; a damaged entry taken."""
    with pytest.raises(NotStored), only_stored():
        memoise("thing", {"a": 1}, lambda _: {"made": 1})
    assert not list(store.iterdir())
    made = memoise("thing", {"a": 1}, lambda _: {"made": 1})
    with only_stored():
        assert memoise("thing", {"a": 1}, lambda _: {"made": 2}).record == {"made": 1}
    (made.folder / "record.json").write_text("{}")
    with pytest.raises(NotStored), only_stored():
        memoise("thing", {"a": 1}, lambda _: {"made": 2})
    assert memoise("thing", {"a": 1}, lambda _: {"made": 3}).record == {"made": 3}
