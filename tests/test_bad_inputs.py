"""Bad inputs, a table: each is refused before anything long, in one line that names what was wrong.

To add to it, write a `Row`: what is given, how it is made, and words that the sentence must hold.
`policy`, `encoder`, `reviews` and `merge` make one from a folder that is spoilt; any other call
does as well (see `Row`).
"""

import csv
import errno
import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import httpx2
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from tests.conftest import online, tiny_policy
from warp_lib.__main__ import main
from warp_lib.experiment import Experiment
from warp_lib.models import hub
from warp_lib.models.model_files import INDEX, SINGLE
from warp_lib.models.scorers import classifier, untrained
from warp_lib.policy import Policy
from warp_lib.reviews import load_reviews
from warp_lib.runs.errors import Explained
from warp_lib.settings import Settings

VOCABULARY = 12
SMALL = {  # two layers of each architecture
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"46" * 32 + b"\nsize 9\n"


@dataclass(frozen=True)
class Row:
    """A bad input.

    name: of the test. call: what is done, in an empty folder; a ValueError or an exit code other
    than 0 is expected of it. says: words that the sentence must hold, {folder} standing for the
    folder's path.
    """

    name: str
    call: Callable[[Path], object]
    says: tuple[str, ...]


def spoilt(kind: str, folder: Path, spoil: Callable[[Path], object]) -> Path:
    """A tiny model of this kind in the folder, and what `spoil` makes of it."""
    shutil.copytree(MODELS[kind], folder / "model")
    spoil(folder / "model")
    return folder / "model"


def policy(name: str, spoil: Callable[[Path], object], *says: str) -> Row:
    """Row of a policy's folder."""
    subject = "policy='{folder}/model' "
    return Row(
        f"policy: {name}",
        lambda folder: Policy.from_name(str(spoilt("policy", folder, spoil))),
        (subject, *says),
    )


def encoder(name: str, spoil: Callable[[Path], object], *says: str) -> Row:
    """Row of an encoder's folder."""
    load = partial(untrained, layers=2, seed=("reward",))
    return Row(
        f"encoder: {name}",
        lambda folder: load(str(spoilt("encoder", folder, spoil))),
        ("encoder='{folder}/model' ", *says),
    )


def reviews(name: str, make: Callable[[Path], object], *says: str) -> Row:
    """Row of a folder of reviews, which `make` fills."""

    def call(folder: Path) -> None:
        (folder / "reviews").mkdir()
        make(folder / "reviews")
        load_reviews.__wrapped__(str(folder / "reviews"))

    return Row(f"reviews: {name}", call, ("reviews='{folder}/reviews' ", *says))


def merge(name: str, spoil: Callable[[Path], object], *says: str, base: bool = False) -> Row:
    """Row of a merge whose run, or whose base, is spoilt. Nothing may be written."""

    def call(folder: Path) -> int:
        good, bad = str(MODELS["policy"]), str(spoilt("policy", folder, spoil))
        code = main(
            ["merge", *([bad, good] if base else [good, bad]), "--out", str(folder / "out")]
        )
        assert not (folder / "out").exists() and not (folder / "out.part").exists()
        return code

    return Row(f"merge: {'base' if base else 'run'}: {name}", call, ("'{folder}/model' ", *says))


def named(setting: str, name: str, *says: str) -> Row:
    """Row of a name that is not there, without a network."""
    calls = {
        "policy": Policy.from_name,
        "encoder": partial(untrained, layers=1, seed=("r",)),
        "reviews": load_reviews.__wrapped__,
    }
    return Row(
        f"{setting}: the name {name[:40]!r}",
        lambda _: calls[setting](name),
        (f"{setting}={name!r} ", *says),
    )


# --- How folders are spoilt -----------------------------------------------------------------------


def write(name: str, content: str | bytes) -> Callable[[Path], object]:
    """A file with other content."""
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def both(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: [spoil(folder) for spoil in spoils]


def cut(name: str, size: int) -> Callable[[Path], object]:
    """A file's first bytes (a negative size: all but its last ones)."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def config(file: str = "config.json", **changes) -> Callable[[Path], object]:
    """Other entries in a JSON file; None removes one."""

    def spoil(folder: Path) -> None:
        known = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(
            json.dumps({name: value for name, value in known.items() if value is not None})
        )

    return spoil


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Weights that `change` has changed in place."""

    def spoil(folder: Path) -> None:
        there = load_file(folder / SINGLE)
        change(there)
        save_file(
            {name: t.contiguous() for name, t in there.items()}, folder / SINGLE, {"format": "pt"}
        )

    return spoil


def fill(name: str, value: float) -> Callable[[Path], object]:
    """One number of a tensor replaced."""
    return weights(lambda there: there[name].view(-1)[1].fill_(value))


def other(auto: type, kind: str, **shape) -> Callable[[Path], object]:
    """Another architecture's random model in its place."""

    def spoil(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = auto.from_config(AutoConfig.for_model(kind, **SMALL | shape))
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p), alpha=0.3)
        model.save_pretrained(folder)

    return spoil


def tokenizer(words: int, **special: str | None) -> Callable[[Path], object]:
    """A tokenizer of so many words in its place."""

    def spoil(folder: Path) -> None:
        made = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
        made.pre_tokenizer = WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)

    return spoil


