"""One side of a comparison, in a process of its own: it does a round for each line it reads, and
answers with a line of JSON.

``python sides.py warp POLICY PRECISION`` and ``python sides.py trl POLICY PRECISION`` train the
policy in a folder, ``python sides.py evaluate`` evaluates the bundled one, ``python sides.py slerp
FOLDER`` and ``python sides.py mergekit FOLDER`` merge (FOLDER holds the models base, a and b).
`run.py` drives two of them alternately.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
BATCH, NEW, TAU, BETA, RATE = 64, 53, 0.7, 0.1, 3e-5
ROUND = 5  # training steps of a round; ours looks at the KL to SFT in one of five


def cheap_reward(texts: list[str]) -> list[float]:
    """A reward that costs nothing, the same for both sides: what is compared is the training."""
    return [text.count("e") / 50 for text in texts]


def peak_mb() -> float:
    """The most memory this process has held: on the accelerator if it used one."""
    if on_accelerator := torch.cuda.max_memory_reserved():  # a merge does not use it
        return on_accelerator / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # rusage would count what the driver held when it started us
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes


def answer(seconds: list[float], *packages: str) -> None:
    """Say how long the round's steps took on average, what it took in memory, with which versions;
    then wait for the next line.
    """
    versions = {name: version(name) for name in ("torch", "transformers", *packages)}
    print(
        json.dumps(
            {"seconds": sum(seconds) / len(seconds), "peak_mb": peak_mb(), "versions": versions}
        ),
        flush=True,
    )
    if not sys.stdin.readline():
        os._exit(0)  # the other end is closed: the comparison is over


class Rounds:
    """Times steps, and after each `ROUND` of them answers and waits."""

    def __init__(self, *packages: str) -> None:
        self.began, self.seconds, self.packages = 0.0, [], packages

    def begin(self) -> None:
        """A step begins."""
        if len(self.seconds) == ROUND:
            answer(self.seconds, *self.packages)
            self.seconds = []
        self.began = time.perf_counter()

    def end(self) -> None:
        """The step is done, on an accelerator too."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.began)


def train_warp(folder: str, precision: str) -> None:
    """REINFORCE with a moving anchor, as the report runs it."""
    sys.path.insert(0, str(ROOT))
    from warp_lib.fast import machine
    from warp_lib.policy import Policy
    from warp_lib.reinforce import reinforce
    from warp_lib.runs.progress import Progress
    from warp_lib.settings import Settings
    from warp_lib.warp import RunId

    class Paced(Progress):
        def __init__(self) -> None:
            super().__init__()
            self.rounds = Rounds()

        def track(self, steps, title, done=0, total=None):
            for step in steps:
                self.rounds.begin()
                yield step
                self.rounds.end()

    class Cheap:
        identity = "cheap"

        def __call__(self, texts):
            return torch.tensor(cheap_reward(texts))

    machine.prepare()
    policy = Policy.from_name(folder)
    theta, prompts = (
        policy.weights(),
        policy.tokenizer(json.loads(sys.stdin.readline()), add_special_tokens=False)["input_ids"],
    )
    given = {
        "batch_size": BATCH,
        "max_new_tokens": NEW,
        "temperature": TAU,
        "beta": BETA,
        "learning_rate": RATE,
    }
    settings = Settings.profile("laptop", precision=precision, **given)
    reinforce(
        theta,
        RunId(0, "bench"),
        policy=policy,
        theta_sft=theta,
        prompts=prompts,
        reward=Cheap(),
        settings=settings,
        steps=10_000,
        progress=Paced(),
    )


def train_trl(folder: str, precision: str) -> None:
    """TRL's RLOO: two completions a prompt, its reference model synchronised every step, the same
    length and distribution, in float32 or by autocast in bfloat16."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    data = datasets.Dataset.from_dict({"prompt": json.loads(sys.stdin.readline())})
    config = RLOOConfig(
        output_dir=os.environ["WARP_RUNS"],
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_completion_length=NEW,
        temperature=TAU,
        top_p=1.0,
        top_k=0,
        beta=BETA,
        learning_rate=RATE,
        max_steps=10_000,
        sync_ref_model=True,
        ref_model_sync_steps=1,
        ref_model_mixup_alpha=0.01,
        bf16=precision == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        gradient_checkpointing=False,
        disable_dropout=True,
        generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]},
    )

    class Paced(TrainerCallback):
        rounds = Rounds("trl")

        def on_step_begin(self, *_, **__):
            self.rounds.begin()

        def on_step_end(self, *_, **__):
            self.rounds.end()

    trainer = RLOOTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: cheap_reward(completions),
    )
    # last, so that the synchronisation of its reference model is in its time
    trainer.add_callback(Paced())
    trainer.train()


def rounds(work: Callable[[], None], *packages: str) -> None:
    """Work again for every line."""
    sys.stdin.readline()
    while True:
        began = time.perf_counter()
        work()
        answer([time.perf_counter() - began], *packages)


def evaluate_warp() -> None:
    """An evaluation of 400 completions, in float32, by untrained encoders of three and of six
    layers, which are as fast as trained ones.
    """
    sys.path.insert(0, str(ROOT))
    from warp_lib.experiment import Experiment
    from warp_lib.fast import machine
    from warp_lib.models.scorers import untrained
    from warp_lib.reward import Reward
    from warp_lib.runs.progress import Progress
    from warp_lib.settings import Settings

    machine.prepare()
    experiment = Experiment(Settings.profile("laptop"))
    theta = experiment.theta_sft
    rewards = {
        name: Reward(untrained("minilm", layers, ("bench", name)), 0.0, 1.0)
        for name, layers in (("reward", 3), ("judge", 6))
    }

    def evaluate() -> None:
        for weights in theta.values():
            weights.mul_(1.0001)  # or the store would have it
        experiment.evaluate(theta, rewards, progress=Progress())

    rounds(evaluate)


def merge_slerp(folder: str) -> None:
    """Ours: read, SLERP the task vectors with one angle per tensor, write."""
    sys.path.insert(0, str(ROOT))
    from safetensors.torch import load_file, save_file

    from warp_lib.merging import slerp

    def merge() -> None:
        base, a, b = (
            load_file(Path(folder, name, "model.safetensors")) for name in ("base", "a", "b")
        )
        save_file(
            slerp(base, [a, b], per="tensor"), Path(folder, "slerp.safetensors"), {"format": "pt"}
        )

    rounds(merge)


def merge_mergekit(folder: str) -> None:
    """mergekit's nuslerp with a base model, on the same files."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    config = MergeConfiguration.model_validate(
        {
            "merge_method": "nuslerp",
            "base_model": f"{folder}/base",
            "models": [
                {"model": f"{folder}/{name}", "parameters": {"weight": 0.5}} for name in ("a", "b")
            ],
            "dtype": "float32",
        }
    )
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    rounds(lambda: run_merge(config, f"{folder}/mergekit", options), "mergekit")


if __name__ == "__main__":
    sides = {
        "warp": train_warp,
        "evaluate": evaluate_warp,
        "trl": train_trl,
        "slerp": merge_slerp,
        "mergekit": merge_mergekit,
    }
    sides[sys.argv[1]](*sys.argv[2:])
