"""Task vectors packed and back, weights between policies, where a completion departs from SFT, and
the sliders as a person moves them.
"""

import asyncio
import html
import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from types import SimpleNamespace

import nbformat
import pytest
import torch
from conftest import (
    END,
    menu,
    padded,
    plain_log_probs,
    plain_logits,
    running_in_lab,
    tiny_policy,
    token_ids,
)
from nbformat import v4
from playwright.sync_api import Page, expect

from warp_lib.interactive import playground
from warp_lib.interactive.playground import (
    Completion,
    Desk,
    Mix,
    Playground,
    by_token,
    page,
    sentence_ends,
    split,
)
from warp_lib.merging import between, interpolate, norm, slerp
from warp_lib.policy import Policy
from warp_lib.report.page import write_page
from warp_lib.reward import Reward
from warp_lib.runs.paths import ROOT
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings
from warp_lib.study.outcomes import outcome
from warp_lib.tools import deltas, task_vectors
from warp_lib.tools.deltas import pack, unpack

TAU, NEW = 0.7, 6
HOSTILE = "<img src=x onerror=alert(1)>&"


def length(delta: dict) -> float:
    return norm(delta.values())


def distance(a: dict, b: dict) -> float:
    return length({name: a[name] - b[name] for name in b})


# --- Packing --------------------------------------------------------------------------------------


def test_packing_by_hand():
    """A threshold for the whole, a size for each row, and the length kept. Guards: columns for
    rows, one size for all, disorder.
    """
    delta = {
        "w": torch.tensor([[4.0, -4, 1, 0, 0], [3, 0, -3, 0.5, 0]]),
        "b": torch.tensor([5.0, -3.0, 0.1]),
    }
    kept = {
        "w": torch.tensor([[4.0, -4, 0, 0, 0], [3, 0, -3, 0, 0]]),
        "b": torch.tensor([4.0, -4.0, 0.0]),
    }
    longer = length(delta) / length(kept)
    back = unpack(pack(delta), delta)
    for name, tensor in kept.items():
        torch.testing.assert_close(back[name], tensor * longer, rtol=2**-8, atol=0)


@pytest.mark.parametrize("shape", [(500, 301), (40000,)])
def test_packing_of_normal_numbers_in_closed_form(shape):
    """Error, length and size are what theory gives for normal numbers: 2 − 2cos, 1, and the entropy
    of the three codes.
    """
    delta = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4}
    normal, t = NormalDist(), deltas.THRESHOLD
    nonzero = 2 * (1 - normal.cdf(t))
    cosine = 2 * normal.pdf(t) / math.sqrt(nonzero)
    packed = pack(delta)
    back = unpack(packed, delta)
    error = math.sqrt(2 - 2 * cosine)
    assert distance(back, delta) / length(delta) == pytest.approx(error, rel=0.01)
    assert length(back) / length(delta) == pytest.approx(1, rel=2**-8)
    entropy = -nonzero * math.log2(nonzero / 2) - (1 - nonzero) * math.log2(1 - nonzero)
    assert entropy < 8 * packed["w.codes"].numel() / delta["w"].numel() < 1.03 * entropy


def test_packing_of_nothing_and_of_nan():
    still = {"w": torch.zeros(3, 4), "b": torch.zeros(2)}
    assert length(unpack(pack(still), still)) == 0
    with pytest.raises(ValueError, match="holds a number that is not finite"):
        pack({"w": torch.tensor([[1.0, math.nan]])})


