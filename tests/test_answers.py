"""What the notebooks say: the side that the numbers are on, in at most three sentences."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from warp_lib.report import answers, tables
from warp_lib.study.contrasts import Contrast
from warp_lib.study.fronts import Effect, Matched
from warp_lib.study.outcomes import Outcome

SPREAD = np.linspace(-0.1, 0.1, 40)


def effect(mean: float, seeds: int = 4) -> Effect:
    return Effect({seed: mean + SPREAD for seed in range(seeds)})


def contrast(mean: float) -> Contrast:
    return Contrast(effect(mean).by_prompt, arm="warp", rival="reinforce", high=3.0, ends={})


def results(**columns: list) -> pd.DataFrame:
    table = pd.DataFrame(columns)
    for name in ("reward", "kl", "judge"):
        table[f"{name}_se"] = 0.05
    return table


RUN = results(
    method=["sft", "run", "run", "warp", "warp", "warp"],
    iteration=[None, 2, 2, None, None, None],
    eta=[None, None, None, 0.0, 0.5, 1.0],
    reward=[-0.1, 0.4, 0.6, -0.1, 0.65, 0.9],
    kl=[0.0, 2.0, 3.0, 0.0, 1.0, 4.0],
    judge=[0.0, 0.3, 0.5, 0.0, 0.4, 0.8],
)


def said() -> dict[str, str]:
    accuracies = pd.DataFrame(
        {"scorer": "reward", "words": [50, "whole"], "pairwise": [0.88, 0.96], "pairwise_se": 0.01}
    )
    path = Matched(4.0, -0.1 + 0.2 * np.tile([-1, 1], 50))
    line = Matched(2.0, 0.02 + 0.2 * np.tile([-1, 1], 50))
    return {
        "1": answers.reward_model(accuracies, {"mean": 0.3, "p99": 1.4}),
        "2": answers.policy(4.0, 0.02, {"entropy": 1.9, "entropy_se": 0.02}, 0.7),
        "3": answers.warp(RUN, 2, 2, 40),
        "4": answers.reinforce(RUN.assign(method="reinforce"), 160),
        "5": answers.pareto(path, line, []),
        "6": answers.primary(
            contrast(0.0),
            contrast(-0.3),
            answers.why({100: effect(0.3)}, {100: effect(0.4)}),
        ),
        "7": answers.dpo(contrast(0.0), contrast(0.2)),
    }


@pytest.mark.parametrize("notebook", said())
def test_an_answer_is_at_most_three_sentences(notebook):
    """Guards: a number that is not there, a hyphen for a minus, an answer that grows."""
    text = said()[notebook]
    sentences = re.findall(r"[.:?](?= [A-Z]|$)", text.replace("Yes. ", "").replace("No. ", ""))
    assert 1 <= len(sentences) <= 4 and "nan" not in text and not re.search(r"(?<=\s)-\d", text)


def test_answers_take_the_side_of_their_numbers():
    """Guards: a sign turned round, a verdict without its interval."""
    assert "average 0.50 at 2.50 nats" in said()["3"] and "0.90 ± 0.10" in said()["3"]
    assert "so the merge moves further than its parts" in said()["3"]
    short = RUN.assign(kl=RUN.kl.where(RUN.method != "warp", RUN.kl / 2))
    assert "so the merge moves no further than its parts." in answers.warp(short, 2, 2, 40)
    assert answers.plain(-0.004, 2) == "0.00" and answers.plain(-0.4, 1) == "−0.4"
    assert said()["5"].startswith("Not at 4.0 nats.")
    assert "On this one seed WARP − REINFORCE is −0.100 (95% CI" in said()["5"]
    assert said()["6"].startswith("Not detectably.") and "earns 0.300 (95% CI" in said()["6"]
    assert (
        "is +0.000 (95% CI" in said()["6"]
        and "REINFORCE's last policy, interpolated, earns on average 0.400 (95%" in said()["6"]
    )
    assert answers.primary(contrast(0.2), contrast(0.0)).startswith("Yes.")
    assert "Best-of-n" not in answers.primary(contrast(0.2), contrast(0.0))
    assert answers.primary(contrast(-0.2), contrast(0.0)).startswith("No: it earns less.")
    titles = [answers.primary_title(contrast(mean), contrast(-0.3)) for mean in (0, 0.2, -0.2)]
    assert ["told apart" in titles[0], "more" in titles[1], "less" in titles[2]] == [True] * 3


def test_the_cause_takes_the_side_of_its_numbers():
    """Guards: a rival's gain told as WARP's alone, a checkpoint that only one of them reaches."""
    gain, none, loss = effect(0.3), effect(0.0), effect(-0.3)
    early, line = {50: loss, 100: gain, 200: none}, {100: effect(0.4), 200: effect(0.2)}
    shared = answers.why(early, line)
    assert "REINFORCE's last policy, interpolated, earns on average 0.300 (95% CI" in shared
    assert shared.endswith("more than REINFORCE stopped early.")
    no_line = answers.why({9: gain}, {9: none})
    assert "WARP earns 0.300 (95% CI" in no_line and "make that up (+0.000 (95% CI" in no_line
    assert answers.why({9: none}, {9: gain}).startswith("It cannot be told apart from REINF")
    assert answers.why({9: loss}, {9: gain}).startswith("It earns less than REINFORCE stopped")
    assert answers.why({}, {9: gain}) == ""
    title = answers.why_title([early, {}], [line, line])
    assert "above 1 of REINFORCE's 2 early" in title and title.endswith("LITI line above 2")


def test_titles_say_what_is_drawn():
    assert answers.reaches(RUN, "warp", "WARP") == "WARP reaches r̃ = 0.90 at 4.0 nats"
    assert "75% of its gain in reward and 25% of its KL" in answers.liti_title(RUN)
    assert "rises by 1.00 and the judge's score by 0.80" in answers.judge_title(RUN, "judge")
    ends = {"a": {2.0: effect(0.0), 3.0: effect(0.2)}, "b": {2.0: effect(0.0)}}
    assert answers.by_end_title(ends).startswith(
        "WARP is ahead of a rival when the comparison ends at 3 nats"
    )
    none = {"WARP − a": {2.0: effect(0.0), 3.0: effect(0.0)}, "WARP − b": {2.0: effect(0.0)}}
    assert answers.by_end_title(none).endswith("ends, up to 3 nats (2 against b)")
    alone = answers.by_end_title({"WARP − b": none["WARP − b"]})
    assert alone == (
        "WARP − b: no detectable difference wherever the comparison ends, up to 2 nats"
    )
    history = [{"reward": k / 10, "kl_anchor": k / 20} for k in range(11)]
    assert (
        answers.curves_title({"run": history})
        == "Training moves r̃ from 0.00 to 1.00 and ends 0.5 nats from the anchor"
    )


@pytest.mark.parametrize(
    ("sides", "title"),
    [
        ([1, -1, 1], "Of WARP's 3 cells 2 lie above REINFORCE's curve, 1 below"),
        ([1, 0], "Of WARP's 2 cells 1 lies above REINFORCE's curve, none below"),
        (
            [-1, None],
            "Of WARP's 2 cells none lie above REINFORCE's curve, 1 below, 1 beyond its end",
        ),
        ([0, 0], "WARP's cells lie along REINFORCE's curve"),
    ],
)
def test_cells_are_told_by_their_sides(sides, title):
    """Guards: sides swapped, a cell beyond REINFORCE's curve counted."""

    class Cell:
        def __init__(self, side):
            self.side = side

        def gap(self):
            by_seed = {seed: np.array([0.1, 0.11]) * (self.side or 0) for seed in range(4)}
            return Effect(by_seed) if self.side is not None else None

    assert answers.cells_title({(1, m): Cell(side) for m, side in enumerate(sides)}) == title


