"""WARP's knobs: a panel that says what a run costs, starts and stops it, or its command."""

import asyncio
import dataclasses
import html
import shlex
from dataclasses import fields
from functools import partial
from typing import Any

import ipywidgets as widgets
import plotly.graph_objects as go
from IPython.display import Markdown

from ..experiment import Experiment, warp_points
from ..report import plots
from ..reward import Reward
from ..runs.progress import Progress
from ..settings import PROFILES, Settings, typed
from .cost import cost
from .live import StoppedByHand, Watched, WidgetView, follow, front_end
from .live_figure import LiveFigure

SYMBOLS = dict(iterations="I", runs="M", steps="T", mu="μ", beta="β", eta="η", temperature="τ")
SYMBOLS |= dict.fromkeys(("learning_rate", "seed", "merge", "name"), "")  # the other knobs
NOTEBOOK = "03_warp"


def knobs(experiment: Experiment, rewards: dict[str, Reward]) -> widgets.Widget | Markdown:
    """The panel where someone can turn widgets; elsewhere the cost and the command in words.

    Args:
        experiment: whose models and reviews are used; its settings are what the knobs begin at.
        rewards: as `Experiment.rewards` gave them.
    """
    if front_end():
        return Panel(experiment, rewards).box
    price = cost(experiment.under(experiment.settings), rewards)
    return Markdown(
        "In JupyterLab and Voilà knobs stand here; without them, a terminal turns them. These"
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


def run(experiment: Experiment, rewards: dict[str, Reward], progress: Progress) -> go.Figure:
    """Train WARP, evaluate it and enter it into the run's table, as notebook 03 does.

    Returns the figure of its front.
    """
    rewards = experiment.standardised(rewards, progress)
    trained = experiment.warp(experiment.aligner(rewards["reward"], progress))
    points = warp_points(experiment.theta_sft, trained, experiment.settings)
    results = experiment.measure(NOTEBOOK, points, rewards, progress)
    return plots.pareto(results, experiment.real_positive(rewards["reward"]))


class Panel:
    """The controls, the cost of their values, Start, and below it the run and its front."""

    def __init__(self, experiment: Experiment, rewards: dict[str, Reward]) -> None:
        self.experiment, self.rewards = experiment, rewards
        mine = experiment.settings.asdict() | {"name": f"{experiment.settings.name}-mine"}
        known = {f.name: f for f in fields(Settings)}
        self.controls = {name: _control(known[name], mine[name]) for name in SYMBOLS}
        for control in self.controls.values():
            control.observe(lambda _: self.tell(), "value")
        wide = widgets.Layout(width="100%")
        self.cost = widgets.HTML(layout=wide)
        self.command = widgets.Textarea(
            description="in a terminal",
            tooltip="the same settings for the whole notebook, to copy",
            rows=3,
            layout=wide,
            style={"description_width": "8em"},
        )
        self.start = widgets.Button(
            description="Start",
            tooltip="Train with these settings; what is stored is not trained again",
        )
        self.start.on_click(lambda _: asyncio.get_running_loop().create_task(self.train()))
        self.ended = widgets.HTML(layout=wide)
        self.area = widgets.VBox()
        wrapped = widgets.Layout(flex_flow="row wrap")
        rows = widgets.HBox(list(self.controls.values()), layout=wrapped)
        self.box = widgets.VBox([rows, self.cost, self.command, self.start, self.ended, self.area])
        self.tell()

    def settings(self) -> Settings:
        """What the controls say. Raises ValueError in one sentence."""
        values = {name: typed(name, str(c.value).strip()) for name, c in self.controls.items()}
        return dataclasses.replace(self.experiment.settings, **values)

    def tell(self) -> None:
        """Say what the controls' values cost, or why there is no such run; then Start is off."""
        self.start.disabled = True
        try:
            settings = self.settings()
        except ValueError as error:
            self.cost.value, self.command.value = f"<b>{html.escape(str(error))}</b>", ""
            return
        self.cost.value, self.command.value = "looking into the store …", command(settings)
        self.cost.value = html.escape(str(cost(self.experiment.under(settings), self.rewards)))
        self.start.disabled = False

    async def train(self) -> None:
        """Run what the controls say in a thread, its progress below them, to its end or Stop."""
        settings, progress = self.settings(), Watched()
        experiment, view = self.experiment.under(settings), WidgetView(progress)
        self.ended.value, self.area.children = "", (view.box,)
        self.enable(False)
        try:
            front = await follow(partial(run, experiment, self.rewards), progress, view, "WARP")
        except StoppedByHand:
            self.ended.value = "Stopped. What is finished is kept; Start goes on from there."
        except Exception as error:  # whatever it is, it is said here: no cell awaits it
            self.ended.value = f"<b>{html.escape(f'{type(error).__name__}: {error}')}</b>"
        else:
            self.ended.value = (
                f"Done: its points are in <code>runs/{html.escape(settings.name)}</code>, and in"
                " the explorer of notebook 5."
            )
            self.area.children = (view.box, LiveFigure(front))
        finally:
            self.enable(True)
            self.tell()

    def enable(self, able: bool) -> None:
        """Let the controls be turned, or not while a run goes on with their values."""
        for control in (*self.controls.values(), self.start):
            control.set_trait("disabled", not able)


def _control(f: dataclasses.Field, value: Any) -> widgets.ValueWidget:
    """A list for a setting that is one of a few, else a line of text.

    So a bad value is refused in words and not silently mended.
    """
    about = {
        "description": f"{SYMBOLS[f.name]} {f.name}".strip(),
        "tooltip": f.metadata["doc"],
        "style": {"description_width": "8em"},
        "layout": widgets.Layout(width="19em"),
    }
    if among := f.metadata["among"]:
        return widgets.Dropdown(options=among, value=value, **about)
    return widgets.Text(value=f"{value}", continuous_update=False, **about)