def test_damaged_vectors_are_refused():
    """Whatever bytes stand in a file, the answer is a sentence, and memory for one tensor at
    most.
    """
    delta = {"w": torch.randn(64, 33, generator=torch.Generator().manual_seed(0))}
    packed = pack(delta)
    bomb = deltas._squeeze(torch.ones(10**7, dtype=torch.uint8))
    noise = torch.randint(
        256, (200,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    wrong = [packed["w.codes"][:-9], noise, bomb, noise[:0]]
    for codes in wrong:
        with pytest.raises(
            ValueError, match="w of the task vector is damaged, or of another shape"
        ):
            unpack(packed | {"w.codes": codes}, delta)
    with pytest.raises(ValueError, match="damaged, or of another shape"):
        unpack(packed, {"w": delta["w"].T})
    with pytest.raises(ValueError, match="of another policy: 'v' is only on one side"):
        unpack(packed, {"v": delta["w"], "w": delta["w"]})


def test_committed_vectors():
    """They are what the record says, belong to the bundled policy, and take at most 5 MB."""
    said, sft = task_vectors.record(), Policy.from_name("reviews-gpt2").weights()
    vectors = task_vectors.committed(sft)
    assert {"WARP", "run 1", "run 2", "REINFORCE"} == vectors.keys()
    assert sum(file.stat().st_size for file in task_vectors.FOLDER.iterdir()) <= 5e6
    for name, delta in vectors.items():
        assert length(delta) == pytest.approx(said["vectors"][name]["norm"], rel=2**-8)
        assert (task_vectors.FOLDER / said["vectors"][name]["file"]).stat().st_size == said[
            "vectors"
        ][name]["bytes"]
    # the very ones that the study evaluated
    for name, arm, method in (("WARP", "warp", "slerp"), ("REINFORCE", "reinforce", "reinforce")):
        rows = outcome("primary", arm, said["settings"]["seed"]).rows.query("split == 'test'")
        row = rows[rows["method"] == method].iloc[-1]
        for score in ("reward", "kl"):
            assert said["vectors"][name][score]["true"] == pytest.approx(
                [row[score], row[f"{score}_se"]]
            )
    with pytest.raises(ValueError, match="belong to policy='reviews-gpt2' as it was"):
        task_vectors.committed({name: t + 1 for name, t in sft.items()})


def test_record_of_a_packing(monkeypatch, tmp_path, store):
    """What is written is read back, and the measured change is that of packed minus trained."""
    monkeypatch.setattr(task_vectors, "FOLDER", tmp_path / "vectors")
    monkeypatch.setattr(task_vectors, "RECORD", tmp_path / "vectors" / "task_vectors.json")
    policy = tiny_policy()
    tuned = {
        "WARP": tiny_policy(seed=2).weights(),
        "run 1": tiny_policy(seed=3).weights(),
    }
    scores = {
        name: torch.tensor([[k, k + 1.0], [0.0, 2.0 * k]])
        for k, name in enumerate(("trained", "packed"))
    }

    def evaluate(theta, rewards):
        which = (
            "trained" if any(distance(theta, final) == 0 for final in tuned.values()) else "packed"
        )
        summary = {
            f"{score}{end}": float(scores[which].mean())
            for score in ("reward", "kl")
            for end in ("", "_se")
        }
        return SimpleNamespace(
            scores={"reward": scores[which], "kl": 3 * scores[which]}, summary=summary
        )

    experiment = SimpleNamespace(
        theta_sft=policy.weights(),
        settings=Settings.profile("smoke"),
        evaluate=evaluate,
    )
    rewards = {"reward": SimpleNamespace(identity="r")}
    said = task_vectors.commit(experiment, tuned, rewards, Progress())
    assert said == task_vectors.record() and task_vectors.settings() == Settings.profile("smoke")
    assert (
        said["vectors"]["WARP"]["reward"]["packed_minus_true"][0] == 1.0
        and said["vectors"]["WARP"]["kl"]["packed_minus_true"][0] == 3.0
    )
    for name, delta in task_vectors.committed(policy.weights()).items():
        true = {n: tuned[name][n] - t for n, t in policy.weights().items()}
        said_error = said["vectors"][name]["relative_error"]
        assert (
            distance(delta, true) / length(true) == pytest.approx(said_error)
            and 0.3 < said_error < 0.7
        )
    assert (
        "+1.00 (" in task_vectors.rows()[0]["packed − trained"]
        and len(task_vectors.angle_rows()) == 1
    )


# --- Weights between policies ---------------------------------------------------------------------


def test_between_is_slerp_by_any_share():
    """A quarter of a right angle, by hand; the ends and the middle are what they must be."""
    base = {"h.0.w": torch.tensor([1.0, 1.0]), "h.1.w": torch.tensor([0.0, 2.0])}
    first = {"h.0.w": torch.tensor([3.0, 1.0]), "h.1.w": torch.tensor([1.0, 2.0])}
    # right angle in h.0, none in h.1
    second = {"h.0.w": torch.tensor([1.0, 3.0]), "h.1.w": torch.tensor([2.0, 2.0])}
    quarter = between(base, first, second, 0.25)
    eighth = math.pi / 8
    torch.testing.assert_close(
        quarter["h.0.w"], 1 + 2 * torch.tensor([math.cos(eighth), math.sin(eighth)])
    )
    torch.testing.assert_close(quarter["h.1.w"], torch.tensor([1.25, 2.0]))
    for share, expected in ((0, first), (0.5, slerp(base, [first, second])), (1, second)):
        assert distance(between(base, first, second, share), expected) == pytest.approx(0, abs=1e-6)


class Letters:
    """A scorer that needs no model: the mean of a text's token ids, so that every token counts."""

    identity = "letters"

    def __call__(self, texts) -> torch.Tensor:
        return torch.tensor(
            [sum(ids) / len(ids) if (ids := token_ids(text)) else 0.0 for text in texts]
        )


@pytest.fixture
def play(float32) -> Playground:
    """Two random policies around a third, all tiny."""
    policy = tiny_policy()
    experiment = SimpleNamespace(
        policy=policy,
        sft=policy.clone(),
        theta_sft=policy.weights(),
        settings=Settings.profile("smoke"),
    )
    vectors = {
        name: {n: tiny_policy(seed=seed).weights()[n] - t for n, t in policy.weights().items()}
        for name, seed in (("WARP", 2), ("run", 3))
    }
    return Playground(experiment, vectors, Reward(Letters(), 0.0, 1.0))


def test_weights_are_plain_arithmetic(play):
    """θ_sft + η δ, with nothing left of the place before; and what writes is the policy at that
    place.
    """
    sft = play.experiment.theta_sft
    delta = {n: play.tuned["WARP"][n] - t for n, t in play.experiment.theta_sft.items()}
    for eta in (1.0, 0.35, 0.0):
        play.write(["w1 w2"], Mix("WARP", "run", 0.0, eta))
        now = play.experiment.policy.weights()
        for name, t in sft.items():
            torch.testing.assert_close(now[name], t + eta * delta[name])
    assert all(torch.equal(now[n], t) for n, t in sft.items())
    merged = between(sft, play.tuned["WARP"], play.tuned["run"], 0.3)
    assert distance(play.theta(Mix("WARP", "run", 0.3, 0.6)), interpolate(sft, merged, 0.6)) == 0


def test_at_sft_nothing_departs(play):
    for one in play.write(["w1 w2"], Mix("WARP", "run", 0.4, 0.0)):
        assert one.kl == one.log_ratio == [0.0] * len(one.pieces)


def test_kl_of_each_token_against_plain_logits(float32):
    """Each position by itself, from transformers' own forward without padding. Guards: positions
    shifted by one, KL the wrong way round.
    """
    policy, sft = tiny_policy(), tiny_policy(seed=2)
    prompts, completions = [[5, 2, 7], [4]], [[5, 2, 1, 7], [1, 11, 6, 0]]
    kl, log_ratio = by_token(policy, sft, padded(prompts, completions, wider=1), TAU)
    for k, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        row, ends = prompt + completion, torch.tensor([END])
        log_p, log_q = (
            (plain_logits(p, row, 4) / TAU).index_fill(1, ends, -1e30).log_softmax(-1)
            for p in (policy, sft)
        )
        torch.testing.assert_close(
            kl[k], (log_p.exp() * (log_p - log_q)).sum(1).cpu(), rtol=1e-4, atol=1e-5
        )
        plain = plain_log_probs(policy, row, 4, TAU) - plain_log_probs(sft, row, 4, TAU)
        torch.testing.assert_close(log_ratio[k], plain.detach().cpu(), rtol=1e-4, atol=1e-5)


def test_sentences_add_up_to_the_reward(play):
    for one in play.write(["w1 w2 w5"], Mix("WARP", "run", 0.0, 1.0)):
        text = one.prompt + "".join(one.pieces)
        assert one.prompt == "w1 w2 w5" and len(one.pieces) == 12 and one.sentences[-1][0] == 12
        assert one.reward == pytest.approx(
            Letters()([text]).item()
        ) and one.before == pytest.approx(8 / 3)
        assert one.before + sum(gain for _, gain in one.sentences) == pytest.approx(
            one.reward, abs=1e-5
        )


def test_same_take_same_numbers(play):
    place = Mix("WARP", "run", 0.0, 1.0)
    assert (
        play.write(["w1"], place) == play.write(["w1"], place) != play.write(["w1"], place, take=1)
    )


@pytest.mark.parametrize("prompt", ["", "w1 " * 53])
def test_prompt_that_does_not_fit(play, prompt):
    with pytest.raises(
        ValueError, match=r"a prompt must have from 1 to 52 tokens \(about 39 words\), not "
    ):
        play.write([prompt], Mix("WARP", "run", 0.0, 1.0))


def test_geometry_is_of_the_chosen_pair_and_place(play):
    """The third vector is the merge: it lies where λ says, and η shortens it."""
    whole = {
        row["a"] * 10 + row["b"]: row
        for row in play.layers(Mix("WARP", "run", 0.0, 0.5))
        if row["layer"] == "model"
    }
    assert whole[13]["degrees"] == pytest.approx(0, abs=0.1) and whole[23][
        "degrees"
    ] == pytest.approx(whole[12]["degrees"], abs=0.1)
    assert whole[13]["norm_b"] == pytest.approx(whole[12]["norm_a"] / 2, rel=1e-5)


# --- Text -----------------------------------------------------------------------------------------


def test_pieces_join_to_the_text():
    """Also where a letter takes several tokens: it comes whole, with the last of them."""
    policy = Policy.from_name("reviews-gpt2")
    ids = policy.tokenizer("So naïve: 日本 won. Twice!", add_special_tokens=False)["input_ids"]
    pieces = split(policy, ids[:1], ids[1:])
    assert (
        policy.tokenizer.decode(ids[:1]) + "".join(pieces) == policy.tokenizer.decode(ids)
        and len(pieces) == len(ids) - 1
    )
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces) and "日" in pieces


def test_sentence_ends():
    assert sentence_ends([" good", ".", ".", '"', " Bad", "!", " so"]) == [4, 6, 7]
    assert sentence_ends([" good", "."]) == [2] and sentence_ends(["w"]) == [1]


def test_texts_are_escaped():
    shown = page(
        [Completion(HOSTILE, [HOSTILE, "b"], [0.1, 0.6], [0.2, -0.3], 1.0, 0.5, [(2, 0.5)])]
    )
    # prompt, token, and where it is named
    assert "<img" not in shown and shown.count(html.escape(HOSTILE)) == 3
    assert (
        "0.14)" in shown and "0.70)" in shown and "KL 0.70 nats" in shown and "+0.50</sub>" in shown
    )


def test_controls_draw_once_they_rest(play, monkeypatch):
    """Guards: a slider that is held down and asks for texts at every step; a bad prompt that breaks
    the controls.
    """
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook")
    monkeypatch.setattr(playground, "SETTLED", 0.05)

    async def use() -> None:
        desk = Desk(play, "w1 w2", Mix("WARP", "run", 0.0, 1.0))
        first = desk.shown.value

        def visited():
            return desk.trail.figure.data[0]

        for eta in (0.8, 0.6, 0.2):
            desk.eta.value = eta
        assert "writing" in desk.busy.value
        await asyncio.sleep(0.5)
        assert (
            len(visited().x) == len(visited().error_y.array) == 2
            and desk.shown.value != first
            and "η = 0.2 of WARP" in desk.summary.value
            and desk.busy.value == ""
        )
        assert desk.layers.figure.data[1].z[2][-1] == pytest.approx(
            0.2 * desk.layers.figure.data[1].z[0][-1], rel=1e-5
        )
        desk.prompt.value = ""
        await asyncio.sleep(0.5)
        assert "a prompt must have" in desk.summary.value and len(visited().x) == 2
        assert desk.shown.value == desk.busy.value == ""  # not the texts of another prompt
        desk.prompt.value = HOSTILE
        await asyncio.sleep(0.5)
        assert "<img" not in desk.shown.value and len(visited().x) == 1  # another prompt's way

    asyncio.run(use())


# ------------------------------------------------------------------------------ as a person uses it


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory) -> Page:
    """The notebook in JupyterLab, all of its cells run."""
    notebook = Path(
        shutil.copy(ROOT / "notebooks" / "08_playground.ipynb", tmp_path_factory.mktemp("lab"))
    )
    with running_in_lab(chromium, notebook, 1700) as page:
        page.get_by_role("slider").first.wait_for(timeout=180_000)
        yield page


