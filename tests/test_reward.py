"""Rewards: the scorer against transformers' own forward, the judge against sklearn's own pipeline,
accuracy against sklearn's metric.
"""

import copy
import json
import math
import random
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    PreTrainedTokenizerFast,
)

import warp_lib.experiment as experiment_module
import warp_lib.models.scorers as scorers_module
from warp_lib.experiment import Experiment
from warp_lib.fast import attention, machine
from warp_lib.models.scorers import EncoderScorer, untrained
from warp_lib.models.tfidf import train_tfidf_scorer
from warp_lib.report.checks import accuracy
from warp_lib.reviews import Reviews
from warp_lib.reward import (
    Reward,
    crop,
    train_encoder_scorer,
)
from warp_lib.runs.checkpoint import weights_of
from warp_lib.runs.progress import Progress
from warp_lib.settings import Settings

GOOD = ["good", "great", "fine"]
BAD = ["bad", "awful", "poor"]
OTHER = [f"word{k}" for k in range(20)]
WORDS = [*GOOD, *BAD, *OTHER]


def save_encoder(
    folder, seed: int = 0, layers: int = 2, positions: int = 64, kind: type = BertConfig
) -> str:
    """A tiny random BERT (or DistilBERT) with its tokenizer, as a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": positions}
        shape["intermediate_size" if kind is BertConfig else "hidden_dim"] = 32
        config = kind(
            vocab_size=len(WORDS) + 4, num_hidden_layers=layers, initializer_range=0.5, **shape
        )
        AutoModel.from_config(config).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(
        WordLevel({w: k for k, w in enumerate([*special, *WORDS])}, unk_token="[UNK]")
    )
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return str(folder)


def toy_reviews(n: int, seed: int = 0, length: int = 60) -> datasets.Dataset:
    """Reviews of which half are positive, as their words say."""
    draw, rows = random.Random(seed), []
    for k in range(n):
        rows.append(
            {
                "text": " ".join(draw.choices([*OTHER, *(GOOD if k % 2 else BAD)], k=length)),
                "label": k % 2,
                "review": k,
            }
        )
    return datasets.Dataset.from_list(rows)


class Lengths:
    """A scorer that can be foreseen: a text's length."""

    identity = "lengths"

    def __call__(self, texts) -> torch.Tensor:
        return torch.tensor([float(len(text)) for text in texts])


class Fixed:
    """A scorer that looks its scores up."""

    def __init__(self, scores: dict[str, float]):
        self.scores = scores

    def __call__(self, texts) -> torch.Tensor:
        return torch.tensor([self.scores[text] for text in texts])


@pytest.fixture
def scorer(tmp_path, float32) -> EncoderScorer:
    """An untrained scorer, in float32."""
    return untrained(save_encoder(tmp_path / "encoder"), 2, ("reward",))


# --- Standardisation ------------------------------------------------------------------------------


def test_standardised():
    """r̃ has mean 0 and standard deviation 1 over the SFT texts, and the raw logit stays
    available.
    """
    texts = ["a" * k for k in (1, 5, 6, 20, 3)]
    reward = Reward.standardised(Lengths(), texts)
    scores = reward(texts)
    assert scores.mean().item() == pytest.approx(
        0, abs=1e-6
    ) and scores.std().item() == pytest.approx(1, abs=1e-6)
    raw = reward.raw(texts)
    assert raw.tolist() == [1, 5, 6, 20, 3]
    assert torch.equal(scores.argsort(), raw.argsort())


@pytest.mark.parametrize("length", [0, 10_000])
def test_never_clipped(length):
    """Far outside of what SFT writes the reward goes on linearly."""
    reward = Reward.standardised(Lengths(), ["a" * k for k in (1, 5, 6, 20, 3)])
    assert reward(["a" * length]).item() == pytest.approx(
        (length - 7) / np.std([1, 5, 6, 20, 3], ddof=1), rel=1e-6
    )


def test_identity_of_a_reward():
    """Another scorer, offset or unit is another reward."""
    other = Lengths()
    other.identity = "other"
    rewards = [
        Reward(Lengths(), 0.0, 1.0),
        Reward(Lengths(), 0.1, 1.0),
        Reward(Lengths(), 0.0, 1.1),
        Reward(other, 0.0, 1.0),
    ]
    assert len({reward.identity for reward in rewards}) == 4


