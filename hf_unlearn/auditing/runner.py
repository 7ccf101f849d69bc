"""The figures of any model on forget, retain and unseen sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accelerate import Accelerator

from hf_unlearn.auditing.figures import figures
from hf_unlearn.auditing.signals import Signals, collect
from hf_unlearn.collate import default_collator
from hf_unlearn.data import request_of
from hf_unlearn.losses import head_of


def signals_of(
    model: Any,
    dataset: Any,
    *,
    data_collator: Callable | None = None,
    batch_size: int = 256,
    description: str = "Measuring",
) -> Signals:
    """Per-row signals of a model on one set; see `hf_unlearn.auditing.signals.Signals`."""
    accelerator = Accelerator()
    return collect(
        model.to(accelerator.device),
        dataset,
        head=head_of(model),
        collator=data_collator or default_collator(model),
        accelerator=accelerator,
        batch_size=batch_size,
        description=description,
    )


def measure(model: Any, sets: Mapping[str, Any], **kwargs: Any) -> dict[str, float]:
    """The figures of a model, whichever method or library made it.

    Args:
        model: a model with a head.
        sets: `"forget"`, `"retain"` and `"unseen"` datasets of rows ready for the model. The forget set says by itself
            when whole classes were forgotten (`split_forget_retain`).
        **kwargs: as in `signals_of`.
    """
    signals = {name: signals_of(model, rows, **kwargs) for name, rows in sets.items()}
    labels = signals["forget"].labels
    whole_class = request_of(sets["forget"]) == "class" and labels is not None
    return figures(signals, labels.unique().tolist() if whole_class and labels is not None else ())


def gap(found: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Mean absolute difference to a retrained model, in points.

    Over the accuracy (speech: word error rate) on forget, retain and unseen rows and the accuracy of the membership
    inference, those that both have. 0 is best. How much two retrained models (two seeds) differ is the yardstick.

    Examples:
        >>> gap({"forget_accuracy": 0.9, "retain_accuracy": 1.0}, {"forget_accuracy": 0.88, "retain_accuracy": 1.0})
        1.0
    """
    score = "wer" if "forget_wer" in found else "accuracy"
    names = [f"forget_{score}", f"retain_{score}", f"unseen_{score}", "mia_accuracy"]
    differences = [abs(found[n] - reference[n]) for n in names if n in found and n in reference]
    return round(100 * sum(differences) / len(differences), 10)
