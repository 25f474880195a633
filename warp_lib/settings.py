"""Every knob of the report: one documented dataclass, and the named profiles that set it."""

import dataclasses
import difflib
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

from .runs.errors import Explained

# folders under runs/ that are not a run's
TAKEN = ("store", "reviews", "pretrain", "explorer", "smollm2-imdb")
SPLITS = ("test", "validation")
LARGEST = 10**7  # no setting but the seed is larger
LONGEST_NAME = 200  # bytes


def knob(
    default: Any,
    doc: str,
    least: float | None = None,
    most: float | None = None,
    among: tuple[str, ...] = (),
) -> Any:
    """A field with its documentation and its allowed values (`least` ≤ value ≤ `most`, or one of
    `among`).
    """
    return field(
        default=default, metadata={"doc": doc, "least": least, "most": most, "among": among}
    )


@dataclass(frozen=True)
class Settings:
    """What a run of the report depends on. The same names stand in the notebooks' parameters, on
    the command line and in every record.

    Raises ValueError, in one sentence that names the setting and what is allowed, for a value that
    is not.
    """

    name: str = knob("laptop", "folder of this run's pages, tables and models, under runs/")
    seed: int = knob(
        0,
        "seeds what training draws, both prompts and completions; reward model, judges and"
        " evaluation are the same for every seed",
        0,
    )

    # What is trained, on what: each a bundled name, a local folder or a hub id.
    policy: str = knob(
        "reviews-gpt2",
        "θ_sft: reviews-gpt2 (bundled), smollm2-imdb, smollm2 (pip), a local folder or a hub id",
    )
    encoder: str = knob(
        "minilm", "encoder the reward model starts from: minilm (pip), a local folder or a hub id"
    )
    reviews: str = knob("imdb", "labelled reviews: imdb (pip), a local folder or a hub id")

    # The reward model (Bradley–Terry).
    reward_layers: int = knob(6, "the encoder's first layers used by the reward model", 1)
    reward_trained: int = knob(
        3, "how many of the last layers are trained (all: the embeddings too)", 1
    )
    reward_steps: int = knob(
        240,
        "training steps of the reward model: on 32 + 32 crops; every sixth on 4 + 4 whole reviews"
        " (0: the encoder is a ready classifier of two labels, used as it is)",
        0,
    )
    reward_learning_rate: float = knob(3e-4, "peak learning rate of the reward model", 1e-8, 1.0)
    judge_steps: int = knob(
        0,
        "training steps of the full-encoder judge on the other half of the labels (0: leave it"
        " out)",
        0,
    )

    # Completions.
    max_new_tokens: int = knob(
        53, "tokens in every completion; EOS is masked, so all are this long", 1
    )
    temperature: float = knob(0.7, "sampling temperature τ; also used in scoring", 0.01, 10.0)

    # REINFORCE with a moving anchor.
    steps: int = knob(40, "T: optimiser steps of one run", 1)
    batch_size: int = knob(64, "completions per step", 2)
    completions_per_prompt: int = knob(
        1,
        "k: completions of each prompt in a batch; from 2 on the baseline is the prompt's own"
        " (RLOO)",
        1,
    )
    baseline: str = knob(
        "leave-one-out", "the baseline subtracted from each reward", among=("leave-one-out", "none")
    )
    learning_rate: float = knob(
        1e-5, "AdamW's learning rate, reached after 10 steps of warm-up", 1e-8, 1.0
    )
    beta: float = knob(0.3, "β: price of one nat of KL to the anchor, in r̃", 0.0)
    mu: float = knob(
        0.01,
        "μ: share of the policy that enters the EMA anchor each step (0: the anchor stays at the"
        " initialisation)",
        0.0,
        1.0,
    )

    precision: str = knob(
        "split",
        "weights in training's matrix products, where the hardware multiplies bfloat16: split (as"
        " two bfloat16 parts), bfloat16 (rounded, which trains another policy), float32 (slower);"
        " everything is measured in float32",
        among=("split", "bfloat16", "float32"),
    )

    # DPO, in REINFORCE's place: β, μ, learning rate, T and batch size (two completions a pair) are
    # the same settings.
    pair_prompts: int = knob(
        256, "prompts whose completions are ranked and paired before each iteration", 1
    )
    pair_completions: int = knob(4, "completions of each of these prompts", 2)

    # WARP.
    iterations: int = knob(2, "I: WARP iterations", 1)
    runs: int = knob(2, "M: independent runs merged in each iteration", 1)
    eta: float = knob(
        0.5,
        "η: how far LITI goes from the iteration's initialisation to the merged policy",
        0.0,
        1.0,
    )
    merge: str = knob("slerp", "how the runs' task vectors are averaged", among=("slerp", "lerp"))
    slerp_per: str = knob(
        "layer",
        "one SLERP angle for each layer, each tensor, or the whole model",
        among=("layer", "tensor", "model"),
    )

    # Evaluation.
    held_out: str = knob(
        "test",
        "held-out split that evaluation prompts come from; settings are chosen on validation",
        among=SPLITS,
    )
    test_prompts: int = knob(100, "held-out prompts of every evaluation", 2)
    test_samples: int = knob(4, "completions sampled for each test prompt", 1)
    front_points: int = knob(6, "points on each final front, η from 0 to 1", 2)

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if (
            not re.fullmatch(r"[\w.-]+", self.name)
            or self.name.startswith(".")
            or self.name in TAKEN
        ):
            raise Explained(
                "name must be a plain folder name (letters, digits, . _ -) other than"
                f" {', '.join(TAKEN)}, not {self.name!r}."
            )
        if (length := len(self.name.encode())) > LONGEST_NAME:
            raise Explained(f"name must take at most {LONGEST_NAME} bytes, not {length}.")
        if self.batch_size % self.completions_per_prompt:
            raise Explained(
                f"completions_per_prompt must divide batch_size ({self.batch_size}), and"
                f" {self.completions_per_prompt} does not."
            )
        if self.reward_trained > self.reward_layers:
            raise Explained(
                f"reward_trained must be at most reward_layers ({self.reward_layers}), not"
                f" {self.reward_trained}."
            )

    @classmethod
    def profile(cls, profile: str = "laptop", **overrides: Any) -> "Settings":
        """The settings of a named profile, with `overrides` (None: as in the profile). Unknown
        names are refused.
        """
        if not isinstance(profile, str) or profile not in PROFILES:
            raise Explained(f"profile must be one of {', '.join(PROFILES)}, not {profile!r}.")
        known = [f.name for f in fields(cls)]
        for name in overrides:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
                raise Explained(f"there is no setting {name!r}; {hint}")
        chosen = {n: v for n, v in overrides.items() if v is not None}
        named: dict[str, Any] = {"name": profile}
        return cls(**named | PROFILES[profile] | chosen)

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> "Settings":
        """The settings that a notebook's parameters cell, and papermill after it, put into its
        `namespace` (``globals()``).

        A name that papermill injected and that is no setting is refused rather than ignored.
        """
        known = {f.name for f in fields(cls)} | {"profile"}
        injected = [
            cell for cell in namespace.get("In", []) if cell.lstrip().startswith("# Parameters")
        ]
        names = {m for cell in injected for m in re.findall(r"^(\w+) =", cell, re.MULTILINE)} | (
            known & namespace.keys()
        )
        return cls.profile(**{n: namespace[n] for n in names})

    def _repr_html_(self) -> str:
        import html

        rows = "".join(
            f"<tr><td><code>{f.name}</code></td><td>{html.escape(str(getattr(self, f.name)))}</td>"
            f"<td style='text-align:left'>{html.escape(f.metadata['doc'])}</td></tr>"
            for f in fields(self)
        )
        return (
            "<details><summary>settings:"
            f" {html.escape(self.name)}</summary><table>{rows}</table></details>"
        )

    def asdict(self) -> dict[str, Any]:
        """The settings as plain values, for records."""
        return dataclasses.asdict(self)


