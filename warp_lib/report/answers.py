"""What the notebooks say: their answers and the titles of figures whose finding depends on numbers.

Each answer is at most three sentences after its first words; tables and figures hold the rest.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..study.cells import Cell
from ..study.contrasts import Contrast
from ..study.fronts import Effect, Interval, Matched, signed
from ..study.outcomes import LOW, SEEDS, Outcome
from .kept import Kept
from .look import ARMS


def pm(row: Mapping[str, float] | pd.Series, column: str, digits: int = 2) -> str:
    """A column ± 2 standard errors."""
    return f"{plain(row[column], digits)} ± {2 * row[f'{column}_se']:.{digits}f}"


def percent(row: Mapping[str, float] | pd.Series, column: str) -> str:
    """A share ± 2 standard errors, in percent."""
    return f"{row[column]:.1%} ± {2 * row[f'{column}_se']:.1%}"


# -------------------------------------------------------------------------------- a run's notebooks


def reward_model(accuracies: pd.DataFrame, real_positive: Mapping[str, float]) -> str:
    """Notebook 1, from `checks.accuracies` and `real_positive`."""
    opening, whole = (
        accuracies.query("scorer == 'reward' and words == @words").iloc[0]
        for words in (50, "whole")
    )
    return (
        f"Yes. On 50-word openings it ranks {percent(opening, 'pairwise')} of held-out (positive,"
        f" negative) pairs correctly, on whole reviews {percent(whole, 'pairwise')}. Real"
        f" positive openings score r̃ = {real_positive['mean']:.2f} on average and"
        f" {real_positive['p99']:.2f} at the 99th percentile; a policy whose mean exceeds that is"
        " exploiting the reward model."
    )


def trained_reward(history: pd.DataFrame) -> str:
    """How the reward model's training ended, from its smoothed history."""
    end = history.iloc[-1]
    return f"Training ends at {end.loss:.2f} nats a pair, {end.accuracy:.0%} ranked correctly"


def policy(loss: float, loss_se: float, sft: Mapping[str, float], temperature: float) -> str:
    """Notebook 2, from `checks.openings_loss` and SFT's evaluation."""
    return (
        "Roughly; see the samples below. On unseen openings its loss is"
        f" {loss:.2f} ± {2 * loss_se:.2f} nats a token (perplexity {math.exp(loss):.0f}). Sampled"
        f" at τ = {temperature:g}, its entropy is {pm(sft, 'entropy')} nats a token."
    )


def _ends(results: pd.DataFrame, method: str) -> pd.Series:
    return results.query("method == @method").iloc[-1]


def warp(results: pd.DataFrame, iterations: int, runs: int, steps: int) -> str:
    """Notebook 3, from the run's table."""
    sft, end = _ends(results, "sft"), _ends(results, "warp")
    singles = results.query("method == 'run' and iteration == @iterations")
    further = end.kl > singles.kl.mean() and end.reward > singles.reward.mean()
    moves = f"so the merge moves {'further' if further else 'no further'} than its parts"
    return (
        f"WARP with I = {iterations}, M = {runs} and T = {steps} raises r̃ from {pm(sft, 'reward')}"
        f" to {pm(end, 'reward')}, at a KL of {pm(end, 'kl')} nats. The last iteration's single"
        f" runs average {singles.reward.mean():.2f} at {singles.kl.mean():.2f} nats, {moves}."
        " Whether that beats REINFORCE at equal KL is the question of notebooks 5 and 6."
    )


def reaches(results: pd.DataFrame, method: str, name: str) -> str:
    """A title: where a method's last policy ends."""
    end = _ends(results, method)
    return f"{name} reaches r̃ = {plain(end.reward, 2)} at {end.kl:.1f} nats"


def reinforce(results: pd.DataFrame, steps: int) -> str:
    """Notebook 4, from the run's table."""
    end = _ends(results, "reinforce")
    return (
        f"{steps} steps of REINFORCE with an EMA anchor reach r̃ = {pm(end, 'reward')} at a KL of"
        f" {pm(end, 'kl')} nats (one seed, ± 2 standard errors over prompts)."
    )


def samples_title(samples: Mapping[str, Sequence[float]]) -> str:
    """Where some samples of texts lie on average, from `Experiment.compared_with_people`."""
    means = {name: float(np.mean(np.asarray(some))) for name, some in samples.items()}
    return "Mean r̃: " + ", ".join(f"{n} {plain(mean, 2)}" for n, mean in means.items())