def sharded(then: Callable[[Path], object]) -> Callable[[Path], object]:
    """The weights in two files and an index, then spoilt."""

    def spoil(folder: Path) -> None:
        there, places = load_file(folder / SINGLE), {}
        (folder / SINGLE).unlink()
        for k, names in enumerate((sorted(there)[::2], sorted(there)[1::2]), 1):
            save_file(
                {name: there[name] for name in names},
                folder / f"model-0000{k}-of-00002.safetensors",
                {"format": "pt"},
            )
            places |= dict.fromkeys(names, f"model-0000{k}-of-00002.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        then(folder)

    return spoil


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    """An index whose places `change` has changed."""

    def spoil(folder: Path) -> None:
        known = json.loads((folder / INDEX).read_text())
        change(known["weight_map"])
        (folder / INDEX).write_text(json.dumps(known))

    return sharded(spoil)


def link(name: str, target: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder.parent / "secret").write_text("secret")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "openai-community/gpt2"}
FIRST = "transformer.h.0.attn.c_attn.weight"
OF_ENCODER = "encoder.layer.0.output.dense.weight"

# What is wrong with files, whoever reads them: how they are spoilt, and what is said.
FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (remove("config.json"), ("has no config.json",)),
    "config in a subfolder": (
        both(
            remove("config.json"),
            lambda folder: (folder / "last").mkdir(),
            write("last/config.json", "{}"),
        ),
        ("no config.json", "'last'"),
    ),
    "config cut off": (
        cut("config.json", 40),
        ("damaged config.json", "not valid JSON (", "line "),
    ),
    "config nested without end": (
        write("config.json", "[" * 100_000),
        ("damaged config.json", "not valid JSON (maximum recursion depth"),
    ),
    "config in Latin-1": (
        write("config.json", '{"model_type": "é"}'.encode("latin-1")),
        ("damaged config.json", "utf-8"),
    ),
    "config is a list": (write("config.json", "[1]"), ("config.json without a model_type",)),
    "config without its type": (config(model_type=None), ("config.json without a model_type",)),
    "config is an LFS pointer": (
        write("config.json", POINTER),
        ("Git LFS pointer in place of config.json", "git lfs pull"),
    ),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), ("quantised (gptq)",)),
    "a LoRA adapter": (
        both(
            remove("config.json", SINGLE),
            write("adapter_config.json", json.dumps(ADAPTER)),
            write("adapter_model.safetensors", ""),
        ),
        ("LoRA adapter for 'openai-community/gpt2'", "merge_and_unload"),
    ),
    "no weights": (remove(SINGLE), ("has no weights",)),
    "a pickle only": (
        rename(SINGLE, "pytorch_model.bin"),
        (f"has no {SINGLE}, only pytorch_model.bin", "run code", "save_pretrained"),
    ),
    "GGUF only": (
        rename(SINGLE, "model-q4.gguf"),
        (f"has no {SINGLE}, only model-q4.gguf", "quantised"),
    ),
    "TensorFlow only": (rename(SINGLE, "tf_model.h5"), ("only tf_model.h5",)),
    "weights of another name": (
        rename(SINGLE, "weights.safetensors"),
        ("weights.safetensors", f"neither {SINGLE}"),
    ),
    "weights are an LFS pointer": (
        write(SINGLE, POINTER),
        (f"Git LFS pointer in place of {SINGLE}",),
    ),
    "weights cut off": (cut(SINGLE, -5), (f"incomplete {SINGLE}", "download it again")),
    "weights cut off in their header": (
        cut(SINGLE, 100),
        (f"incomplete {SINGLE}, 100 bytes",),
    ),
    "weights of no bytes": (write(SINGLE, b""), (f"incomplete {SINGLE}, 0 bytes",)),
    "weights are a web page": (
        write(SINGLE, "<!DOCTYPE html><html>429</html>"),
        (f"damaged or incomplete {SINGLE}",),
    ),
    "weights with odd bytes at the end": (
        lambda folder: (folder / SINGLE).open("ab").write(b"abc"),
        (f"damaged or incomplete {SINGLE}",),
    ),
    "no tensors": (weights(dict.clear), (f"empty {SINGLE}",)),
    "a shard is missing": (
        sharded(remove("model-00002-of-00002.safetensors")),
        ("lacks model-00002-of-00002.safetensors",),
    ),
    "a shard is cut off": (
        sharded(cut("model-00002-of-00002.safetensors", -1)),
        ("incomplete model-00002",),
    ),
    "the index is damaged": (sharded(cut(INDEX, 30)), (f"damaged {INDEX}",)),
    "the index is empty": (index(dict.clear), ("no weight_map",)),
    "the index leads out": (
        index(lambda places: places.update(a="../x.safetensors")),
        ("'../x.safetensors'",),
    ),
    "the index has a ghost": (
        index(lambda places: places.update(ghost=next(iter(places.values())))),
        ("do not agree on ghost",),
    ),
}
TOKENIZERS = {  # what is wrong with a tokenizer
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ("has no tokenizer",)),
    "tokenizer cut off": (cut("tokenizer.json", 50), ("damaged tokenizer.json",)),
    "tokenizer is an LFS pointer": (
        write("tokenizer.json", POINTER),
        ("LFS pointer in place of tokenizer.json",),
    ),
    "tokenizer of another format": (
        write("tokenizer.json", '{"version": "9.9"}'),
        ("tokenizer that transformers cannot open",),
    ),
    "tokenizer_config cut off": (
        cut("tokenizer_config.json", 20),
        ("damaged tokenizer_config.json",),
    ),
    "tokenizer too large": (
        tokenizer(VOCABULARY + 2),
        (f"{VOCABULARY + 2} tokens where the model has {VOCABULARY}",),
    ),
    "tokenizer of a word": (tokenizer(1), ("empty tokenizer",)),
    "an unknown architecture": (config(model_type="gpt99"), ("'gpt99'", "does not know")),
    "code of its own": (
        both(
            config(model_type="gpt99", auto_map={"AutoModelForCausalLM": "own.Own"}),
            write("own.py", "raise SystemExit('I was run')"),
        ),
        ("needs code of its own", "never run"),
    ),
    "sizes that are words": (config(vocab_size="many"), ("cannot open", "vocab_size")),
}

