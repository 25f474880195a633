"""What rounding does: the tables of the experiment `precision`, made and read."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from warp_lib.fast import machine
from warp_lib.report import study_plots
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings
from warp_lib.study import arms, rounding, units
from warp_lib.study.outcomes import outcome

PROMPTS, NOISE = 20, np.linspace(-0.1, 0.1, 20)
# What each pass reads of a KL, and where WARP's points are in float32: r̃ is half of KL, less 0.2
# where weights were rounded in training.
READ = {"test": 1.0, "test in split": 0.97, "test in bfloat16": 0.6}


def unit(folder, how: str, seed: int) -> None:
    """A finished unit whose policies lie where `READ` says; a seed adds a hundredth of itself to
    r̃.
    """
    rows, scores = [], {}
    places = [("sft", None, None, None, 0.0)]
    places += [
        (method, i, m, None, kl)
        for i in (1, 2)
        for method, m, kl in (("run", 1, i), ("run", 2, i), ("slerp", None, 2 * i))
    ]
    places += [("liti", i, None, 0.5, 0.5 * i) for i in (1, 2)]
    places += [
        (method, None, None, eta, top * eta)
        for method, top in (("warp", 4.0), ("reinforce-liti", 1.0))
        for eta in (0.0, 0.4, 1.0)
    ]
    for method, iteration, run, eta, kl in places:
        for split, read in (
            READ.items() if method in rounding.LINES and how == "split" else [("test", 1.0)]
        ):
            rows.append(
                {
                    "split": split,
                    "method": method,
                    "iteration": iteration,
                    "run": run,
                    "eta": eta,
                    "kl": kl * read,
                }
            )
            rows[-1] |= {
                "stays": 0.7,
                "pass_kl": np.nan if split == "test" else 0.01 if "split" in split else 0.2,
            }
            scores.setdefault(f"{split}.kl", []).append(kl * read + NOISE)
            scores.setdefault(f"{split}.reward", []).append(
                kl / 2 + NOISE + seed / 100 - 0.2 * (how == "bfloat16" and kl > 0)
            )
    file = folder / "precision" / f"warp-{how}-{seed}.json"
    file.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(file.with_suffix(".csv"), index=False)
    save_file(
        {name: np.array(values, dtype=np.float32) for name, values in scores.items()},
        file.with_suffix(".safetensors"),
    )
    whole = {"layer": "model", "a": 1, "b": 2, "degrees": 80.0, "norm_a": 1.0, "norm_b": 1.0}
    file.write_text(json.dumps({"geometry": [{"iteration": i} | whole for i in (1, 2)]}))


@pytest.mark.parametrize("count", [1, 3])
def test_the_tables_are_read(folder, count):
    """Guards: a pass's numbers taken for another's, a point's for another point's, a sign turned
    round, stages mixed up.
    """
    for seed in range(count):
        for how in ("split", "bfloat16"):
            unit(folder, how, seed)
    unit(folder, "split", 9)  # not trained both ways yet
    assert rounding.seeds() == list(range(count))
    measured = rounding.by_pass(rounding.seeds())
    assert len(measured) == 2 * 3 * 3
    at = measured.set_index(["method", "eta", "passed"])
    for passed, read in (("float32", 1.0), ("split", 0.97), ("bfloat16", 0.6)):
        assert at.loc[("warp", 0.4, passed), "kl"] == pytest.approx(1.6 * read, abs=1e-5)
    assert at.loc[("warp", 1.0, "bfloat16"), "pass_kl"] == pytest.approx(0.2)
    effects = rounding.by_training(rounding.seeds())
    assert list(effects) == list(rounding.STAGES)
    for reward, kl in effects.values():
        assert (reward.widest.mean, kl.widest.mean) == pytest.approx((-0.2, 0.0), abs=1e-5)
    level, high = rounding.at_equal_kl(rounding.seeds())
    # SFT itself was not trained
    assert (level.widest.mean, high) == pytest.approx((-0.178, 4.0), abs=0.002)
    shares = rounding.hidden(rounding.seeds())
    assert list(shares) == pytest.approx([1.0, 1 / 3], abs=1e-5)
    for of in shares.values():
        assert {method: effect.widest.mean for method, effect in of.items()} == pytest.approx(
            dict.fromkeys(rounding.LINES, 0.4), abs=1e-4
        )
    said = rounding.answer(measured, shares, effects, level)
    assert "at a true 1.0 nats" in said and "40% (95% CI 40% to 40%) less for WARP" in said
    assert "show 1.0 nats as 1.0." in said and ("no detectable difference" in said) == (count == 1)
    assert len(rounding.table(measured)) == 4 and len(rounding.angles(rounding.seeds())) == 4
    assert len(study_plots.by_pass(measured, "x").data) == 12


def test_a_unit_measures_the_same_weights_by_every_pass(folder, folders, store, monkeypatch):
    """Trained in two parts on a machine that is fast in bfloat16. Guards: passes of other weights,
    points counted twice.
    """
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    settings = Settings.profile("smoke", **folders, learning_rate=3e-3)
    unit = units.Passes(
        "precision", "warp-split", settings, arms.by_warp_beside_one_run, ("split", "bfloat16")
    )
    units.run_unit(unit, Progress())
    kept = outcome("precision", "warp-split", settings.seed)
    rows = kept.rows
    lines = rows[rows["method"].isin(rounding.LINES)]
    assert lines["split"].value_counts().to_dict() == dict.fromkeys(READ, 2 * settings.front_points)
    for split in READ:
        assert len(kept.scores[f"{split}.kl"]) == (rows["split"] == split).sum()
    away = lines[lines["eta"] > 0].set_index("split")
    assert (
        0
        < away.loc["test in split", "pass_kl"].mean()
        < away.loc["test in bfloat16", "pass_kl"].mean()
    )
    assert away["stays"].between(0, 1, inclusive="neither").all() and len(kept.record["geometry"])
