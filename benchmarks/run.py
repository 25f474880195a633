"""What a training step costs, part by part and beside TRL's; what a merge costs beside mergekit's.
Run by ``make bench``.

Every comparison runs both sides alternately, each in a process of its own, and gives the median of
the pairs' ratios with the smallest and the largest. Results are kept as JSON in
``benchmarks/results/`` with machine, versions and command, in a folder for each way in which
machines multiply.
"""

import argparse
import copy
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

# a store that holds nothing, for us and for the sides
os.environ["WARP_RUNS"] = tempfile.mkdtemp(prefix="warp-bench-")

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from warp_lib.experiment import Experiment
from warp_lib.fast import cuda_graphs, machine
from warp_lib.models.scorers import EncoderScorer, untrained
from warp_lib.policy import BUNDLED, Policy
from warp_lib.reinforce import SFT_EVERY, reinforce
from warp_lib.reviews import load_reviews
from warp_lib.reward import Reward
from warp_lib.runs.jobs import MEMORY
from warp_lib.runs.paths import RUNS
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings

HERE = Path(__file__).resolve().parent
PEERS = HERE / ".venv" / "bin" / "python"
PAIRS = 7  # rounds of each side, after one that is not counted
ANCHOR = "anchor (and SFT, every fifth step)"
MATRIX = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")


# Two sides, alternately