NO_HUB = "HF_HUB_OFFLINE forbids to ask the hub"

ROWS = [
    *(policy(name, spoil, *says) for name, (spoil, says) in (FILES | TOKENIZERS).items()),
    policy(
        "a layer is missing",
        weights(lambda there: there.pop(FIRST)),
        f"lacks {FIRST}, which the GPT2LMHeadModel",
    ),
    policy(
        "a layer more in its config", config(n_layer=3), "lacks transformer.h.2.", "and 11 more"
    ),
    policy("a layer less in its config", config(n_layer=1), "weights too many: transformer.h.1."),
    policy(
        "tensors of other names",
        weights(lambda there: [there.update({f"x.{n}": there.pop(n)}) for n in list(there)]),
        "lacks ",
    ),
    policy(
        "a value head",
        weights(lambda there: there.update({"v_head.weight": torch.ones(1, 16)})),
        "too many: v_head.weight",
    ),
    policy(
        "another shape",
        weights(lambda there: there.update({FIRST: torch.ones(16, 32)})),
        f"{FIRST} is 16 × 32 and should be 16 × 48",
    ),
    policy("NaN", fill(FIRST, float("nan")), f"holds NaN in {FIRST}"),
    policy(
        "infinity",
        fill("transformer.ln_f.bias", float("-inf")),
        "holds infinity in transformer.ln_f.bias",
    ),
    policy(
        "beyond float32",
        weights(lambda there: there.update({FIRST: torch.ones(16, 48).double() * 1e300})),
        f"infinity in {FIRST}",
    ),
    policy(
        "logits overflow",
        weights(lambda there: there["transformer.ln_f.weight"].fill_(3e38)),
        "logits that are not numbers",
    ),
    policy(
        "EOS outside the vocabulary",
        config("generation_config.json", eos_token_id=50256),
        "50256",
        "0 to 11",
        "eos_token_id",
    ),
    policy(
        "a negative EOS",
        config("generation_config.json", eos_token_id=[3, -1]),
        "-1 as an end-of-sequence token",
    ),
    policy(
        "an EOS in words",
        config("generation_config.json", eos_token_id="</s>"),
        "'</s>' as an end-of-sequence token",
    ),
    policy(
        "generation config cut off",
        cut("generation_config.json", 10),
        "damaged generation_config.json",
    ),
    policy(
        "a short context",
        both(
            other(AutoModelForCausalLM, "gpt2", n_positions=12),
            config("generation_config.json", eos_token_id=3),
        ),
        "context of 12 tokens",
        "prompt of 15",
    ),
    *(
        policy(
            f"padding is text to {kind}",
            other(AutoModelForCausalLM, kind, eos_token_id=3, **shape),
            "in batches",
            "padding as text",
        )
        for kind, shape in {
            "mamba": {"state_size": 4},
            "falcon_mamba": {"state_size": 4},
            "rwkv": {"attention_hidden_size": 16},
            "recurrent_gemma": {
                "lru_width": 16,
                "head_dim": 8,
                "attention_window_size": 64,
                "num_hidden_layers": 3,
            },
        }.items()
    ),
    policy(
        "an encoder that writes", other(AutoModelForCausalLM, "bert"), "BertLMHeadModel reads ahead"
    ),
    policy(
        "an encoder",
        config(model_type="distilbert"),
        "is a distilbert model, which cannot write text",
    ),
    policy("T5", config(model_type="t5"), "is a t5 model, which cannot write text"),
    policy(
        "a classifier",
        other(AutoModelForSequenceClassification, "gpt2", pad_token_id=0),
        "weights too many: score.weight",
    ),
    named(
        "policy", "warp-tests/no-such-thing", "neither a bundled name nor a local folder", NO_HUB
    ),
    named("policy", "reviews-gpt", "did you mean 'reviews-gpt2'", NO_HUB),
    named("policy", "no such folder", "no such folder"),
    named("policy", "/no/such/folder", "no such folder"),
    named(
        "policy",
        "~nosuchuser/model",
        "is not a folder that can be opened (Could not determine home directory)",
    ),
    named("policy", "x" * 300, "is not a folder that can be opened (File name too long)"),
    Row(
        "policy: a file",
        lambda folder: (write("file", "x")(folder), Policy.from_name(f"{folder}/file")),
        ("is a file",),
    ),
    *(encoder(name, spoil, *says) for name, (spoil, says) in (FILES | TOKENIZERS).items()),
    encoder(
        "a tensor is missing",
        weights(lambda there: there.pop(OF_ENCODER)),
        f"lacks bert.{OF_ENCODER}",
    ),
    encoder(
        "tensors of other names",
        weights(lambda there: [there.update({f"x.{n}": there.pop(n)}) for n in list(there)]),
        "lacks bert.",
    ),
    Row(
        "encoder: a layer more in its config",
        lambda folder: untrained(
            str(spoilt("encoder", folder, config(num_hidden_layers=3))), 3, ("r",)
        ),
        ("lacks bert.encoder.layer.2.",),
    ),
    Row(
        "encoder: a layer less in its config",
        lambda folder: untrained(
            str(spoilt("encoder", folder, config(num_hidden_layers=1))), 1, ("r",)
        ),
        ("too many: encoder.layer.1.",),
    ),
    Row(
        "encoder: more layers than it has",
        lambda folder: untrained(str(MODELS["encoder"]), 3, ("r",)),
        ("reward_layers must be at most 2, the layers of encoder=",),
    ),
    encoder(
        "another shape",
        weights(lambda there: there.update({OF_ENCODER: torch.ones(16, 16)})),
        f"{OF_ENCODER} is 16 × 16",
    ),
    encoder("NaN", fill(OF_ENCODER, float("nan")), f"holds NaN in bert.{OF_ENCODER}"),
    encoder("infinity", fill(OF_ENCODER, float("inf")), f"holds infinity in bert.{OF_ENCODER}"),
    encoder(
        "nothing to pad with",
        both(other(AutoModel, "gpt2"), tokenizer(VOCABULARY)),
        "no padding token",
    ),
    encoder("of images", config(model_type="vit"), "is a vit model, which cannot score"),
    encoder("no layers", config(num_hidden_layers="two"), "encoder"),
    named(
        "encoder", "warp-tests/no-such-thing", "neither a bundled name nor a local folder", NO_HUB
    ),
    named("encoder", "mini-lm", "did you mean 'minilm'"),
    named("encoder", "/no/such/folder", "no such folder"),
]


