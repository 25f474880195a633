"""Best-of-n, the yardstick that trains nothing: of n completions of SFT the one of most reward."""

import math

import torch
from torch import Tensor


def best_of(rewards: Tensor, scores: Tensor, n: int) -> Tensor:
    """Expected score of the best of n completions of each prompt, (prompts,).

    That is the mean over all ways to choose n of its N: the completion whose reward is the k-th
    smallest is the best of (k−1 choose n−1) of these (N choose n) ways.

    Args:
        rewards: choose the best, (prompts, N).
        scores: of the same completions, the rewards themselves or a judge's, (prompts, N).

    Raises ValueError unless 1 ≤ n ≤ N.
    """
    many = rewards.shape[1]
    if not 1 <= n <= many:
        raise ValueError(f"n must be from 1 to the {many} completions of a prompt, not {n}.")
    k = torch.arange(n, many + 1, dtype=torch.float64)
    ways = torch.zeros(many, dtype=torch.float64)
    ways[n - 1 :] = torch.exp(_log_choose(k - 1, n - 1) - _log_choose(many, n))
    return scores.double().gather(1, rewards.argsort(1)) @ ways


def kl_of_best(n: int) -> float:
    """log n − (n−1)/n: the most that best-of-n's KL to the policy it samples from can be, nats."""
    return math.log(n) - (n - 1) / n


def _log_choose(total: Tensor | int, chosen: int) -> Tensor:
    n, k = (torch.as_tensor(count, dtype=torch.float64) for count in (total, chosen))
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
