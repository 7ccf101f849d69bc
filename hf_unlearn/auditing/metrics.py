"""Metrics of predictions, accuracies and tokens: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import accuracy_score

from hf_unlearn.data.splitting import REQUESTS

# A softmax in float32 sums to 1 within 1e-5 over any vocabulary; one in bfloat16 does not, and is refused.
SUM_TOLERANCE = 1e-3


def check_pairs(predictions: Sequence[Any], references: Sequence[Any]) -> None:
    """Every prediction has its reference.

    Raises:
        ValueError: when there is none, or the lengths differ.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions: {len(predictions)} samples, but references has {len(references)}; pass one each"
        )
    if not len(predictions):
        raise ValueError("predictions: no samples; pass at least one")


def check_numbers(name: str, values: Any, low: float = -np.inf, high: float = np.inf, ndim: int = 1) -> np.ndarray:
    """`values` as a float64 array with `ndim` dimensions, not empty, every number in [low, high].

    Raises:
        ValueError: when it is not.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except ValueError as error:  # samples of different lengths, or no numbers
        raise ValueError(f"{name}: {error}") from None
    if found.ndim != ndim or not found.size:
        raise ValueError(f"{name}: needs {ndim} dimensions and at least one number, got shape {found.shape}")
    if not ((found >= low) & (found <= high)).all():  # false for NaN, too
        raise ValueError(f"{name}: must be in [{low:g}, {high:g}], got {found.min():g} to {found.max():g}")
    return found


def check_losses(name: str, values: Any, ndim: int = 1) -> np.ndarray:
    """As `check_numbers`, of negative log-likelihoods: at least 0 and finite.

    Raises:
        ValueError: when it is not.
    """
    found = check_numbers(name, values, 0, ndim=ndim)
    if np.isinf(found).any():
        raise ValueError(f"{name}: must be finite; leave out the samples whose loss is not, and say how many")
    return found


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Share of right predictions, in [0, 1] (`sklearn.metrics.accuracy_score`).

    On the forget dataset best as in a retrained model, elsewhere higher is better.

    Args:
        predictions: [n] predicted classes.
        references: [n] true classes.

    Raises:
        ValueError: lengths differ or are 0.

    Examples:
        >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
        0.75
    """
    check_pairs(predictions, references)
    return float(accuracy_score(references, predictions))


def unlearning_impact_score(
    original_test: float,
    unlearned_test: float,
    unlearned_forget: float,
    request: str = "samples",
) -> float:
    """UIS: what forgetting cost on test samples, and how far it is from done. At least 0, lower is better.

    Shamsian et al. 2025 (arXiv 2503.02312). With O_t the original's accuracy on test samples, U_t and U_f the unlearned
    model's on test and forget samples: `(|O_t - U_t| / O_t + |O_t - U_f| / O_t) / 2` for random samples (and groups), which
    should be predicted as well as samples never seen, and `(|O_t - U_t| / O_t + U_f / O_t) / 2` for classes, which should
    not be predicted at all.

    Args:
        original_test: O_t in (0, 1].
        unlearned_test: U_t in [0, 1].
        unlearned_forget: U_f in [0, 1].
        request: what was to be forgotten: `"samples"`, `"class"` or `"group"`, as `split_forget_retain` marks it.

    Raises:
        ValueError: an accuracy is out of range, or the request is another one.

    Examples:
        >>> round(unlearning_impact_score(0.8, 0.76, 0.84), 12)
        0.05
        >>> round(unlearning_impact_score(0.8, 0.76, 0.0, request="class"), 12)
        0.025
    """
    accuracies = {
        "original_test": original_test,
        "unlearned_test": unlearned_test,
        "unlearned_forget": unlearned_forget,
    }
    for name, value in accuracies.items():
        check_numbers(name, value, 0, 1, ndim=0)
    if original_test == 0:
        raise ValueError("original_test: is 0, and the score is relative to it; measure an original that predicts")
    if request not in REQUESTS:
        raise ValueError(f"request: must be one of {', '.join(REQUESTS)}, got {request!r}")
    ideal = 0.0 if request == "class" else original_test
    return (abs(original_test - unlearned_test) + abs(ideal - unlearned_forget)) / (2 * original_test)


def tug_of_war(predictions: Sequence[float], references: Sequence[float]) -> float:
    """ToW: as accurate as a retrained model on every set at once? In [0, 1], higher is better.

    Zhao et al. 2024 (arXiv 2406.01257): the product of `1 - |a - a_retrained|` over the forget, retain and test dataset.

    Args:
        predictions: [3] accuracies in [0, 1] of the unlearned model on forget, retain and test samples.
        references: [3] those of a model retrained without the forget dataset.

    Raises:
        ValueError: there are not three of each, or one is out of range.

    Examples:
        >>> tug_of_war([0.7, 1.0, 0.9], [0.5, 1.0, 0.9])
        0.8
    """
    check_pairs(predictions, references)
    if len(predictions) != 3:
        raise ValueError(f"predictions: three accuracies (forget, retain, test), got {len(predictions)}")
    found, wanted = check_numbers("predictions", predictions, 0, 1), check_numbers("references", references, 0, 1)
    return float(np.prod(1 - np.abs(found - wanted)))


