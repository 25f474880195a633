"""WARP's knobs: a panel that says what a run costs, starts and stops it, or its command."""

import asyncio
import dataclasses
import html
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown

from ..experiment import Experiment
from ..points import warp_points
from ..report import plots
from ..report.look import GREY, PALETTE
from ..reward import Reward
from ..runs.errors import Explained
from ..runs.paths import locked
from ..runs.progress import Progress
from ..settings import PROFILES, Settings, typed
from ..study.outcomes import SEEDS, tested
from .cost import cost
from .live import Loop, StoppedByHand, Watched, WidgetView, follow, front_end
from .live_figure import LiveFigure
from .my_runs import MyRuns

SYMBOLS = dict(iterations="I", runs="M", steps="T", mu="μ", beta="β", eta="η", temperature="τ")
SYMBOLS |= dict.fromkeys(("learning_rate", "seed", "merge", "name"), "")  # the other knobs
# the usual range of a knob, and its step
SLIDERS = {"iterations": (1, 6, 1), "runs": (1, 6, 1), "beta": (0.0, 2.0, 0.05)}
SLIDERS |= {"eta": (0.0, 1.0, 0.05), "temperature": (0.1, 2.0, 0.05)}
BAD = "warp-bad"
STYLE = (
    "<style>.warp-help { line-height: 1.3; font-size: .85em }"
    f" .{BAD} {{ color: var(--jp-error-color1, #b3261e) }}"
    f" .{BAD} input {{ border: 2px solid var(--jp-error-color1, #b3261e) !important }}</style>"
)
NOTEBOOK = "03_warp"

T = TypeVar("T")
MakeRewards = Callable[[Progress], dict[str, Reward]]


def knobs(experiment: Experiment, make_rewards: MakeRewards) -> widgets.Widget | Markdown:
    """The panel where someone can turn widgets; elsewhere the cost and the command in words.

    Args:
        experiment: whose models and reviews are used; its settings are what the knobs begin at.
        make_rewards: gives reward model and judges, as `Experiment.rewards` does. It may take its
            time: the panel is there before it ends.
    """
    if front_end():
        panel = Panel(experiment, {})
        asyncio.get_running_loop().create_task(panel.open(make_rewards))
        return panel.box
    price = cost(experiment.under(experiment.settings), make_rewards(Progress()))
    return Markdown(
        "In JupyterLab and Voilà the knobs appear here; elsewhere, run the command below. These"
        f" settings: {price}\n\n```\n{command(experiment.settings)}\n```"
    )


def command(settings: Settings) -> str:
    """The papermill command that runs notebook 03 with these settings.

    It names the nearest profile, and what differs from it.
    """
    changes = {}  # profile → the settings that differ from its own
    for profile in PROFILES:
        known = Settings.profile(profile).asdict().items()
        changes[profile] = dict(item for item in settings.asdict().items() if item not in known)
    nearest = min(changes, key=lambda profile: len(changes[profile]))
    words = ["papermill", f"notebooks/{NOTEBOOK}.ipynb", "out.ipynb", "-k", "python3"]
    for name, value in ({"profile": nearest} | changes[nearest]).items():
        # -r: a name like 007 stays a name
        words += ["-r" if isinstance(value, str) else "-p", name, str(value)]
    return shlex.join(words)


def run(experiment: Experiment, rewards: dict[str, Reward], progress: Progress) -> pd.DataFrame:
    """Train WARP, evaluate it and enter it into the run's table, as notebook 03 does.

    Returns its rows.
    """
    with locked(experiment.settings.name, "lab"):
        rewards = experiment.standardised(rewards, progress)
        experiment.real_positive(rewards["reward"])
        trained = experiment.warp(experiment.aligner(rewards["reward"], progress))
        points = warp_points(experiment.theta_sft, trained, experiment.settings)
        return experiment.measure(NOTEBOOK, points, rewards, progress)


