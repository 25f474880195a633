"""Policies to play with: weights between SFT and trained policies, what they write, and where each
word departs from SFT.
"""

import asyncio
import html
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import torch
from IPython.display import HTML, DisplayHandle, display
from torch import Tensor

from ..evaluate import exact_kl
from ..experiment import Experiment
from ..fast import machine
from ..merging import Weights, between, geometry, interpolate
from ..policy import Policy, Rollouts
from ..report import plots
from ..report.page import script_json
from ..reward import Reward
from ..runs.seeds import torch_stream
from ..runs.store import digest, memoise
from ..study.fronts import signed
from .live import front_end
from .live_figure import LiveFigure

COMPLETIONS, READ = 8, 3  # of a prompt, each time; of these, shown
EXAMPLES = ("This film was", "I went to see it because", "The worst thing about the plot")
# of the page's slider; completions of a prompt there, which take seconds; of these, shown
ETAS, ON_PAGE, READ_ON_PAGE = [k / 10 for k in range(11)], 4, 2
FULL = 0.5  # nats of a token's KL at which its colour is strongest
NAMED = 3  # tokens of a completion that are also named in words, those of the largest KL
BUSY = '<span role="status"><b>writing …</b></span>'
# seconds without a change before new texts are written: a slider held down asks once
SETTLED = 0.15
SENTENCE_END, MORE_OF_IT = re.compile(r"[.!?…][\"')\]]*\s*$"), re.compile(r"[.!?…\"')\]]")


@dataclass(frozen=True)
class Mix:
    """Weights: SLERP from policy `first` towards `second` by the share λ, LITI from SFT by η."""

    first: str
    second: str
    share: float
    eta: float

    def __str__(self) -> str:
        towards = f", λ = {self.share:g} towards {self.second}" if self.share else ""
        return f"η = {self.eta:g} of {self.first}{towards}"


@dataclass(frozen=True)
class Completion:
    """One completion, token by token and sentence by sentence.

    prompt: its text; pieces: the tokens' texts; kl, log_ratio: of each token, to SFT, in nats (see
    `by_token`); reward: r̃ of the whole; sentences: where each ends (tokens before its end) and
    what it adds to r̃; before: r̃ of the prompt alone.
    """

    prompt: str
    pieces: list[str]
    kl: list[float]
    log_ratio: list[float]
    reward: float
    before: float
    sentences: list[tuple[int, float]]


class Playground:
    """Policies by name, weights between them, and what they write."""

    def __init__(self, experiment: Experiment, deltas: dict[str, Weights], reward: Reward):
        """deltas: name → task vector θ − θ_sft of the experiment's policy."""
        self.experiment, self.reward = experiment, reward
        self.tuned = {
            name: {n: t + delta[n] for n, t in experiment.theta_sft.items()}
            for name, delta in deltas.items()
        }

    def theta(self, mix: Mix) -> Weights:
        """The weights of a mix."""
        sft = self.experiment.theta_sft
        whole = between(sft, self.tuned[mix.first], self.tuned[mix.second], mix.share)
        return interpolate(sft, whole, mix.eta)

    def layers(self, mix: Mix) -> list[dict[str, Any]]:
        """`merging.geometry` of the mix's two policies (1 and 2) and of its own weights (3)."""
        first, second = self.tuned[mix.first], self.tuned[mix.second]
        return geometry(self.experiment.theta_sft, [first, second, self.theta(mix)])

    def prompt_ids(self, prompt: str) -> list[int]:
        """A prompt's tokens. Raises ValueError when there are none, or too many for the context."""
        policy, new = self.experiment.policy, self.experiment.settings.max_new_tokens
        ids = policy.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        longest = policy.model.config.max_position_embeddings - new - len(policy.bos_ids)
        if not 1 <= len(ids) <= longest:
            raise ValueError(
                f"a prompt must have from 1 to {longest} tokens (about {longest * 3 // 4} words),"
                f" not {len(ids)}."
            )
        return ids

    def write(self, prompts: Sequence[str], mix: Mix, take: int = 0) -> list[Completion]:
        """A completion of each prompt by the policy of a mix, scored.

        The same `take` draws the same random numbers for every mix.

        Raises ValueError for a prompt that is empty or too long.
        """
        s, policy = self.experiment.settings, self.experiment.policy
        ids = [self.prompt_ids(prompt) for prompt in prompts]
        policy.load(self.theta(mix))
        generator = torch_stream("playground", take, device=machine.device())
        y = policy.sample(ids, s.max_new_tokens, s.temperature, generator)
        kl, log_ratio = by_token(policy, self.experiment.sft, y, s.temperature)
        starts = [str(policy.tokenizer.decode(each)) for each in ids]
        pieces = [split(policy, *pair) for pair in zip(ids, y.completions.tolist(), strict=True)]
        ends = [sentence_ends(tokens) for tokens in pieces]
        openings = [
            start + "".join(tokens[:end])
            for start, tokens, sentences in zip(starts, pieces, ends, strict=True)
            for end in [0, *sentences]
        ]
        rewards = self.reward(openings).tolist()
        completions = []
        for k, (tokens, sentences) in enumerate(zip(pieces, ends, strict=True)):
            here, rewards = rewards[: len(sentences) + 1], rewards[len(sentences) + 1 :]
            gains = [now - then for then, now in pairwise(here)]
            numbers = kl[k].tolist(), log_ratio[k].tolist(), here[-1], here[0]
            by_sentence = list(zip(sentences, gains, strict=True))
            completions.append(Completion(starts[k], tokens, *numbers, by_sentence))
        return completions


