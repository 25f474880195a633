"""The README and docs/: short, their links lead somewhere, the walkthrough runs."""

import re
import shlex

import pytest

from warp_lib.__main__ import main
from warp_lib.report import answers, kept
from warp_lib.runs.paths import ROOT
from warp_lib.study import cells, contrasts, outcomes
from warp_lib.study.fronts import Effect, Interval

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


def test_the_walkthrough_runs(folders, store, tmp_path, monkeypatch, capsys):
    """docs/your-own.md, its Python in one go and its merge from the command line."""
    text = (ROOT / "docs" / "your-own.md").read_text()
    for name, folder in folders.items():
        (tmp_path / f"my-{name.removesuffix('s') if name != 'reviews' else name}").symlink_to(
            folder
        )
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert len(names["results"]) and (store / "mine" / "models" / "warp" / "config.json").exists()
    for run in ("my-run-1", "my-run-2"):
        (tmp_path / run).symlink_to(store / "mine" / "models" / "warp")
    (command,) = re.findall(r"^python -m warp_lib (merge .+)$", text, re.MULTILINE)
    assert main(shlex.split(command)) == 0 and (tmp_path / "merged" / "config.json").exists()


def test_the_readmes_numbers_are_the_studys():
    """Guards: a README that a later unit, seed or correction has left behind."""
    text = " ".join((ROOT / "README.md").read_text().replace(" r̃", "").split())
    warps, rivals = ["warp", "warp-eta-0.8"], ["reinforce", "reinforce-2b"]
    high = outcomes.settled("tuning")["high"]
    primary = contrasts.contrast("primary", warps, rivals, high)
    arm, seeds = primary.arm, list(primary.by_prompt)
    each = contrasts.against_each(("primary", arm), rivals, high, among=seeds)
    over_best = contrasts.over_best_of_n(("primary", arm), high, among=seeds)
    over_lerp = contrasts.slerp_over_lerp(outcomes.finished("merges", "warp-m3"), high)
    slerp = over_lerp[f"M = 2, {outcomes.MERGES['slerp-layer']}"]
    dpo = contrasts.gain_over_dpo()
    verdicts = {1: "higher", 0: "no detectable difference", -1: "lower"}
    for effect, name in {
        primary: "WARP − REINFORCE (each the better of two settings)",
        each["reinforce", "LITI"]: "WARP − REINFORCE's LITI line, batch 64",
        each["reinforce-2b", "LITI"]: "WARP − REINFORCE's LITI line, batch 128",
        over_best: f"WARP − best-of-n{answers.cut(over_best)}",
        slerp: "SLERP − LERP of two runs (three seeds)",
        dpo: "WARP's gain over DPO − its gain over REINFORCE of batch 64 (up to "
        f"{dpo.high:g} nats, five seeds)",
    }.items():
        assert f"| {name} | {short(effect)} | {verdicts[effect.side]} |" in text
    assert f"nine times in ten | {primary.detectable:.3f} |" in text
    assert f"five seeds would detect a difference of {dpo.detectable:.2f} nine times in ten" in text
    assert len(dpo.by_prompt) == 5 and len(primary.by_prompt) == 8 and len(slerp.by_prompt) == 3
    assert f"**Not detectably.** WARP − REINFORCE is {primary}"[:-1] in text and not primary.side
    best = re.search(r"earns 0\.(\d\d) \(0\.(\d\d) to 0\.(\d\d)\) more than WARP", text)
    ceiling = over_best.both
    assert [-int(n) for n in best.groups()] == [
        round(100 * x) for x in (ceiling.mean, ceiling.high, ceiling.low)
    ]

    rival = outcomes.finished("primary", primary.rival, seeds)
    line = contrasts.over_checkpoints(rival, rival, contrasts.LITI_LINE)
    assert f"earns on average {plain(Effect.mean_of(line.values()))} more" in text
    first, *_, last = (f"{effect.both.mean:.3f}" for _, effect in sorted(line.items()))
    assert f"({first} at the first of three checkpoints, {last} at the last)" in text
    gaps = sorted((c.gap() for c in cells.warp_cells().values()), key=lambda gap: gap.both.mean)
    between = f"{short(gaps[0])} to {short(gaps[-1])}"
    assert f"differ from that curve by {between}, none" in text
    assert len(gaps) == 9 and {gap.side for gap in gaps} == {0}
    larger = [run for run in kept.kept() if run.larger]
    ((small, _),) = kept.together(larger).values()
    first, second = (short(interval) for interval in small.by_seed.values())
    assert f"WARP − REINFORCE's LITI line is {first} and {second}" in text


def short(effect: Effect | Interval) -> str:
    """As tables of the README have it."""
    return str(effect).replace("95% CI ", "")


def plain(effect: Effect) -> str:
    return short(effect).replace("+", "")
