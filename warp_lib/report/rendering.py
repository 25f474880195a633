"""How figures leave Python: interactive in notebooks, a still image beside, and as files."""

import re
import threading
import time
from functools import cache
from pathlib import Path

import kaleido
import plotly.graph_objects as go
import plotly.io as pio
from kaleido.errors import ChromeNotFoundError
from plotly.io.base_renderers import PngRenderer

WIDTH = 900  # of still images, in pixels
# no button that would send a chart to somebody's cloud
CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
PATIENCE = 30.0  # seconds for a browser to draw its first image
_one_at_a_time = threading.Lock()


class StillRenderer(PngRenderer):
    """A PNG of each figure for viewers that run no JavaScript, where there is a Chromium."""

    def to_mimebundle(self, fig_dict: dict) -> dict:
        return super().to_mimebundle(fig_dict) if can_draw() else {}


def use_renderer() -> None:
    """Show figures interactively, with a still image beside.

    The browser that draws it starts in the background, for the first figure.
    """
    threading.Thread(target=_browser, daemon=True).start()
    pio.renderers["still"] = StillRenderer(width=WIDTH)
    pio.renderers["plotly_mimetype"].config = CONFIG
    pio.renderers.default = "plotly_mimetype+still"


def export_figure(fig: go.Figure, folder: Path, stem: str) -> None:
    """Write ``stem.html`` and, with Chromium, ``stem.svg``.

    All pages of a folder share the plotly.min.js beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = dict(include_plotlyjs="directory", div_id=stem, config=CONFIG)
    fig.write_html(folder / f"{stem}.html", **page)
    if can_draw():
        # plotly.js names lines and clips at random; named here, the same figure gives the same
        # file.
        fig = go.Figure(fig)
        for number, trace in enumerate(fig.data):
            trace.uid = f"-{stem}-{number}"
        svg = fig.to_image("svg", width=WIDTH).decode()
        if drawn := re.search(r'id="defs-(\w+)"', svg):
            svg = re.sub(rf"(?<=[a-z-]){drawn[1]}", stem, svg)
        (folder / f"{stem}.svg").write_text(svg, encoding="utf-8")


@cache
def can_draw() -> bool:
    """Whether Chromium draws an image here; the first time that it does not, a sentence says so."""
    drawn = _browser()
    if not drawn:
        print(
            "No Chromium or Chrome draws images here: figures are interactive only, without PNG and"
            " SVG."
        )
    return drawn


def _browser() -> bool:
    """Whether a browser draws, found out by whoever asks first; the others wait for the answer."""
    with _one_at_a_time:
        return _draws()


@cache
def _draws() -> bool:
    """Start a browser and have it draw an image, a second one if the first does not: beside other
    work a browser now and then never loads its page.

    It stays, and the next images take 0.3 s instead of 3. Kaleido runs it without its sandbox, so
    it works as root in a container, and MathJax is left out, which would come from the network.
    """
    try:
        kaleido.Kaleido(mathjax=False)  # opens nothing; raises where no browser is found
    except ChromeNotFoundError:
        return False
    # for map tiles only, and a running server warns about them with each image
    pio.defaults.headers = None  # pyright: ignore[reportAttributeAccessIssue]
    return any(_starts() for _ in range(2))


def _starts() -> bool:
    """Whether a browser, started now, draws an image within `PATIENCE`."""
    drawn: list[bytes] = []
    kaleido.start_sync_server(mathjax=False, silence_warnings=True)
    # Kaleido waits without end for a browser that was found and does not start. So the trial has
    # its own thread, and a server that failed is forgotten, through its private name: closing it
    # at exit would wait as well, and an image that it draws after all would be taken for the next.
    server = kaleido._global_server
    # A plain dict: a Figure looks for arrays of numpy and pandas, which a notebook may be half
    # through importing.
    trial = threading.Thread(
        target=lambda: drawn.append(
            server.call_function("calc_fig", {"data": [], "layout": {}}, opts={"format": "png"})
        ),
        daemon=True,
    )
    trial.start()
    until = time.monotonic() + PATIENCE
    while trial.is_alive() and server._thread.is_alive() and time.monotonic() < until:
        trial.join(0.1)
    if not drawn:
        server._initialized, type(server)._instance = False, None
        kaleido._global_server = type(server)()
    return bool(drawn)