@torch.no_grad()
def by_token(
    policy: Policy, sft: Policy, rollouts: Rollouts, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL(π‖π_sft) over the vocabulary before each sampled token, and the token's own log π − log
    π_sft: (n, new) each, nats.
    """
    log_p, log_q = (m.log_distribution(m.logits(rollouts), temperature) for m in (policy, sft))
    log_ratio = (log_p - log_q).gather(-1, rollouts.completions[..., None])[..., 0]
    return exact_kl(log_p.exp(), log_p, log_q).cpu(), log_ratio.cpu()


def split(policy: Policy, prompt: Sequence[int], completion: Sequence[int]) -> list[str]:
    """The text that each token of a completion adds to what stands before it.

    A letter of several tokens comes with the last of them.
    """
    before, pieces = str(policy.tokenizer.decode([*prompt])), []
    for k in range(1, len(completion) + 1):
        text = str(policy.tokenizer.decode([*prompt, *completion[:k]]))
        whole = text if k == len(completion) else text.rstrip("\N{REPLACEMENT CHARACTER}")
        pieces.append(whole[len(before) :])
        before = max(before, whole, key=len)
    return pieces


def sentence_ends(pieces: Sequence[str]) -> list[int]:
    """How many tokens there are up to the end of each sentence; the last ends with the text."""
    ends, text = [], ""
    for k, (piece, following) in enumerate(zip(pieces, [*pieces[1:], ""], strict=True), 1):
        text += piece
        if k == len(pieces) or (SENTENCE_END.search(text) and not MORE_OF_IT.match(following)):
            ends.append(k)
    return ends


# ------------------------------------------------------------------------------------ what is shown


def page(completions: Sequence[Completion]) -> str:
    """Completions as HTML, every text escaped.

    A token's KL is its background; what a sentence adds to r̃ stands after it.
    """
    return "".join(map(_paragraph, completions))


def _paragraph(completion: Completion) -> str:
    gains, words, pieces = dict(completion.sentences), [], completion.pieces
    tokens = zip(pieces, completion.kl, completion.log_ratio, strict=True)
    for k, (piece, kl, log_ratio) in enumerate(tokens, start=1):
        # Orange on whatever the page's background is: one hue, and the text keeps the theme's
        # colour.
        colour = f"rgba(213, 94, 0, {0.7 * min(1.0, kl / FULL):.2f})"
        tip = f"KL {kl:.2f} nats, log π/π_sft {signed(log_ratio, 2)}"
        words.append(
            f'<span style="background: {colour}" title="{tip}">{html.escape(piece)}</span>'
        )
        if k in gains:
            words.append(f' <sub title="what this sentence adds to r̃">{signed(gains[k], 2)}</sub>')
    furthest = sorted(zip(completion.kl, pieces, strict=True), key=lambda pair: -pair[0])[:NAMED]
    named = [f"“{html.escape(piece.strip())}” {kl:.2f}" for kl, piece in furthest if kl >= 0.005]
    return (
        f'<p style="line-height: 1.6"><b>r̃ {signed(completion.reward, 2)}'
        f" · KL {sum(completion.kl):.2f}"
        f" nats</b> · furthest from SFT: {', '.join(named) or 'no word'}<br>"
        f'{html.escape(completion.prompt)} <sub title="r̃ of the prompt alone">'
        f"{signed(completion.before, 2)}</sub>{''.join(words)}</p>"
    )


def slider(playground: Playground, policies: Sequence[str]) -> str:
    """A slider over η for the report's page, as HTML: what SFT and `policies` write, computed here
    or taken from the store.

    page.js makes the controls of the JSON in it; where no script runs, its text stands still.
    """
    s, policy = playground.experiment.settings, playground.experiment.policy
    inputs = {
        "policy": policy.identity,
        "thetas": [digest(playground.theta(Mix(name, name, 0.0, 1.0))) for name in policies],
        "names": list(policies),
        "sft": digest(playground.experiment.theta_sft),
        "reward": playground.reward.identity,
        "new": s.max_new_tokens,
        "temperature": s.temperature,
        "prompts": EXAMPLES,
        "etas": ETAS,
        "completions": [ON_PAGE, READ_ON_PAGE],
    }
    stored = memoise("slider", inputs, lambda _: _written(playground, policies))
    data = script_json({"prompts": EXAMPLES, "etas": ETAS, "full": FULL} | stored.record)
    mixes = [Mix(policies[0], policies[0], 0.0, eta) for eta in (0.0, 0.5, 1.0)]
    still = "".join(
        f"<h4>{html.escape(str(mix))}</h4>{page(playground.write(EXAMPLES[:1], mix))}"
        for mix in mixes
    )
    script = f'<script type="application/json">{data}</script>'
    return f'<div class="slide">{still}</div>{script}'


def _written(playground: Playground, policies: Sequence[str]) -> dict[str, Any]:
    """What the page's slider shows of each policy, by η and prompt (see `_packed`)."""
    prompts = [prompt for prompt in EXAMPLES for _ in range(ON_PAGE)]

    def at(policy: str, eta: float) -> list[dict[str, Any]]:
        each = playground.write(prompts, Mix(policy, policy, 0.0, eta))
        return [_packed(each[k : k + ON_PAGE]) for k in range(0, len(each), ON_PAGE)]

    sft = at(policies[0], 0.0)
    written = {policy: [sft, *(at(policy, eta) for eta in ETAS[1:])] for policy in policies}
    return {"written": written}


def _packed(completions: Sequence[Completion]) -> dict[str, Any]:
    """Means of a prompt's completions and the first of them, as the page's slider reads them.

    Each token is its text, its KL and, where a sentence ends, what that adds to r̃.
    """
    texts = []
    for one in completions[:READ_ON_PAGE]:
        gains = dict(one.sentences)
        tokens = [
            [piece, round(kl, 2), *([round(gains[k], 2)] if k in gains else [])]
            for k, (piece, kl) in enumerate(zip(one.pieces, one.kl, strict=True), 1)
        ]
        texts.append({"reward": one.reward, "before": one.before, "tokens": tokens})
    reward, kl = _means(completions)
    return {"reward": reward[0], "kl": kl[0], "count": len(completions), "texts": texts}


def _means(completions: Sequence[Completion]) -> list[tuple[float, float]]:
    """Mean r̃ and mean KL of completions, each with two standard errors."""
    scores = torch.tensor([[one.reward, sum(one.kl)] for one in completions]).double()
    halves = 2 * scores.std(0) / len(scores) ** 0.5
    return list(zip(scores.mean(0).tolist(), halves.tolist(), strict=True))


class Desk:
    """What the notebook shows: `show` the controls with what the policy writes, and `layers`.

    Both follow the controls. Without a front end both stand still: the page's slider over η, and
    the layers at `mix`.
    """

    def __init__(self, playground: Playground, prompt: str, mix: Mix):
        self.playground, self.take, self.mix_at_first = playground, 0, mix
        if front_end():
            self.live_layers = self.layers = LiveFigure(self.angles(mix))
            self.texts = self._controls(prompt, mix)
            self.picture: DisplayHandle | None = None
            self.draw()
        else:
            self.layers = self.angles(mix)

    def show(self) -> None:
        """Show the texts, and with the controls a picture of them that stays in the notebook."""
        if not front_end():
            mix = self.mix_at_first
            display(HTML(slider(self.playground, (mix.first, mix.second))))
            return
        display(self.texts)
        self.picture = display(HTML(self._picture()), display_id=True)

    def _picture(self) -> str:
        """What is to be read, out of sight as long as the controls are there."""
        return (
            "<style>body:has(.warp-desk) .warp-picture { display: none }</style>"
            f"<div class=warp-picture>{self.summary.value}{self.shown.value}</div>"
        )

    def angles(self, mix: Mix) -> go.Figure:
        """The figure of `Playground.layers`."""
        names = [mix.first, mix.second, "merged"]
        return plots.layers(self.playground.layers(mix), names, "Where the sliders stand")

    def _controls(self, prompt: str, mix: Mix) -> ipywidgets.Widget:
        look = {
            "layout": ipywidgets.Layout(width="min(100%, 48em)"),
            "style": {"description_width": "7em"},
        }
        policies = look | {"options": list(self.playground.tuned)}
        slide = look | {"min": 0.0, "max": 1.0, "step": 0.05, "continuous_update": False}
        self.prompt = ipywidgets.Text(prompt, description="prompt", continuous_update=False, **look)
        examples = [ipywidgets.Button(description=text) for text in EXAMPLES]
        for example in examples:
            example.layout.width = "auto"
            example.on_click(lambda button: self.prompt.set_trait("value", button.description))
        self.first = ipywidgets.Dropdown(value=mix.first, description="policy", **policies)
        self.eta = ipywidgets.FloatSlider(mix.eta, description="η (0: SFT)", **slide)
        self.second = ipywidgets.Dropdown(value=mix.second, description="towards", **policies)
        self.share = ipywidgets.FloatSlider(mix.share, description="λ (0: policy)", **slide)
        self.again = ipywidgets.Button(description="Other samples")
        self.busy = ipywidgets.HTML()
        self.summary, self.shown = ipywidgets.HTML(), ipywidgets.HTML()
        self.visits: list[dict[str, Any]] = []
        self.visited = ""  # the prompt of the visits
        self.trail = LiveFigure(plots.trail())
        controls = [self.prompt, self.first, self.eta, self.second, self.share]
        for control in controls:
            control.observe(self._later, "value")
        self.again.on_click(self._others)
        self.waiting: asyncio.TimerHandle | None = None
        try_one = ipywidgets.HBox(
            [ipywidgets.Label("or try"), *examples], layout=ipywidgets.Layout(flex_flow="row wrap")
        )
        sample = ipywidgets.HBox([self.again, self.busy])
        below = [sample, self.summary, self.shown, self.trail]
        box = ipywidgets.VBox([self.prompt, try_one, *controls[1:], *below])
        return box.add_class("warp-desk")

    @property
    def mix(self) -> Mix:
        """Where the sliders stand."""
        ends = str(self.first.value), str(self.second.value)
        return Mix(*ends, self.share.value, self.eta.value)

    def _others(self, _: Any) -> None:
        self.take += 1
        self._later()

    def _later(self, _: Any = None) -> None:
        """Draw once the controls rest: what changes while texts are written is one change."""
        self.busy.value = BUSY
        if self.waiting:
            self.waiting.cancel()
        self.waiting = asyncio.get_running_loop().call_later(SETTLED, self.draw)

    def draw(self) -> None:
        """Bring everything up to date with the controls."""
        mix, prompt, began = self.mix, self.prompt.value, time.perf_counter()
        try:
            written = self.playground.write([prompt] * COMPLETIONS, mix, self.take)
        except ValueError as error:
            self.summary.value, self.shown.value = html.escape(str(error)), ""
            return
        finally:
            self.busy.value = ""
        took = time.perf_counter() - began
        (reward, reward_half), (kl, kl_half) = _means(written)
        text = html.escape(str(mix))
        self.summary.value = (
            f"<b>{text}: r̃ {signed(reward, 2)} ± {reward_half:.2f},"
            f" KL {kl:.2f} ± {kl_half:.2f} nats</b>"
            f" (mean of {len(written)} completions ± 2 standard errors, {took:.1f} s; {READ} of"
            " them:)"
        )
        self.shown.value = page(written[:READ])
        if prompt != self.visited:  # another prompt has another way
            self.visits, self.visited = [], prompt
        self.visits.append(
            dict(text=text, kl=kl, reward=reward, kl_half=kl_half, reward_half=reward_half)
        )
        self.trail.draw(plots.trail(self.visits))
        self.live_layers.draw(self.angles(mix))
        if self.picture:
            self.picture.update(HTML(self._picture()))
