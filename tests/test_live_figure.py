"""The page's half of a live figure, in Chromium, on models that the test plays."""

import os

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from warp_lib.interactive.live_figure import LiveFigure
from warp_lib.report.look import label_ends, template, titled

# A widget manager that has models by name, the module under test, and a figure made as anywidget
# makes it.
STAGE = """async ([script, source]) => {
    const model = (text) => ({
        text, told: [],
        get: () => text,
        on(event, f) { this.told.push(f) },
        off() {},
        tell(other) { text = other; this.told.forEach((f) => f()) },
    });
    window.models = { plotly: model(source) };
    window.sent = [];
    window.taken = {}; // the controllers by which a page takes figures away
    const get_model = async (name) => { await window.held; return window.models[name] };
    const blob = new Blob([script], { type: "text/javascript" });
    const { default: widget } = await import(URL.createObjectURL(blob));
    window.make = async (name, figure) => {
        window.models[name] = model(figure);
        const el = Object.assign(document.createElement("div"), { id: name });
        document.body.append(el);
        const _looks = { dark: window.dark, narrow: 620 };
        const names = { _plotly: "plotly", _content: name, _looks };
        const get = (k) => names[k], send = (m) => window.sent.push(m);
        const { signal } = (window.taken[name] = new AbortController());
        await widget.render({ model: { widget_manager: { get_model }, get, send }, el, signal });
    };
}"""


FOUND = (
    "Two policies cannot be told apart at equal KL by anybody who reads this on a phone",
    "Fronts on test prompts: three seeds, faint, and their mean at equal KL with its interval.",
)


def figure(*y: float) -> str:
    return go.Figure(
        go.Scatter(x=list(range(len(y))), y=list(y), customdata=[7, 8, 9][: len(y)], mode="markers")
    ).to_json()


@pytest.fixture
def stage(chromium):
    """A page on which ``make(name, figure)`` shows a figure; plotly.js is sent as given, the real
    one unless told otherwise.
    """
    pages = []

    def open_page(source: str = ""):
        page = chromium.new_page(viewport={"width": 800, "height": 900})
        pages.append(page)
        page.evaluate(STAGE, [LiveFigure._esm, source or get_plotlyjs()])
        return page

    yield open_page
    for page in pages:
        page.close()


def points(page, name: str):
    return page.locator(f"#{name} .scatterlayer .point")


def test_figures_of_a_page_share_one_plotly_and_follow_their_models(stage):
    page = stage()
    page.evaluate(
        "([a, b]) => Promise.all([make('a', a), make('b', b)])", [figure(1), figure(1, 2)]
    )
    assert points(page, "a").count() == 1 and points(page, "b").count() == 2
    assert page.locator("head script").count() == 1
    page.evaluate("(f) => models.a.tell(f)", figure(1, 2, 3))
    points(page, "a").nth(2).wait_for()
    assert points(page, "b").count() == 2
    assert page.locator("#a .main-svg").first.bounding_box()["width"] > 700  # as wide as its place


def test_a_figure_follows_the_readers_theme(stage):
    """Guards: white slabs on a dark page; a theme of JupyterLab's that the figure does not see."""
    page = stage()
    page.evaluate("(t) => { window.dark = t }", template("dark").to_plotly_json())
    page.evaluate("(f) => make('a', f)", titled(go.Figure(), "Found", "Drawn").to_json())
    ink = "document.querySelector('#a .gtitle').style.fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(was) => {ink} !== was", arg=light)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"(was) => {ink} === was", arg=light)
    page.evaluate("Object.assign(document.body.dataset, {jpThemeName: 'x', jpThemeLight: 'false'})")
    page.wait_for_function(f"(was) => {ink} !== was", arg=light)
    assert page.get_by_role("figure").get_attribute("aria-label") == "Found. Drawn"


def test_a_narrow_figure_has_a_legend_and_not_names_beside_its_lines(stage):
    page = stage()
    lines = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], name="WARP"))
    label_ends(lines, [(1, 1, "WARP", "#0072B2")])
    page.evaluate("(f) => make('a', f)", lines.to_json())
    named, legend = page.locator("#a .annotation-text"), page.locator("#a .legend")
    assert named.count() == 1 and legend.count() == 0
    page.set_viewport_size({"width": 420, "height": 900})
    legend.wait_for()
    assert named.count() == 0
    assert page.locator("#a .main-svg").first.bounding_box()["width"] < 420
    assert page.locator("#a .modebar-btn[data-title*='hare']").count() == 0


def test_panels_of_a_narrow_figure_stand_below_each_other(stage):
    """Guards: curves of a training a hundred pixels wide, as in Lab's column or on a phone."""
    page, two = stage(), make_subplots(1, 2, subplot_titles=["left", "right"])
    for col in (1, 2):
        two.add_scatter(x=[0, 1], y=[1, 3], row=1, col=col)
    page.evaluate("(f) => make('a', f)", titled(two, *FOUND).to_json())
    below = """() => {
        const [left, right] = [...document.querySelectorAll("#a .scatterlayer .trace .points")]
            .map((points) => points.getBoundingClientRect());
        return right.top > left.bottom && Math.abs(right.left - left.left) < 40;
    }"""
    assert page.evaluate(below) is False
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_function(below)
    title = page.locator("#a .gtitle").bounding_box()
    assert title["x"] + title["width"] < 420
    assert page.locator("#a .main-svg").first.bounding_box()["width"] < 420
    if shots := os.environ.get("WARP_SCREENSHOTS"):
        page.screenshot(path=f"{shots}/narrow.png")
    page.set_viewport_size({"width": 800, "height": 900})
    page.wait_for_function(f"() => !({below})()")


