"""What a policy is worth: reward, KL to SFT, and the diagnostics that tell improvement from reward
hacking, on the same held-out prompts for all.

Every number is a mean over prompts with its standard error clustered by prompt: a prompt's
completions are averaged first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fast import machine
from .fast.log_probs import ChosenLogProbs, at_once
from .merging import Weights
from .policy import Policy, Rollouts
from .reward import Reward
from .runs.errors import Explained
from .runs.progress import Progress
from .runs.seeds import torch_stream
from .runs.store import digest, memoise, save_tensors

CHUNK = 64  # rollouts scored at a time, so that two models' logits fit in memory
KEPT = 2**30  # bytes of logits that sampling may leave for the KL, which saves it one of two passes


@dataclass(frozen=True)
class Evaluation:
    """summary: the means and `…_se`; scores: name → a value for each completion, (prompts,
    samples); rollouts: the completions.
    """

    summary: dict[str, float]
    scores: dict[str, Tensor]
    rollouts: Rollouts


def evaluate(
    theta: Weights,
    *,
    policy: Policy,
    sft: Policy,
    prompts: Sequence[Sequence[int]],
    split: str,
    samples: int,
    new: int,
    temperature: float,
    rewards: dict[str, Reward],
    precision: str = "float32",
    progress: Progress | None = None,
) -> Evaluation:
    """Sample `samples` completions of `new` tokens for each prompt from π_θ and score them, or take
    the result from the store.

    In float32 unless `precision` says otherwise, so that what is measured is the policy of these
    weights, as transformers opens it from a saved folder. A split's random stream is the same for
    every θ, so that differences between policies on the same prompt are less noisy than each.

    Args:
        theta: the weights to evaluate; `policy` is overwritten with them.
        sft: π_sft, what KL and perplexity are measured against.
        split: what the prompts are of, e.g. "test"; names the random stream.
        rewards: name → scorer; "reward" trained the policy, "judge" and "judge_tfidf" did not.
        precision: of both policies' passes (see `machine.passes`); another than float32 measures
            another policy.
        progress: may be asked to stop while completions are sampled; they are lost then.

    Summary: each reward's mean; kl = KL(π_θ‖π_sft) per completion, nats (see `exact_kl`), and
    kl_k1, the noisier log-ratio of the sampled tokens, to check it by; entropy
    of π_θ, nats per token; distinct2, share of distinct pairs of tokens within a prompt's
    completions; perplexity of π_sft on the completions. All at temperature τ, EOS masked.
    """
    inputs = {
        "policy": policy.identity,
        "theta": digest(theta),
        "sft": digest(sft.weights()),
        "prompts": digest(list(map(list, prompts))),
        "split": split,
        "precision": precision,
        "samples": samples,
        "new": new,
        "temperature": temperature,
        "rewards": {name: r.identity for name, r in rewards.items()},
    }

    def make(folder) -> dict[str, float]:
        policy.load(theta)
        repeated = [p for p in prompts for _ in range(samples)]
        with machine.passes(precision):
            # SFT's own logits are computed twice in one way, so that its KL to itself is exactly 0.
            kept = _room(policy, len(repeated), new) if inputs["theta"] != inputs["sft"] else None
            y = policy.sample(
                repeated,
                new,
                temperature,
                torch_stream("evaluation", split, device=machine.device()),
                progress,
                kept,
            )
            apart = measures(policy, sft, y, temperature, kept)
        texts = policy.texts(y)
        scores = {name: reward(texts) for name, reward in rewards.items()} | apart
        scores = {name: s.view(len(prompts), samples) for name, s in scores.items()}
        save_tensors(folder / "scores.safetensors", scores)
        save_tensors(folder / "rollouts.safetensors", {"tokens": y.tokens, "mask": y.mask})
        return summarise(scores, y.completions.view(len(prompts), samples, new).cpu())

    entry = memoise("evaluation", inputs, make)
    y = entry.tensors("rollouts")
    return Evaluation(entry.record, entry.tensors("scores"), Rollouts(y["tokens"], y["mask"], new))


@torch.no_grad()
def language_loss(policy: Policy, reviews: Sequence[str], tokens: int) -> tuple[float, float]:
    """Next-token loss of a policy on the first `tokens` tokens of reviews: nats per token, and its
    standard error over reviews.

    Plain language modelling: no temperature, nothing masked; shorter reviews are left out. The
    first token is not counted, and stands behind BOS where the model was trained so.
    """
    rows = [policy.bos_ids + row for row in policy.openings(reviews, tokens)]
    ids = torch.tensor(rows, device=machine.device())
    if len(ids) < 2:
        raise Explained(
            f"the policy's loss is measured on reviews of at least {tokens} tokens, and fewer than"
            " two validation reviews have them; give longer reviews or a smaller max_new_tokens."
        )
    first = len(policy.bos_ids)
    losses = []
    for part in ids.split(CHUNK):
        logits = policy.model(part, use_cache=False).logits[:, first:-1]
        chosen = ChosenLogProbs.apply(logits.flatten(0, 1), part[:, first + 1 :].flatten(), 1.0, [])
        losses.append(-chosen.view(len(part), -1).mean(1))
    loss = torch.cat(losses)
    return loss.mean().item(), loss.std().item() / math.sqrt(len(loss))


def _room(policy: Policy, rows: int, new: int) -> Tensor:
    """Memory for the logits of as many rows as `KEPT` holds."""
    words = policy.model.config.get_text_config().vocab_size
    return torch.empty(min(rows, KEPT // (4 * new * words)), new, words, device=machine.device())


@torch.no_grad()
def measures(
    policy: Policy, sft: Policy, rollouts: Rollouts, temperature: float, kept: Tensor | None = None
) -> dict[str, Tensor]:
    """For each completion (n,): kl and k1 to SFT in nats, entropy in nats per token, SFT's mean
    negative log-probability per token.

    kept: the policy's logits that `Policy.sample` kept for the first rollouts; the others' are
    computed.
    """
    parts = []
    for number, chunk in enumerate(rollouts.split(CHUNK)):
        logits_p = None if kept is None else kept[number * CHUNK : (number + 1) * CHUNK]
        if logits_p is None or len(logits_p) < len(chunk.tokens):
            logits_p = policy.logits(chunk)
        logits_q = sft.logits(chunk)
        few = at_once(logits_p[0])
        for p, q, y in zip(
            logits_p.split(few),
            logits_q.split(few),
            chunk.completions[..., None].split(few),
            strict=True,
        ):
            log_p = policy.log_distribution(p, temperature)
            log_q = sft.log_distribution(q, temperature)
            p = log_p.exp()
            log_p_y = log_p.gather(-1, y)[..., 0]
            log_q_y = log_q.gather(-1, y)[..., 0]
            parts.append(
                [
                    exact_kl(p, log_p, log_q).sum(1),
                    (log_p_y - log_q_y).sum(1),
                    -(p * log_p).sum(-1).mean(1),
                    -log_q_y.mean(1),
                ]
            )
    columns = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return dict(zip(("kl", "kl_k1", "entropy", "nll_sft"), columns, strict=True))


def exact_kl(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) over the vocabulary at each position of a sampled completion: (n, new, vocabulary)
    → (n, new), nats.

    Their sum is the Rao–Blackwellised estimator of KL(π‖π_sft) (arXiv 2504.10637): unbiased, and of
    no more variance than the log-ratio (kl_k1).
    """
    return (p * (log_p - log_q)).sum(2)


def summarise(scores: dict[str, Tensor], completions: Tensor) -> dict[str, float]:
    """Means and standard errors clustered by prompt, from scores (prompts, samples) and token ids
    (prompts, samples, new).
    """
    by_prompt = {name: s.double().mean(1) for name, s in scores.items()}
    by_prompt["distinct2"] = torch.tensor(
        [distinct_pairs(c) for c in completions], dtype=torch.float64
    )
    summary = {}
    for name, values in by_prompt.items():
        summary |= {
            name: values.mean().item(),
            f"{name}_se": values.std().item() / math.sqrt(len(values)),
        }
    perplexity = math.exp(summary.pop("nll_sft"))
    return summary | {
        "perplexity": perplexity,
        "perplexity_se": perplexity * summary.pop("nll_sft_se"),
    }


def distinct_pairs(completions: Tensor) -> float:
    """Distinct pairs of neighbouring tokens as a share of all, over one prompt's completions
    (samples, new).
    """
    pairs = torch.stack([completions[:, :-1], completions[:, 1:]], -1).flatten(0, 1)
    return len(pairs.unique(dim=0)) / max(1, len(pairs))