class Side:
    """A process of `sides.py` that does a round when told to."""

    def __init__(
        self, python: Path | str, *arguments: str, first: str = "start", **environment: str
    ):
        self.process = subprocess.Popen(
            [str(python), str(HERE / "sides.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
            | environment,
        )
        self.answer = self.round(first)  # warm-up

    def round(self, line: str = "go") -> dict[str, Any]:
        """One round: mean seconds of a step, the process's peak memory so far, versions."""
        with suppress(BrokenPipeError):  # it has ended, which is said below
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        for said in self.process.stdout:  # a library may print too
            if said.startswith('{"seconds"'):
                self.answer = json.loads(said)
                return self.answer
        raise SystemExit(
            f"bench: {shlex.join(map(str, self.process.args))} ended with exit code"
            f" {self.process.wait()}."
        )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class SideBySide:
    """Sides that do their rounds at the same time, as one: its seconds are those of one step when
    all of them are shared out.
    """

    def __init__(self, sides: list[Side]):
        self.sides = sides
        self.answer = self.round()

    def round(self) -> dict[str, Any]:
        with ThreadPoolExecutor(len(self.sides)) as pool:
            answers = list(pool.map(Side.round, self.sides))
        mean = statistics.mean(answer["seconds"] for answer in answers)
        peak = sum(answer["peak_mb"] for answer in answers)
        self.answer = {
            "seconds": mean / len(answers),
            "peak_mb": peak,
            "versions": answers[0]["versions"],
        }
        return self.answer

    def close(self) -> None:
        for side in self.sides:
            side.close()


def alternately(ours: Side | SideBySide, theirs: Side) -> dict[str, Any]:
    """Median seconds of both sides, and the ratio theirs / ours of neighbouring rounds: median,
    smallest, largest.
    """
    pairs = [[side.round()["seconds"] for side in (ours, theirs)] for _ in range(PAIRS)]
    ratios = [b / a for a, b in pairs]
    result = {
        "ours_s": statistics.median(a for a, _ in pairs),
        "theirs_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "pairs": pairs,
        "ours_peak_mb": ours.answer["peak_mb"],
        "theirs_peak_mb": theirs.answer["peak_mb"],
        "ours_versions": ours.answer["versions"],
        "theirs_versions": theirs.answer["versions"],
    }
    ours.close()
    theirs.close()
    return result


def trained(folder: Path) -> Path:
    """What the training sides train: the bundled policy, or on an accelerator a model like
    SmolLM2-135M, which is made in the folder.
    """
    if machine.device().type == "cpu":
        return BUNDLED
    llama_135m().save_pretrained(folder)
    Policy.from_name("reviews-gpt2").tokenizer.save_pretrained(folder)
    return folder


def llama_135m() -> LlamaForCausalLM:
    """A model of SmolLM2-135M's shapes whose weights were never trained."""
    shape = dict(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **shape))


def openings() -> str:
    """The prompts that a training side is told to begin with."""
    policy = Policy.from_name("reviews-gpt2")
    opened = policy.prompts(load_reviews("imdb").train["text"][:2000], "bench")
    return json.dumps(policy.tokenizer.batch_decode(list(opened.values())))


def side_by_side() -> dict[str, Any]:
    """Training steps of as many runs as there are cores: side by side on a thread each, as ``study
    --jobs`` has them, and one run after another on all threads. The reward costs nothing."""
    prompts, cores = openings(), os.cpu_count() or 1
    policy = str(BUNDLED)
    alone = [our_side(policy, prompts, OMP_NUM_THREADS="1") for _ in range(cores)]
    result = alternately(SideBySide(alone), our_side(policy, prompts, OMP_NUM_THREADS=str(cores)))
    print(
        f"{cores} runs side by side: {result['ours_s']:.2f} s a step of one; one by one"
        f" {result['theirs_s']:.2f} s; {as_ratio(result)}"
    )
    return result


def our_side(policy: str, prompts: str, precision: str = "split", **environment: str) -> Side:
    """A training of ours, in a store of its own: two of them that are alike would wait for each
    other in one.
    """
    return Side(
        sys.executable,
        "warp",
        policy,
        precision,
        first=prompts,
        **{"WARP_RUNS": tempfile.mkdtemp(dir=RUNS)} | environment,
    )


def by_precision() -> dict[str, Any]:
    """A training step of 64 × 53 tokens with weights in two bfloat16 parts, as the report trains,
    and with rounded weights, as autocast trains another policy. The reward costs nothing."""
    policy, prompts = str(BUNDLED), openings()
    result = alternately(our_side(policy, prompts, "bfloat16"), our_side(policy, prompts, "split"))
    print(
        f"step, reward free: weights rounded {result['ours_s']:.2f} s, in two parts"
        f" {result['theirs_s']:.2f} s; {as_ratio(result)}"
    )
    return result


def by_pages() -> dict[str, Any]:
    """An evaluation and a training step in huge pages, as the report has them, and in the small
    ones of a process that asks for none (see `jobs.MEMORY`)."""
    prompts, results = openings(), {}

    def side(work: str, **memory: str) -> Side:
        if work == "step":
            return our_side(str(BUNDLED), prompts, **memory)
        store = {"WARP_RUNS": tempfile.mkdtemp(dir=RUNS)}
        return Side(sys.executable, "evaluate", **store | memory)

    for work in ("evaluation", "step"):
        small = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
        results[work] = result = alternately(side(work, **MEMORY), side(work, **small))
        print(
            f"{work}: huge pages {result['ours_s']:.2f} s, small ones {result['theirs_s']:.2f} s;"
            f" {as_ratio(result)}"
        )
    return results


def against_trl() -> dict[str, Any]:
    """A training step of 64 × 53 tokens, of ours and of TRL's RLOOTrainer, both with a reward that
    costs nothing.

    At equal precision: in two parts and in float32 both train the policy that they save; in
    bfloat16 by autocast both sample and score another one.
    """
    policy, prompts, results = str(trained(RUNS / "untrained-135m")), openings(), {}
    for precision, theirs in (("split", "float32"), ("bfloat16", "bfloat16")):
        results[precision] = result = alternately(
            our_side(policy, prompts, precision), Side(PEERS, "trl", policy, theirs, first=prompts)
        )
        print(
            f"step, reward free, {precision}: {result['ours_s']:.2f} s; TRL's, {theirs}:"
            f" {result['theirs_s']:.2f} s; {as_ratio(result)}"
        )
    return {"policy": Path(policy).name} | results


def against_mergekit() -> dict[str, Any]:
    """SLERP of two task vectors of a 135M model, folders to folder, ours and mergekit's nuslerp;
    and how far the results are apart.
    """
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory(prefix="warp-bench-") as name:
        folder = Path(name)
        llama_135m().save_pretrained(folder / "base")
        for seed, run in enumerate(("a", "b")):
            torch.manual_seed(seed)
            model = LlamaForCausalLM.from_pretrained(folder / "base")
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p), alpha=0.01)
            model.save_pretrained(folder / run)
        result = alternately(Side(sys.executable, "slerp", name), Side(PEERS, "mergekit", name))
        ours, (theirs_file,) = (
            load_file(folder / "slerp.safetensors"),
            (folder / "mergekit").glob("*.safetensors"),
        )
        theirs = load_file(theirs_file)
        if missing := ours.keys() ^ theirs.keys():
            raise SystemExit(f"bench: the merges have different tensors: {sorted(missing)}.")
        result["largest_difference"] = max((ours[n] - theirs[n]).abs().max().item() for n in ours)
        result["model_mb"] = sum(t.numel() * t.element_size() for t in ours.values()) / 1e6
    print(
        f"merging two 135M models: {result['ours_s']:.2f} s; mergekit {result['theirs_s']:.2f} s;"
        f" {as_ratio(result)}; ",
        end="",
    )
    print(
        f"largest difference {result['largest_difference']:.1e}; peak {result['ours_peak_mb']:.0f}"
        f" and {result['theirs_peak_mb']:.0f} MB"
    )
    return result


