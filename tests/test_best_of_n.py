"""Best-of-n: the expected best of n of N completions, and the unit of the study that measures
it.
"""

import json
import math
from itertools import combinations

import pandas as pd
import pytest
import torch
from conftest import across_seeds, keep
from safetensors.numpy import load_file

from warp_lib.runs.progress import Progress
from warp_lib.settings import PROFILES
from warp_lib.study import arms, contrasts, outcomes, run, units
from warp_lib.study.best_of_n import best_of, kl_of_best


def test_expected_best_over_all_choices():
    """The oracle is enumeration: every choice of n of the N, its best by reward, the score of that
    one.
    """
    torch.manual_seed(0)
    rewards, scores = torch.randn(3, 6), torch.randn(3, 6)
    for n in range(1, 7):
        chosen = [
            max(some, key=lambda k, row=row: rewards[row, k])
            for row in range(3)
            for some in combinations(range(6), n)
        ]
        expected = torch.tensor(
            [
                scores[row, k]
                for row, k in zip(sorted(list(range(3)) * math.comb(6, n)), chosen, strict=True)
            ]
        )
        assert best_of(rewards, scores, n).float() == pytest.approx(
            expected.view(3, -1).mean(1), abs=1e-6
        )
    with pytest.raises(ValueError, match="from 1 to the 6 completions of a prompt, not 7"):
        best_of(rewards, scores, 7)


def test_kl_bound_by_enumeration():
    """Best of n of a policy with equally likely completions, all of other rewards: its KL is below
    the bound, and near it for many.
    """
    for n, many in ((1, 5), (2, 400), (4, 400)):
        k = torch.arange(1, many + 1, dtype=torch.float64)
        p = (k / many) ** n - ((k - 1) / many) ** n
        exact = (p * (p * many).log()).nan_to_num().sum().item()
        assert exact <= kl_of_best(n) + 1e-12 and exact == pytest.approx(kl_of_best(n), abs=0.01)


def test_the_unit_keeps_what_it_samples(folder, monkeypatch, folders):
    """Guards: parts that repeat each other's samples, rows that are not their scores' means, the
    judge choosing for itself.
    """
    monkeypatch.setattr(arms, "COMMON", PROFILES["smoke"] | folders)
    monkeypatch.setattr(units, "BEST_OF", 8)
    monkeypatch.setattr(units, "SAMPLED_AT_ONCE", 2)
    run.run(["best-of-n"], Progress())
    rows = pd.read_csv(folder / "best-of-n" / "sft-20.csv")
    assert rows["n"].tolist() == [1, 2, 4, 8] and rows["kl"].tolist() == pytest.approx(
        [kl_of_best(n) for n in (1, 2, 4, 8)]
    )
    assert (
        rows["reward"].is_monotonic_increasing and rows["reward"].iloc[-1] > rows["reward"].iloc[0]
    )
    scores = load_file(folder / "best-of-n" / "sft-20.safetensors")
    for name in ("reward", "judge_tfidf"):
        assert scores[f"test.{name}"].mean(1) == pytest.approx(rows[name].to_numpy(), abs=1e-5)
    shown = outcomes.outcome("best-of-n", "sft", 20).record["completions"]
    last = [one["completion"] for one in shown if one["point"] == 3]
    assert len(shown) == 4 * 8 and len(set(last)) == 8
    # the best of 2, and a part has 2
    of_first_part = [one["completion"] for one in shown if one["point"] == 1]
    assert last != of_first_part != [one["completion"] for one in shown if one["point"] == 0]


def test_difference_from_best_of_n_is_at_the_same_kl(folder):
    """Guards: the yardstick's own front, chosen on the prompts it is read on; a seed that reaches
    further than n does; one left out for its number format."""
    keep(folder, "best-of-n", "sft", 0, [(0.0, 0.0), (1.0, 1.0), (2.5, 1.75)], method="best-of-n")
    for seed, up in ((0, 0.1), (1, 0.3)):
        keep(folder, "x", "warp", seed, [(0, 0), (1, 1 + up), (5, 3 + up)])
    assert contrasts.over_best_of_n(("x", "warp"), 3.0, among=[0]).by_seed.keys() == {0}
    file = folder / "x" / "warp-1.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"machine": {"dtype": "torch.float8"}})
    )
    found = contrasts.over_best_of_n(("x", "warp"), 3.0)
    assert found.by_seed[0].mean == pytest.approx(0.1) and across_seeds(
        found
    ).mean == pytest.approx(0.2)
    assert found.ends == {0: 2.5, 1: 2.5} and found.rival == "best-of-n"
    # seed 1 had another reward model, seed 4 of best-of-n had it too
    for file in (folder / "x").glob("warp-[12].json"):
        file.write_text(file.read_text().replace("kept", "another"))
    outcomes.outcome.cache_clear()
    assert contrasts.over_best_of_n(("x", "warp"), 3.0).by_seed.keys() == {0}
    keep(folder, "best-of-n", "sft", 4, [(0.0, 0.1), (1.0, 1.1), (2.5, 1.85)], method="best-of-n")
    file = folder / "best-of-n" / "sft-4.json"
    file.write_text(file.read_text().replace("kept", "another"))
    found = contrasts.over_best_of_n(("x", "warp"), 3.0)
    assert [found.by_seed[seed].mean for seed in (0, 1)] == pytest.approx([0.1, 0.2])
    with pytest.raises(ValueError, match=r"no seed has finished all of dpo \(x\)"):
        contrasts.over_best_of_n(("x", "dpo"), 3.0)
