"""The page in a browser: its front, figures in the reader's theme and width, parts that unfold."""

import json
import re

import nbformat
import plotly.graph_objects as go
import pytest
from conftest import faults
from nbformat import v4
from plotly.subplots import make_subplots

from warp_lib.report import look, study_plots, tables
from warp_lib.report.page import PLOTLY, write_page
from warp_lib.runs.paths import ROOT
from warp_lib.study.fronts import Interval

AT_THE_EDGE = "<p style='text-align: right'>It does: 3 nats, nats</p>"
FAR = "how <far> a policy is from the one before alignment."


def figure(finding: str) -> go.Figure:
    made = go.Figure(go.Scatter(x=[0, 1], y=[1, 3], name="one"))
    look.label_ends(made, [(1, 3, "one", look.BLUE)])
    return look.titled(made, finding, "Two points & no <interval>")


def shown(data: dict, tags: list[str] | None = None) -> nbformat.NotebookNode:
    output = v4.new_output("display_data", data)
    return v4.new_code_cell("pass", outputs=[output], metadata={"tags": tags or []})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Two notebooks, the second one's first cell on the front."""
    folder = tmp_path_factory.mktemp("page")
    section = tables.Section("01_first", "The why & how")
    first = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# 1 · First\n\n**Question.** Is it so?"),
            v4.new_markdown_cell("**Answer.** It is."),
            v4.new_markdown_cell("## The why & how\n\n[there](02_second.ipynb#Where-it-is)"),
            shown({PLOTLY: json.loads(figure("A finding").to_json())}),
            shown({"text/html": tables.Table([{"wide_" * 60: section}])._repr_html_()}),
            v4.new_code_cell("at = 1  # a comment"),
            shown({"text/markdown": "**Answer.** It is."}, ["answer"]),
        ]
    )
    second = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# 2 · Second"),
            shown({"text/html": f"<h1>Does it?</h1>{AT_THE_EDGE}"}, ["front"]),
            shown({PLOTLY: json.loads(figure("The front's").to_json())}, ["front"]),
            v4.new_markdown_cell("\n\n".join(["much"] * 60) + "\n\n## Where it is"),
            v4.new_markdown_cell(f"## Glossary\n\n- **KL**, in **nats**: {FAR}\n- **95% CI**: …"),
            v4.new_markdown_cell("Two nats, `nats` and natsuke: a KL."),
        ]
    )
    for name, notebook in (("01_first", first), ("02_second", second)):
        nbformat.write(notebook, folder / f"{name}.ipynb")
    write_page([folder / "01_first.ipynb", folder / "02_second.ipynb"], folder / "page.html", "T")
    return f"file://{folder}/page.html"


def test_the_front_comes_first_and_parts_unfold(page, chromium):
    """Guards: a figure of the front repeated in its part, an answer twice, a link that leads into a
    folded part and shows nothing.
    """
    tab, errors = chromium.new_page(viewport={"width": 1300, "height": 800}), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(page)
    assert tab.locator("h1").inner_text() == "Does it?" and tab.locator("figure").count() == 2
    tab.locator("#front .plot .main-svg").first.wait_for()
    assert tab.locator("[id='01_first'] .main-svg").count() == 0
    text = tab.locator("body").inner_text()
    assert "Is it so?" in text and "It is." not in text
    tab.locator("nav a", has_text="First").click()
    tab.locator("[id='01_first'] .main-svg").first.wait_for()
    assert tab.get_by_text("It is.").count() == 1
    assert tab.locator("td a[href='#01_first-the-why-how']").inner_text() == "The why & how"
    assert tab.locator("figcaption").last.inner_text().startswith("A finding.")
    tab.get_by_role("link", name="there").click()
    heading = tab.get_by_role("heading", name="Where it is")
    assert heading.is_visible() and heading.bounding_box()["y"] < 800
    assert tab.locator("[data-title*='Share'], [data-title*='cloud']").count() == 0
    assert tab.locator(".modebar-btn").count() and errors == []
    tab.close()


def test_links_between_notebooks_lead_to_sections_that_are_there(tmp_path):
    """Guards: a heading that was renamed, an anchor that is written in another way there, a link to
    a notebook's file.
    """
    write_page(sorted((ROOT / "notebooks").glob("[01]*.ipynb")), tmp_path / "page.html", "T")
    page = (tmp_path / "page.html").read_text()
    links, places = (set(re.findall(words + '([^"]+)"', page)) for words in ('href="#', ' id="'))
    assert links <= places and not re.search(r'href="[^"]*\d\d_\w+\.ipynb', page)
    in_tables = re.findall(r'<td[^>]*><a href="#([^"]+)"', page)
    assert {"06_ablations-why", "07_dpo-averaging-or-fresh-pairs"} <= set(in_tables)