def as_ratio(result: dict[str, Any]) -> str:
    return (
        f"ratio {result['ratio']:.2f} ({result['ratio_least']:.2f} to {result['ratio_most']:.2f})"
    )


# One step, part by part


def now() -> float:
    """Seconds on a clock, when everything that was asked of the device is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


class Parts(TorchDispatchMode):
    """Times the parts of a step, and counts the matrix products in each by operation, shapes,
    strides and dtypes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = "the rest"
        self.seconds: dict[str, float] = defaultdict(float)
        self.products: dict[str, Counter] = defaultdict(Counter)

    @contextmanager
    def timed(self, owner: type, name: str, part: Callable[[], str]):
        """Within, every call of the method counts as the part that `part` says."""
        original = getattr(owner, name)

        def wrapper(*args, **kwargs):
            outer, self.part = self.part, part()
            began = now()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[self.part] += now() - began
                self.part = outer

        setattr(owner, name, wrapper)
        try:
            yield
        finally:
            setattr(owner, name, original)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # by laid out weights, (out, in); alone it is counted as a plain one
        if str(func.overloadpacket) == "mkldnn._linear_pointwise":
            x, weight = args[0].flatten(0, -2), args[1]
            shapes = (
                (tuple(x.shape), x.stride(), x.dtype),
                (tuple(weight.shape)[::-1], (1, weight.shape[1]), x.dtype),
            )
            self.products[self.part][torch.ops.aten.mm.default, shapes] += 1
        if str(func.overloadpacket) in MATRIX:
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            self.products[self.part][
                func, tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)
            ] += 1
        return func(*args, **(kwargs or {}))


def alone(products: Counter) -> tuple[float, float]:
    """Seconds that matrix products take by themselves, each timed alone on the same shapes, and
    their floating-point operations.
    """
    total = operations = 0.0
    for (func, tensors), count in products.items():
        args = [
            torch.empty_strided(shape, stride, dtype=dtype, device=machine.device()).normal_()
            for shape, stride, dtype in tensors
        ]
        once = []
        for _ in range(9):
            began = now()
            func(*args)
            once.append(now() - began)
        total += count * statistics.median(once[2:])
        operations += count * 2 * torch.Size(tensors[-2][0]).numel() * tensors[-1][0][-1]
    return total, operations


def train(
    experiment: Experiment, reward: Reward, settings: Settings, steps: int, seed: str
) -> float:
    """Mean seconds of the steps of a fresh run; on a GPU what it captures is in them."""
    run = reinforce(
        experiment.theta_sft,
        (0, seed),
        policy=experiment.policy,
        theta_sft=experiment.theta_sft,
        prompts=experiment.train_prompts[:2000],
        reward=reward,
        settings=settings,
        steps=steps,
        progress=Progress(),
    )
    return run.seconds / steps


def step_parts() -> dict[str, Any]:
    """The parts of the laptop profile's step, and the share of each that its matrix products alone
    would take.
    """
    settings, steps = Settings.profile("laptop"), 4 * SFT_EVERY
    experiment = Experiment(settings)
    # untrained: as fast as a trained one
    reward = Reward(untrained(settings.encoder, settings.reward_layers, ("bench",)), 0.0, 1.0)
    parts = Parts()
    with (
        parts.timed(Policy, "sample", lambda: "sampling"),
        parts.timed(EncoderScorer, "__call__", lambda: "reward model"),
        parts.timed(
            Policy,
            "step_log_probs",
            lambda: "policy, forward" if torch.is_grad_enabled() else ANCHOR,
        ),
        parts.timed(torch.Tensor, "backward", lambda: "policy, backward"),
        parts.timed(torch.optim.AdamW, "step", lambda: "optimiser"),
    ):
        train(experiment, reward, settings, 5, "warm-up")
        parts.seconds.clear()
        step = train(experiment, reward, settings, steps, "parts")
        seconds = {part: total / steps for part, total in parts.seconds.items()}
        # products in a replayed graph would not be seen
        with parts, mock.patch.object(cuda_graphs, "can_capture", lambda model: False):
            train(experiment, reward, settings, SFT_EVERY, "products")
    seconds["the rest: texts, EMA, prompts"] = step - sum(seconds.values())
    table, matrix, operations = [], 0.0, 0.0
    for part, mean in seconds.items():
        taken, flops = (value / SFT_EVERY for value in alone(parts.products[part]))
        matrix, operations = matrix + taken, operations + flops
        table.append(
            {"part": part, "seconds": mean, "products_alone_s": taken, "gflop": flops / 1e9}
        )
    print(
        f"step: {step:.3f} s ({settings.batch_size} completions of {settings.max_new_tokens}"
        f" tokens, {machine.fast_dtype()})"
    )
    for row in table:
        share = row["products_alone_s"] / row["seconds"]
        print(
            f"  {row['part']:36s} {row['seconds']:.3f} s   {row['gflop']:6.1f} GFLOP, alone"
            f" {row['products_alone_s']:.3f} s ({share:.0%})"
        )
    rate = operations / matrix / 1e9
    print(
        f"  its matrix products alone: {matrix:.3f} s ({rate:,.0f} GFLOP/s); the step takes"
        f" {step / matrix:.2f} times as long"
    )
    return {
        "step_s": step,
        "parts": table,
        "matrix_s": matrix,
        "gflop": operations / 1e9,
        "times_matrix": step / matrix,
    }