def test_what_changes_while_plotly_is_loading_is_drawn(stage):
    """plotly's own widget loses it, and stays empty for good where loading takes more than two
    seconds.
    """
    page = stage()
    page.evaluate("() => { window.held = new Promise((free) => { window.free = free }) }")
    page.evaluate("(f) => { window.made = make('a', f) }", figure(1))
    assert page.locator("#a").inner_text() == "Loading the figure…"
    page.evaluate("(f) => models.a.tell(f)", figure(1, 2, 3))
    page.evaluate("async () => { free(); await made }")
    assert points(page, "a").count() == 3


def test_drawing_takes_half_of_the_pages_time_at_most(stage):
    """Of two figures that change faster than they are drawn. Guards: a page that falls behind its
    training, and whose Stop button no longer answers.
    """
    page = stage()
    page.evaluate("(f) => Promise.all([make('a', f), make('b', f)])", figure(1))
    busy, draws = page.evaluate(
        """async (changes) => {
            const react = Plotly.react, sleep = (ms) => new Promise((f) => setTimeout(f, ms));
            let busy = 0, draws = 0;
            Plotly.react = async (...given) => {
                const began = performance.now();
                await sleep(100);
                await react(...given);
                busy += performance.now() - began;
                draws += 1;
            };
            const began = performance.now();
            for (const f of changes) {
                models.a.tell(f);
                models.b.tell(f);
                await sleep(20);
            }
            return [busy / (performance.now() - began), draws];
        }""",
        [figure(*range(k % 3 + 1)) for k in range(60)],
    )
    assert busy < 0.6 and draws >= 2
    for name in "ab":
        points(page, name).nth(2).wait_for()
    page.evaluate("(f) => models.a.tell(f)", figure(1))  # and a later one alone
    points(page, "a").nth(1).wait_for(state="detached")


def test_a_figure_taken_from_the_page_while_it_loads_is_not_drawn(stage):
    """Guards: dead figures that go on drawing, and listening."""
    page = stage()
    page.evaluate("() => { window.held = new Promise((free) => { window.free = free }) }")
    page.evaluate("(f) => { window.made = make('a', f) }", figure(1))
    page.evaluate("async () => { taken.a.abort(); free(); await made }")
    page.evaluate("(f) => models.a.tell(f)", figure(1, 2))
    page.evaluate("(f) => make('b', f)", figure(1))  # drawn after what is drawn no more
    assert points(page, "b").count() == 1 and points(page, "a").count() == 0
    assert page.evaluate("models.a.told.length") == 0


def test_a_drawing_that_fails_is_mended_by_the_next(stage):
    page = stage()
    page.evaluate("(f) => make('a', f)", figure(1))
    page.evaluate("models.a.tell('{')")
    page.get_by_text("This figure could not be drawn").wait_for()
    page.evaluate("(f) => models.a.tell(f)", figure(1, 2))
    points(page, "a").nth(1).wait_for()
    assert "could not be drawn" not in page.locator("#a").inner_text()


def test_a_figure_that_cannot_be_drawn_says_so_and_the_next_one_tries_again(stage):
    page = stage("throw new Error('half of a file')")
    page.evaluate("(f) => make('a', f)", figure(1))
    assert (
        "This figure could not be drawn (plotly.js did not start)."
        in page.locator("#a").inner_text()
    )
    page.evaluate("(source) => models.plotly.tell(source)", get_plotlyjs())
    page.evaluate("(f) => make('b', f)", figure(1))
    assert points(page, "b").count() == 1


def test_a_click_tells_the_point(stage):
    page = stage()
    page.evaluate("(f) => make('a', f)", figure(1, 2))
    point = points(page, "a").nth(1).bounding_box()
    page.mouse.move(point["x"] + 3, point["y"] + 3)
    page.wait_for_timeout(300)
    page.mouse.click(point["x"] + 3, point["y"] + 3)
    page.wait_for_function("sent.length > 0")
    assert page.evaluate("sent") == [{"clicked": 8}]


def test_the_kernels_half_sends_what_is_drawn_and_hears_clicks():
    heard: list[int] = []
    shown = LiveFigure(go.Figure(go.Scatter(y=[1])), heard.append)
    first = shown._text.text
    shown.figure.data[0].y = [1, 2]
    assert shown._text.text == first
    shown.draw(shown.figure)
    assert shown._text.text == shown.figure.to_json() != first
    shown._handle_custom_msg({"clicked": 3}, [])
    assert heard == [3]
    assert LiveFigure(go.Figure())._plotly == shown._plotly  # one model holds plotly.js