def said(page: Page):
    return page.locator(".widget-html").filter(has_text="mean of 8 completions")


def test_sliding_eta_by_keyboard_changes_the_texts(lab):
    """From WARP to SFT with the keyboard alone: the texts, the numbers, the way and the layers
    follow.
    """
    expect(said(lab)).to_contain_text("η = 1 of WARP")
    texts = lab.locator(".widget-html").filter(has_text="furthest from SFT")
    before, points = texts.inner_text(), lab.locator(".scatterlayer .trace").first.locator(".point")
    expect(points).to_have_count(1)  # plotly takes its time to load on busy cores
    eta = lab.get_by_role("slider").first
    eta.focus()
    lab.keyboard.press("Home")
    expect(said(lab)).to_contain_text("η = 0 of WARP")
    expect(said(lab)).to_contain_text("KL 0.00 ± 0.00 nats")
    expect(texts).not_to_contain_text(before.splitlines()[0])
    expect(points).to_have_count(2)
    lab.keyboard.press("Tab")  # to the reading of η, and on to the second policy
    lab.keyboard.press("Tab")
    assert lab.evaluate("document.activeElement.tagName") == "SELECT"


def test_hostile_prompt_stays_text(lab):
    prompt = lab.get_by_label("prompt")
    prompt.fill(HOSTILE)
    prompt.press("Enter")
    expect(lab.locator(".widget-html").filter(has_text=HOSTILE)).to_be_visible()
    assert lab.locator("img[src=x]").count() == 0
    lab.get_by_role("button", name="This film was").click()
    expect(lab.get_by_label("prompt")).to_have_value("This film was")
    expect(lab.locator(".warp-desk").get_by_text(HOSTILE)).to_have_count(0)
    expect(lab.get_by_text("writing …")).to_have_count(0)
    if shots := os.environ.get("WARP_SCREENSHOTS"):  # frames of the README's animation: a folder
        desk = lab.locator(".jp-OutputArea-output").filter(has=prompt).first
        lab.get_by_role("slider").first.press("Home")
        for k in range(21):
            expect(said(lab)).to_contain_text(f"η = {k / 20:g} of WARP")
            expect(lab.get_by_text("writing …")).to_have_count(0)
            desk.screenshot(path=Path(shots) / f"playground-{k:02}.png")
            lab.keyboard.press("ArrowRight")


