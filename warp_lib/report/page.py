"""The report's page: executed notebooks as one HTML file that opens offline.

Its first screen is what cells tagged `front` show; then each notebook is a part that unfolds.
"""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..runs import paths

HERE = Path(__file__).parent  # page.html.j2, page.css, narrow.js, page.js, and cells.html.j2
PLOTLY = "application/vnd.plotly.v1+json"


@dataclass
class Part:
    """A notebook on the page: its id, title and question, the headings in it (id, text), HTML."""

    stem: str
    title: str
    question: str
    headings: list[tuple[str, str]]
    body: str


def write_page(notebooks: list[Path], page: Path, title: str) -> None:
    """Write executed notebooks as one self-contained page: interactive figures, folded code, and
    nothing fetched from anywhere.
    """
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs
    from pygments.formatters import HtmlFormatter

    from .look import NARROW, template

    parts, front, figures, terms = [], [], 0, []
    for file in notebooks:
        notebook = nbformat.read(file, as_version=4)
        terms += glossary(notebook)
        figures += _lay_out(notebook, file.stem)
        front += [_html(output) for output in shown_outputs(notebook, "front")]
        parts.append(_part(notebook, file.stem))
    light, dark = (
        HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight")
        for style in ("default", "github-dark")
    )
    style = f"{(HERE / 'page.css').read_text()}{light}\n"
    style += f"@media (prefers-color-scheme: dark) {{ {dark} }}"
    looks = {theme: template(theme).to_plotly_json() for theme in ("light", "dark")}
    looks["light"]["layout"]["paper_bgcolor"] = looks["dark"]["layout"]["paper_bgcolor"]
    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    whole = templates.get_template("page.html.j2").render(
        title=title,
        style=style,
        plotly=get_plotlyjs() if figures else "",
        script=(HERE / "page.js").read_text() + (HERE / "narrow.js").read_text(),
        look=script_json({"templates": looks, "narrow": NARROW, "terms": terms}),
        # a figure stands once on the page: the front's is not repeated in its part
        front="\n".join(front),
        parts=parts,
    )
    paths.write_whole(page, whole)


def _lay_out(notebook: NotebookNode, stem: str) -> int:
    """Leave out what a reader of the page does not need, and turn figures into HTML: how many."""
    # Parameters are noise here, and where papermill overrode them misleading: the settings cell
    # shows what counted. The answer stands at the top.
    out_of_sight = {"parameters", "injected-parameters", "answer"}
    notebook.cells = [cell for cell in notebook.cells if not out_of_sight & tags(cell)]
    figures = 0
    for output in shown_outputs(notebook):
        if PLOTLY in output.get("data", {}):
            name = f"figure-{stem}-{figures}"
            output.data = NotebookNode({"text/html": _figure(output.data[PLOTLY], name)})
            figures += 1
    return figures


def _part(notebook: NotebookNode, stem: str) -> Part:
    from jinja2 import FileSystemLoader
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    title, question = stem, ""
    for cell in notebook.cells:
        if "front" in tags(cell) and cell.cell_type == "code":
            cell.outputs = []
        if cell.cell_type == "markdown" and (heading := re.match(r"# +(.+)\n*", cell.source)):
            title = re.sub(r"[`*]", "", heading[1]).strip()
            cell.source = cell.source[heading.end() :]
            if asked := re.match(r"\*\*Question\.\*\* (.+)", cell.source):
                question = asked[1]
                cell.source = cell.source[asked.end() :]
    exporter = HTMLExporter(
        extra_loaders=[FileSystemLoader(HERE)],
        template_file="cells.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        **dict.fromkeys(("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url"), ""),
    )
    body, _ = exporter.from_notebook_node(notebook)
    headings = []

    def name(heading: re.Match[str]) -> str:
        text = re.sub(r"<[^>]+>", "", heading[1])
        headings.append((f"{stem}-{_slug(html.unescape(text))}", html.unescape(text)))
        return f'<h3 id="{headings[-1][0]}">{heading[1]}</h3>'

    body = re.sub(r"<h2[^>]*>(.*?)</h2>", name, body, flags=re.DOTALL)

    # where notebooks link each other, the page links its own parts
    def link(address: re.Match[str]) -> str:
        section = address[2] and f"-{_slug(html.unescape(address[2]))}"
        return f'href="#{address[1]}{section or ""}"'

    body = re.sub(r'href="(?:\./)?(\d\d_\w+)\.ipynb(?:#([^"]+))?"', link, body)
    return Part(stem, title, question, headings, body)


def glossary(notebook: NotebookNode) -> list[tuple[list[str], str]]:
    """The terms that a notebook's section "Glossary" explains: the bold words of each item, and
    what it says. On the page their first mentions explain themselves (page.js).
    """
    return [
        (re.findall(r"\*\*(.+?)\*\*", item), re.sub(r"[*`]", "", item))
        for cell in notebook.cells
        if cell.cell_type == "markdown" and cell.source.startswith("## Glossary\n")
        for item in re.findall(r"^- (.+)$", cell.source, flags=re.MULTILINE)
    ]


def _slug(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def _html(output: NotebookNode) -> str:
    """A cell's output as HTML."""
    from nbconvert.filters import markdown2html

    data = output.get("data", {})
    if "text/html" in data:
        return data["text/html"]
    return markdown2html(data["text/markdown"]) if "text/markdown" in data else ""


def _figure(figure: dict[str, Any], name: str) -> str:
    """A figure as HTML: its title and caption as text, which wraps, and its JSON, which page.js
    draws when it comes into view.
    """
    layout = figure["layout"]
    words = layout.get("meta") or {}
    finding, caption = (html.escape(words.get(part, "")) for part in ("finding", "caption"))
    if words:
        layout = {k: v for k, v in layout.items() if k not in ("title", "template")}
        layout["margin"] = layout.get("margin", {}) | {"t": 30}
    drawn = script_json({"data": figure["data"], "layout": layout})
    text = f"<strong>{finding}.</strong> {caption}" if finding else ""
    return (
        f'<figure id="{name}"><figcaption>{text}'
        f' <a href="#{name}" aria-label="Link to this figure" title="Link to this figure">#</a>'
        "</figcaption>"
        f'<div class="wide"><div class="plot" role="group"'
        f' aria-label="{finding}. {caption}"></div></div>'
        f'<script type="application/json">{drawn}</script></figure>'
    )


def script_json(value: Any) -> str:
    """JSON that cannot end the script that it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def shown_outputs(notebook: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """All outputs, or those of the cells with a `tag`, that can be shown without a kernel; the
    others, widgets, leave the notebook.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs = [
            o for o in cell.outputs if not any("widget-view" in kind for kind in o.get("data", {}))
        ]
    asked = (cell for cell in code if tag is None or tag in tags(cell))
    return [output for cell in asked for output in cell.outputs]


def tags(cell: NotebookNode) -> set[str]:
    """What a cell is for."""
    return set(cell.metadata.get("tags", []))
