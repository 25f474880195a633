"""What the notebooks of one report share: the models, prompts and rewards that its settings name,
and its results table.
"""

import copy
import json
from collections.abc import Iterable
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import concatenate_datasets
from torch import Tensor

from . import merging
from .dpo import MakePairs, best_against_worst, dpo, make_pairs
from .evaluate import Evaluation, evaluate
from .fast import machine
from .merging import Weights
from .models import encoders
from .models.scorers import classifier
from .models.tfidf import train_tfidf_scorer
from .points import Point
from .policy import Policy
from .prompts import CHARACTERS, PROMPT_TOKENS
from .reinforce import reinforce
from .reviews import Reviews, load_reviews
from .reward import SEED, Reward, train_encoder_scorer
from .runs.errors import Explained
from .runs.identities import tokenizer_identity
from .runs.paths import folder, write_whole
from .runs.progress import Progress
from .runs.results import write_results
from .runs.store import digest, memoise, save_tensors, write_json
from .settings import Settings
from .warp import Aligner, Iteration, Map, Run, RunId, warp

SFT_COMPLETIONS = 512  # of training prompts, over which rewards are standardised
# of the judge: all layers, and the learning rate at which all of them are trained
MINILM_LAYERS, JUDGE_RATE = 6, 1e-4
SHOWN = 20  # test prompts whose completions the explorer shows
REPORT = "warp_report.json"  # in the folder of a saved policy: what it is


