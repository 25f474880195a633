"""`python -m warp_lib verify RUN`: are the results table's numbers those of the saved policies?

The report computes fast, with kernels and dtypes of its own. Here every policy that a run saved is
opened by transformers in float32, sampled by its `generate`, and compared with π_sft in a few lines
that can be read against the definition:

    KL(π‖π_sft) = E_{y~π} Σ_s KL(π(·|x, y_<s) ‖ π_sft(·|x, y_<s)),    π(·|…) = softmax(logits / τ)
    without the end-of-sequence tokens.

Two checks. On *the same tokens* that the table's KL was computed on nothing is random, and the two
must agree to `SAME`. On completions *sampled anew* they must agree within `LIMIT` combined standard
errors; that catches a table sampled from another policy than was saved.
"""

import difflib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from ..runs import paths

ROWS = 64  # completions at a time, at most
NUMBERS = 2**26  # logits at a time, at most: 256 MB of float32
# how far KL on the same tokens may be from the table's: as a share of it, or in nats where it is
# less than one
SAME = 0.01
# Why 4 and not 2: a run has several policies, each compared in two numbers. Of six comparisons of
# equal things one lies beyond 2 standard errors in every fourth report, beyond 4 in one of 2,600.
# Both sides have the same prompts, so that the error of a difference is in fact smaller than the
# combined one; and what the check is for (3.1 nats in the table, 4.4 in the folder) lies far beyond
# 4.
LIMIT = 4.0


