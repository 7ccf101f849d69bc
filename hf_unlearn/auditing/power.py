"""What an attempt could have found: the smallest advantage over retrained models that it would not have missed."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from hf_unlearn.auditing.depth import Z, advantage
from hf_unlearn.auditing.estimates import flat, share_estimate

# The share of models with such an advantage that are found.
POWER = 0.8


def detectable_difference(name: str, retrained: Sequence[Mapping[str, float]], samples: int) -> float:
    """The smallest difference to retrained models that an attempt finds with 80 % power, at the level of 5 %.

    An advantage counts as found beyond 1.96 deviations (5 %, two-sided), as `depth` counts them: what retrained models
    differ by, and the chance of the samples of either side. Of n samples that takes at least c right. Of a model of
    which a sample comes back with probability p, the number X of those that do is binomial, and

        P(X >= c) = I_p(c, n - c + 1) = 0.8,

    I the regularised incomplete beta function: p is the 0.8 quantile of the Beta(c, n - c + 1) distribution. Returned
    is p minus the mean of the retrained models. These are taken as they were measured.

    Source: power of an exact binomial test, Fleiss, Levin and Paik 2003, "Statistical Methods for Rates and
    Proportions", chapter 2; the binomial tail as a beta distribution, Clopper and Pearson 1934.

    Args:
        name: of the metric, an accuracy of `ATTEMPTS`.
        retrained: metrics of one or more retrained models, with the ends of their intervals.
        samples: n, on which the accuracy is measured.

    Returns:
        A difference of accuracies, in (0, 1]; NaN where not even all samples right would be found.

    Examples:
        >>> retrained = [{"probe_forget_accuracy": 0.6}]
        >>> [round(detectable_difference("probe_forget_accuracy", retrained, n), 3) for n in (20, 100, 1000)]
        [0.242, 0.161, 0.1]
        >>> detectable_difference("probe_forget_accuracy", [{"probe_forget_accuracy": 0.95}], 20)
        nan
    """

    def found(right: int) -> float:
        return advantage(name, flat({name: share_estimate(right / samples, samples)}), retrained)

    least = bisect_left(range(samples + 1), Z, key=found)
    if least > samples:
        return math.nan
    accuracy = stats.beta.ppf(POWER, least, samples - least + 1)
    return float(accuracy - np.mean([of_model[name] for of_model in retrained]))
