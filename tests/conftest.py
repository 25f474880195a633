"""Shared by the tests: a store of their own, and policies so small that every completion can be
enumerated.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

# Before warp_lib.runs.paths reads it. Those of xdist's processes lie in that of the process that
# began them, and which removes it.
os.environ["WARP_RUNS"] = tempfile.mkdtemp(
    "", "warp-tests-", os.environ.get("WARP_RUNS") if "PYTEST_XDIST_WORKER" in os.environ else None
)

import datasets
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from huggingface_hub import constants
from nbconvert.preprocessors import ClearOutputPreprocessor
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from safetensors.numpy import save_file
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from warp_lib.fast import machine
from warp_lib.policy import Policy, Rollouts
from warp_lib.runs import paths
from warp_lib.study import outcomes
from warp_lib.study.fronts import Effect, Interval

GIVEN = {"learning_rate": 1e-5, "beta": 0.3}  # settings of units that `keep` makes
# a tiny policy's end of sequence; not at the vocabulary's edge, and as likely as any other token
# unless it is masked
END = 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # the longest files, one for each process
    items.sort(
        key=lambda item: item.path.stem not in ("test_smoke", "test_cluster", "test_explorer")
    )


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["WARP_RUNS"], ignore_errors=True)


@pytest.fixture(name="store")
def _store(tmp_path, monkeypatch):
    """A store that no other test has written to: its folder."""
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data/study."""
    monkeypatch.setattr(outcomes, "FOLDER", tmp_path)
    outcomes.outcome.cache_clear()
    yield tmp_path
    outcomes.outcome.cache_clear()


def keep(folder, experiment, arm, seed, validation, test=None, method="warp"):
    """A finished unit whose points are (KL, reward) on validation and test prompts; two prompts,
    0.1 above and below.
    """
    rows, scores = [], {}
    for split, points in (("validation", validation), ("test", test or validation)):
        rows += [
            {"arm": arm, "split": split, "method": method, "kl": kl, "reward": reward}
            for kl, reward in points
        ]
        scores[f"{split}.reward"] = np.array(
            [[reward + 0.1, reward - 0.1] for _, reward in points], dtype=np.float32
        )
        scores[f"{split}.kl"] = np.array([[kl, kl] for kl, _ in points], dtype=np.float32)
    file = folder / experiment / f"{arm}-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(file.with_suffix(".csv"), index=False)
    save_file(scores, file.with_suffix(".safetensors"))
    found = {
        "settings": GIVEN,
        "reward_model": "kept",
        "sft": "sft",
        "measured_in": "float32",
        "real_positive": {"mean": 0.3, "p99": 1.4},
    }
    file.write_text(json.dumps(found | {"machine": {"dtype": str(machine.fast_dtype())}}))


@pytest.fixture
def float32(monkeypatch) -> None:
    """Compute in float32 whatever the machine is fast at."""
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.float32)


def tiny_policy(
    kind: str = "gpt2", vocabulary: int = 12, seed: int = 1, ends: int | list[int] = END, **config
) -> Policy:
    """Two random layers over the words w0, w1, …; its distributions are far from uniform, and
    GPT-2's default dropout is in its config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {
            "vocab_size": vocabulary,
            "max_position_embeddings": 64,
            "bos_token_id": END,
            "eos_token_id": END,
        }
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, **shape, **config))
        else:
            sizes = {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
            model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape | sizes | config))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.4)
    model.generation_config.eos_token_id = ends
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    return Policy(model, PreTrainedTokenizerFast(tokenizer_object=words, eos_token=f"w{END}"))


def token_ids(text: str) -> list[int]:
    """The ids of a tiny policy's text."""
    return [int(word[1:]) for word in text.split()]


def plain_logits(policy: Policy, tokens: list[int], new: int) -> Tensor:
    """The oracle for scoring: transformers' own forward over one unpadded sequence, its logits for
    the last `new` tokens.
    """
    return (
        policy.model(torch.tensor([tokens], device=machine.device()))
        .logits[0, -new - 1 : -1]
        .float()
    )


