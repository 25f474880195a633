"""Notebook 07 on studies that have come to different points: what it answers before and after the comparison's seeds have ended."""

import json

import nbformat
import pandas as pd
import pytest
from conftest import keep
from safetensors.numpy import load_file, save_file

from warp_lib import outcomes, plots
from warp_lib.paths import ROOT
from warp_lib.settings import Settings


def unit(folder, experiment: str, arm: str, seed: int, slope: float) -> None:
    """A finished unit whose front is a line through 0, with two runs at 70° to 74°."""
    keep(folder, experiment, arm, seed, [(0, 0), (6, 6 * slope)])
    file = folder / experiment / f"{arm}-{seed}"
    pd.read_csv(file.with_suffix(".csv")).assign(seed=seed).to_csv(file.with_suffix(".csv"), index=False)
    row = {"a": 1, "b": 2, "layer": "model", "norm_a": 1.0, "norm_b": 1.0}
    geometry = [row | {"iteration": i, "degrees": 68.0 + 2 * i + seed % 3} for i in (1, 2)]
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"geometry": geometry}))
    scores = load_file(file.with_suffix(".safetensors"))
    save_file(scores | {"test.judge": scores["test.reward"]}, file.with_suffix(".safetensors"))


@pytest.fixture
def answer(folder, monkeypatch):
    """Runs what notebook 07 reads of the study, and gives its answer; trials and WARP's own seeds have ended."""
    for arm, slope in (("warp-dpo", 0.5), ("dpo", 0.4)):
        unit(folder, "dpo-tuning", f"{arm}-a", outcomes.TUNING_SEED, slope)
    chosen = {arm: {"trial": "a", "learning_rate": 1e-5, "beta": 0.3} for arm in ("warp-dpo", "dpo")}
    (folder / "dpo-tuning.json").write_text(json.dumps({"high": 4.0, "judged_to": 4.0, "chosen": chosen}))
    (folder / "tuning.json").write_text(json.dumps({"high": 3.0, "chosen": {}}))
    for seed in (0, *outcomes.SEEDS[:3]):
        unit(folder, "primary", "warp", seed, 0.3)
        unit(folder, "primary", "reinforce", seed, 0.3)
    cells = [c.source for c in nbformat.read(ROOT / "notebooks" / "07_dpo.ipynb", 4).cells if c.cell_type == "code"]
    begin = next(k for k, source in enumerate(cells) if source.startswith("ARMS = "))

    def run() -> str:
        names = {
            "outcomes": outcomes, "plots": plots, "Markdown": str, "settings": Settings(), "folder": lambda _: folder,
            "export_figure": lambda *_: None,
        }  # fmt: skip
        for source in cells[begin:-1]:
            exec(source, names)
        *before, last = cells[-1].splitlines()
        exec("\n".join(before), names)
        return eval(last, names)

    return run


def test_before_any_seed_it_says_so(answer):
    said = answer()
    assert said.startswith("**Answer.** Not yet: no seed has ended all four methods of the comparison.")
    assert "WARP-DPO − DPO = +0.250 r̃" in said and said.endswith("stand at 70° to 72°.")  # 0.1 of slope, at 2.5 nats on average


def test_one_seed_is_said_to_be_one(answer, folder):
    """Guards: a seed left out because its controls wait; the tuning's angles, or another seed's, for its own; an interval over one seed."""
    for arm, slope in (("warp-dpo", 0.5), ("dpo", 0.4)):
        unit(folder, "dpo", arm, 5, slope)
    said = answer()
    assert "On 1 of 5 seeds WARP gains +0.200 (+0.200 to +0.200 over prompts, one seed) r̃ more" in said  # 0.1 of slope, at 2 nats
    assert "and one seed cannot say whether that holds for the next" in said and said.endswith("stand at 72° to 74°.")
    assert "WARP-DPO − DPO is +0.250 (+0.250 to +0.250 over prompts, one seed) from 1 to 4 nats" in said
    for arm in ("warp", "reinforce"):
        (folder / "primary" / f"{arm}-5.json").unlink()
    said = answer()
    assert "Not yet: no seed has ended all four methods of the comparison. WARP-DPO − DPO is +0.250" in said


def test_the_estimand_is_answered_on_the_seeds_that_have_ended(answer, folder):
    """Guards: a sign turned around, the smaller K* not taken, arms exchanged, seeds counted that lack an arm."""
    for seed, slope in ((4, 0.5), (5, 0.52)):
        unit(folder, "dpo", "warp-dpo", seed, slope)
        unit(folder, "dpo", "dpo", seed, 0.4)
    unit(folder, "dpo", "warp-dpo", 6, 9.0)
    said = answer()
    assert "On 2 of 5 seeds WARP gains +0.220 (" in said and "from 1 to 3 nats" in said  # (0.1 and 0.12) · 2
    assert "over seeds and prompts, n = 2) r̃ more" in said
    assert "which cannot be told from none" in said or "is ahead of warp − reinforce" in said
    assert "WARP-DPO − DPO is +0.275 (" in said and "from 1 to 4 nats. " in said  # (0.1 and 0.12) · 2.5