# --- Accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [6, 1, 0], ids=["no ties", "some ties", "many ties"])
def test_pairwise_is_the_area_under_the_curve(places):
    """Pairwise accuracy is sklearn's ROC AUC, ties half; its standard error is what a bootstrap
    over reviews gives.
    """
    draw = np.random.default_rng(0)
    up, down = draw.normal(0.8, 1, 60).round(places), draw.normal(0, 1.3, 40).round(places)
    scores = {
        f"{sign}{k}": s
        for sign, group in (("+", up), ("-", down))
        for k, s in enumerate(group.tolist())
    }
    names = [[n for n in scores if n[0] == sign] for sign in "+-"]
    found = accuracy(Fixed(scores), *names)
    assert found["pairwise"] == pytest.approx(
        roc_auc_score([1] * 60 + [0] * 40, [*up, *down]), abs=1e-6
    )

    def again() -> float:
        a, b = draw.choice(up, 60), draw.choice(down, 40)
        return ((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()).item()

    assert found["pairwise_se"] == pytest.approx(np.std([again() for _ in range(1000)]), rel=0.12)


def test_plain_accuracy_and_scale():
    """Plain accuracy takes the threshold that calls as many positive as there are; the scale is
    half the distance of the classes.
    """
    scores = {"a": 5.0, "b": 4.0, "c": 1.0, "x": 3.0, "y": -1.0}
    found = accuracy(Fixed(scores), ["a", "b", "c"], ["x", "y"])
    assert found["plain"] == pytest.approx(3 / 5) and found["plain_se"] == pytest.approx(
        (0.6 * 0.4 / 5) ** 0.5
    )
    assert found["pairwise"] == pytest.approx(5 / 6)
    assert found["scale"] == pytest.approx((10 / 3 - 1) / 2)


def test_an_inverted_scorer_shows():
    """A scorer with the wrong sign has a pairwise accuracy below one half and a negative scale."""
    found = accuracy(Fixed({"a": -2.0, "b": -1.0, "x": 1.0, "y": 2.0}), ["a", "b"], ["x", "y"])
    assert (found["pairwise"], found["plain"], found["scale"]) == (0.0, 0.0, -1.5)


# --- Crops ----------------------------------------------------------------------------------------


def test_crop():
    """Consecutive words, as many as asked for; openings in half of the cases, every other place as
    likely as any.
    """
    words = [str(k) for k in range(10)]
    draw, starts = np.random.default_rng(0), []
    for _ in range(4000):
        part = crop(" ".join(words), 4, draw).split()
        starts.append(int(part[0]))
        assert part == words[starts[-1] : starts[-1] + 4]
    counts = np.bincount(starts, minlength=7) / 4000
    assert counts[0] == pytest.approx(0.5 + 0.5 / 7, abs=0.03) and counts[
        1:
    ].tolist() == pytest.approx([0.5 / 7] * 6, abs=0.02)


@pytest.mark.parametrize("words", [3, 4, 50])
def test_crop_of_a_short_review(words):
    """A review that is shorter than the crop is taken whole, white space folded."""
    draw = np.random.default_rng(0)
    assert {crop("one  two three ", words, draw) for _ in range(20)} == {"one two three"}


# --- The encoder ----------------------------------------------------------------------------------


def test_scores_are_transformers_own(scorer):
    """Padding, order and company of a text change nothing: each score is what transformers' own
    forward gives for the text alone.
    """
    draw = random.Random(0)
    # more than a batch, some beyond the context
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 120))) for _ in range(150)]
    plain = BertForSequenceClassification(scorer.model.config).eval()
    plain.load_state_dict(scorer.model.state_dict())
    with torch.no_grad():
        alone = [
            plain(
                **scorer.tokenizer(t, truncation=True, max_length=64, return_tensors="pt")
            ).logits.item()
            for t in texts
        ]
    scores = scorer(texts)
    assert scores.std() > 0.1 and scores.tolist() == pytest.approx(alone, abs=2e-5)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scorer([texts[k] for k in order]), scores[order], atol=2e-5)
    assert not scores.requires_grad and scorer(texts[:1]).shape == (1,)


@pytest.mark.skipif(
    not machine.bfloat16_by(), reason="they are laid out where the processor multiplies bfloat16"
)
def test_weights_laid_out_once_score_alike(scorer, monkeypatch):
    """One text or many, in bfloat16, the biases not 0 as they begin. Guards: a forgotten bias,
    weights of another layer.
    """
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    model = copy.deepcopy(scorer.model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(
                torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).to(p), alpha=0.1
            )
    texts = ["good bad good", *(f"{word} " * 30 for word in WORDS)]
    scores = EncoderScorer(model, scorer.tokenizer, [])
    laid_out = [scores(texts), scores(texts[:1])]
    monkeypatch.setattr(scorers_module, "laid_out", lambda *_: None)
    scores = EncoderScorer(model, scorer.tokenizer, [])
    for got, expected in zip(laid_out, [scores(texts), scores(texts[:1])], strict=True):
        torch.testing.assert_close(got, expected, atol=0.02 * scores(texts).std().item(), rtol=0)


