"""The report's page: executed notebooks as one HTML file that opens offline."""

import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..runs import paths

HERE = Path(__file__).parent  # page.html.j2, page.css, and cells.html.j2 for a notebook's cells
PLOTLY = "application/vnd.plotly.v1+json"


def write_page(notebooks: list[Path], page: Path, title: str) -> None:
    """Write executed notebooks as one self-contained page: interactive figures, folded code, and
    nothing fetched from anywhere.
    """
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs
    from pygments.formatters import HtmlFormatter

    sections, figures = [], 0
    for file in notebooks:
        notebook = nbformat.read(file, as_version=4)
        body, drawn = _body(notebook, file.stem)
        figures += drawn
        sections.append((file.stem, _title(notebook) or file.stem, body))
    light, dark = (
        HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight")
        for style in ("default", "github-dark")
    )
    style = f"{(HERE / 'page.css').read_text()}{light}\n"
    style += f"@media (prefers-color-scheme: dark) {{ {dark} }}"
    templates = Environment(loader=FileSystemLoader(HERE), autoescape=True)
    about = {"title": title, "style": style, "script": get_plotlyjs() if figures else ""}
    whole = templates.get_template("page.html.j2").render(about, sections=sections)
    paths.write_whole(page, whole)


def _body(notebook: NotebookNode, stem: str) -> tuple[str, int]:
    """The HTML of one notebook's cells, and how many figures are in it."""
    from jinja2 import FileSystemLoader
    from nbconvert import HTMLExporter

    # The parameters are noise here, and where papermill overrode them misleading: the settings cell
    # shows what counted.
    notebook.cells = [
        cell
        for cell in notebook.cells
        if not {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", []))
    ]
    figures = 0
    for output in shown_outputs(notebook):
        if PLOTLY in output.get("data", {}):
            output.data = NotebookNode(
                {"text/html": _figure(output.data[PLOTLY], f"figure-{stem}-{figures}")}
            )
            figures += 1
    exporter = HTMLExporter(
        extra_loaders=[FileSystemLoader(HERE)],
        template_file="cells.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
        **dict.fromkeys(("require_js_url", "mathjax_url", "mermaid_js_url", "jquery_url"), ""),
    )
    body, _ = exporter.from_notebook_node(notebook)
    # Where notebooks link each other, the page links its own sections.
    links = re.compile(r'href="(?:\./)?(\d\d_\w+)\.ipynb(?:#([^"]+))?"')
    return links.sub(lambda found: f'href="#{found[2] or found[1]}"', body), figures


def _figure(figure: dict[str, Any], name: str) -> str:
    """An interactive figure as HTML, for a page that holds plotly.js already."""
    import plotly.io as pio

    figure = {part: figure[part] for part in ("data", "layout", "frames") if part in figure}
    config = {"responsive": True, "displaylogo": False}
    bare: dict[str, Any] = {"include_plotlyjs": False, "full_html": False, "validate": False}
    drawn = pio.to_html(figure, config, **bare, default_height="450px", div_id=name)
    return f'<div class="figure">{drawn}</div>'


def _title(notebook: NotebookNode) -> str | None:
    """The notebook's first heading, as plain text."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return re.sub(r"[`*]", "", found[1]).strip() if found else None


def shown_outputs(notebook: NotebookNode, tag: str | None = None) -> list[NotebookNode]:
    """All outputs, or those of the cells with a `tag`, that can be shown without a kernel; the
    others, widgets, leave the notebook.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if not any("widget-view" in kind for kind in output.get("data", {}))
            ]
    asked = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and (tag is None or tag in cell.metadata.get("tags", []))
    ]
    return [output for cell in asked for output in cell.outputs]
