"""How deep the data is forgotten: what attempts to bring it back find beyond what they find in a retrained model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hf_unlearn.auditing.differences import SPREADS, spread_variance

# Half of a 95 % interval, in deviations.
Z = 1.96


class Attempt(NamedTuple):
    """An attempt to bring forgotten data back.

    Attributes:
        part: its name in `depth_<part>`.
        finds: what it does, in words.
        sign: 1 where a higher value means that more has come back, -1 where a lower one does.
        spread: how much two retrained models differ by it, one deviation, beyond the chance of the samples: of pairs
            on digits, Fashion-MNIST and intents, losses in logarithms (benchmarks/README.md, "Depth"). None: no pair
            was measured; several retrained models say by themselves how much they differ, one alone leaves the chance
            of the samples.
    """

    part: str
    finds: str
    sign: int
    spread: float | None


# By the metric that it is read from; shares, and losses.
ATTEMPTS: Mapping[str, Attempt] = {
    "finetuned_forget_accuracy": Attempt("finetuned", "training on retain samples", 1, 0.01),
    "finetuned_forget_loss": Attempt("finetuned_loss", "training on retain samples, by the loss", -1, SPREADS["loss"]),
    "relearned_forget_accuracy": Attempt("relearned", "relearning from a few samples", 1, 0.03),
    "relearned_forget_loss": Attempt("relearned_loss", "relearning from a few samples, by the loss", -1, 0.3),
    "one_offset": Attempt("one_offset", "one number, added to the output of the class", -1, 0.14),
    "probe_forget_accuracy": Attempt("probe", "a probe of the features", 1, 0.03),
    "int8_forget_accuracy": Attempt("int8", "rounding to 8 bits", 1, 0.01),
    "int4_forget_accuracy": Attempt("int4", "rounding to 4 bits", 1, 0.03),
    "int8_forget_loss": Attempt("int8_loss", "rounding to 8 bits, by the loss", -1, SPREADS["loss"]),
    "int4_forget_loss": Attempt("int4_loss", "rounding to 4 bits, by the loss", -1, SPREADS["loss"]),
    "forget_rouge_l_recall": Attempt("extraction", "asking for the answers", 1, None),
}
# Where there are accuracies, these losses say no more than the loss of the model as it is.
WITHOUT_ACCURACY = ("int8_forget_loss", "int4_forget_loss")
# A mean loss below it counts as it.
LEAST_LOSS = 1e-6


def depth(metrics: Mapping[str, float], retrained: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The advantage that attempts to bring data back have over the same attempts on a retrained model.

    An advantage is the difference to the mean of the retrained models, over the deviation that such a difference has
    by chance: two retrained models differ, and so does what is measured on few samples. Up to two or three it is
    nothing; the deeper a model has forgotten, the lower. Below zero the attempt finds less than in a retrained model.
    Losses are compared by their logarithms; those after rounding only where there are no accuracies.

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
        if name in WITHOUT_ACCURACY and name.replace("loss", "accuracy") in metrics:
            continue
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
    attempt, (own, own_error) = ATTEMPTS[name], _measured(name, metrics)
    values, errors = zip(*(_measured(name, of_model) for of_model in retrained), strict=True)
    count = len(values)
    if attempt.spread is not None:
        variance = spread_variance(attempt.spread, values)
    else:
        variance = float(np.var(values, ddof=1)) if count > 1 else 0.0
    variance *= 1 + 1 / count
    variance += own_error**2 + sum(error**2 for error in errors) / count**2
    difference = attempt.sign * (own - float(np.mean(values)))
    return difference / math.sqrt(variance) if variance > 0 else math.nan


def untried(metrics: Mapping[str, float], head_kind: str, request: str, has_tokenizer: bool) -> list[str]:
    """What was not tried on a model, and why, in a sentence for the reader of an audit; none where all was.

    Args:
        metrics: of the model.
        head_kind: of its head, see `hf_unlearn.losses.Head`.
        request: `"samples"`, `"class"` or `"group"`.
        has_tokenizer: whether the audit was given one.

    Examples:
        >>> metrics = {"finetuned_forget_loss": 1.0, "one_offset": 0.5, "forget_rouge_l_recall": 0.2}
        >>> untried({**metrics, "probe_forget_accuracy": 0.5}, "ctc", "samples", has_tokenizer=True)
        ['Not tried: anything by accuracy (a ctc head has none; losses count).']
    """
    if head_kind != "causal_lm":
        unasked = f"only causal language models are asked, not a {head_kind} head"
    else:
        unasked = "ROUGE needs hf-unlearn[text]" if has_tokenizer else "no tokenizer was given as processing_class"
    reasons = {
        "probe_forget_accuracy": f"a {head_kind} head has no label a sample" if head_kind != "single_label" else "",
        "one_offset": "no class was forgotten" if request != "class" else "too few samples of the class or of others",
        "forget_rouge_l_recall": unasked,
    }
    parts = [
        f"{ATTEMPTS[name].finds} ({reason})" for name, reason in reasons.items() if reason and name not in metrics
    ]
    if "finetuned_forget_accuracy" not in metrics:
        parts.append(f"anything by accuracy (a {head_kind} head has none; losses count)")
    return [f"Not tried: {', '.join(parts)}."] if parts else []


def _measured(name: str, metrics: Mapping[str, float]) -> tuple[float, float]:
    """A metric, of losses the logarithm, and its standard error by the samples; 0 where there is no interval."""
    value = metrics[name]
    numbers = [value, metrics.get(f"{name}_low", value), metrics.get(f"{name}_high", value)]
    if name.endswith("loss"):
        numbers = [math.log(max(number, LEAST_LOSS)) for number in numbers]
    value, low, high = numbers
    return value, (high - low) / (2 * Z)
