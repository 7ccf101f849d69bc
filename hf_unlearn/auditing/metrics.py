"""Metrics of predictions, accuracies and tokens: pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.metrics import accuracy_score

from hf_unlearn.data.types import check_request

# [n, classes], or their logarithms.
Probabilities: TypeAlias = np.ndarray | Sequence[Sequence[float]]
# A softmax in float32 sums to 1 within 1e-5 over any vocabulary; one in bfloat16 does not, and is refused.
SUM_TOLERANCE = 1e-3


def check_pairs(predictions: Sized, references: Sized) -> None:
    """Check that every prediction has a reference.

    Raises:
        ValueError: there is no prediction, or the lengths differ.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions: {len(predictions)} samples, but references has {len(references)}; pass one each"
        )
    if not len(predictions):
        raise ValueError("predictions: no samples; pass at least one")


def check_numbers(
    name: str, values: ArrayLike, low: float = -np.inf, high: float = np.inf, ndim: int = 1
) -> np.ndarray:
    """`values` as a float64 array with `ndim` dimensions, not empty, every number in [low, high].

    Raises:
        ValueError: when it is not.
    """
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except ValueError as error:  # samples of different lengths, or no numbers
        raise ValueError(f"{name}: {error}") from None
    if numbers.ndim != ndim or not numbers.size:
        raise ValueError(f"{name}: needs {ndim} dimensions and at least one number, got shape {numbers.shape}")
    if not ((numbers >= low) & (numbers <= high)).all():  # false for NaN, too
        raise ValueError(f"{name}: must be in [{low:g}, {high:g}], got {numbers.min():g} to {numbers.max():g}")
    return numbers


def check_losses(name: str, values: ArrayLike, ndim: int = 1) -> np.ndarray:
    """As `check_numbers`, for negative log-likelihoods: at least 0 and finite.

    Raises:
        ValueError: when it is not.
    """
    losses = check_numbers(name, values, 0, ndim=ndim)
    if np.isinf(losses).any():
        raise ValueError(f"{name}: must be finite; leave out the samples whose loss is not, and report how many")
    return losses