# --- Reviews --------------------------------------------------------------------------------------


def table(n: int, labels: Callable[[int], object] = lambda k: k % 2) -> list[tuple]:
    """Reviews that differ."""
    draw = random.Random(0)
    return [
        (
            f"review {k} of a {draw.choice(['fine', 'dull', 'long'])} film, with loud music",
            labels(k),
        )
        for k in range(n)
    ]


def rows(
    lines: list[tuple], header: tuple[str, ...] = ("text", "label"), name: str = "a.csv", **format
) -> Callable[[Path], object]:
    """A CSV file."""

    def make(folder: Path) -> None:
        with (folder / name).open(
            "w", newline="", encoding=format.pop("encoding", "utf-8")
        ) as file:
            csv.writer(file, **format).writerows([header, *lines])

    return make


def saved(
    text: Callable[[str], object] = str, label: Callable[[int], object] = int, n: int = 300
) -> Callable[[Path], object]:
    """A data set as `save_to_disk` writes it."""
    lines = table(n)
    columns = {"text": [text(t) for t, _ in lines], "label": [label(k) for _, k in lines]}
    return lambda folder: datasets.Dataset.from_dict(columns).save_to_disk(folder)


def splits(folder: Path) -> None:
    whole = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    datasets.DatasetDict(train=whole, test=whole).save_to_disk(folder)


