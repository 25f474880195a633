"""Notebook 07 on studies that have come to different points: what it answers."""

import ast
import json

import nbformat
import numpy as np
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
    judge = scores["test.reward"] * np.float32(2)
    save_file(scores | {"test.judge": judge}, file.with_suffix(".safetensors"))


# arm → the slope of its front
ARMS = {
    "warp-dpo": 0.5,
    "dpo": 0.4,
    "warp-dpo-once": 0.42,
    "dpo-iterated": 0.45,
}


@pytest.fixture
def k_star(request):
    return getattr(request, "param", (3.0, 4.0))


@pytest.fixture
def answer(folder, k_star):
    """Runs what notebook 07 reads of the study, and gives its answer; trials and WARP's own seeds
    have ended. `k_star` is what the two tunings fixed, DPO's first.
    """
    for arm in ("warp-dpo", "dpo"):
        unit(folder, "dpo-tuning", f"{arm}-a", outcomes.TUNING_SEED, ARMS[arm])
    chosen = {
        arm: {"trial": "a", "learning_rate": 1e-5, "beta": 0.3} for arm in ("warp-dpo", "dpo")
    }
    (folder / "dpo-tuning.json").write_text(
        json.dumps({"high": k_star[0], "judged_to": 4.0, "chosen": chosen})
    )
    (folder / "tuning.json").write_text(json.dumps({"high": k_star[1], "chosen": {}}))
    for seed in (0, 4, 5, 6):
        unit(folder, "primary", "warp", seed, 0.3)
        unit(folder, "primary", "reinforce", seed, 0.3)
    cells = [
        c.source
        for c in nbformat.read(ROOT / "notebooks" / "07_dpo.ipynb", 4).cells
        if c.cell_type == "code"
    ]
    begin = next(k for k, source in enumerate(cells) if source.startswith("ARMS = "))

    def run() -> tuple[str, dict, list[dict]]:
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
        return said, names["panels"], names["angles"].rows

    return run


def test_one_seed_is_said_to_be_one(answer, folder):
    """Guards: an interval over one seed; a control left out or under another name; the reward's
    differences shown as the judge's; angles of runs that were not made alike.
    """
    for arm, slope in ARMS.items():
        unit(folder, "dpo", arm, 5, slope)
    said, panels, angles = answer()
    assert [(row["method"], row["seed"]) for row in angles[::2]] == [
        ("WARP-DPO", 5),
        ("WARP-DPO, pairs once", 5),
        ("WARP", 5),
    ]
    # 0.1 of slope, at 2 nats
    assert said.startswith(
        "**Answer.** Not detectably. From 1 to 3 nats and over one seed, the difference of the two"
        " gains is +0.200 ("
    )
    assert said.count("over prompts, one seed r̃") == 2
    assert "WARP-DPO's own gain over DPO is +0.200 (" in said
    by_reward, by_judge = (
        {name.split(", seed")[0]: round(row.mean, 3) for name, row in panel.items()}
        for panel in panels.values()
    )
    assert by_reward.pop("(WARP-DPO − DPO) − (WARP − REINFORCE)") == 0.2
    assert by_judge == {name: 2 * mean for name, mean in by_reward.items()}
    assert by_reward == {
        "WARP − REINFORCE, batch 64": 0,
        "WARP-DPO − DPO": 0.2,
        # differences of slope, at 2 nats
        "averaging (with fresh pairs)": 0.1,
        "averaging (with pairs made once)": 0.04,
        "fresh pairs (with averaging)": 0.16,
        "fresh pairs (without averaging)": 0.1,
    }


@pytest.mark.parametrize("k_star", [(3.0, 4.0), (4.0, 3.0)], indirect=True)
def test_the_estimand_is_answered_on_the_seeds_that_have_ended(answer, folder):
    """Guards: a sign turned around, the smaller K* not taken, arms exchanged, seeds counted that
    lack an arm, or left out because controls wait."""
    for arm, slope in ARMS.items():
        unit(folder, "dpo", arm, 4, slope)
    unit(folder, "dpo", "warp-dpo", 5, 0.52)
    unit(folder, "dpo", "dpo", 5, 0.4)
    unit(folder, "dpo", "warp-dpo", 6, 9.0)
    said, *_ = answer()
    # (0.1 and 0.12) · 2
    assert (
        "From 1 to 3 nats and over two seeds, the difference of the two gains is +0.220 (" in said
    )
    assert "two seeds decide nothing) r̃" in said
    assert "WARP-DPO's own gain over DPO is +0.220 (" in said