def accuracy(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Share of correct predictions, in [0, 1] (`sklearn.metrics.accuracy_score`).

    On the forget dataset best when equal to a retrained model's, elsewhere higher is better.

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
    """UIS: the accuracy lost on test samples, and what is left to forget. At least 0, lower is better.

    Shamsian et al. 2025 (arXiv 2503.02312). With O_t the original's accuracy on test samples, U_t and U_f the
    unlearned model's on test and forget samples: `(|O_t - U_t| / O_t + |O_t - U_f| / O_t) / 2` for random samples
    (and groups), which should be predicted as well as unseen samples, and `(|O_t - U_t| / O_t + U_f / O_t) / 2` for
    classes, which should not be predicted at all.

    Args:
        original_test: O_t in (0, 1].
        unlearned_test: U_t in [0, 1].
        unlearned_forget: U_f in [0, 1].
        request: the kind of forget request, `"samples"`, `"class"` or `"group"`, as `split_forget_retain` marks it.

    Raises:
        ValueError: an accuracy is out of range, or there is no such request.

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
    check_request(request)
    ideal = 0.0 if request == "class" else original_test
    return (abs(original_test - unlearned_test) + abs(ideal - unlearned_forget)) / (2 * original_test)


def tug_of_war(predictions: Sequence[float], references: Sequence[float]) -> float:
    """ToW: how close the accuracies are to a retrained model's on all datasets. In [0, 1], higher is better.

    Zhao et al. 2024 (arXiv 2406.01257): the product of `1 - |a - a_retrained|` over forget, retain and test dataset.

    Args:
        predictions: [3] accuracies in [0, 1] of the unlearned model on forget, retain and test samples.
        references: [3] accuracies of the retrained model.

    Raises:
        ValueError: there are not three of each, or one is out of range.

    Examples:
        >>> tug_of_war([0.7, 1.0, 0.9], [0.5, 1.0, 0.9])
        0.8
    """
    check_pairs(predictions, references)
    if len(predictions) != 3:
        raise ValueError(f"predictions: three accuracies (forget, retain, test), got {len(predictions)}")
    unlearned, retrained = (
        check_numbers("predictions", predictions, 0, 1),
        check_numbers("references", references, 0, 1),
    )
    return float(np.prod(1 - np.abs(unlearned - retrained)))


def kl_divergence(predictions: Probabilities, references: Probabilities) -> float:
    """Kullback-Leibler divergence of the predictions from the retrained model's, mean over samples. Lower is better.

    `sum_c r_c log(r_c / p_c)`, r the prediction of the retrained model on a sample, p that of the model. In nats, in
    [0, inf]; infinite where the model gives probability 0 to a class and the retrained model does not.
    A measure of unlearning since Golatkar et al. 2020 (arXiv 1911.04933).

    Args:
        predictions: [n, classes] probabilities or their logarithms, of the model.
        references: [n, classes] likewise, of the retrained model.

    Raises:
        ValueError: shapes differ, or the probabilities of a sample do not sum to 1.

    Examples:
        >>> round(kl_divergence([[0.5, 0.5]], [[1.0, 0.0]]), 6)
        0.693147
    """
    log_p, log_r = _log_probabilities(predictions, references)
    return float(_kl(log_r, log_p).mean())


def js_divergence(predictions: Probabilities, references: Probabilities) -> float:
    """Jensen-Shannon divergence of the predictions and the retrained model's, mean over samples. Lower is better.

    `(KL(r, m) + KL(p, m)) / 2` with `m = (r + p) / 2`: symmetric, in nats, in [0, log 2]. Chundawat et al. 2023
    (arXiv 2205.08096) measure unlearning by it (there 1 minus it, against an incompetent teacher).

    Args:
        predictions: as in `kl_divergence`.
        references: as in `kl_divergence`.

    Raises:
        ValueError: shapes differ, or the probabilities of a sample do not sum to 1.

    Examples:
        >>> round(js_divergence([[0.0, 1.0]], [[1.0, 0.0]]), 6)
        0.693147
    """
    log_p, log_r = _log_probabilities(predictions, references)
    log_middle = np.logaddexp(log_p, log_r) - np.log(2)
    return float((_kl(log_p, log_middle) + _kl(log_r, log_middle)).mean() / 2)


def exact_memorization(predictions: Sequence[ArrayLike], references: Sequence[ArrayLike]) -> float:
    """Share of tokens that are the most likely ones given all tokens before, mean over samples. In [0, 1].

    On the forget dataset lower is better. Tirumala et al. 2022 (arXiv 2205.10770), by samples as in open-unlearning,
    which leaves out the last token, the end of the sequence.

    Args:
        predictions: [n] samples of token ids, the argmax at every position given the true tokens before it.
        references: [n] samples of true token ids, of the same lengths.

    Raises:
        ValueError: lengths differ, or a sample is empty.

    Examples:
        >>> exact_memorization([[5, 6, 7, 8]], [[5, 6, 9, 8]])
        0.75
    """
    return float(np.mean([correct.mean() for correct in _correct_tokens(predictions, references)]))


def extraction_strength(predictions: Sequence[ArrayLike], references: Sequence[ArrayLike]) -> float:
    """The share of a text that the model completes without an error, mean over samples. In [0, 1].

    On the forget dataset lower is better. `1 - k / n`, k the fewest tokens of n after which every most likely token is
    the true one: where all are right, teacher forcing and greedy decoding agree (Carlini et al. 2021, arXiv
    2012.07805; Wang et al. 2024, arXiv 2406.09179). As in open-unlearning k is at most `n - 1`, so that a sample whose
    last token is wrong has `1 / n`; there a sample of one wrong token has 1, here 0.

    Args:
        predictions: as in `exact_memorization`.
        references: as in `exact_memorization`.

    Raises:
        ValueError: lengths differ, or a sample is empty.

    Examples:
        >>> extraction_strength([[5, 6, 7, 8]], [[5, 9, 7, 8]])
        0.5
    """
    return float(np.mean([_extracted_share(correct) for correct in _correct_tokens(predictions, references)]))


def _extracted_share(correct: np.ndarray) -> float:
    right_at_the_end = int(np.logical_and.accumulate(correct[::-1]).sum())
    return (right_at_the_end if len(correct) == 1 else max(1, right_at_the_end)) / len(correct)


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


def _log_probabilities(predictions: Probabilities, references: Probabilities) -> tuple[np.ndarray, np.ndarray]:
    check_pairs(predictions, references)
    log_p, log_r = _as_log_probabilities("predictions", predictions), _as_log_probabilities("references", references)
    if log_p.shape != log_r.shape:
        raise ValueError(f"predictions: {log_p.shape[1]} classes, but references has {log_r.shape[1]}")
    return log_p, log_r


def _as_log_probabilities(name: str, values: ArrayLike) -> np.ndarray:
    # Every sample of probabilities has a number above 0, logarithms have none: the sign tells them apart.
    log_probs = check_numbers(name, values, high=1, ndim=2)
    if (log_probs > 0).any():
        check_numbers(name, log_probs, 0, 1, ndim=2)
        with np.errstate(divide="ignore"):
            log_probs = np.log(log_probs)
    total = logsumexp(log_probs, axis=1, keepdims=True)
    if not (np.abs(total) <= SUM_TOLERANCE).all():
        worst = np.exp(total.flat[np.abs(total).argmax()])
        raise ValueError(
            f"{name}: the probabilities of a sample sum to {worst:g}, not 1; pass a float32 (log) softmax"
        )
    return log_probs - total


def _kl(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p, q) [n] of log probabilities [n, classes], so that probabilities too small for a float count."""
    with np.errstate(invalid="ignore"):  # 0 log 0 is 0
        return np.where(np.isneginf(log_p), 0.0, np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def _correct_tokens(predictions: Sequence[ArrayLike], references: Sequence[ArrayLike]) -> list[np.ndarray]:
    check_pairs(predictions, references)
    samples = [(np.asarray(p), np.asarray(r)) for p, r in zip(predictions, references, strict=True)]
    for i, (predicted, true) in enumerate(samples):
        if predicted.shape != true.shape or not len(predicted):
            lengths = f"sample {i} has {len(predicted)} tokens, its reference {len(true)}"
            raise ValueError(f"predictions: {lengths}; pass the same number, at least one")
    return [predicted == true for predicted, true in samples]