def accented(text: str) -> str:
    return text.replace("fine", "fin\u00e9")


ROWS += [
    reviews("nothing", lambda folder: None, "without CSV files"),
    reviews(
        "parquet", write("train.parquet", "PAR1"), "without CSV files", "train.parquet is not read"
    ),
    reviews("saved splits", splits, "splits test, train"),
    reviews(
        "a damaged saved set",
        both(saved(), write("state.json", "{")),
        "cannot be opened as what datasets.save_to_disk wrote",
    ),
    reviews(
        "other columns",
        rows(table(300), ("review", "sentiment")),
        "['review', 'sentiment'] in a.csv; text and label",
    ),
    reviews(
        "no column names",
        lambda folder: rows(table(300)[1:], table(1)[0])(folder),
        "in a.csv; text and label are needed",
    ),
    reviews(
        "other columns in a saved set",
        lambda folder: datasets.Dataset.from_dict({"a": [1]}).save_to_disk(folder),
        "columns ['a']",
    ),
    reviews("semicolons", rows(table(300), delimiter=";"), "separated by semicolons"),
    reviews("tabs", rows(table(300), delimiter="\t"), "separated by tabs"),
    reviews("empty", write("a.csv", ""), "has an empty a.csv"),
    reviews(
        "an empty first line", write("a.csv", "\ntext,label\na,1\n"), "empty first line in a.csv"
    ),
    reviews("column names only", rows([]), "no reviews in a.csv"),
    reviews(
        "files that differ",
        both(rows(table(300)), rows([("x", 1, 2)], ("text", "label", "more"), "b.csv")),
        "a.csv and b.csv",
    ),
    reviews(
        "Latin-1",
        rows([(accented(t), k) for t, k in table(300)], encoding="latin-1"),
        "a.csv that is not UTF-8 (line ",
    ),
    reviews("UTF-16", rows(table(300), encoding="utf-16"), "a.csv that is not text in UTF-8"),
    reviews("an LFS pointer", write("a.csv", POINTER), "Git LFS pointer in place of a.csv"),
    reviews(
        "a comma too many",
        write("a.csv", "text,label\nok,1\nof, course,1\n"),
        "3 fields in line 3 of a.csv and 2 columns",
    ),
    reviews(
        "an open quote",
        write("a.csv", 'text,label\nok,1\n"a,0\nb,1\n'),
        "no valid CSV from line 3 on",
    ),
    reviews(
        "numbers as texts", rows([(k, k % 2) for k in range(300)]), "numbers in its column text"
    ),
    reviews("fractions as texts", saved(text=lambda t: 0.5), "numbers in its column text"),
    reviews("no texts", saved(text=lambda t: None), "nothing in its column text"),
    reviews("lists as texts", saved(text=lambda t: [t]), "in its column text"),
    reviews(
        "labels in words",
        rows(table(300, lambda k: ("neg", "pos")[k % 2])),
        "the labels 'neg', 'pos'; they must be 0 (negative)",
    ),
    reviews(
        "labels in digits that are words", saved(label=str), "the labels '0', '1'; they must be"
    ),
    reviews(
        "labels ±1",
        rows(table(300, lambda k: 2 * (k % 2) - 1)),
        "the labels -1, 1;",
        "write 0 in place of -1",
    ),
    reviews("labels 1 and 2", rows(table(300, lambda k: k % 2 + 1)), "the labels 1, 2;"),
    reviews("five stars", rows(table(300, lambda k: k % 5)), "the labels 0, 1, 2, 3, 4;"),
    reviews("one label", rows(table(300, lambda k: 1)), "the label 1;", "some of each label"),
    reviews("no labels", saved(label=lambda k: None), "has no labels"),
    reviews("lists as labels", saved(label=lambda k: [k]), "several values in a label"),
    reviews(
        "one class nearly empty",
        rows(table(300, lambda k: int(k > 2))),
        "holds 3 negative reviews among 300",
        "add negative ones",
    ),
    reviews("too few", rows(table(199)), "holds 199 different labelled reviews; at least 200"),
    reviews(
        "too few different",
        rows(table(150) * 2),
        "holds 150 different labelled reviews; at least 200",
    ),
    named(
        "reviews", "warp-tests/no-such-thing", "neither a bundled name nor a local folder", NO_HUB
    ),
    named("reviews", "imbd", "did you mean 'imdb'"),
    named("reviews", "/no/such/folder", "no such folder"),
    Row(
        "reviews: a file",
        lambda folder: (rows(table(300))(folder), load_reviews.__wrapped__(f"{folder}/a.csv")),
        ("is a file",),
    ),
]