class Experiment:
    """Everything a notebook needs, made on first use. Building one checks that policy, encoder and
    reviews exist and fit together.
    """

    def __init__(self, settings: Settings):
        machine.prepare()
        self.settings = settings
        self._prompts_of: dict[str, dict[int, list[int]]] = {}  # split → its prompts, all of them
        self.reviews: Reviews = load_reviews(settings.reviews)
        if settings.reward_steps:
            encoders.find(settings.encoder, settings.reward_layers)
        else:
            classifier(settings.encoder)
        self.policy = Policy.from_name(settings.policy)
        self.theta_sft: Weights = self.policy.weights()
        self.sft = self.policy.holding(self.theta_sft)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise Explained where the settings ask for more than the policy's context or the reviews
        hold.
        """
        settings = self.settings
        prompt = len(self.policy.bos_ids) + PROMPT_TOKENS[1]
        longest = prompt + settings.max_new_tokens
        context = getattr(self.policy.model.config, "max_position_embeddings", None)
        if context and longest > context:
            raise Explained(
                f"max_new_tokens must be at most {context - prompt} (the context of"
                f" policy={settings.policy!r} less the longest prompt), not"
                f" {settings.max_new_tokens}."
            )
        if len(self.test_prompts) < settings.test_prompts:
            raise Explained(
                f"test_prompts must be at most {len(self.test_prompts)} (the {settings.held_out}"
                f" reviews of reviews={settings.reviews!r}), not {settings.test_prompts}."
            )
        self._check_openings()

    def _check_openings(self) -> None:
        """Raise ValueError unless held-out reviews of both labels are as long as a completion, to
        compare completions with.
        """
        for label, word in ((1, "positive"), (0, "negative")):
            texts = self._held_out(label)
            parts = (self._openings(texts[k : k + 20]) for k in range(0, len(texts), 20))
            if len(list(islice((text for part in parts for text in part), 2))) < 2:
                s = self.settings
                raise Explained(
                    f"max_new_tokens={s.max_new_tokens} is too much for reviews={s.reviews!r}:"
                    f" fewer than two of its held-out {word} reviews have the {self._length} tokens"
                    " of a completion with its prompt; lower it, or give longer reviews."
                )

    @property
    def _length(self) -> int:
        """Tokens of a completion with its prompt."""
        return sum(PROMPT_TOKENS) // 2 + self.settings.max_new_tokens

    def _held_out(self, label: int) -> list[str]:
        """The held-out reviews of a label."""
        held = concatenate_datasets([self.reviews.validation, self.reviews.test])
        return [t for t, k in zip(held["text"][:], held["label"][:], strict=True) if k == label]

    def _openings(self, texts: list[str]) -> list[str]:
        """Reviews cut to the length of prompt and completion: what a rollout of the same length
        looks like when a person wrote it.
        """
        cut = self.policy.openings(texts, self._length)
        # of no rows it may make one empty text
        return self.policy.tokenizer.batch_decode(cut) if cut else []

    def under(self, settings: Settings) -> "Experiment":
        """The same models and reviews under other settings, with a policy of its own to
        overwrite.
        """
        if other := [
            name
            for name in ("policy", "encoder", "reviews")
            if getattr(settings, name) != getattr(self.settings, name)
        ]:
            raise Explained(
                f"{other[0]}={getattr(settings, other[0])!r} needs an experiment of its own:"
                " Experiment(settings)."
            )
        other = copy.copy(self)
        other.settings, other.policy = settings, self.policy.clone()
        other.__dict__.pop("sft_texts", None)  # they move with the temperature
        other._check_sizes()
        return other

    # Prompts

    @cached_property
    def train_prompts(self) -> list[list[int]]:
        """The first 5 to 15 tokens of every review that may be trained on. They are stored, for
        every notebook and job would tokenize all reviews.
        """
        texts = self.reviews.train["text"][:]

        def make(_) -> dict:
            return {"prompts": list(self.policy.prompts(texts, "train").values())}

        inputs = {
            "tokenizer": tokenizer_identity(self.policy.tokenizer),
            "texts": digest(texts),
            "cut": [*PROMPT_TOKENS, CHARACTERS],
        }
        return memoise("prompts", inputs, make).record["prompts"]

    @property
    def test_prompts(self) -> list[list[int]]:
        """The first 5 to 15 tokens of the held-out reviews that the settings name, as many as they
        say.
        """
        return list(self.held_out_prompts(self.settings.held_out).values())

    def held_out_prompts(self, split: str) -> dict[int, list[int]]:
        """A held-out review's row in the source → its first 5 to 15 tokens, for as many reviews as
        the settings say.
        """
        if split not in self._prompts_of:
            reviews = getattr(self.reviews, split)
            numbers = reviews["review"][:]
            self._prompts_of[split] = {
                numbers[k]: ids for k, ids in self.policy.prompts(reviews["text"][:], split).items()
            }
        return dict(list(self._prompts_of[split].items())[: self.settings.test_prompts])

    # Rewards

    @cached_property
    def sft_texts(self) -> list[str]:
        """SFT completions of the first training prompts, the sample that sets the zero and the unit
        of every reward.
        """
        return self.sample_sft(Progress())

    def sample_sft(self, progress: Progress) -> list[str]:
        """`sft_texts`, sampled or taken from the store. Raises Stopped between two tokens."""
        prompts = list(
            self.policy.prompts(self.reviews.train["text"][: 2 * SFT_COMPLETIONS], "train").values()
        )[:SFT_COMPLETIONS]
        seen = self.evaluate(
            self.theta_sft, {}, "train", progress=progress, prompts=prompts, samples=1
        )
        return self.policy.texts(seen.rollouts)

    def reward(self, progress: Progress) -> Reward:
        """The reward model, trained on its half of the labels or taken from the store,
        standardised. With reward_steps=0 the encoder itself is one.
        """
        s = self.settings
        if s.reward_steps:
            scorer = train_encoder_scorer(
                s.encoder,
                s.reward_layers,
                s.reward_trained,
                self.reviews.reward,
                steps=s.reward_steps,
                learning_rate=s.reward_learning_rate,
                seed=SEED,
                progress=progress,
            )
        else:
            scorer = classifier(s.encoder)
        return Reward.standardised(scorer, self.sample_sft(progress))

    def rewards(self, progress: Progress) -> dict[str, Reward]:
        """The reward and the `judges`."""
        return {"reward": self.reward(progress)} | self.judges(progress)

    def judges(self, progress: Progress) -> dict[str, Reward]:
        """What rewards nothing, and learns from the other half of the labels: judge_tfidf; judge
        (the full MiniLM) if it is given steps.
        """
        s = self.settings
        tfidf, texts = train_tfidf_scorer(self.reviews.judges), self.sample_sft(progress)
        judges = {"judge_tfidf": Reward.standardised(tfidf, texts)}
        if s.judge_steps:
            scorer = train_encoder_scorer(
                "minilm",
                MINILM_LAYERS,
                MINILM_LAYERS,
                self.reviews.judges,
                steps=s.judge_steps,
                learning_rate=JUDGE_RATE,
                seed=("judge",),
                progress=progress,
            )
            judges["judge"] = Reward.standardised(scorer, texts)
        return judges

    def standardised(self, rewards: dict[str, Reward], progress: Progress) -> dict[str, Reward]:
        """The same scorers, standardised over what SFT writes under these settings."""
        texts = self.sample_sft(progress)
        return {name: Reward.standardised(reward.raw, texts) for name, reward in rewards.items()}

    def compared_with_people(self, reward: Reward) -> dict[str, Tensor]:
        """r̃ of SFT's completions, and of held-out positive and negative reviews cut to the length
        of prompt and completion.
        """
        texts = {"SFT completions": self.sft_texts}
        for name, label in (("real positive openings", 1), ("real negative openings", 0)):
            texts[name] = self._openings(self._held_out(label))

        def make(folder: Path) -> dict:
            save_tensors(
                folder / "scores.safetensors", {name: reward(some) for name, some in texts.items()}
            )
            return {}

        return memoise("people", {"reward": reward.identity, "texts": digest(texts)}, make).tensors(
            "scores"
        )

    def real_positive(self, reward: Reward) -> dict[str, float]:
        """Where real positive reviews of a completion's length lie on the reward axis, for the
        figures: mean and 99th percentile, r̃.
        """
        scores = self.compared_with_people(reward)["real positive openings"]
        band = {
            "mean": scores.mean().item(),
            "p99": scores.quantile(0.99).item(),
            "reviews": len(scores),
        }
        write_json(folder(self.settings.name) / "real_positive.json", band)
        return band

    # Training and evaluation

    def aligner(self, reward: Reward, progress: Progress) -> Aligner:
        """`reinforce` with everything bound but the initial weights and the run."""
        return partial(
            reinforce,
            policy=self.policy,
            theta_sft=self.theta_sft,
            prompts=self.train_prompts,
            reward=reward,
            settings=self.settings,
            progress=progress,
        )

    def pairs(self, reward: Reward, progress: Progress, *, count: int | None = None) -> MakePairs:
        """`make_pairs` with everything bound but the weights and the run: best against worst of the
        completions of each of `count` prompts, as many as the settings say unless given.
        """
        return partial(
            make_pairs,
            policy=self.policy,
            prompts=self.train_prompts,
            count=count or self.settings.pair_prompts,
            reward=reward,
            rank=best_against_worst,
            settings=self.settings,
            progress=progress,
        )

    def dpo_aligner(self, pairs: MakePairs, progress: Progress) -> Aligner:
        """`dpo` with everything bound but the initial weights and the run."""
        return partial(
            dpo, policy=self.policy, pairs=pairs, settings=self.settings, progress=progress
        )

    def warp(self, align: Aligner, map: Map = map) -> list[Iteration]:
        """WARP on an aligner with the settings' I, M, η, merge and seed. The last iteration's
        `merged` is its policy. map: see `warp.warp`.
        """
        s = self.settings
        merge = merging.lerp if s.merge == "lerp" else partial(merging.slerp, per=s.slerp_per)
        return list(
            warp(
                self.theta_sft,
                align,
                iterations=s.iterations,
                runs=s.runs,
                eta=s.eta,
                merge=merge,
                seed=s.seed,
                map=map,
            )
        )

    def long_run(self, align: Aligner, method: str, each: int) -> Run:
        """The baseline: an aligner from SFT for as many steps as all of WARP's I · M runs of `each`
        steps, with a checkpoint where each of them would end.
        """
        s = self.settings
        steps = s.iterations * s.runs * each
        return align(self.theta_sft, RunId(s.seed, method), steps=steps, keep_every=each)

    def evaluate(
        self,
        theta: Weights,
        rewards: dict[str, Reward],
        split: str | None = None,
        precision: str = "float32",
        progress: Progress | None = None,
        prompts: list[list[int]] | None = None,
        samples: int | None = None,
    ) -> Evaluation:
        """θ on the prompts of a held-out split, of the settings' own unless given; or on other
        `prompts`, of which `split` is the name.
        """
        s, split = self.settings, split or self.settings.held_out
        if prompts is None:
            prompts = list(self.held_out_prompts(split).values())
        return evaluate(
            theta,
            policy=self.policy,
            sft=self.sft,
            prompts=prompts,
            split=split,
            samples=samples or s.test_samples,
            new=s.max_new_tokens,
            temperature=s.temperature,
            rewards=rewards,
            precision=precision,
            progress=progress,
        )

    def measure(
        self, part: str, points: Iterable[Point], rewards: dict[str, Reward], progress: Progress
    ) -> pd.DataFrame:
        """Evaluate the points of one notebook and enter them into the results table as its
        `part`.
        """
        s, rows, scores, shown = self.settings, [], {}, []
        prompts = self.policy.tokenizer.batch_decode(self.test_prompts[:SHOWN])
        for number, point in enumerate(progress.track(list(points), "evaluation")):
            seen = self.evaluate(point.theta, rewards, progress=progress)
            first = seen.rollouts.completions[:: s.test_samples][:SHOWN]
            texts = self.policy.tokenizer.batch_decode(first)
            for x, y, r in zip(
                prompts, texts, seen.scores["reward"].mean(1).tolist(), strict=False
            ):
                shown.append({"point": number, "prompt": x, "completion": y, "reward": r})
            rows.append(
                point.columns
                | {"seed": s.seed, "completions": point.steps * s.batch_size}
                | seen.summary
            )
            for score, values in seen.scores.items():
                scores.setdefault(score, []).append(values.mean(1).numpy())
            progress.log(checkpoint_reward=seen.summary["reward"], checkpoint_kl=seen.summary["kl"])
        scores = {score: np.stack(values) for score, values in scores.items()}
        write_json(folder(s.name) / "settings.json", s.asdict())  # for the table of one's runs
        return write_results(
            s.name,
            part,
            rows,
            scores,
            shown,
            {name: scorer.identity for name, scorer in rewards.items()},
        )

    def save_policy(self, point: Point, name: str, rewards: dict[str, Reward]) -> Path:
        """Write a point's policy as a folder that ``AutoModelForCausalLM.from_pretrained`` opens;
        and in it, for `verify`, what it is.

        `REPORT` names its row of the results table and holds what the row was computed from: the
        settings, EOS, BOS, the test prompts and the evaluated completions (prompts, samples, new)
        as token ids, r̃'s mean and standard deviation, digests of reward model and π_sft.
        """
        s = self.settings
        target = folder(s.name) / "models" / name
        # it says nothing of a folder that is half written
        (target / REPORT).unlink(missing_ok=True)
        theta = point.theta
        seen = self.evaluate(theta, rewards).rollouts  # from the store: `measure` was here
        self.policy.load(theta).model.save_pretrained(target)
        self.policy.tokenizer.save_pretrained(target)
        reward = rewards["reward"]
        record = {
            "row": {k: v for k, v in point.columns.items() if k != "seconds"} | {"seed": s.seed},
            "settings": s.asdict(),
            "eos": self.policy.eos_ids,
            "bos": self.policy.bos_ids,
            "sft": digest(self.theta_sft),
            "reward": {"identity": reward.identity, "mean": reward.mean, "sd": reward.sd},
            "prompts": self.test_prompts,
            "completions": seen.completions.view(-1, s.test_samples, seen.new).tolist(),
        }
        write_whole(target / REPORT, json.dumps(record))
        return target