def growth() -> list[dict[str, Any]]:
    """How the step grows with the batch, the completion's length and the model."""
    small, wider = Policy.from_name("reviews-gpt2"), RUNS / "wider"
    config = copy.deepcopy(small.model.config)
    config.update({"n_embd": 640, "n_layer": 8, "n_head": 10})
    GPT2LMHeadModel(config).save_pretrained(wider)
    small.tokenizer.save_pretrained(wider)
    reward = Reward(untrained("minilm", 6, ("bench",)), 0.0, 1.0)
    rows = []
    changes = (
        [{"batch_size": n} for n in (16, 32, 64, 128)]
        + [{"max_new_tokens": n} for n in (13, 26, 106)]
        + [{"policy": str(wider)}]
    )
    for change in changes:
        settings = Settings.profile("laptop", **change)
        experiment = Experiment(settings)
        train(experiment, reward, settings, 2, "warm-up")
        seconds = train(experiment, reward, settings, 5, "growth")
        millions = sum(p.numel() for p in experiment.policy.model.parameters()) / 1e6
        rows.append(
            {
                "batch": settings.batch_size,
                "tokens": settings.max_new_tokens,
                "parameters_m": round(millions, 1),
                "step_s": seconds,
            }
        )
        print(
            f"batch {settings.batch_size:3d} × {settings.max_new_tokens:3d} tokens,"
            f" {millions:5.1f}M parameters: {seconds:.2f} s"
        )
    return rows


def multiplied_by() -> str:
    """What decides most of the speed: the processor's instructions for bfloat16, or the number
    format; on an accelerator both.
    """
    device, dtype = machine.device().type, str(machine.fast_dtype()).removeprefix("torch.")
    if device != "cpu":
        return f"{device}-{dtype}"
    return machine.bfloat16_by() or dtype


def keep(name: str, result: Any) -> None:
    """Write a result with what it was measured on."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        processor = next(
            (
                line.split(":")[1].strip()
                for line in cpuinfo.read_text().splitlines()
                if "model name" in line
            ),
            processor,
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    record = {
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "commit": commit,
        "machine": {
            "processor": processor,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": machine.device_name(),
            "dtype": str(machine.fast_dtype()),
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "result": result,
    }
    folder = HERE / "results" / multiplied_by()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


BENCHMARKS = {
    "step": step_parts,
    "precision": by_precision,
    "pages": by_pages,
    "jobs": side_by_side,
    "trl": against_trl,
    "merging": against_mergekit,
    "growth": growth,
}


def main() -> None:
    """The command line: all benchmarks, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "which", nargs="*", default=[*BENCHMARKS], help=f"of {', '.join(BENCHMARKS)} (default: all)"
    )
    which = parser.parse_args().which
    if unknown := [name for name in which if name not in BENCHMARKS]:
        raise SystemExit(
            f"bench: there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}."
        )
    machine.prepare()
    RUNS.mkdir(parents=True, exist_ok=True)
    if machine.device().type != "cpu" and "jobs" in which:
        print(
            "bench: jobs is left out: it shares out a processor's cores, and here is an"
            " accelerator."
        )
        which = [name for name in which if name != "jobs"]
    try:
        for name in which:
            keep(name, BENCHMARKS[name]())
    finally:
        shutil.rmtree(RUNS, ignore_errors=True)


if __name__ == "__main__":
    main()
