"""A plotly figure in the page that follows the kernel and answers clicks.

plotly's own ``FigureWidget`` brings 5 MB of plotly.js with every figure, in a module that anywidget
gives two seconds to load; on busy cores it often takes longer, and then the figure drops every
later change and stays empty. Here plotly.js is sent once for a page, what is drawn lies in a plain
widget model, which has no such deadline, and a figure that cannot be drawn says so.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import plotly.graph_objects as go
import plotly.io
import traitlets
from plotly.offline import get_plotlyjs

from ..report import look

SHARED = Path(look.__file__).with_name("narrow.js")  # the report's page has it, too
Figure = go.Figure | dict[str, Any]
"""plotly's, or its JSON, which is not checked."""


class _Text(ipywidgets.Widget):
    """A text that the page has too; nothing shows it by itself."""

    text = traitlets.Unicode().tag(sync=True)


@cache
def _plotly() -> _Text:
    """plotly.js, sent to the page when the kernel makes its first figure."""
    return _Text(text=get_plotlyjs())


class LiveFigure(anywidget.AnyWidget):
    """Shows a figure of plotly until :meth:`draw` shows another.

    Args:
        figure: what is shown first.
        clicked: called with a point's ``customdata`` when someone clicks it; points without any are
            passed over.
    """

    _esm = SHARED.read_text() + Path(__file__).with_suffix(".js").read_text()
    _plotly = traitlets.Unicode().tag(sync=True)  # the models' ids
    _content = traitlets.Unicode().tag(sync=True)
    _looks = traitlets.Dict().tag(sync=True)  # what the page may choose: see live_figure.js

    def __init__(self, figure: Figure, clicked: Callable[[Any], None] | None = None) -> None:
        self._text = _Text()
        self.draw(figure)
        looks = dict(dark=look.template("dark").to_plotly_json(), narrow=look.NARROW)
        super().__init__(_plotly=_plotly().model_id, _content=self._text.model_id, _looks=looks)
        if clicked is not None:
            self.on_msg(lambda _, message, __: clicked(message["clicked"]))

    def draw(self, figure: Figure) -> None:
        """Show this figure, which may be the one before, changed."""
        self.figure = figure
        self._text.set_trait("text", plotly.io.to_json(figure, validate=False))