ROWS += [
    Row(
        "encoder: a classifier of three labels",
        lambda folder: classifier(
            str(
                spoilt(
                    "encoder",
                    folder,
                    other(AutoModelForSequenceClassification, "bert", num_labels=3),
                )
            )
        ),
        ("encoder='{folder}/model' has the labels LABEL_0, LABEL_1, LABEL_2;", "reward_steps=0"),
    ),
    Row(
        "encoder: the bundled encoder as a classifier",
        lambda _: Experiment(Settings.profile("smoke", reward_steps=0)),
        ("encoder='minilm' is no classifier", "reward_steps=0"),
    ),
    Row(
        "encoder: a classifier without its head",
        lambda folder: classifier(str(spoilt("encoder", folder, lambda _: None))),
        ("encoder='{folder}/model' lacks classifier.",),
    ),
]


# --- What is merged -------------------------------------------------------------------------------

ROWS += [
    *(merge(name, spoil, *says) for name, (spoil, says) in FILES.items()),
    *(
        merge(name, *FILES[name][:1], *FILES[name][1], base=True)
        for name in ("no config", "weights cut off", "a pickle only")
    ),
    *(
        merge(f"{name} cut off", cut(name, 10), f"damaged {name}: it is not valid JSON", base=True)
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
    ),
    merge("NaN", fill(FIRST, float("nan")), f"holds NaN in {FIRST}"),
    merge("NaN", fill(FIRST, float("nan")), f"holds NaN in {FIRST}", base=True),
    merge("infinity", fill(FIRST, float("inf")), f"holds infinity in {FIRST}"),
    merge(
        "quantised tensors",
        weights(lambda there: there.update({FIRST: there[FIRST].to(torch.float8_e4m3fn)})),
        "quantised",
        FIRST,
    ),
    merge(
        "a link out of it",
        link("tokenizer_secret", "../secret"),
        "tokenizer_secret is a link to {folder}/secret",
        base=True,
    ),
    merge(
        "a link out of it, in a folder",
        link("additional_chat_templates/a.jinja", "../../secret"),
        "is a link to",
        base=True,
    ),
    Row(
        "merge: no such folder",
        lambda folder: main(["merge", str(MODELS["policy"]), "/no/such", "--out", f"{folder}/out"]),
        ("'/no/such' is not there",),
    ),
]