def test_a_claim_is_reproduced_contradicted_or_neither():
    """Guards: a claim of no difference that counts as reproduced when it is merely not seen to be
    wrong; two seeds that decide.
    """
    up, none = effect(0.3), effect(0.0)
    assert [answers.checked(side, up) for side in (1, -1, 0)] == [
        "reproduced",
        "contradicted",
        "contradicted",
    ]
    assert answers.checked(1, none) == "not detectable" and answers.checked(1, None) == "not run"
    assert answers.checked(0, none) == "no difference detected, as claimed"
    assert answers.checked(1, effect(0.3, seeds=2)) == "not detectable"
    section = tables.Section("06_ablations", "Is 1 < 2?")
    table = tables.compared([("it pays", "yes", "–", 1, up, "r̃", section)])
    (row,) = table.rows
    assert row["here (7.6M)"].endswith(" r̃") and row["verdict"] == "reproduced"
    link = '<a href="06_ablations.ipynb#Is-1-&lt;-2?">Is 1 &lt; 2?</a>'
    assert link in table._repr_html_() and "figure: Is 1 < 2?" in repr(table)


def test_power_is_told_where_nothing_was_seen():
    none = contrast(0.0)
    said = answers.dpo(none, contrast(0.2))
    assert f"; {none.detectable:.2f} would be detected nine times in ten." in said
    assert "nine times" not in answers.dpo(contrast(0.3), contrast(0.2))