def test_any_context(tmp_path, float32):
    """An encoder of any context reads long texts, cut to what it holds."""
    scorer = untrained(save_encoder(tmp_path / "encoder", positions=50), 2, ("reward",))
    scores = scorer(["good " * n for n in (10, 100, 200)])
    assert (
        scorer.longest <= 50
        and scores[1] == pytest.approx(scores[2].item())
        and scores[0] != scores[1]
    )


def save_kind(
    folder, kind: str, padding: str | None = "[PAD]", auto: type = AutoModel, **shape
) -> str:
    """A tiny random model of another architecture in place of the BERT."""
    save_encoder(folder)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    } | shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto.from_config(
            AutoConfig.for_model(kind, vocab_size=len(WORDS) + 4, **shape)
        ).save_pretrained(folder)
    if padding is None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]"
        ).save_pretrained(folder)
    return str(folder)


KINDS = {
    "roberta": dict(max_position_embeddings=130, pad_token_id=1),
    "xlnet": dict(d_inner=32, d_head=8, pad_token_id=0),
    "gpt2": dict(padding=None, n_positions=128, pad_token_id=None),
    "llama": dict(
        padding=None, max_position_embeddings=128, num_key_value_heads=2, pad_token_id=None
    ),
    "modernbert": dict(
        max_position_embeddings=128,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    ),
    "mpnet": dict(max_position_embeddings=130, pad_token_id=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_encoders(tmp_path, float32, kind):
    """Of every architecture a text's score is the same alone and beside longer ones, and long texts
    are cut to what it has positions for.

    Guards: RoBERTa's positions, which begin after its padding token's; XLNet's, of which it has −1;
    decoders without a padding token.
    """
    scorer = untrained(save_kind(tmp_path / "encoder", kind, **KINDS[kind]), 1, ("reward",))
    assert (
        scorer.longest == (512 if kind == "xlnet" else 128)
        and scorer.model.config.num_hidden_layers == 1
    )
    texts = ["good", "bad poor fine", "great " * 20, "awful " * 600, "awful " * 700]
    together, alone = scorer(texts), torch.cat([scorer([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert len(set(together.tolist())) >= 4 and together[3] == pytest.approx(
        together[4].item(), abs=1e-5
    )


def test_a_classifiers_head_is_replaced(tmp_path):
    """A checkpoint with two labels gives its encoder; the scalar head is the stream's, as without a
    head.
    """
    folder = save_encoder(tmp_path / "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    shutil.copytree(folder, tmp_path / "two")
    model.save_pretrained(tmp_path / "two")
    bare, two, other = (
        weights_of(untrained(str(tmp_path / name), 2, seed).model)
        for name, seed in (("encoder", ("a",)), ("two", ("a",)), ("two", ("b",)))
    )
    assert bare.keys() == two.keys() and all(
        torch.equal(bare[n], two[n]) for n in bare if "pooler" not in n and "classifier" not in n
    )
    assert two["classifier.weight"].shape == (1, 16) and {
        n for n in two if not torch.equal(two[n], other[n])
    } == {"classifier.weight"}


def test_identity_of_a_scorer_knows_its_tokenizer(tmp_path, store):
    """Guards: two encoders that differ in their normaliser only and share the store's reward model.
    What a call sets changes nothing.
    """
    scorers = []
    for name in ("as it is", "lower case"):
        folder = Path(save_encoder(tmp_path / name))
        if name == "lower case":
            file = json.loads((folder / "tokenizer.json").read_text())
            (folder / "tokenizer.json").write_text(
                json.dumps(file | {"normalizer": {"type": "Lowercase"}})
            )
        scorers.append(untrained(str(folder), 2, ("reward",)))
    before = scorers[0].identity
    scorers[0](["good " * 200, "bad"])
    assert (
        EncoderScorer(scorers[0].model, scorers[0].tokenizer, []).identity
        == before
        != scorers[1].identity
    )


def test_identity_of_the_bundled_encoders_scorer():
    """What data/study has recorded of it still tells it."""
    assert untrained("minilm", 6, ("reward",)).identity == "0b8f7d5f00f718e1b9a60b84"


def test_logits_are_finer_than_bfloat16(scorer, monkeypatch):
    """Where the encoder computes in bfloat16 its logit is not rounded to 8 bits, and stays near
    what float32 gives.
    """
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=20)) for _ in range(40)]
    exact = EncoderScorer(scorer.model, scorer.tokenizer, [])(texts)
    monkeypatch.setattr(machine, "fast_dtype", lambda: torch.bfloat16)
    scores = scorer(texts)
    assert 0 < (scores - exact).std() < 0.05 * exact.std()
    assert (scores != scores.bfloat16().float()).float().mean() > 0.5


def test_the_seed_draws_the_head_only(tmp_path):
    """The encoder's weights are the pretrained ones, the head is its stream's, and the program's
    own random numbers go on undisturbed.
    """
    folder = save_encoder(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    a, again, b = (
        weights_of(untrained(folder, 2, seed).model)
        for seed in (("reward",), ("reward",), ("judge",))
    )
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a[n], again[n]) for n in a)
    pretrained = {f"bert.{n}": p for n, p in AutoModel.from_pretrained(folder).named_parameters()}
    assert {n for n in a if not torch.equal(a[n], b[n])} == {"classifier.weight"}
    assert a.keys() - pretrained.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(a[n], pretrained[n]) for n in a if n in pretrained)


def test_the_first_layers(tmp_path):
    """Fewer layers are the encoder's first ones."""
    folder = save_encoder(tmp_path)
    one, two = (weights_of(untrained(folder, layers, ("reward",)).model) for layers in (1, 2))
    assert (
        {n for n in two.keys() - one.keys() if ".layer.1." in n} == two.keys() - one.keys() != set()
    )
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_too_many_layers(tmp_path):
    """More layers than the encoder has are refused in one sentence."""
    with pytest.raises(
        ValueError, match=r"^reward_layers must be at most 2, .*encoder=.*, not 3\.$"
    ):
        untrained(save_encoder(tmp_path), 3, ("reward",))


def test_bradley_terry_orders_pairs(store, tmp_path):
    """Trained on reviews that a word tells apart, the scorer puts positive above negative on
    reviews it has not seen.
    """
    folder, reviews = save_encoder(tmp_path / "encoder"), toy_reviews(60)
    scorer = train_encoder_scorer(
        folder, 1, 1, reviews, steps=40, learning_rate=0.02, seed=("reward",), progress=Progress()
    )
    unseen = toy_reviews(80, seed=1)
    found = accuracy(
        scorer,
        *(
            [t for t, k in zip(unseen["text"], unseen["label"], strict=True) if k == label]
            for label in (1, 0)
        ),
    )
    assert found["pairwise"] > 0.9 and found["scale"] > 0.5
    assert [row.keys() for row in scorer.history] == [{"loss", "accuracy"}] * 40
    assert (
        scorer.history[-1]["loss"] < 0.3 < 0.4 < scorer.history[0]["loss"]
        and scorer.history[-1]["accuracy"] > 0.9
    )


def test_bradley_terry_loss(store, tmp_path, monkeypatch):
    """The loss is the mean of −log σ(r⁺ − r⁻) over all pairs of a positive and a negative review,
    cropped alike or whole.
    """
    seen = []

    def logits(self, texts):
        seen.append(texts)
        hits = torch.tensor(
            [
                float(sum(w in GOOD for w in t.split()) - sum(w in BAD for w in t.split()))
                for t in texts
            ]
        )
        return (
            0.1 * hits * (1 + 0 * next(p for p in self.model.parameters() if p.requires_grad).sum())
        )

    monkeypatch.setattr(EncoderScorer, "logits", logits)
    folder, reviews = save_encoder(tmp_path / "encoder"), toy_reviews(40, length=150)
    scorer = train_encoder_scorer(
        folder, 1, 1, reviews, steps=12, learning_rate=1e-9, seed=("reward",), progress=Progress()
    )
    lengths = []
    for texts, row in zip(list(seen), scorer.history, strict=True):
        n = len(texts) // 2
        assert not any(set(GOOD) & set(t.split()) for t in texts[n:]) and not any(
            set(BAD) & set(t.split()) for t in texts[:n]
        )
        (length,) = {len(t.split()) for t in texts}
        lengths.append(length)
        assert n == (4 if length == 150 else 32)
        score = logits(scorer, texts).detach().double()
        pairs = [(up, down) for up in score[:n] for down in score[n:]]
        assert row["loss"] == pytest.approx(
            sum(math.log1p(math.exp(down - up)) for up, down in pairs) / len(pairs), rel=1e-4
        )
        assert row["accuracy"] == pytest.approx(
            sum(float(up > down) for up, down in pairs) / len(pairs)
        )
    assert (
        lengths.count(150) == 2
        and min(lengths) >= 24
        and max(k for k in lengths if k < 150) <= 120
        and len(set(lengths)) > 6
    )


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig])
def test_only_the_last_layers_are_trained(store, tmp_path, kind):
    """Guards: a frozen layer that moves, a trained one that does not; with all layers the
    embeddings move too.
    """
    folder, reviews = save_encoder(tmp_path, kind=kind), toy_reviews(40)
    before = weights_of(untrained(folder, 2, ("reward",)).model)
    for trained in (1, 2):
        scorer = train_encoder_scorer(
            folder,
            2,
            trained,
            reviews,
            steps=2,
            learning_rate=0.01,
            seed=("reward",),
            progress=Progress(),
        )
        moved = {n for n, w in weights_of(scorer.model).items() if not torch.equal(w, before[n])}
        still = {n for n in before if trained == 1 and ("embeddings" in n or ".layer.0." in n)}
        assert (
            not moved & still
            and any(".layer.1." in n for n in moved)
            and any("word_embeddings" in n for n in moved) == (trained == 2)
        )