def test_a_picture_stays_when_the_kernel_is_gone(lab):
    """The notebook, saved and opened anew without its kernel, still shows what was last written."""
    picture = lab.locator(".warp-picture")
    expect(picture).to_be_hidden()
    menu(lab, "File", "Save Notebook")
    menu(lab, "Kernel", "Shut Down Kernel")
    lab.reload()
    expect(picture).to_contain_text("of WARP: r̃")
    expect(picture).to_be_visible()
    expect(picture).to_contain_text("furthest from SFT")


@pytest.fixture
def page_of(play, monkeypatch, tmp_path) -> Path:
    """A report page of the playground's cell without a front end, with hostile completions."""
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(playground, "EXAMPLES", ("w1 w2", "w3 w4"))
    shown = []
    monkeypatch.setattr(playground, "display", shown.append)
    write, bad = play.write, [HOSTILE, "</script><script>alert(1)</script>"]

    def hostile(*given) -> list[Completion]:
        return [replace(one, pieces=bad + one.pieces[2:]) for one in write(*given)]

    monkeypatch.setattr(play, "write", hostile)
    desk = Desk(play, "w1 w2", Mix("WARP", "run", 0.0, 1.0))
    desk.show()
    assert len(desk.layers.data) == 2 and not hasattr(desk, "eta")
    assert re.findall(r"<h4>η = ([\d.]+) of", shown[0].data) == ["0", "0.5", "1"]
    cell = v4.new_code_cell(
        "1", outputs=[v4.new_output("display_data", {"text/html": shown[0].data})]
    )
    nbformat.write(v4.new_notebook(cells=[cell]), tmp_path / "08_playground.ipynb")
    write_page([tmp_path / "08_playground.ipynb"], tmp_path / "page.html", "WARP")
    return tmp_path / "page.html"