def plain_log_probs(
    policy: Policy, tokens: list[int], new: int, temperature: float, ends: tuple[int, ...] = (END,)
) -> Tensor:
    """log π of the last `new` tokens at τ with EOS impossible, from `plain_logits`: (new,)."""
    logits = plain_logits(policy, tokens, new) / temperature
    logits = logits.index_fill(1, torch.tensor(ends, device=logits.device), -torch.inf)
    return logits.log_softmax(-1)[range(new), tokens[-new:]]


def padded(prompts: list[list[int]], completions: list[list[int]], wider: int = 0) -> Rollouts:
    """Rollouts by hand: prompts padded on the left with token 1, `wider` columns more than they
    need.
    """
    longest = max(map(len, prompts)) + wider
    rows = [[1] * (longest - len(p)) + p + c for p, c in zip(prompts, completions, strict=True)]
    mask = [
        [False] * (longest - len(p)) + [True] * len(p + c)
        for p, c in zip(prompts, completions, strict=True)
    ]
    return Rollouts(
        torch.tensor(rows, device=machine.device()),
        torch.tensor(mask, device=machine.device()),
        len(completions[0]),
    )


def every_completion(
    prompt: list[int], new: int, vocabulary: int
) -> tuple[list[list[int]], Rollouts]:
    """All completions of a prompt without EOS, as lists (prompt included) and as rollouts."""
    completions = [list(c) for c in product([v for v in range(vocabulary) if v != END], repeat=new)]
    return [prompt + c for c in completions], padded(
        [prompt] * len(completions), completions, wider=2
    )


# --------------------------------------------------------------------------------- a hub in folders


WORDS = (
    "the film was a story about people who never knew what love means and the actors music ending"
    " camera plot scenes were".split()
)


def reviews(n: int) -> list[tuple[str, int]]:
    """Synthetic reviews, half of them positive."""
    draw = random.Random(0)
    return [
        (f"{' '.join(draw.choices(WORDS, k=40))} {k} {('awful bad', 'great good')[k % 2]}", k % 2)
        for k in range(n)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Iterator[dict[str, str]]:
    """A GPT-2, a DistilBERT and reviews, in folders as the hub would give them."""
    base, texts = tmp_path_factory.mktemp("names"), [text for text, _ in reviews(300)]
    with (base / "texts.txt").open("w") as file:
        file.write("\n".join(texts))
    bpe = ByteLevelBPETokenizer()
    bpe.train(
        [str(base / "texts.txt")],
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    (base / "policy").mkdir()
    bpe.save_model(str(base / "policy"))
    tokenizer = GPT2Tokenizer.from_pretrained(base / "policy")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({w for text in texts for w in text.split()}),
    ]
    (base / "vocab.txt").write_text("\n".join(words))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        end = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **end)).save_pretrained(
            base / "policy"
        )
        shape = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2}
        DistilBertModel(DistilBertConfig(vocab_size=len(words), **shape)).save_pretrained(
            base / "encoder"
        )
    tokenizer.save_pretrained(base / "policy")
    DistilBertTokenizer(str(base / "vocab.txt")).save_pretrained(base / "encoder")
    (base / "reviews").mkdir()
    with (base / "reviews" / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *reviews(300)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", base / "cache")
        yield {name: str(base / name) for name in ("policy", "encoder", "reviews")}


def online(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let the hub be asked, at another address."""
    for library in (constants, datasets.config):
        patch.setattr(library, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr(datasets.config, "HF_ENDPOINT", endpoint)


# ---------------------------------------------------------------------------- a person at a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Of a module, not a session: while it is open, its thread has an event
    loop, and asyncio.run would refuse.
    """
    if not (
        found := shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    ):
        missing = "no Chromium or Chrome is installed (Debian: apt-get install chromium)"
        pytest.fail(missing) if os.environ.get("WARP_REQUIRE_CHROMIUM") else pytest.skip(missing)
    # every wait of every browser test: kernels, trainings and another test share its cores
    expect.set_options(timeout=60_000)
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*quiet, "--no-first-run"])
        yield browser
        browser.close()


