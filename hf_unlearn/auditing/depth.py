"""How deep the data is forgotten: what attempts to bring it back find beyond what they find in a retrained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hf_unlearn.auditing.differences import spread_variance

# Half of a 95 % interval, in deviations.
Z = 1.96


class Attempt(NamedTuple):
    """An attempt to bring forgotten data back.

    Attributes:
        finds: what it does, in words.
        sign: 1 where a higher value means that more has come back, -1 where a lower one does.
        spread: how much two retrained models differ by it, one deviation, beyond the chance of the samples: of 17
            pairs on digits and Fashion-MNIST (benchmarks/README.md, "Depth").
    """

    finds: str
    sign: int
    spread: float


# By the metric that it is read from; all are shares.
ATTEMPTS: Mapping[str, Attempt] = {
    "finetuned_forget_accuracy": Attempt("training on retain samples", 1, 0.01),
    "relearned_forget_accuracy": Attempt("relearning from a few samples", 1, 0.03),
    "one_offset": Attempt("one number, added to the output of the class", -1, 0.14),
    "probe_forget_accuracy": Attempt("a probe of the features", 1, 0.03),
    "int8_forget_accuracy": Attempt("rounding to 8 bits", 1, 0.01),
    "int4_forget_accuracy": Attempt("rounding to 4 bits", 1, 0.03),
    "forget_rouge_l_recall": Attempt("asking for the answers", 1, 0.03),
}


def depth(metrics: Mapping[str, float], retrained: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The advantage that attempts to bring data back have over the same attempts on a retrained model.

    An advantage is the difference to the mean of the retrained models, over the deviation that such a difference has
    by chance: two retrained models differ, and so does what is measured on few samples. Up to two or three it is
    nothing; the deeper a model has forgotten, the lower. Below zero the attempt finds less than in a retrained model.

    Args:
        metrics: of the model, with the ends of their intervals (`<name>_low`, `<name>_high`).
        retrained: of one or more retrained models, likewise.

    Returns:
        `depth_<attempt>` for each of `ATTEMPTS` that all models have, and `depth`, the largest of them; nothing where
        there is none.

    Examples:
        >>> shallow = {"finetuned_forget_accuracy": 0.9, "one_offset": 0.05}
        >>> depth(shallow, [{"finetuned_forget_accuracy": 0.5, "one_offset": 0.4}])
        {'depth_finetuned': 28.3, 'depth_one_offset': 1.8, 'depth': 28.3}
    """
    advantages = {}
    for name in ATTEMPTS:
        if retrained and all(math.isfinite(of_model.get(name, math.nan)) for of_model in (metrics, *retrained)):
            short = name.removesuffix("_forget_accuracy").removeprefix("forget_")
            advantages[f"depth_{short}"] = round(advantage(name, metrics, retrained), 1)
    return advantages | ({"depth": max(advantages.values())} if advantages else {})


def advantage(name: str, metrics: Mapping[str, float], retrained: Sequence[Mapping[str, float]]) -> float:
    """The advantage of one attempt in deviations; see `depth`.

    Args:
        name: of its metric, one of `ATTEMPTS`.
        metrics: of the model.
        retrained: of one or more retrained models.
    """
    attempt, values = ATTEMPTS[name], [of_model[name] for of_model in retrained]
    variance = spread_variance(attempt.spread, values) * (1 + 1 / len(values))
    variance += (
        _error(name, metrics) ** 2 + sum(_error(name, of_model) ** 2 for of_model in retrained) / len(values) ** 2
    )
    return attempt.sign * (metrics[name] - float(np.mean(values))) / math.sqrt(variance)


def _error(name: str, metrics: Mapping[str, float]) -> float:
    """The standard error by the chance of the samples; 0 where there is no interval."""
    return (metrics.get(f"{name}_high", 0.0) - metrics.get(f"{name}_low", 0.0)) / (2 * Z)