def curves_title(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """How reward and KL moved in training: means over runs of their first and last tenths."""
    moved = []
    for history in histories.values():
        table, part = pd.DataFrame(history), max(1, len(history) // 10)
        moved.append([table[:part].reward.mean(), table[-part:].reward.mean()])
        moved[-1].append(table[-part:].kl_anchor.mean())
    first, last, kl = (sum(column) / len(column) for column in zip(*moved, strict=True))
    moves = f"from {plain(first, 2)} to {plain(last, 2)}"
    return f"Training moves r̃ {moves} and ends {plain(kl, 1)} nats from the anchor"


def liti_title(results: pd.DataFrame) -> str:
    """What WARP's LITI line keeps halfway."""
    line = results.query("method == 'warp'").sort_values("eta")
    sft = results.query("method == 'sft'").iloc[0]
    half = line.iloc[(line.eta - 0.5).abs().argmin()]
    end = line.iloc[-1]
    reward = (half.reward - sft.reward) / (end.reward - sft.reward)
    kept = f"{reward:.0%} of its gain in reward and {half.kl / end.kl:.0%} of its KL"
    return f"At η = {half.eta:g} WARP keeps {kept}".replace("-", "−")


def judge_title(results: pd.DataFrame, judge: str) -> str:
    """How much a judge's score rises with WARP's reward."""
    sft, end = _ends(results, "sft"), _ends(results, "warp")
    rise = {column: plain(end[column] - sft[column], 2) for column in ("reward", judge)}
    return f"From SFT to WARP r̃ rises by {rise['reward']} and the judge's score by {rise[judge]}"


def pareto_title(path: Matched) -> str:
    """Where WARP's front lies beside REINFORCE's path, on one seed."""
    return {
        1: f"At {path.kl:.1f} nats WARP earns more than REINFORCE on this seed",
        -1: f"At {path.kl:.1f} nats WARP earns less than REINFORCE on this seed",
        0: "WARP and REINFORCE cannot be told apart on this seed",
    }[path.difference.side]


def pareto(path: Matched, line: Matched, beyond: Sequence[str]) -> str:
    """Notebook 5.

    path: WARP less REINFORCE's path at the largest KL that both reach; line: less its LITI line at
    half of it; beyond: methods that pass the 99th percentile of real positive openings.
    """
    sides = {1: "Yes", -1: f"Not at {path.kl:.1f} nats", 0: "Not detectably"}
    verdict = sides[path.difference.side]
    exploited = (
        f" {' and '.join(beyond)} pass the 99th percentile of real positive openings, where gains"
        " are the reward model's quirks."
        if beyond
        else ""
    )
    return (
        f"{verdict}. On this one seed WARP − REINFORCE is {path.difference} r̃ at"
        f" {path.kl:.1f} nats, the furthest both reach, and {line.difference} against"
        f" REINFORCE's own LITI line at {line.kl:.1f} nats. One seed says nothing about the next;"
        f" notebook 6 has more.{exploited}"
    )


# ---------------------------------------------------------------------------------------- the study


def verdict(of: Effect | Interval) -> str:
    """In a word: what a 95% interval allows to say of a difference."""
    return {1: "higher", -1: "lower", 0: "no detectable difference"}[of.side]


def who_is_ahead(
    arm: str, rival: str, side: int, where: str = "at equal KL", judged: bool = False
) -> str:
    """Which of two methods is ahead, in a sentence without its full stop."""
    arm, rival = (name.split(",")[0] for name in (arm, rival))
    if not side:
        return f"{arm} and {rival} cannot be told apart {where}"
    more, less = ("is judged better", "is judged worse") if judged else ("earns more", "earns less")
    return f"{arm} {more if side > 0 else less} than {rival} {where}"


def in_words(count: int) -> str:
    """A small number in words."""
    words = "no one two three four five six seven eight nine ten".split()
    return words[count] if count < len(words) else str(count)


def seeds(count: int) -> str:
    """A number of seeds in words."""
    return f"{in_words(count)} seed{'s' * (count != 1)}"


def of_planned(count: int) -> str:
    """A number of the primary contrast's seeds in words, beside how many are planned where more
    are to come.
    """
    if count == len(SEEDS):
        return seeds(count)
    return f"{in_words(count)} of {in_words(len(SEEDS))} planned seeds"


def primary_title(primary: Contrast, best_of_n: Contrast) -> str:
    """The study's finding."""
    finding = {
        1: "At equal KL WARP earns more than REINFORCE",
        -1: "At equal KL WARP earns less than REINFORCE",
        0: "Averaged over KL, WARP and REINFORCE cannot be told apart",
    }[primary.side]
    return finding + {1: "", 0: "", -1: "; best-of-n stays above"}[best_of_n.side]


def primary(primary: Contrast, best_of_n: Contrast, why: str = "") -> str:
    """The study's answer: the primary contrast, its cause (see `why`), and the ceiling."""
    opening = {1: "Yes.", -1: "No: it earns less.", 0: "Not detectably."}[primary.side]
    ceiling = (
        "Best-of-n sampling from SFT, which trains nothing, earns"
        f" {_amount(-best_of_n)} more than WARP{cut(best_of_n)}."
        if best_of_n.side < 0
        else ""
    )
    finding = (
        f"{opening} WARP's reward minus REINFORCE's is {primary} standard deviations of SFT's"
        f" reward (r̃), averaged over KL from {LOW:g} to {primary.high:g} nats and over"
        f" {of_planned(len(primary.by_prompt))}."
    )
    return " ".join(part for part in (finding, why, ceiling) if part)


def why(early: Mapping[int, Effect], line: Mapping[int, Effect]) -> str:
    """What interpolating REINFORCE's last policy is worth beside stopping early, in a sentence.

    early, line: how much more WARP's front and REINFORCE's own LITI line earn than its checkpoints
    (see `contrasts.over_checkpoints`).
    """
    if not (shared := sorted(early.keys() & line.keys())):
        return ""
    ours, own = (Effect.mean_of(of[steps] for steps in shared) for of in (early, line))
    if ours.side < 1:
        apart = "It earns less than" if ours.side else "It cannot be told apart from"
        return f"{apart} REINFORCE stopped early ({ours})."
    if own.side < 1:
        return (
            f"At equal KL WARP earns {_amount(ours)} more than REINFORCE stopped early, and"
            f" interpolating REINFORCE's last policy with SFT does not make that up ({own})."
        )
    return (
        "What helps is interpolating a trained policy back towards SFT, and REINFORCE can do"
        " that without WARP; at equal KL REINFORCE's last policy, interpolated, earns on average"
        f" {_amount(own)} more than REINFORCE stopped early."
    )


def _amount(of: Effect) -> str:
    """A difference without its plus sign, after "by"."""
    return str(of).replace("+", "")


def why_panels(
    merging: Mapping[tuple[int, str], Effect],
    early: Mapping[str, Mapping[int, Effect]],
    line: Mapping[str, Mapping[int, Effect]],
) -> dict[str, dict[str, Interval]]:
    """Rows of the figure of what WARP's averages are worth, in panels.

    merging: see `contrasts.merging`. early, line: rival → see `why`.
    """

    def checkpoints(found: Mapping[str, Mapping[int, Effect]]) -> dict[str, Interval]:
        return {
            f"after {steps} steps, {ARMS[rival].split(', ')[1]}": effect.both
            for rival, of in found.items()
            for steps, effect in of.items()
        }

    return {
        "merging: SLERP − its runs": {
            f"iteration {i}, gaps to {ARMS[rival]}": effect.both
            for (i, rival), effect in merging.items()
        },
        "WARP's front − REINFORCE's checkpoint": checkpoints(early),
        "REINFORCE's own LITI line − its checkpoint": checkpoints(line),
    }


def why_title(early: Iterable[Mapping[int, Effect]], line: Iterable[Mapping[int, Effect]]) -> str:
    """How many early checkpoints lie below WARP's front and below REINFORCE's own LITI line.

    early, line: for each rival, see `contrasts.over_checkpoints`.
    """
    pairs = [
        (ours[steps].side == 1, own[steps].side == 1)
        for ours, own in zip(early, line, strict=True)
        for steps in ours.keys() & own.keys()
    ]
    above, own_above = (sum(side) for side in zip(*pairs, strict=True)) if pairs else (0, 0)
    return (
        f"WARP's front is above {above} of REINFORCE's {len(pairs)} early checkpoints, REINFORCE's"
        f" own LITI line above {own_above}"
    )


def cut(of: Contrast, words: str = "nats") -> str:
    """Where a comparison ends on its shortest seed, if that is before where it was to end."""
    end, asked = (f"{nats:.1f}" for nats in (min(of.ends.values(), default=of.high), of.high))
    return f" (up to {end} {words})" if end != asked else ""


def rows(of: Mapping[str, Contrast]) -> dict[str, Interval]:
    """Rows of a figure of intervals: each comparison's name, with where it ends early."""
    return {f"{name}{cut(one)}": one.both for name, one in of.items()}


def plain(number: float, digits: int) -> str:
    """A number with its sign only where it is negative, and that a minus."""
    return f"{number:z.{digits}f}".replace("-", "−")


TRY = """<p><strong>Try it.</strong> In <a href="#08_playground">the playground</a> you slide a
policy's weights from SFT to WARP and watch its text change. <code>make app</code> shows every
policy of the study and what it writes. To align a policy of your own, begin with
<a href="#03_warp">notebook 3</a>.</p>"""


def _ci(effect: Effect) -> str:
    both = effect.both
    return "no interval" if effect.few else f"95% CI {signed(both.low)} to {signed(both.high)}"


def key_numbers(primary: Contrast, best_of_n: Contrast) -> str:
    """Three numbers and what to try, as HTML for the page's first screen."""
    smallest = "–" if primary.few else f"{primary.detectable:.3f} r̃"
    boxes = [
        (
            f"{signed(primary.both.mean)} r̃",
            f"{ARMS[primary.arm]} − {ARMS[primary.rival]}, at equal KL, {_ci(primary)}; each method"
            " had two settings (REINFORCE: batch sizes), of which validation prompts chose one",
        ),
        (
            f"{signed(-best_of_n.both.mean)} r̃",
            f"best-of-n − WARP{cut(best_of_n)}, {_ci(-best_of_n)}; best-of-n samples n"
            " completions and keeps the one of highest reward",
        ),
        (
            smallest,
            f"the smallest true difference that {seeds(len(primary.by_prompt))} detect nine times"
            " in ten",
        ),
    ]
    shown = (f"<div><strong>{n}</strong>{html.escape(words)}</div>" for n, words in boxes)
    return f'<aside><div class="numbers">{"".join(shown)}</div>{TRY}</aside>'


def headline(answer: str) -> str:
    """How the page begins, as HTML: the question, what it is asked of, the answer."""
    short, _, rest = html.escape(answer).partition(". ")
    return (
        "<h1>Does WARP beat REINFORCE at equal KL?</h1><p class='lead'>WARP averages the weights of"
        " several REINFORCE runs, and promises more reward for the same distance (KL) from SFT, the"
        " policy before alignment. Here both align a GPT-2 of 7.6 million parameters to write"
        " positive film reviews, with the same number of sampled completions, and both may"
        f" interpolate back towards SFT.</p><p><strong>{short}.</strong> {rest}</p>"
    )


def above_zero(effects: Iterable[Effect]) -> str:
    """How many of some differences are on which side: "2 of 9 detectably higher, none lower"."""
    sides = [effect.side for effect in effects]
    up, down = sides.count(1), sides.count(-1)
    return f"{up or 'none'} of {len(sides)} detectably higher, {down or 'none'} lower"


def ahead_title(ahead: Mapping[str, Mapping[str, Mapping[float, Effect]]], arm: str) -> str:
    """Whether an arm's reward runs ahead of the judge, at the largest KL that all seeds reach."""
    end = max(ahead["judge"][arm])
    runs_ahead = {
        1: "has risen more than the judge's score",
        0: "has risen no more than the judge's score, within error",
        -1: "has risen less than the judge's score",
    }[ahead["judge"][arm][end].side]
    return f"At {end:g} nats {ARMS[arm].split(',')[0]}'s r̃ {runs_ahead}"


def judged_title(units: Mapping[str, Sequence[Outcome]], judge: str) -> str:
    """How closely a judge's score follows the reward, over all points of some arms."""
    means = [
        [unit.reward("test", scorer).mean(1) for of_arm in units.values() for unit in of_arm]
        for scorer in ("reward", judge)
    ]
    x, y = (np.concatenate(some) for some in means)
    slope = np.polyfit(x, y, 1)[0]
    return f"The judge's score rises by {slope:.2f} for each unit of r̃"


def variety_title(units: Mapping[str, Sequence[Outcome]]) -> str:
    """How entropy goes with KL, over all points of some arms."""
    rows = pd.concat([unit.points("test") for of_arm in units.values() for unit in of_arm])
    slope = np.polyfit(rows["kl"], rows["entropy"], 1)[0]
    moves = "falls" if slope < 0 else "rises"
    return f"Entropy {moves} by {abs(slope):.2f} nats a token per nat of KL"


def ends(units: Mapping[str, Sequence[Outcome]], real_positive: Mapping[str, float]) -> str:
    """Where each arm's policies of largest KL lie beside real positive openings."""
    beside = []
    for arm, of_arm in units.items():
        points = [unit.points("test") for unit in of_arm]
        rewards = [float(some.loc[some["kl"].idxmax(), "reward"]) for some in points]
        past = sum(reward > real_positive["p99"] for reward in rewards)
        beside.append(
            f"{ARMS[arm]} {plain(float(np.mean(rewards)), 2)} (above it on {past or 'none'} of"
            f" {seeds(len(rewards))})"
        )
    return (
        "The 99th percentile of real positive openings is r̃ ="
        f" {plain(real_positive['p99'], 2)}. At their largest KL the methods average:"
        f" {'; '.join(beside)}."
    )


def cells_title(warp: Mapping[tuple[int, int], Cell]) -> str:
    """Where WARP's cells lie beside REINFORCE's longest run."""
    gaps = [gap for cell in warp.values() if (gap := cell.gap())]
    sides = [gap.widest.side for gap in gaps]
    if not any(sides) and len(sides) == len(warp):
        return "WARP's cells lie along REINFORCE's curve"
    up, down = sides.count(1), sides.count(-1)
    above = f"{up or 'none'} lie{'s' * (up == 1)} above REINFORCE's curve"
    beyond = f", {len(warp) - len(sides)} beyond its end" if len(sides) < len(warp) else ""
    return f"Of WARP's {len(warp)} cells {above}, {down or 'none'} below{beyond}"


def bend_title(bends: Mapping[str, Effect]) -> str:
    """The shape of WARP's LITI line."""
    shapes = {1: "concave", -1: "convex", 0: "straight within error"}
    kl, reward = (shapes[bends[score].side] for score in ("kl", "reward"))
    return f"Along η WARP's KL is {kl}, its reward {reward}"


def angles_title(layers: pd.DataFrame) -> str:
    """How far apart WARP's runs stand, and what SLERP makes of it."""
    whole = layers.query("iteration == 1 and layer == 'model'").iloc[0]
    return (
        f"WARP's runs stand {whole.degrees:.0f}° apart: SLERP's step is {whole.longer:.2f} times"
        " LERP's"
    )


def between_title(between: pd.DataFrame) -> str:
    """How the angle between REINFORCE's runs of each batch size goes with their completions."""
    goes = []
    for arm, rows in between.groupby("arm"):
        means = rows.groupby("completions")["degrees"].mean()
        batch = ARMS[str(arm)].split(", ")[1]
        goes.append(f"{means.iloc[0]:.0f}° to {means.iloc[-1]:.0f}° ({batch})")
    many = between["completions"]
    return (
        f"From {many.min():,} to {many.max():,} completions the angle goes from"
        f" {' and from '.join(goes)}"
    )


def by_end_title(curves: Mapping[str, Mapping[float, Effect]]) -> str:
    """Whether what a difference says hangs on where it ends."""
    sides = {effect.side for effects in curves.values() for effect in effects.values()}
    reaches = {name.removeprefix("WARP − "): max(effects) for name, effects in curves.items()}
    if sides == {0}:
        nearest, furthest = (of(reaches, key=reaches.__getitem__) for of in (min, max))
        reach, less = reaches[furthest], reaches[nearest]
        shorter = f" ({less:g} against {nearest})" if less < reach else ""
        where = f"wherever the comparison ends, up to {reach:g} nats{shorter}"
        (only,) = curves if len(curves) == 1 else (None,)
        return f"{f'{only}: no' if only else 'No'} detectable difference {where}"
    lost = [end for effects in curves.values() for end, e in effects.items() if e.side < 0]
    won = [end for effects in curves.values() for end, e in effects.items() if e.side > 0]
    parts = [
        f"{word} when the comparison ends at "
        + " to ".join(f"{end:g}" for end in sorted({min(ends), max(ends)}))
        for word, ends in (("behind a rival", lost), ("ahead of a rival", won))
        if ends
    ]
    return f"WARP is {' and '.join(parts)} nats, and not detectably different elsewhere"


def checked(expected: int, of: Effect | None) -> str:
    """A claim's verdict: what its side is said to be, 1 or −1 (0: no difference), against what was
    measured.
    """
    if of is None:
        return "not run"
    if of.side == expected and not of.few:
        return "no difference detected, as claimed" if expected == 0 else "reproduced"
    return "not detectable" if of.side == 0 else "contradicted"


def dpo(more: Contrast, own: Contrast) -> str:
    """Notebook 7.

    more: what WARP gains over DPO beyond what it gains over REINFORCE; own: WARP-DPO less DPO.
    """
    opening = {
        1: "Yes: it gains more over DPO than over REINFORCE",
        -1: "No: it gains less over DPO than over REINFORCE",
        0: "Not detectably",
    }[more.side]
    short = cut(own, "where a curve ends there")
    unseen = more.side == 0 and not more.few
    power = f"; {more.detectable:.2f} would be detected nine times in ten" if unseen else ""
    return (
        f"{opening}. From {LOW:g} to {more.high:g} nats and over {seeds(len(more.by_prompt))}, the"
        f" difference of the two gains is {more} r̃{power}. WARP-DPO's own gain"
        f" over DPO is {own} r̃{short}."
    )


def scale(differences: Mapping[str, tuple[Effect, Effect]], small: Contrast) -> str:
    """Notebook 10, from `kept.together` and the small policy's primary contrast.

    WARP is ahead only where it is ahead of both rivals everywhere.
    """
    if not differences:
        return "No larger policy has been run yet: `make scale` does."
    effects = [effect for pair in differences.values() for effect in pair]
    sides = {effect.side for effect in effects}
    agreed = {
        1: "No: WARP earns more there",
        -1: "No: WARP earns less there",
        0: "No difference is seen there either",
    }
    settled = len(sides) == 1 and not any(effect.few for effect in effects)
    opening = agreed[sides.pop()] if settled else "That is not settled"

    def told(name: str, line: Effect, path: Effect) -> str:
        many = len(line.by_prompt)
        few = {1: ", one seed,", 2: ", two seeds,"}.get(many, "")
        values = [
            " and ".join(map(str, effect.by_seed.values())) if many == 2 else str(effect.widest)
            for effect in (line, path)
        ]
        then, each = (",", ", each over one seed's prompts") if many == 2 else (" and", "")
        return (
            f"on {name}{few} WARP − REINFORCE's LITI line is {values[0]} r̃ on average over KL{then}"
            f" WARP − REINFORCE's path through its checkpoints is {values[1]} r̃ at the largest KL"
            f" that both reach{each}"
        )

    each = "; ".join(told(name, *pair) for name, pair in differences.items())
    on_small = f"On the small policy WARP − REINFORCE is {small} r̃."
    return f"{opening}. {each[0].upper()}{each[1:]}. {on_small}"


def scale_title(run: Kept) -> str:
    """Where a kept run's WARP lies beside its REINFORCE."""
    says = {1: "above", -1: "below", 0: "not detectably apart from"}
    line, path = Interval.of(run.over_line()[0]).side, run.over_path().difference.side
    other = f"and {says[path]}" if path != line else "and" if line else "or"
    where = f"{says[line]} REINFORCE's LITI line {other} its path"
    return f"{run.settings['policy']}, seed {run.settings['seed']}: WARP is {where}"


def gains_title(more: Contrast) -> str:
    """Whether WARP gains more over DPO than over REINFORCE."""
    return f"WARP's gain over DPO, against its gain over REINFORCE: {verdict(more)}"


def dpo_title(own: Contrast) -> str:
    """Where WARP-DPO's front lies beside DPO's."""
    return who_is_ahead("WARP-DPO", "DPO", own.side, f"from {LOW:g} to {own.high:g} nats")
