"""`python -m warp_lib verify`: sampling and KL against enumeration; a run whose folders are what
its table says, and ones that are not.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import END, every_completion, plain_logits, tiny_policy
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from warp_lib.__main__ import main
from warp_lib.experiment import REPORT, Experiment
from warp_lib.fast import machine
from warp_lib.points import Point
from warp_lib.runs import paths
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings
from warp_lib.tools.verify import (
    ROWS,
    Check,
    described,
    kl_per_completion,
    mean_and_error,
    sample,
    verify,
)

TAU, V = 0.7, 6
PROMPTS = [[5, 2, 7, 1, 9], [4, 4, 1], [8, 8, 0], [1, 10]]


# The sceptic's part


def test_kl_is_what_enumeration_gives():
    """The mean over all completions, each as likely as it is, is KL(π‖π_sft) by its definition.
    Guards: positions off by one, τ, EOS.
    """
    policy, sft, new = tiny_policy(vocabulary=V), tiny_policy(vocabulary=V, seed=2), 3
    prompt = [5, 2, 1]
    rows, _ = every_completion(prompt, new, V)

    def log_p(of) -> torch.Tensor:
        logits = torch.stack([plain_logits(of, row, new) for row in rows]).detach() / TAU
        logits[..., END] = -torch.inf
        return (
            logits.log_softmax(-1)
            .gather(-1, torch.tensor(rows)[:, -new:, None])
            .sum((1, 2))
            .double()
        )

    p, q = log_p(policy), log_p(sft)
    completions = torch.tensor(rows)[None, :, -new:]
    kl = kl_per_completion(policy.model, sft.model, [prompt], completions, TAU, [END])
    assert kl.shape == (1, len(rows)) and p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert (p.exp() * kl[0]).sum().item() == pytest.approx(
        (p.exp() * (p - q)).sum().item(), rel=1e-4
    )
    assert not kl_per_completion(
        policy.model, policy.model, [prompt], completions, TAU, [END]
    ).any()


def test_prompts_of_several_lengths_stay_in_their_places():
    policy, sft = tiny_policy(), tiny_policy(seed=2)
    completions = torch.randint(
        0, 3, (len(PROMPTS), 2, 4), generator=torch.Generator().manual_seed(0)
    )
    together = kl_per_completion(policy.model, sft.model, PROMPTS, completions, TAU, [END])
    for k, prompt in enumerate(PROMPTS):
        alone = kl_per_completion(
            policy.model, sft.model, [prompt], completions[k : k + 1], TAU, [END]
        )
        torch.testing.assert_close(together[k], alone[0])


def test_completions_are_drawn_from_the_one_distribution():
    """Guards: top-k or a penalty of the model's own, EOS sampled or ending a row, τ left out, a
    prompt's completions at another's place.
    """
    policy, prompts, samples, new = tiny_policy(vocabulary=V), [[5, 2, 1], [4, 4], [0, 1]], 1500, 2
    policy.model.generation_config.top_k, policy.model.generation_config.repetition_penalty = 2, 1.5
    torch.manual_seed(0)
    drawn = sample(policy.model, prompts, samples, new, TAU, [END])
    assert drawn.shape == (3, samples, new) and not (drawn == END).any()
    for k, prompt in enumerate(prompts):
        rows, _ = every_completion(prompt, new, V)
        logits = torch.stack([plain_logits(policy, row, new) for row in rows]).detach() / TAU
        logits[..., END] = -torch.inf
        p = logits.log_softmax(-1).gather(-1, torch.tensor(rows)[:, -new:, None]).sum((1, 2)).exp()
        seen = Counter(map(tuple, drawn[k].tolist()))
        share = torch.tensor([seen[tuple(row[-new:])] / samples for row in rows])
        assert ((share - p).abs() <= 5 * (p * (1 - p) / samples).sqrt() + 1 / samples).all()


def test_few_completions_are_in_memory_at_a_time(monkeypatch):
    policy, widths = tiny_policy(), []
    forward = GPT2LMHeadModel.forward

    def counted(self, input_ids, *args, **kwargs):
        widths.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(GPT2LMHeadModel, "forward", counted)
    drawn = sample(policy.model, PROMPTS, 50, 2, TAU, [END])
    kl_per_completion(policy.model, policy.model, PROMPTS, drawn, TAU, [END])
    assert max(widths) == ROWS == 64
    # a vocabulary of 12, seven tokens, ten rows
    monkeypatch.setattr("warp_lib.tools.verify.NUMBERS", 12 * 7 * 10)
    widths.clear()
    kl_per_completion(policy.model, policy.model, PROMPTS, drawn, TAU, [END])
    assert max(widths) == 10


def test_errors_are_clustered_by_prompt():
    assert mean_and_error(torch.tensor([[1.0, 3.0], [4.0, 4.0]])) == pytest.approx((3.0, 1.0))


@pytest.mark.parametrize(
    "table, table_se, folder, folder_se, agrees",
    [
        (3.0, 0.3, 4.9, 0.4, True),
        (3.0, 0.3, 5.1, 0.4, False),
        (5.1, 0.3, 3.0, 0.4, False),
        (0, 0, 0, 0, True),
        (0, 0, 1e-3, 0, False),
    ],
)
def test_new_completions_agree_within_four_combined_errors(
    table, table_se, folder, folder_se, agrees
):
    assert Check("warp", "KL, nats", table, table_se, folder, folder_se).agrees == agrees
    assert not Check("warp", "KL, nats", float("nan"), table_se, folder, folder_se).agrees


@pytest.mark.parametrize(
    "table, folder, agrees",
    [(5.0, 5.049, True), (5.0, 4.94, False), (0.1, 0.109, True), (0.1, 0.111, False)],
)
def test_the_same_tokens_agree_to_one_percent(table, folder, agrees):
    assert Check("warp", "KL, nats, same tokens", table, 0, folder, 0).agrees == agrees


# A run


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A run of three points, two of them saved; its name.

    θ_sft is exact in bfloat16 and its embeddings have a large part in common, which no logit shows;
    the task vector is smaller than the spacing there, as RL's is, and worth several nats.
    """
    policy = Path(shutil.copytree(folders["policy"], tmp_path_factory.mktemp("verify") / "policy"))
    weights = {n: t.bfloat16().float() for n, t in load_file(policy / "model.safetensors").items()}
    draw = torch.Generator().manual_seed(0)
    wte = weights["transformer.wte.weight"]
    weights["transformer.wte.weight"] = 65 + torch.randint(-1, 2, wte.shape, generator=draw) * 0.5
    save_file(weights, policy / "model.safetensors", {"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:
        # what evaluation is to compute in
        patch.setattr(machine, "fast_dtype", lambda: torch.float32)
        experiment = Experiment(
            Settings.profile("smoke", **folders | {"policy": str(policy), "name": "verified"})
        )
        rewards = experiment.rewards(Progress())
        moved = {
            n: t + (torch.rand(t.shape, generator=draw) - 0.5) * ("wte" in n) * 0.48
            for n, t in experiment.theta_sft.items()
        }
        end = Point("warp", moved, 16, 1.0, eta=1 / 3 + 2 / 3)
        half = Point(
            "liti",
            {n: (t + moved[n]) / 2 for n, t in experiment.theta_sft.items()},
            16,
            1.0,
            iteration=2,
            runs=2,
            eta=1 / 3,
        )
        experiment.measure(
            "03_warp", [Point("sft", experiment.theta_sft, 0, 0.0), half, end], rewards, Progress()
        )
        experiment.save_policy(end, "warp", rewards)
        experiment.save_policy(half, "warp-liti", rewards)
        yield "verified"


@pytest.fixture
def models(run) -> Path:
    """The run's saved policies, which a test may change."""
    kept = paths.RUNS / "kept-models"
    folder = paths.RUNS / run
    shutil.copytree(folder, kept)
    yield folder / "models"
    shutil.rmtree(folder)
    kept.rename(folder)


def rounded(folder: Path) -> None:
    """What autocast makes of a saved policy's weights."""
    file = folder / "model.safetensors"
    save_file({n: t.bfloat16().float() for n, t in load_file(file).items()}, file, {"format": "pt"})


def test_a_run_that_is_what_its_table_says(run, capsys):
    """KL on the same tokens to float32's rounding; the rest within its errors. What save_policy
    wrote is beside the models.
    """
    checks = {(c.policy, c.number): c for c in verify(run)}
    assert len(checks) == 6 and all(c.agrees for c in checks.values())
    for policy in ("warp", "warp-liti"):
        same = checks[policy, "KL, nats, same tokens"]
        assert same.table > 0.5 and same.folder == pytest.approx(same.table, rel=1e-4)
    # other completions
    assert checks["warp", "KL, nats"].folder != checks["warp", "KL, nats, same tokens"].folder
    assert main(["verify", run]) == 0
    said = capsys.readouterr().out
    assert said.endswith("All 6 agree.\n") and said == described(list(checks.values())) + "\n"
    record = json.loads((paths.RUNS / run / "models" / "warp" / REPORT).read_text())
    assert record["settings"]["temperature"] == 0.7 and torch.tensor(
        record["completions"]
    ).shape == (8, 2, 12)


def test_a_rounded_policy_is_not_the_tables(run, models, capsys):
    """The bug that this is for: weights rounded to bfloat16 are another, nearer policy."""
    rounded(models / "warp")
    assert main(["verify", run]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("DIFFERS") for line in lines[1:3]] == [True, True] and not any(
        "DIFFERS" in line for line in lines[4:7]
    )
    assert lines[-1].endswith("numbers differ: the table is not that of the saved policies.")


@pytest.mark.parametrize("column, number", [("kl", "KL, nats"), ("reward", "reward r̃")])
def test_another_table_is_not_the_policys(run, models, column, number):
    table = models.parent / "results.csv"
    results = pd.read_csv(table)
    results.loc[results["method"] == "warp", column] += 10
    results.to_csv(table, index=False)
    odd = {(c.policy, c.number) for c in verify(run) if not c.agrees}
    assert odd == {("warp", number)} | (
        {("warp", "KL, nats, same tokens")} if column == "kl" else set()
    )


def test_a_table_of_other_completions_than_its_policys_differs(run, models):
    """Sampled from one policy and scored under another, as under autocast: only completions sampled
    anew can show it.
    """
    record = json.loads((models / "warp" / REPORT).read_text())
    swapped = json.loads((models / "warp-liti" / REPORT).read_text())["completions"]
    (models / "warp" / REPORT).write_text(json.dumps(record | {"completions": swapped}))
    assert [c.number for c in verify(run) if not c.agrees] == ["KL, nats, same tokens"]


# What is refused


def refused(capsys, says: str, *command: str) -> None:
    store = sorted((paths.RUNS / "store").iterdir())
    capsys.readouterr()
    assert main(["verify", *command]) == 2
    said = capsys.readouterr()
    sentence = said.err.splitlines()[-1]
    assert says in sentence and sentence.endswith((".", "?")) and not said.out
    assert sorted((paths.RUNS / "store").iterdir()) == store


def test_a_run_that_is_not_there(run, models, capsys):
    refused(capsys, "there is no run 'verifed' in", "verifed")
    refused(capsys, "did you mean 'verified'?", f"runs/{run}")
    refused(capsys, "Unknown option: --seed.", run, "--seed", "1")
    shutil.rmtree(models)
    refused(capsys, "run 'verified' has no saved policies; notebooks 03_warp", run)


def test_a_table_that_is_cut_off(run, models, capsys):
    """Guards: a KeyError of the column that is gone."""
    table = models.parent / "results.csv"
    table.write_text(table.read_text()[:20])
    refused(capsys, f"{table} cannot be read", run)


def test_policies_that_do_not_say_what_they_are(run, models, capsys):
    file = models / "warp" / REPORT
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"row": record["row"] | {"eta": 0.7}}))
    refused(
        capsys,
        "results.csv of run 'verified' has 0 rows, not one, for models/warp (method=warp, steps=16,"
        " eta=0.7, seed=0)",
        run,
    )
    file.write_text(json.dumps(record | {"sft": "another"}))
    refused(
        capsys,
        "the SFT policy that models/warp of run 'verified' was made with has changed since",
        run,
    )
    file.write_text(json.dumps(record | {"reward": {"identity": "another"}}))
    refused(
        capsys,
        "the reward model that models/warp of run 'verified' was made with has changed since",
        run,
    )
    file.write_text(json.dumps(record | {"settings": record["settings"] | {"gone": 1}}))
    refused(
        capsys, "models/warp of run 'verified' was saved by another version of this project (", run
    )
    for text in ("{", "{}", "[]"):
        file.write_text(text)
        refused(
            capsys, "models/warp of run 'verified' does not say which row of results.csv it is", run
        )
    file.unlink()
    refused(
        capsys, "models/warp of run 'verified' does not say which row of results.csv it is", run
    )
    file.write_text(json.dumps(record))
    (models / "warp" / "model.safetensors").unlink()
    refused(capsys, "transformers cannot open", run)
    (models.parent / "results.csv").unlink()
    refused(capsys, "run 'verified' has no results.csv", run)


def test_nothing_is_trained(run, capsys):
    """Without its reward model in the store a run cannot be verified, and is not trained again."""
    store, away = paths.RUNS / "store", paths.RUNS / "away"
    away.mkdir()
    entries = list(store.glob("reward-*[!k]/"))
    for entry in entries:
        entry.rename(away / entry.name)
    try:
        refused(
            capsys,
            "the reward model of run 'verified' is not in the store of this machine and torch;"
            " verify trains nothing",
            run,
        )
    finally:
        for entry in entries:
            (away / entry.name).rename(entry)
