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
        part: its name in `depth_<part>`.
        finds: what it does, in words.
        sign: 1 where a higher value means that more has come back, -1 where a lower one does.
        spread: how much two retrained models differ by it, one deviation, beyond the chance of the samples: of 17
            pairs on digits and Fashion-MNIST (benchmarks/README.md, "Depth"). None: no pair was measured; several
            retrained models say by themselves how much they differ, one alone leaves the chance of the samples.
    """

    part: str
    finds: str
    sign: int
    spread: float | None


# By the metric that it is read from; all are shares.
ATTEMPTS: Mapping[str, Attempt] = {
    "finetuned_forget_accuracy": Attempt("finetuned", "training on retain samples", 1, 0.01),
    "relearned_forget_accuracy": Attempt("relearned", "relearning from a few samples", 1, 0.03),
    "one_offset": Attempt("one_offset", "one number, added to the output of the class", -1, 0.14),
    "probe_forget_accuracy": Attempt("probe", "a probe of the features", 1, 0.03),
    "int8_forget_accuracy": Attempt("int8", "rounding to 8 bits", 1, 0.01),
    "int4_forget_accuracy": Attempt("int4", "rounding to 4 bits", 1, 0.03),
    "forget_rouge_l_recall": Attempt("extraction", "asking for the answers", 1, None),
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
        `depth_<part>` for each of `ATTEMPTS` that all models have, and `depth`, the largest of them; nothing where
        there is none. An attempt of which nothing says what it may differ by is left out.

    Examples:
        >>> shallow = {"finetuned_forget_accuracy": 0.9, "one_offset": 0.05}
        >>> depth(shallow, [{"finetuned_forget_accuracy": 0.5, "one_offset": 0.4}])
        {'depth_finetuned': 28.3, 'depth_one_offset': 1.8, 'depth': 28.3}
    """
    advantages = {}
    for name, attempt in ATTEMPTS.items():
        if retrained and all(name in of_model for of_model in (metrics, *retrained)):
            found = advantage(name, metrics, retrained)
            if math.isfinite(found):
                advantages[f"depth_{attempt.part}"] = round(found, 1)
    return advantages | ({"depth": max(advantages.values())} if advantages else {})


def advantage(name: str, metrics: Mapping[str, float], retrained: Sequence[Mapping[str, float]]) -> float:
    """The advantage of one attempt in deviations; see `depth`.

    Args:
        name: of its metric, one of `ATTEMPTS`.
        metrics: of the model.
        retrained: of one or more retrained models.

    Returns:
        NaN where nothing says what the difference may be by chance.
    """
    attempt, values = ATTEMPTS[name], [of_model[name] for of_model in retrained]
    count = len(values)
    if attempt.spread is not None:
        variance = spread_variance(attempt.spread, values)
    else:
        variance = float(np.var(values, ddof=1)) if count > 1 else 0.0
    variance *= 1 + 1 / count
    variance += _error(name, metrics) ** 2 + sum(_error(name, of_model) ** 2 for of_model in retrained) / count**2
    difference = attempt.sign * (metrics[name] - float(np.mean(values)))
    return difference / math.sqrt(variance) if variance > 0 else math.nan


def _error(name: str, metrics: Mapping[str, float]) -> float:
    """The standard error by the chance of the samples; 0 where there is no interval."""
    return (metrics.get(f"{name}_high", 0.0) - metrics.get(f"{name}_low", 0.0)) / (2 * Z)