@pytest.mark.parametrize("kind", [BertConfig, DistilBertConfig])
def test_a_trained_scorer_is_the_stored_one(store, tmp_path, kind):
    """Guards: frozen layers or an attention that stay as they were for training: scores would
    depend on who trained.
    """
    folder = save_encoder(tmp_path, layers=3, kind=kind)
    reviews = toy_reviews(40)
    texts = [f"{word} " * 40 for word in WORDS]

    def scorer() -> EncoderScorer:
        return train_encoder_scorer(
            folder,
            3,
            1,
            reviews,
            steps=2,
            learning_rate=0.01,
            seed=("reward",),
            progress=Progress(),
        )

    trained, taken = scorer(), scorer()
    assert torch.equal(trained(texts), taken(texts)) and torch.equal(
        trained.logits(texts), taken.logits(texts)
    )
    assert not any(
        getattr(layer.forward, "func", None) is scorers_module._forward_narrowed
        for layer in trained.model.modules()
    )
    assert (
        trained.model.config._attn_implementation
        == taken.model.config._attn_implementation
        != attention.NAME
    )


# --- The judges -----------------------------------------------------------------------------------


def test_tfidf_is_sklearns_own_pipeline(store):
    """The judge's scores are the decision function of sklearn's pipeline on the same fit, whole
    reviews and their openings.
    """
    reviews = toy_reviews(60, length=70)
    unseen = list(toy_reviews(30, seed=1)["text"]) + [
        "",
        "unknown words only",
    ]
    texts = list(reviews["text"])
    pipeline = make_pipeline(
        HashingVectorizer(n_features=2**18, ngram_range=(1, 2), alternate_sign=False, norm=None),
        TfidfTransformer(sublinear_tf=True),
        LogisticRegression(C=10.0, solver="liblinear"),
    ).fit([*texts, *(" ".join(t.split()[:50]) for t in texts)], list(reviews["label"]) * 2)
    scores = train_tfidf_scorer(reviews)(unseen)
    assert (
        scores.tolist() == pytest.approx(pipeline.decision_function(unseen).tolist(), abs=1e-5)
        and scores.std() > 0.5
    )
    again = train_tfidf_scorer(reviews)
    assert torch.equal(again(unseen), scores)
    assert again.identity != train_tfidf_scorer(reviews.select(range(50))).identity