# --- The hub, which answers with an error ---------------------------------------------------------


def answered(setting: str, status: int, *says: str, error: str = "") -> Row:
    """Row of a hub that answers each request with a status."""

    def call(_: Path) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if error:
                    self.send_header("X-Error-Code", error)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_POST = do_GET

            def log_message(self, *_) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.MonkeyPatch.context() as patch:
            online(patch, f"http://127.0.0.1:{server.server_port}")
            try:
                {"policy": Policy.from_name, "reviews": load_reviews.__wrapped__}[setting](
                    "some/name"
                )
            finally:
                server.shutdown()

    return Row(
        f"{setting}: the hub answers {status} {error}".rstrip(),
        call,
        (f"{setting}='some/name' ", *says),
    )


def failing(name: str, error: BaseException, *says: str) -> Row:
    """Row of a download that ends with an error."""

    def call(_: Path) -> None:
        def download(*_, local_files_only: bool = False, **__) -> None:
            raise FileNotFoundError if local_files_only else error

        with pytest.MonkeyPatch.context() as patch:
            online(patch, "http://127.0.0.1:9")
            patch.setattr(hub, "unreachable", lambda: None)
            patch.setattr(hub, "snapshot_download", download)
            Policy.from_name("some/name")

    return Row(f"policy: download: {name}", call, ("policy='some/name' ", *says))