# The sceptic's part: torch and transformers, nothing of this project


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samples: int,
    new: int,
    temperature: float,
    eos: Sequence[int],
) -> Tensor:
    """Completions of exactly `new` tokens from softmax(logits / temperature), EOS suppressed.

    Returns token ids, (prompts, samples, new).
    """
    # the model's own may say top_k, a repetition penalty or where to stop
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        suppress_tokens=list(eos) or None,
        max_new_tokens=new,
    )
    completions = torch.empty(len(prompts) * samples, new, dtype=torch.long)
    generate: Any = model.generate
    for rows in _batches(prompts, samples, ROWS):
        ids = torch.tensor([prompts[row // samples] for row in rows], device=model.device)
        # nothing ends, so nothing is padded
        written = generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0)
        completions[rows] = written[:, ids.shape[1] :].cpu()
    return completions.view(len(prompts), samples, new)


@torch.no_grad()
def kl_per_completion(
    model: PreTrainedModel,
    sft: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Tensor,
    temperature: float,
    eos: Sequence[int],
) -> Tensor:
    """Σ_s KL(π(·|x, y_<s) ‖ π_sft(·|x, y_<s)) of each completion, exact over the vocabulary, nats.

    completions: token ids, (prompts, samples, new) → (prompts, samples).
    """
    count, samples, new = completions.shape
    kl = torch.empty(count * samples)
    possible = [token for token in range(model.config.vocab_size) if token not in eos]
    most = NUMBERS // (model.config.vocab_size * (max(map(len, prompts)) + new))
    for rows in _batches(prompts, samples, max(1, min(ROWS, most))):
        x = torch.tensor([prompts[row // samples] for row in rows])
        tokens = torch.cat([x, completions.flatten(0, 1)[rows]], 1).to(model.device)

        def log_probabilities(m: PreTrainedModel, tokens: Tensor = tokens) -> Tensor:
            # what stands before each token of the completion
            logits = m(tokens, use_cache=False).logits[:, -new - 1 : -1]
            return (logits[..., possible].float() / temperature).log_softmax(-1)

        log_p, log_q = log_probabilities(model), log_probabilities(sft)
        kl[rows] = (log_p.exp() * (log_p - log_q)).sum((1, 2)).cpu()
    return kl.view(count, samples)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of (prompts, samples) and its standard error over prompts' means."""
    by_prompt = values.double().mean(1)
    return by_prompt.mean().item(), by_prompt.std().item() / math.sqrt(len(by_prompt))


def _batches(prompts: Sequence[Sequence[int]], samples: int, most: int) -> Iterator[list[int]]:
    """Numbers of completions whose prompts have one length, at most `most` at a time.

    There are `samples` in a row for each prompt. So nothing is ever padded, and neither attention
    masks nor positions can be wrong.
    """
    for length in sorted(set(map(len, prompts))):
        alike = [k for k, prompt in enumerate(prompts) if len(prompt) == length]
        rows = [k * samples + s for k in alike for s in range(samples)]
        yield from (rows[k : k + most] for k in range(0, len(rows), most))


# A run's policies against its table


@dataclass(frozen=True)
class Check:
    """A number of a policy in results.csv and from its saved folder, with standard errors.

    They are 0 where nothing is sampled.
    """

    policy: str
    number: str
    table: float
    table_se: float
    folder: float
    folder_se: float

    @property
    def sampled(self) -> bool:
        return self.number != SAME_TOKENS

    @property
    def distance(self) -> float:
        """How far apart they are, in combined standard errors, or as a share of what `SAME` allows
        on the same tokens.
        """
        errors, same = math.hypot(self.table_se, self.folder_se), SAME * max(1.0, abs(self.table))
        allowed = errors if self.sampled else same
        apart = self.folder - self.table
        return apart / allowed if allowed else math.copysign(math.inf, apart) if apart else 0.0

    @property
    def agrees(self) -> bool:
        return abs(self.distance) <= (LIMIT if self.sampled else 1.0)  # of nan not true


KL, SAME_TOKENS, REWARD = "KL, nats", "KL, nats, same tokens", "reward r̃"
# of warp_report.json
FIELDS = {"row", "settings", "eos", "sft", "reward", "prompts", "completions"}


def check(
    name: str,
    folder: Path,
    sft: PreTrainedModel,
    row: dict[str, float],
    record: dict[str, Any],
    reward: Callable[[list[str]], Tensor],
    seed: int = 0,
) -> list[Check]:
    """The saved policy in `folder` against its row of the table.

    Args:
        sft: π_sft, by transformers, float32.
        row: kl, kl_se, reward and reward_se.
        record: the folder's warp_report.json (see `Experiment.save_policy`).
        reward: texts (prompt and completion) → r̃, (n,).
        seed: of the new completions.
    """
    settings, prompts, eos = record["settings"], record["prompts"], record["eos"]
    samples, length = settings["test_samples"], settings["max_new_tokens"]
    temperature = settings["temperature"]
    try:
        model = _float32(folder)
        nn.Module.to(model, sft.device)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers has a dozen of them
        raise ValueError(f"transformers cannot open {folder} ({type(error).__name__}).") from error
    kept = torch.tensor(record["completions"])
    behind_bos = [[*record.get("bos", []), *prompt] for prompt in prompts]
    same = kl_per_completion(model, sft, behind_bos, kept, temperature, eos)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        new = sample(model, behind_bos, samples, length, temperature, eos)
    kl = kl_per_completion(model, sft, behind_bos, new, temperature, eos)
    texts = tokenizer.batch_decode(
        [x + y for x, ys in zip(prompts, new.tolist(), strict=True) for y in ys]
    )
    earned = mean_and_error(reward(texts).view(kl.shape))
    return [
        Check(name, SAME_TOKENS, row["kl"], 0.0, mean_and_error(same)[0], 0.0),
        Check(name, KL, row["kl"], row["kl_se"], *mean_and_error(kl)),
        Check(name, REWARD, row["reward"], row["reward_se"], *earned),
    ]


def _float32(folder: Path | str) -> PreTrainedModel:
    """A saved model, opened by transformers in float32."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()


def verify(run: str, progress: Any = None) -> list[Check]:
    """Check every policy under runs/RUN/models. Trains nothing: the reward model comes from the
    store.

    Raises ValueError, in one sentence, for a run that is not there or has no saved policies, and
    where something that made its table is gone or has changed.
    """
    from ..experiment import Experiment  # only now: a name that is wrong is told at once
    from ..runs.progress import Progress
    from ..runs.store import NotStored, digest, only_stored
    from ..settings import Settings

    progress, checks, ready = progress or Progress(), [], {}
    saved = list(_saved(run))
    for name, folder, row, record in progress.track(saved, "verify"):
        try:
            settings = Settings(**record["settings"])
        except TypeError as error:
            raise ValueError(
                f"models/{name} of run {run!r} was saved by another version of this project"
                f" ({error})."
            ) from error
        if settings not in ready:
            experiment = Experiment(settings)
            try:
                with only_stored():
                    reward = experiment.reward(Progress())
            except NotStored as error:
                raise ValueError(
                    f"the reward model of run {run!r} is not in the store of this machine and"
                    " torch; verify trains nothing, `make report` with the run's settings does."
                ) from error
            # one at a time in memory
            ready = {settings: (experiment.theta_sft, _plain(experiment), reward)}
        theta_sft, sft, reward = ready[settings]
        digests = {
            "SFT policy": (digest(theta_sft), record["sft"]),
            "reward model": (reward.identity, record["reward"]["identity"]),
        }
        for what, (now, then) in digests.items():
            if now != then:
                raise ValueError(
                    f"the {what} that models/{name} of run {run!r} was made with has changed since:"
                    " run the report again."
                )
        checks += check(name, folder, sft, row, record, reward)
    return checks


def _saved(run: str) -> Iterator[tuple[str, Path, dict[str, float], dict[str, Any]]]:
    """The name, folder, row of the table and warp_report.json of each saved policy of a run.

    Raises ValueError as `verify` does.
    """
    from ..experiment import REPORT
    from ..runs.results import read_table
    from ..settings import TAKEN

    names = sorted(folder.name for folder in paths.RUNS.glob("*/"))
    runs = [name for name in names if name not in TAKEN and not name.startswith(".")]
    if run not in runs:
        hint = f"there are {', '.join(runs)}." if runs else "no report has been run."
        if near := difflib.get_close_matches(run, runs, 1):
            hint = f"did you mean {near[0]!r}?"
        raise ValueError(f"there is no run {run!r} in {paths.RUNS}; {hint}")
    folders = sorted(folder for folder in (paths.RUNS / run / "models").glob("*/"))
    if not folders:
        raise ValueError(
            f"run {run!r} has no saved policies; notebooks 03_warp and 04_reinforce_baseline save"
            " them."
        )
    table = paths.RUNS / run / "results.csv"
    if not table.exists():
        raise ValueError(
            f"run {run!r} has no results.csv; notebooks 03_warp and 04_reinforce_baseline write it."
        )
    results, _ = read_table(table)
    for folder in folders:
        try:
            record = json.loads((folder / REPORT).read_text())
            if not record.keys() >= FIELDS:
                raise ValueError("fields are missing")
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"models/{folder.name} of run {run!r} does not say which row of results.csv it is"
                f" (no whole {REPORT}): run the report again."
            ) from error
        rows = results
        for column, value in record["row"].items():
            if value is None:
                rows = rows[rows[column].isna()]
            elif isinstance(value, str):
                rows = rows[rows[column] == value]
            else:  # η went through a text
                rows = rows[(rows[column] - value).abs() < 1e-9]
        if len(rows) != 1:
            row = ", ".join(f"{k}={v}" for k, v in record["row"].items() if v is not None)
            raise ValueError(
                f"results.csv of run {run!r} has {len(rows)} rows, not one, for"
                f" models/{folder.name} ({row}): run the report again."
            )
        yield folder.name, folder, rows.iloc[0].to_dict(), record


def _plain(experiment: Any) -> PreTrainedModel:
    """π_sft as transformers writes and reads it, without what the report changes to be faster."""
    with tempfile.TemporaryDirectory() as folder:
        experiment.sft.model.save_pretrained(folder)
        return _float32(folder).to(experiment.sft.model.device)


def described(checks: Sequence[Check]) -> str:
    """The checks as a table, and what follows from them."""
    head = ("policy", "number", "results.csv", "saved folder", "difference", "verdict")
    lines = [head, *map(_line, checks)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    sampled = sum(c.sampled for c in checks)
    chance = {errors: 1 - math.erf(errors / math.sqrt(2)) ** sampled for errors in (2, LIMIT)}
    odd = sum(not c.agrees for c in checks)
    verdict = (
        f"{odd} of {len(checks)} numbers differ: the table is not that of the saved policies."
        if odd
        else f"All {len(checks)} agree."
    )
    return f"""{text}

± 2 standard errors (s.e.) over prompts. On completions sampled anew, numbers differ when they are
more than {LIMIT:g} combined s.e. apart: of {sampled} equal numbers one or more are by chance beyond
2 s.e. in {chance[2]:.0%} of reports, beyond {LIMIT:g} in {chance[LIMIT]:.2%}. On the same tokens,
where nothing is random, KL differs beyond {SAME:.0%} of the table's, or {SAME:g} nats where it is
less than one.
{verdict}"""


def _line(c: Check) -> tuple[str, ...]:
    both = ((c.table, c.table_se), (c.folder, c.folder_se))
    numbers = [f"{value:.3f} ± {2 * se:.3f}" if c.sampled else f"{value:.4f}" for value, se in both]
    difference = f"{c.distance:+.1f} s.e." if c.sampled else f"{c.folder - c.table:+.4f} nats"
    return c.policy, c.number, *numbers, difference, "agrees" if c.agrees else "DIFFERS"