def test_panels_stand_below_each_other_on_a_phone(tmp_path, chromium):
    """Guards: a second panel beyond the edge, one without numbers or names at its axes, rows of
    intervals whose numbers are cut off.
    """
    two = make_subplots(1, 2, shared_yaxes=True, subplot_titles=["left", "right"])
    for col in (1, 2):
        two.add_scatter(x=[0, 1], y=[1, 3], row=1, col=col)
    two.update_yaxes(title="height", row=1, col=1).update_xaxes(title="way")
    long = "the first policy of all there are − that of all the others"
    rows = {f"{long}, seed {k} (over its prompts)": Interval(0, -1, 1, 8) for k in (1, 2)}
    figures = [
        look.titled(two, "Two", "beside"),
        study_plots.intervals({"": rows}, "x", "Rows", "of two"),
    ]
    cells = [shown({PLOTLY: json.loads(one.to_json())}) for one in figures]
    first = v4.new_notebook(cells=[v4.new_markdown_cell("# 1 · First"), *cells])
    nbformat.write(first, tmp_path / "01_first.ipynb")
    write_page([tmp_path / "01_first.ipynb"], tmp_path / "page.html", "T")
    tab, errors = chromium.new_page(viewport={"width": 420, "height": 800}), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"file://{tmp_path}/page.html")
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    for one in tab.locator("figure").all():
        one.scroll_into_view_if_needed()
        one.locator(".annotation-text").last.wait_for()

    def boxes(selector: str) -> list[dict[str, float]]:
        return [one.bounding_box() for one in tab.locator(selector).all()]

    left, right = boxes("[id='figure-01_first-0'] .cartesianlayer > .subplot")
    assert left["y"] + left["height"] < right["y"] and abs(left["width"] - right["width"]) < 2
    titles = boxes("[id='figure-01_first-0'] .annotation-text")
    assert titles[0]["y"] < left["y"] < titles[1]["y"] < right["y"]
    assert tab.locator("[id='figure-01_first-0']").get_by_text("height", exact=True).count() == 2
    assert tab.locator("[id='figure-01_first-0'] .y2tick").count() > 1
    texts = boxes("[id='figure-01_first-1'] .annotation-text")
    assert len(texts) == 2 and all(box["x"] + box["width"] <= 420 for box in texts)
    assert tab.evaluate("document.documentElement.scrollWidth") == 420 and errors == []
    tab.close()


@pytest.mark.parametrize("width", [1300, 420])
def test_terms_explain_themselves(page, chromium, width):
    """Guards: an explanation that only a mouse finds, one beyond the edge, one read as HTML, every
    mention underlined, a term within a word or in code.
    """
    tab = chromium.new_page(viewport={"width": width, "height": 800})
    tab.goto(page)
    tip = tab.get_by_role("tooltip")
    assert tab.locator("#front dfn").all_inner_texts() == ["nats"] and not tip.is_visible()
    tab.locator("#front dfn").focus()
    assert tip.inner_text() == f"KL, in nats: {FAR}"
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    tab.keyboard.press("Escape")
    assert not tip.is_visible()
    tab.locator("#front dfn").hover()
    assert tip.is_visible()
    tab.locator("[id='02_second'] > summary").click()
    assert tab.locator("[id='02_second'] dfn").all_inner_texts() == ["nats", "KL"]
    tab.close()


@pytest.mark.parametrize(("width", "theme"), [(1300, "light"), (420, "dark")])
def test_everyone_can_read_it(page, chromium, width, theme):
    """Guards: what axe-core finds: text too faint, a heading of a table that is empty, what scrolls
    and cannot be reached by keyboard, links told from text by their colour alone.
    """
    tab = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
    tab.goto(page)
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    tab.locator("[id='01_first'] .plot").scroll_into_view_if_needed()
    tab.locator("[id='01_first'] .main-svg").first.wait_for()
    assert faults(tab) == []
    tab.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_have_the_readers_theme(page, chromium, theme):
    """Contrast of text by WCAG's formula, 4.5 at least. Guards: a white figure on a dark page."""
    tab = chromium.new_page(color_scheme=theme)
    tab.goto(page)
    tab.locator("#front .plot .main-svg").first.wait_for()
    ink = tab.locator("#front .xtick text").first.evaluate("e => getComputedStyle(e).fill")
    behind = tab.locator("body").evaluate("e => getComputedStyle(e).backgroundColor")
    paper = tab.locator("#front .main-svg").first.evaluate("e => e.style.background")
    assert paper in ("rgba(0, 0, 0, 0)", "transparent")

    def luminance(colour: str) -> float:
        parts = [int(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(ink), luminance(behind)))
    assert (high + 0.05) / (low + 0.05) >= 4.5
    tab.close()


def test_a_phone_shows_a_legend_and_scrolls_one_way(page, chromium):
    """Guards: labels beside lines that take a phone's width, a figure wider than the window."""
    tab = chromium.new_page(viewport={"width": 420, "height": 800})
    tab.goto(page)
    tab.locator("#front .plot .legend").wait_for()
    assert tab.locator("#front .annotation-text").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == 420
    tab.close()
