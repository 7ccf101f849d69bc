"""Settings that follow from method, model and data; benchmarks/README.md has what was tried."""

from __future__ import annotations

import math

from hf_unlearn.methods import Method, Setting

PASSES, LEAST_STEPS, MOST_STEPS = 4, 100, 240
# Without a target an unbounded ascent has to end somewhere: a few steps, and a warning that says so.
STEPS_WITHOUT_TARGET = 30


def default_learning_rate(method: Method, trainable: int, adapter: bool) -> float:
    """2e-3 for an adapter; for all weights the method's own, smaller for more than a million of them.

    Args:
        method: the method.
        trainable: number of trainable weights.
        adapter: whether they are an adapter's.
    """
    return 2e-3 if adapter else method.learning_rate * min(1.0, (1e6 / trainable) ** 0.5)


def default_steps(setting: Setting, forget_per_step: int, retain_per_step: int) -> int:
    """Four passes over the larger of the two sets, but at least 100 steps and at most 240.

    Args:
        setting: the sizes of the sets.
        forget_per_step: forget rows of an optimizer step, over all processes and accumulated batches.
        retain_per_step: retain rows of one.

    Examples:
        >>> default_steps(Setting(100, 2000, text=False), 64, 64)
        128
    """
    steps = max(math.ceil(setting.forget_rows / forget_per_step), math.ceil(setting.retain_rows / retain_per_step))
    return min(max(PASSES * steps, LEAST_STEPS), MOST_STEPS)