def faults(page: Page) -> list[str]:
    """What axe-core finds wrong with a page for people who do not see it, or not well."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found for node in rule["nodes"]]


@contextmanager
def serving(*command: str, log: Path, env: dict[str, str] | None = None) -> Iterator[str]:
    """A Jupyter server of this environment on a free port: its address. What it says goes to `log`.
    `command` may hold {port}.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, programs = f"http://127.0.0.1:{port}/", str(Path(sys.executable).parent)
    around = {k: v for k, v in os.environ.items() if k != "JUPYTER_PATH"} | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"
    }
    with log.open("w") as said:
        server = subprocess.Popen(
            [word.format(port=port) for word in command],
            stdout=said,
            stderr=said,
            env=around | (env or {}),
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 60
            while not _answers(address):
                assert server.poll() is None and time.monotonic() < until, (
                    f"no server: {log.read_text()}"
                )
                time.sleep(0.1)
            yield address
        finally:
            with suppress(ProcessLookupError):  # it has ended, and what it said is raised
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)


@contextmanager
def running_in_lab(
    chromium: Browser, notebook: Path, height: int, **around: object
) -> Iterator[Page]:
    """JupyterLab on a notebook's folder, with `around` in its environment: the page, all of its
    cells begun.

    What goes wrong before a fixture hands it on is raised with what the page and the server say.
    """
    folder, log = notebook.parent, notebook.parent / "log"
    # or its cells would look as if they had begun
    fresh, _ = ClearOutputPreprocessor().preprocess(nbformat.read(notebook, 4), {})
    nbformat.write(fresh, notebook)
    server = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port={port}",
        f"--ServerApp.root_dir={folder}",
    ]
    server += [
        "--IdentityProvider.token=lab",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    around |= {"PYTHONPATH": paths.ROOT, "JUPYTER_CONFIG_DIR": folder / "c"}
    around |= {"JUPYTERLAB_SETTINGS_DIR": folder / "s", "JUPYTERLAB_WORKSPACES_DIR": folder / "w"}
    quiet = folder / "s" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')  # or Lab asks, above the notebook
    with serving(
        *server, log=log, env={name: str(value) for name, value in around.items()}
    ) as address:
        # The kernel runs before the page opens: on busy cores Lab otherwise asks which one to
        # start, and starts a second one over it.
        session = {
            "path": notebook.name,
            "name": notebook.name,
            "type": "notebook",
            "kernel": {"name": "python3"},
        }
        ask = urllib.request.Request(
            f"{address}api/sessions", json.dumps(session).encode(), {"Authorization": "token lab"}
        )
        urllib.request.urlopen(ask, timeout=60).close()
        page = chromium.new_page(viewport={"width": 1300, "height": height})
        page.set_default_timeout(60_000)
        asked = page.get_by_role("dialog").filter(has_text="Select Kernel")  # even so, sometimes
        page.add_locator_handler(
            asked, lambda: asked.get_by_role("button", name="Select Kernel").click()
        )
        try:
            page.goto(f"{address}lab/tree/{notebook.name}?token=lab")
            page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(
                timeout=90_000
            )
            # Lab may still exchange the kernel: cells are lost, though the first may have run
            waiting = page.locator(".jp-CodeCell .jp-InputPrompt").filter(
                has_text=re.compile(r"\[ \]")
            )
            for _ in range(10):
                with suppress(PlaywrightError):  # or the menu closes, drawn anew for its kernel
                    menu(page, "Run", "Run All Cells")
                page.wait_for_timeout(4000)
                if not waiting.count():
                    break
            else:
                raise AssertionError("some cells never began")
            yield page
        except BaseException as error:
            with suppress(PlaywrightError):
                error.add_note(f"The page:\n{page.locator('body').inner_text()}")
            error.add_note(f"The server:\n{log.read_text()}")
            raise
        finally:
            page.close()


def menu(page: Page, name: str, item: str) -> None:
    opener = page.locator(".lm-MenuBar-item").filter(has_text=re.compile(f"^{name}$"))
    opener.click(timeout=10_000)
    entry = page.locator(".lm-Menu-item").filter(has_text=re.compile(f"^{item}")).first
    entry.click(timeout=10_000)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address + "favicon.ico", timeout=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def across_seeds(effect: Effect) -> Interval:
    """Of the seeds' means: over training runs, on the same prompts."""
    return Interval.of([values.mean() for values in effect.by_prompt.values()])


def across_prompts(effect: Effect) -> Interval:
    """Of the prompts' means: over prompts, with the same runs."""
    return Interval.of(np.mean(list(effect.by_prompt.values()), axis=0))