def test_judges_learn_from_the_other_half(monkeypatch):
    """The reward model is trained on its half of the reviews only, both judges on the other; all
    are standardised on the same texts.
    """
    trained = []

    def spy(*args, **kwargs):
        trained.extend(
            (kwargs.get("seed"), sorted(a["review"]))
            for a in args
            if isinstance(a, datasets.Dataset)
        )
        return Lengths()

    monkeypatch.setattr(experiment_module, "train_encoder_scorer", spy)
    monkeypatch.setattr(experiment_module, "train_tfidf_scorer", spy)
    rows = toy_reviews(40)
    parts = [list(range(0, 15)), list(range(15, 30)), list(range(30, 35)), list(range(35, 40))]
    experiment = Experiment.__new__(Experiment)
    experiment.settings = Settings.profile("full", judge_steps=600)
    experiment.reviews = Reviews(*(rows.select(part) for part in parts))
    asked = []
    monkeypatch.setattr(Experiment, "sample_sft", lambda _, by: asked.append(by) or ["a", "bbb"])
    rewards = experiment.rewards(progress := Progress())
    assert set(asked) == {progress}  # Stop ends the sampling
    assert trained == [(("reward",), parts[0]), (None, parts[1]), (("judge",), parts[1])]
    assert list(rewards) == ["reward", "judge_tfidf", "judge"]
    assert all((r.mean, r.sd) == (2.0, pytest.approx(2**0.5)) for r in rewards.values())