class RunView(WidgetView):
    """A `WidgetView` that also draws what is trained and measured over the study's fronts."""

    def __init__(self, progress: Watched, under: go.Figure) -> None:
        super().__init__(progress)
        self.under = under.to_plotly_json()
        self.plane = LiveFigure(self.under)
        bar, *others = self.box.children
        self.box.children = [bar, self.plane, *others]

    def draw_results(self) -> None:
        before = self.drawn
        super().draw_results()
        if self.drawn > before:
            drawn = [*self.under["data"], *plane(self.progress.loops)]
            self.plane.draw({"data": drawn, "layout": self.under["layout"]})


def plane(loops: Sequence[Loop]) -> list[dict[str, Any]]:
    """Reward against KL to SFT of what loops logged: a batch's of a step, a checkpoint's."""
    traces = []
    for k, loop in enumerate(list(loops)):
        for kl, reward, look in (
            ("kl_sft", "reward", {"size": 5, "opacity": 0.5, "color": PALETTE[k % len(PALETTE)]}),
            ("checkpoint_kl", "checkpoint_reward", {"size": 10, "color": GREY}),
        ):
            points = [(n[kl], n[reward]) for _, n in loop.points[:] if {kl, reward} <= n.keys()]
            if points:
                x, y = zip(*points, strict=True)
                name = html.escape(loop.title)
                traces.append({"x": x, "y": y, "name": name, "mode": "markers", "marker": look})
    return traces