ROWS += [
    answered("policy", 404, "the hub has no such model", "hf auth login", error="RepoNotFound"),
    answered("policy", 401, "the hub has no such model or keeps it private", error="RepoNotFound"),
    answered("policy", 403, "is gated: accept its terms", error="GatedRepo"),
    answered("policy", 403, "is refused by the hub (403)"),
    answered("policy", 429, "too many requests from here (429)"),
    answered("policy", 503, "the hub itself fails (503)"),
    answered("reviews", 404, "the hub has no such data set", error="RepoNotFound"),
    failing(
        "it stalls",
        httpx2.ReadTimeout("The read operation timed out"),
        "not downloaded completely",
        "goes on where it stopped",
    ),
    failing(
        "it breaks",
        httpx2.RemoteProtocolError("peer closed connection"),
        "not downloaded completely (peer closed connection)",
    ),
    failing(
        "it is short",
        OSError("Consistency check failed: file should be of size 9 but has size 5"),
        "not downloaded completely",
    ),
    failing(
        "the disk is full",
        OSError(errno.ENOSPC, "No space left on device"),
        "the disk of ",
        "is full",
    ),
    failing(
        "it cannot be written",
        PermissionError(errno.EACCES, "Permission denied"),
        "cannot be written",
    ),
    failing(
        "anything else",
        RuntimeError("a thing\nin two lines"),
        "cannot be loaded from the hub (RuntimeError: a thing)",
    ),
]


# --- Each of them ---------------------------------------------------------------------------------

MODELS: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def _models(tmp_path_factory) -> None:
    """A policy and an encoder that are good."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    at = tmp_path_factory.mktemp("models")
    good = tiny_policy("gpt2", VOCABULARY)
    good.model.save_pretrained(at / "policy")
    good.tokenizer.save_pretrained(at / "policy")
    (at / "encoder").mkdir()
    both(other(AutoModel, "bert"), tokenizer(VOCABULARY, pad_token="w0", eos_token="w3"))(
        at / "encoder"
    )
    MODELS.update({kind: at / kind for kind in ("policy", "encoder")})


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch) -> None:
    """No hub, and empty caches."""
    for library in (constants, datasets.config):
        monkeypatch.setattr(library, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_there_are_enough() -> None:
    """Guards: rows lost in an edit, or two of one name."""
    assert len({row.name for row in ROWS}) == len(ROWS) >= 120


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad_input(row: Row, tmp_path, capfd) -> None:
    """An Explained, which notebooks show without its traceback, or an exit code other than 0; one
    line that ends with a full stop and holds what the row says.
    """
    (folder := tmp_path / "given").mkdir()
    began = time.monotonic()
    try:
        code = row.call(folder)
    except Explained as error:
        sentence = str(error)
    else:
        assert code, "it was accepted"
        # after what was shown of its progress
        sentence = (said := capfd.readouterr().err).strip().splitlines()[-1]
        assert "Traceback" not in said
    assert (
        "\n" not in sentence
        and sentence.endswith(".")
        and ".." not in sentence.replace("'../x", "")
    ), sentence
    for words in row.says:
        assert words.replace("{folder}", str(folder)) in sentence, sentence
    assert time.monotonic() - began < 15  # no retries; on a busy machine


def test_what_is_good_is_taken(tmp_path) -> None:
    """The models that the rows spoil, and reviews. Guards: a table whose rows are refused for
    another reason.
    """
    untrained(str(MODELS["encoder"]), 2, ("reward",))
    Policy.from_name(str(spoilt("policy", tmp_path, sharded(lambda folder: None))))
    assert (
        main(
            [
                "merge",
                str(MODELS["policy"]),
                str(tmp_path / "model"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    saved()(tmp_path / "reviews")
    assert len(load_reviews.__wrapped__(str(tmp_path / "reviews")).train) == 276


# tiny ones that must pass; those that must not are rows above
FAMILIES = {
    "gpt2": {},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "gpt_neox": {},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {},
    "falcon": {},
    "phi": {},
    "olmo2": {},
    "llama": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 1},
    "mixtral": {"num_key_value_heads": 1, "num_local_experts": 2},
    "qwen2": {"num_key_value_heads": 1, "vocab_size": 16},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 8},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_that_can_be_sampled_in_batches_are_taken(kind, tmp_path) -> None:
    """Guards: a check of decoding so strict that a good model is refused."""
    make = other(AutoModelForCausalLM, kind, eos_token_id=3, bos_token_id=3, **FAMILIES[kind])
    make = both(make, config("generation_config.json", eos_token_id=3))
    assert Policy.from_name(str(spoilt("policy", tmp_path, make))).eos_ids == [3]
