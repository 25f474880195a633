"""Notebook 07 on studies that have come to different points: what it answers."""

import ast
import json

import nbformat
import pandas as pd
import pytest
from conftest import keep
from safetensors.numpy import load_file, save_file

from warp_lib.report import answers, look, plots, study_plots, tables
from warp_lib.runs.paths import ROOT
from warp_lib.settings import Settings
from warp_lib.study import contrasts, outcomes


def unit(folder, experiment: str, arm: str, seed: int, slope: float) -> None:
    """A finished unit whose front is a line through 0, with two runs at 70° to 74°."""
    keep(folder, experiment, arm, seed, [(0, 0), (6, 6 * slope)])
    file = folder / experiment / f"{arm}-{seed}"
    pd.read_csv(file.with_suffix(".csv")).assign(seed=seed).to_csv(
        file.with_suffix(".csv"), index=False
    )
    row = {"a": 1, "b": 2, "layer": "model", "norm_a": 1.0, "norm_b": 1.0}
    geometry = [row | {"iteration": i, "degrees": 68.0 + 2 * i + seed % 3} for i in (1, 2)]
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"geometry": geometry}))
    scores = load_file(file.with_suffix(".safetensors"))
    save_file(scores | {"test.judge": scores["test.reward"]}, file.with_suffix(".safetensors"))


# arm → the slope of its front
ARMS = {
    "warp-dpo": 0.5,
    "dpo": 0.4,
    "warp-dpo-own": 0.48,
    "warp-dpo-once": 0.42,
    "dpo-iterated": 0.45,
}


@pytest.fixture
def answer(folder):
    """Runs what notebook 07 reads of the study, and gives its answer; trials and WARP's own seeds
    have ended.
    """
    (folder / "rounded").mkdir()
    for arm in ("warp-dpo", "dpo"):
        unit(folder, "rounded/dpo-tuning", f"{arm}-a", outcomes.TUNING_SEED, ARMS[arm])
    chosen = {
        arm: {"trial": "a", "learning_rate": 1e-5, "beta": 0.3} for arm in ("warp-dpo", "dpo")
    }
    (folder / "rounded" / "dpo-tuning.json").write_text(
        json.dumps({"high": 4.0, "judged_to": 4.0, "chosen": chosen})
    )
    (folder / "rounded" / "tuning.json").write_text(json.dumps({"high": 3.0, "chosen": {}}))
    for seed in (0, 4, 5, 6):
        unit(folder, "rounded/primary", "warp", seed, 0.3)
        unit(folder, "rounded/primary", "reinforce", seed, 0.3)
    cells = [
        c.source
        for c in nbformat.read(ROOT / "notebooks" / "07_dpo.ipynb", 4).cells
        if c.cell_type == "code"
    ]
    begin = next(k for k, source in enumerate(cells) if source.startswith("ARMS = "))

    def run() -> tuple[str, dict]:
        names = {
            "answers": answers,
            "contrasts": contrasts,
            "outcomes": outcomes,
            "look": look,
            "plots": plots,
            "study_plots": study_plots,
            "tables": tables,
            "Markdown": str,
            "settings": Settings(),
            "folder": lambda _: folder,
            "export_figure": lambda *_: None,
        }
        *before, shown = ast.parse("\n".join(cells[begin:])).body
        exec(compile(ast.Module(before, []), "07_dpo", "exec"), names)
        said = eval(compile(ast.Expression(shown.value), "07_dpo", "eval"), names)
        return said, names["panels"]

    return run


def test_one_seed_is_said_to_be_one(answer, folder):
    """Guards: the tuning's angles, or another seed's, for its own; an interval over one seed; a
    control left out or under another name.
    """
    for arm, slope in ARMS.items():
        unit(folder, "rounded/dpo", arm, 5, slope)
    unit(folder, "rounded/reference", "warp-dpo", 5, 0.47)
    unit(folder, "rounded/reference", "dpo", 5, 0.35)
    said, panels = answer()
    # 0.1 of slope, at 2 nats
    assert said.startswith(
        "**Answer.** Not detectably. The difference of the two gains is +0.200 ("
    )
    assert "over prompts, one seed r̃ from 1 to 3 nats, over one seed." in said
    assert "WARP-DPO − DPO itself is +0.250 (" in said and said.endswith("from 1 to 4 nats.")
    means = {
        name.split(", seed")[0]: row.mean
        for end in ("to 3 nats", "to 4 nats")
        for name, row in panels[end].items()
    }
    assert {name: round(mean, 3) for name, mean in means.items()} == {
        "WARP − REINFORCE": 0,
        "WARP-DPO − DPO": 0.25,
        "(WARP-DPO − DPO) − (WARP − REINFORCE)": 0.2,
        # differences of slope, at 2.5 nats
        "averaging, fresh pairs": 0.125,
        "averaging, pairs made once": 0.05,
        "each run its own pairs": -0.05,
        "fresh pairs, averaging": 0.2,
        "fresh pairs, no averaging": 0.125,
        "EMA as reference, WARP-DPO": -0.075,
        "EMA as reference, DPO": -0.125,
    }


def test_the_estimand_is_answered_on_the_seeds_that_have_ended(answer, folder):
    """Guards: a sign turned around, the smaller K* not taken, arms exchanged, seeds counted that
    lack an arm, or left out because controls wait."""
    for arm, slope in ARMS.items():
        unit(folder, "rounded/dpo", arm, 4, slope)
    unit(folder, "rounded/dpo", "warp-dpo", 5, 0.52)
    unit(folder, "rounded/dpo", "dpo", 5, 0.4)
    unit(folder, "rounded/dpo", "warp-dpo", 6, 9.0)
    said, _ = answer()
    # (0.1 and 0.12) · 2
    assert (
        "The difference of the two gains is +0.220 (" in said
        and "from 1 to 3 nats, over two seeds" in said
    )
    assert "two seeds decide nothing) r̃" in said
    # (0.1 and 0.12) · 2.5
    assert "WARP-DPO − DPO itself is +0.275 (" in said and said.endswith("from 1 to 4 nats.")