def test_key_numbers_are_the_contrasts():
    shown = answers.key_numbers(contrast(-0.01), contrast(-0.3))
    assert all(text in shown for text in ("−0.010", "+0.300", f"{contrast(-0.01).detectable:.3f}"))
    few = replace(contrast(-0.01), by_prompt={0: SPREAD})
    assert "nan" not in answers.key_numbers(few, contrast(-0.3))


def test_a_larger_policy_agrees_or_not():
    """Guards: WARP ahead of one of its two rivals told as ahead, runs that are not there, few
    seeds that settle it.
    """
    small, up, none = contrast(0.0), effect(0.5, seeds=1), effect(0.01, seeds=1)
    agrees = answers.scale({"larger": (up, none)}, small)
    assert agrees.startswith("That is not settled. On larger, one seed, WARP − REINFORCE's LITI")
    assert "LITI line is +0.500 (95% CI" in agrees
    assert " and WARP − REINFORCE's path through its checkpoints is +0.010 (95% CI" in agrees
    assert agrees.count("one seed") == 1
    assert agrees.endswith("On the small policy WARP − REINFORCE is " + f"{small} r̃.")
    assert answers.scale({"larger": (none, none)}, small).startswith("That is not settled.")
    two = answers.scale({"larger": (effect(0.5, seeds=2), effect(0.1, seeds=2))}, small)
    assert two.startswith("That is not settled. On larger, two seeds, WARP")
    assert re.search(r"LITI line is \+0.500 \(95% CI .*?\) and \+0.500 \(95% CI .*?\) r̃ on", two)
    assert (
        two.count("95% CI") == 5
        and " both reach, each over one seed's prompts. On the small" in two
    )
    alike = answers.scale({"larger": (effect(0.0), effect(0.01))}, small)
    assert alike.startswith("No difference is seen there either. On larger WARP")
    ahead = answers.scale({"larger": (effect(0.5), effect(0.3))}, small)
    assert ahead.startswith("No: WARP earns more there. On larger WARP")
    assert "LITI line is +0.500 (95% CI" in ahead
    behind = answers.scale({"a": (effect(-0.5), effect(-0.5)), "b": (effect(-0.5),) * 2}, small)
    assert behind.startswith("No: WARP earns less there. On a ") and "; on b WARP" in behind
    assert answers.scale(
        {"a": (effect(0.5),) * 2, "b": (effect(0.5), effect(0.0))}, small
    ).startswith("That is not settled")
    assert answers.scale({}, small).startswith("No larger policy has been run yet")


def test_ends_are_those_of_largest_kl():
    """Guards: the largest reward in place of the largest KL's, a count over arms."""
    rows = pd.DataFrame({"split": "test", "method": "x", "kl": [5.0, 1.0], "reward": [1.2, 2.0]})
    low, high = (Outcome(rows.assign(reward=rows.reward + more), {}, {}) for more in (0, 0.4))
    text = answers.ends({"warp": [low, high], "reinforce": [low]}, {"p99": 1.4})
    assert "average: WARP 1.40 (above it on 1 of two seeds)" in text
    assert text.endswith("batch 64 1.20 (above it on none of one seed).")


def test_panels_name_what_was_compared():
    """Guards: a rival's checkpoints under another's name, panels exchanged."""
    one, other = {50: effect(0.1)}, {50: effect(0.2), 100: effect(0.3)}
    merging, early, line = answers.why_panels(
        {(1, "reinforce"): effect(0.4)}, {"reinforce-2b": one}, {"reinforce": other}
    ).values()
    assert {name: i.mean for name, i in merging.items()} == pytest.approx(
        {"iteration 1, gaps to REINFORCE, batch 64": 0.4}
    )
    assert {name: i.mean for name, i in early.items()} == pytest.approx(
        {"after 50 steps, batch 128": 0.1}
    )
    assert {name: i.mean for name, i in line.items()} == pytest.approx(
        {"after 50 steps, batch 64": 0.2, "after 100 steps, batch 64": 0.3}
    )