class Panel:
    """The controls, the cost of their values, Start, the run, and below it one's own runs."""

    def __init__(self, experiment: Experiment, rewards: dict[str, Reward]) -> None:
        """rewards: none as long as they are in the making."""
        self.experiment, self.rewards = experiment, rewards
        mine = experiment.settings.asdict() | {"name": f"{experiment.settings.name}-mine"}
        known = {f.name: f for f in fields(Settings)}
        self.controls = {name: _control(known[name], mine[name]) for name in SYMBOLS}
        self.helps = {name: widgets.HTML() for name in SYMBOLS}
        for control in self.controls.values():
            control.observe(lambda _: self.tell(), "value")
        wide = widgets.Layout(width="min(100%, 60em)")
        self.cost = widgets.HTML(layout=wide)
        self.command = widgets.Textarea(
            description="in a terminal", rows=3, layout=wide, style={"description_width": "8em"}
        )
        self.start = widgets.Button(description="Start", button_style="primary")
        self.start.on_click(lambda _: asyncio.get_running_loop().create_task(self.train()))
        self.ended, self.area = widgets.HTML(layout=wide), widgets.VBox()
        study = tested({"warp": "primary", "reinforce": "primary"}, SEEDS)
        self.runs = MyRuns(study)
        knob = widgets.Layout(width="min(100%, 25em)", margin="0 1em 0.6em 0")
        each = [widgets.VBox([self.controls[n], self.helps[n]], layout=knob) for n in SYMBOLS]
        rows = widgets.HBox(each, layout=widgets.Layout(flex_flow="row wrap"))
        below = [self.cost, self.start, self.ended, self.area, self.command, self.runs.box]
        self.box = widgets.VBox([widgets.HTML(STYLE), rows, *below])
        self.tell()

    def settings(self) -> Settings:
        """What the controls say. Raises ValueError in one sentence."""
        values = {name: typed(name, str(c.value).strip()) for name, c in self.controls.items()}
        return dataclasses.replace(self.experiment.settings, **values)

    def tell(self) -> None:
        """Say what the controls' values cost, or why there is no such run; then Start is off."""
        self.start.disabled = True
        for name, control in self.controls.items():
            control.remove_class(BAD)
            doc = next(f.metadata["doc"] for f in fields(Settings) if f.name == name)
            self.helps[name].value = f"<div class=warp-help>{html.escape(doc)}</div>"
        try:
            settings = self.settings()
        except ValueError as error:
            why, (name, *_) = f"<b class={BAD}>{html.escape(str(error))}</b>", str(error).split()
            self.cost.value, self.command.value = why, ""
            if name in self.controls:  # the sentence begins with what it is about
                self.controls[name].add_class(BAD)
                self.helps[name].value, self.cost.value = why, ""
            return
        self.cost.value, self.command.value = "checking what is stored …", command(settings)
        if not self.rewards:
            loading = (
                "Loading the reward model, sampling from SFT and timing a step: seconds, or minutes"
                " the first time. The cost will then appear here."
            )
            self.cost.value = "" if self.ended.value else loading  # where it says why not
            return
        self.cost.value = html.escape(str(cost(self.experiment.under(settings), self.rewards)))
        self.start.disabled = False

    async def open(self, make_rewards: MakeRewards) -> None:
        """Make the rewards, and time a step where no pace is on record; then runs can be begun."""

        def work(progress: Progress) -> dict[str, Reward]:
            rewards = make_rewards(progress)
            _ = self.experiment.train_prompts  # which are there for all settings then
            # with a policy of its own, for the next cells may train the experiment's meanwhile
            cost(self.experiment.under(self.experiment.settings), rewards)
            return rewards

        progress = Watched()
        if rewards := await self.follow(work, progress, WidgetView(progress)):
            self.rewards, self.area.children = rewards, ()
        self.tell()

    async def train(self) -> None:
        """Run what the controls say, to its end or Stop."""
        if self.start.disabled:  # the second click of two, made before the page heard of the first
            return
        settings, progress = self.settings(), Watched()
        view = RunView(progress, plots.over_study(self.runs.study))
        work = partial(run, self.experiment.under(settings), self.rewards)
        self.enable(False)
        if await self.follow(work, progress, view) is not None:
            self.ended.value = (
                f"Done: its points are in <code>runs/{html.escape(settings.name)}</code>, its front"
                " below among your runs, and in the explorer."
            )
            self.runs.read(settings.name)
        self.enable(True)
        self.tell()

    async def follow(
        self, work: Callable[[Progress], T], progress: Watched, view: WidgetView
    ) -> T | None:
        """What `work` gives, its progress shown below the controls; None where it was stopped or
        failed, which is said.
        """
        self.ended.value, self.area.children = "", (view.box,)
        try:
            return await follow(work, progress, view, "WARP")
        except StoppedByHand:
            again = "press Start" if self.rewards else "run the cell again"
            self.ended.value = f"Stopped. What is finished is kept; {again} to go on."
        except Explained as error:
            self.ended.value = f"<b>{html.escape(str(error))}</b>"
        except Exception as error:  # whatever it is, it is said here: no cell awaits it
            self.ended.value = f"<b>{html.escape(f'{type(error).__name__}: {error}')}</b>"

    def enable(self, able: bool) -> None:
        """Let the controls be turned, or not while a run goes on with their values."""
        for control in (*self.controls.values(), self.start):
            control.set_trait("disabled", not able)


Control = widgets.Dropdown | widgets.IntSlider | widgets.FloatSlider | widgets.Text


def _control(f: dataclasses.Field, value: Any) -> Control:
    """A slider or a list where a setting has a usual range or is one of a few, else a line of text.

    There a bad value is refused in words and not silently mended.
    """
    about = {
        "description": f"{SYMBOLS[f.name]} {f.name}".strip(),
        "style": {"description_width": "8em"},
        "layout": widgets.Layout(width="auto"),
    }
    if among := f.metadata["among"]:
        return widgets.Dropdown(options=among, value=value, **about)
    if f.name in SLIDERS:
        least, most, step = SLIDERS[f.name]
        slider = widgets.IntSlider if f.type is int else widgets.FloatSlider
        span = {"min": min(least, value), "max": max(most, value), "step": step}
        return slider(value, **span, continuous_update=False, **about)
    return widgets.Text(value=f"{value}", continuous_update=False, **about)