def typed(name: str, text: str) -> int | float | str:
    """What a person typed as a value of the setting `name`."""
    kinds = {f.name: f.type for f in fields(Settings)} | {"profile": str}
    return text if kinds.get(name) is str else number(text)


def number(text: str) -> int | float | str:
    """A number where `text` is one; anything else is left for Settings to refuse, which says what
    is allowed.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _checked(f: dataclasses.Field, value: Any) -> Any:
    """`value`, as the field's type, or a ValueError that says what is allowed."""
    allowed = f.metadata
    if f.type is str:
        if (
            not isinstance(value, str)
            or not value
            or (allowed["among"] and value not in allowed["among"])
        ):
            raise Explained(
                f"{f.name} must be {' or '.join(allowed['among']) or 'a name'}, not {value!r}."
            )
        return value
    whole, least, most = f.type is int, allowed["least"], allowed["most"]
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not abs(value) < math.inf
        or (whole and value != int(value))
        or not least <= value <= (math.inf if most is None else most)
    ):
        kind = "a whole number" if whole else "a number"
        span = f"from {least:g} to {most:g}" if most is not None else f"of at least {least:g}"
        raise Explained(f"{f.name} must be {kind} {span}, not {value!r}.")
    if abs(value) > (largest := 2**63 - 1 if f.name == "seed" else LARGEST):
        raise Explained(f"{f.name} must be at most {largest:,}, not {repr(value)[:30]}.")
    return int(value) if whole else float(value)


# The student report's sizes. The reward model is the default's, so that r̃ is on laptop's scale.
FULL: dict[str, Any] = dict(steps=100, test_samples=10, front_points=11)
PROFILES: dict[str, dict[str, Any]] = {
    # The whole chain in a few steps, for tests: shows that everything runs, learns nothing.
    "smoke": dict(
        reward_steps=6,
        reward_layers=1,
        reward_trained=1,
        max_new_tokens=12,
        steps=4,
        batch_size=8,
        test_prompts=8,
        test_samples=2,
        front_points=3,
    ),
    # The default, for a laptop's two cores.
    "laptop": dict(),
    "full": FULL,
    # The student report's own models, from the hub.
    "gpt2-imdb": dict(
        policy="lvwerra/gpt2-imdb",
        encoder="distilbert/distilbert-base-cased",
        reviews="stanfordnlp/imdb",
        steps=100,
        reward_trained=6,
        reward_steps=780,
        reward_learning_rate=5e-5,
        learning_rate=5e-5,
        beta=0.1,
        test_samples=10,
        front_points=11,
    ),
    # A real 135M model that pip installs (`make smollm2`), fine-tuned on the reviews; for an
    # accelerator, or many hours.
    "smollm2": FULL | dict(policy="smollm2-imdb"),
    # The same for two cores and an hour.
    "smollm2-small": dict(
        policy="smollm2-imdb",
        steps=25,
        batch_size=16,
        pair_prompts=64,
        test_prompts=60,
        test_samples=1,
        front_points=11,
    ),
}
