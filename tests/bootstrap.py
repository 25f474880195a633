"""An oracle for intervals over prompts: the bootstrap."""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import stdtrit

from warp_lib.study.fronts import Interval

DRAWS = 2000


def bootstrap(number: Callable[[np.ndarray], float], prompts: int) -> Interval:
    """The 95% interval over prompts of a number that is no plain mean over them.

    A front's reward at a KL is one: its points' KL is a mean over the same prompts too. The prompts
    are drawn anew `DRAWS` times, always the same ones, and the number's standard deviation over the
    draws is its error. For a plain mean that is `Interval.of`.

    Args:
        number: what it is when each prompt counts as much as these shares say, (prompts,), of sum
            1.
        prompts: how many there are.
    """
    equal = np.full(prompts, 1 / prompts)
    drawn = np.random.default_rng(0).multinomial(prompts, equal, DRAWS) / prompts
    mean, error = number(equal), np.std([number(share) for share in drawn])
    # drawn n of n, a mean varies (n − 1)/n too little
    half = stdtrit(prompts - 1, 0.975) * error * math.sqrt(prompts / (prompts - 1))
    return Interval(mean, mean - half, mean + half, prompts)