def kl_divergence(predictions: Any, references: Any) -> float:
    """Kullback-Leibler divergence of the model's predictions from the reference's, mean over samples. Lower is better.

    `sum_c r_c log(r_c / p_c)`, r the reference's (retrained model's) sample, p the model's: how surprised one who
    expects p is by the reference. In nats, in [0, inf]; infinite where the model excludes what the reference does not.
    Unlearning is judged by it since Golatkar et al. 2020 (arXiv 1911.04933).

    Args:
        predictions: [n, classes] probabilities or their logarithms, of the model.
        references: [n, classes] likewise, of the reference.

    Raises:
        ValueError: shapes differ, or a sample is no distribution.

    Examples:
        >>> round(kl_divergence([[0.5, 0.5]], [[1.0, 0.0]]), 6)
        0.693147
    """
    found, wanted = _distributions(predictions, references)
    return float(_kl(wanted, found).mean())


def js_divergence(predictions: Any, references: Any) -> float:
    """Jensen-Shannon divergence of the model's predictions and the reference's, mean over samples. Lower is better.

    `(KL(r, m) + KL(p, m)) / 2` with `m = (r + p) / 2`: symmetric, in nats, in [0, log 2]. Chundawat et al. 2023
    (arXiv 2205.08096) judge unlearning by it (there 1 minus it, against an incompetent teacher).

    Args:
        predictions: [n, classes] probabilities or their logarithms, of the model.
        references: [n, classes] likewise, of the reference.

    Raises:
        ValueError: shapes differ, or a sample is no distribution.

    Examples:
        >>> round(js_divergence([[0.0, 1.0]], [[1.0, 0.0]]), 6)
        0.693147
    """
    found, wanted = _distributions(predictions, references)
    middle = np.logaddexp(found, wanted) - np.log(2)
    return float((_kl(found, middle) + _kl(wanted, middle)).mean() / 2)


def exact_memorization(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Share of tokens that are the likeliest ones given all before, mean over samples. In [0, 1].

    On the forget dataset lower is better. Tirumala et al. 2022 (arXiv 2205.10770), by samples as in open-unlearning, which
    leaves out the last token, the end of the sequence.

    Args:
        predictions: [n] samples of token ids, the argmax at every position with the true tokens before it.
        references: [n] samples of as many true token ids.

    Raises:
        ValueError: lengths differ, or a sample is empty.

    Examples:
        >>> exact_memorization([[5, 6, 7, 8]], [[5, 6, 9, 8]])
        0.75
    """
    return float(np.mean([right.mean() for right in _right_tokens(predictions, references)]))


def extraction_strength(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """How little of a text makes the model write the rest, mean over samples. In [0, 1].

    On the forget dataset lower is better. `1 - k / n`, k the fewest tokens of n after which every likeliest token is the
    true one: where all are right, teacher forcing and greedy decoding agree (Carlini et al. 2021, arXiv 2012.07805;
    Wang et al. 2024, arXiv 2406.09179). 0 when the last token is wrong; open-unlearning has `1 / n` there.

    Args:
        predictions: as in `exact_memorization`.
        references: as in `exact_memorization`.

    Raises:
        ValueError: lengths differ, or a sample is empty.

    Examples:
        >>> extraction_strength([[5, 6, 7, 8]], [[5, 9, 7, 8]])
        0.5
    """
    # The number of right tokens at the end is n - k.
    samples = _right_tokens(predictions, references)
    return float(np.mean([np.logical_and.accumulate(right[::-1]).mean() for right in samples]))


def run_time_ratio(unlearn_seconds: float, retrain_seconds: float) -> float:
    """Seconds of unlearning over seconds of retraining without the forget dataset. Above 0, lower is better.

    At 1 and above unlearning saves nothing.

    Raises:
        ValueError: a time is not positive and finite.

    Examples:
        >>> run_time_ratio(30, 600)
        0.05
    """
    for name, value in (("unlearn_seconds", unlearn_seconds), ("retrain_seconds", retrain_seconds)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: must be positive and finite, got {value}")
    return unlearn_seconds / retrain_seconds


def _distributions(predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    check_pairs(predictions, references)
    found, wanted = _log_samples("predictions", predictions), _log_samples("references", references)
    if found.shape != wanted.shape:
        raise ValueError(f"predictions: {found.shape[1]} classes, but references has {wanted.shape[1]}")
    return found, wanted


def _log_samples(name: str, samples: Any) -> np.ndarray:
    # Probabilities have something above 0 in every sample, their logarithms nowhere: the sign tells them apart.
    found = check_numbers(name, samples, high=1, ndim=2)
    if (found > 0).any():
        check_numbers(name, found, 0, 1, ndim=2)
        with np.errstate(divide="ignore"):
            found = np.log(found)
    total = logsumexp(found, axis=1, keepdims=True)
    if not (np.abs(total) <= SUM_TOLERANCE).all():
        worst = np.exp(total.flat[np.abs(total).argmax()])
        raise ValueError(
            f"{name}: the probabilities of a sample sum to {worst:g}, not 1; pass a float32 (log) softmax"
        )
    return found - total


def _kl(of: np.ndarray, given: np.ndarray) -> np.ndarray:
    # Between logarithms, so that probabilities too small for a float count; 0 log 0 is 0.
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(of), 0.0, np.exp(of) * (of - given)).sum(axis=1)


def _right_tokens(predictions: Sequence[Any], references: Sequence[Any]) -> list[np.ndarray]:
    check_pairs(predictions, references)
    samples = [(np.asarray(p), np.asarray(r)) for p, r in zip(predictions, references, strict=True)]
    for i, (found, wanted) in enumerate(samples):
        if found.shape != wanted.shape or not len(found):
            lengths = f"sample {i} has {len(found)} tokens, its reference {len(wanted)}"
            raise ValueError(f"predictions: {lengths}; pass as many, at least one")
    return [found == wanted for found, wanted in samples]
