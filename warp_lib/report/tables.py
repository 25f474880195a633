"""The report's tables, for reading."""

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..study.fronts import Effect
from ..study.outcomes import MEASURES
from .answers import checked, percent, pm
from .look import ARMS, LOOKS


def settings_of(row: dict[str, Any] | pd.Series, words: dict[str, str]) -> str:
    """A point's settings: those of `words` that it has, column → form, after each other."""
    return ", ".join(
        form.format(row[name]) for name, form in words.items() if not pd.isna(row.get(name))
    )


def settings_in_words(row: dict[str, Any]) -> str:
    """Which policy of its method a point of a run is: iteration, run, η, steps."""
    words = {"iteration": "iteration {:.0f}", "run": "run {:.0f}", "eta": "η = {:.2f}"}
    return settings_of(row, words | {"steps": "{:.0f} steps"})


@dataclass(frozen=True)
class Section:
    """A section of a notebook; in a table it is a link."""

    notebook: str
    heading: str

    def __str__(self) -> str:
        return self.heading

    def _repr_html_(self) -> str:
        anchor = html.escape(self.heading.replace(" ", "-"))  # as Jupyter names headings
        return f'<a href="{self.notebook}.ipynb#{anchor}">{html.escape(self.heading)}</a>'


class Table:
    """A table that notebooks show; every cell is escaped, for a model's text is nobody's HTML.

    A column "method" may hold arms of the study; they are shown in words.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]):
        self.rows = [dict(row) for row in rows]
        for row in self.rows:
            if "method" in row:
                row["method"] = ARMS.get(row["method"], row["method"])

    def _repr_html_(self) -> str:
        def line(tag: str, cells: Iterable[Any]) -> str:
            end = tag.split()[0]
            texts = (f"<{tag} style='text-align:left'>{_text(cell)}</{end}>" for cell in cells)
            row = "".join(texts)
            return f"<tr>{row}</tr>"

        head = line("th scope='col'", self.rows[0])
        body = "".join(line("td", row.values()) for row in self.rows)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        def cell(name: str, value: Any) -> str:
            return f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}"

        return "\n".join("  ".join(cell(*item) for item in row.items()) for row in self.rows)


def compared(claims: Iterable[tuple[str, str, str, int, Effect | None, str, Section]]) -> Table:
    """The table "paper, student report, here".

    claims: the sentence, what the paper says, what the student report says, the side that it says
    the effect is on, the effect here, its unit, where its figure is.
    """
    return Table(
        {
            "claim": claim,
            "paper (Gemma 7B)": paper,
            "student report (GPT-2)": student,
            "here (7.6M)": f"{effect} {unit}" if effect else "not run",
            "verdict": checked(expected, effect),
            "figure": section,
        }
        for claim, paper, student, expected, effect, unit, section in claims
    )


def _text(cell: Any) -> str:
    if isinstance(cell, Section):
        return cell._repr_html_()
    return f"{cell:.2f}" if isinstance(cell, float) else html.escape(str(cell))


SCORERS = {"reward": "reward model"} | {column: words for words, column in MEASURES.items()}


def accuracy_table(accuracies: pd.DataFrame) -> Table:
    """How well scorers rank held-out reviews ± 2 standard errors, for reading."""
    columns = {"pairs ranked correctly": "pairwise", "right side of a threshold": "plain"}
    return Table(
        {"scorer": SCORERS.get(row["scorer"], row["scorer"]), "words read": row["words"]}
        | {f"{words} ± 2 s.e.": percent(row, column) for words, column in columns.items()}
        | {"size of its logits": row["scale"]}
        for row in accuracies.to_dict("records")
    )


def summary_table(results: pd.DataFrame) -> Table:
    """The results ± 2 standard errors, a row a checkpoint, for reading."""
    columns = {"reward r̃ ± 2 s.e.": "reward", "KL, nats": "kl"} | MEASURES
    return Table(
        {"checkpoint": LOOKS[row["method"]][0], "at": settings_in_words(row)}
        | {
            title: "" if pd.isna(row[column]) else pm(row, column)
            for title, column in columns.items()
        }
        | {"completions": f"{row['completions']:,.0f}"}
        for row in results.to_dict("records")
    )