def test_the_page_slides_without_a_kernel(page_of, chromium, play):
    """By the keyboard alone, under the page's own policy; what models write stays text, coloured by
    its KL.
    """
    page = chromium.new_page(viewport={"width": 420, "height": 800})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(error))
    page.goto(page_of.as_uri())
    slider = page.get_by_role("slider", name="η")
    said = page.locator(".slide [role=status]")
    expect(said).to_contain_text("η = 1 of WARP")
    slider.focus()
    page.keyboard.press("Home")
    expect(said).to_contain_text("η = 0 of WARP")
    expect(said).to_contain_text("KL 0.00 nats")
    token = page.locator(".slide span").first
    expect(token).to_have_text(HOSTILE)
    expect(token).to_have_css("background-color", "rgba(213, 94, 0, 0)")
    page.keyboard.press("End")
    expect(token).not_to_have_css("background-color", "rgba(213, 94, 0, 0)")
    page.get_by_role("combobox", name="policy").select_option("run")
    page.get_by_role("combobox", name="prompt").select_option(index=1)
    prompts = [prompt for prompt in ("w1 w2", "w3 w4") for _ in range(playground.ON_PAGE)]
    mixed = play.write(prompts, Mix("run", "run", 0.0, 1.0))[playground.ON_PAGE :]
    kl = sum(sum(one.kl) for one in mixed) / len(mixed)
    expect(said).to_contain_text("η = 1 of run: r̃ ")
    expect(said).to_contain_text(f"KL {kl:.2f} nats, mean of {len(mixed)} completions")
    assert page.locator("img").count() == 0 and page.errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.close()
