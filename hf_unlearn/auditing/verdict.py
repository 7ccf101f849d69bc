"""One sentence about a model that should have forgotten, from metrics with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Metrics of forgetting: higher means better remembered.
REMEMBERING = ("forget_accuracy", "mia_loss_auc", "mia_lira_auc", "mia_rmia_auc")
# A loss of retain accuracy up to this is no damage, whatever the interval says.
DAMAGE = 0.02


def verdict_of(
    metrics: Mapping[str, Mapping[str, float]],
    request: str,
    hidden: Sequence[str] = (),
) -> dict[str, str]:
    """The verdict that the metrics allow: `level` and `sentence`.

    The metrics are compared with those of the retrained model, where there is one. Without it, they are compared with
    unseen samples: for random samples and groups an attack at chance, and the accuracy on unseen samples. After a
    class was removed, neither means anything: a class can be told from others in any model. Where even the original
    model cannot be told apart, the metrics have no power, and the verdict is "unclear".

    Args:
        metrics: model ("audited", and where given "original", "retrained") to flat metrics with intervals.
        request: `"samples"`, `"class"` or `"group"`.
        hidden: evidence that the data is still in the model behind the predictions.
    """
    audited, original, retrained = (metrics.get(name) for name in ("audited", "original", "retrained"))
    assert audited is not None
    if retrained is None and request == "class":
        return _verdict("unclear", "without a model retrained without the class, chance means nothing")
    baseline = "samples that it has never seen" if retrained is None else "a model retrained without them"
    relation = "can be told from" if retrained is None else "are better known than to"
    expected = retrained or _as_unseen(audited)
    if not any(f"{name}_low" in audited and f"{name}_low" in expected for name in REMEMBERING[1:]):
        return _verdict("unclear", "too few samples for an attack")
    if above := _apart(audited, expected, above=True):
        return _verdict("remembers", f"the forget samples {relation} {baseline}", _named(above, audited, expected))
    if hidden:
        return _verdict("hidden", "the predictions have changed, but the data is still in the model", hidden)
    if below := _apart(audited, expected, above=False):
        why = f"the forget samples stand out the other way, against {baseline}: pushed too far, they can be told again"
        return _verdict("over-forgotten", why, _named(below, audited, expected))
    undamaged, metric = retrained or original, "retain_accuracy"
    if (
        undamaged is not None
        and f"{metric}_low" in undamaged
        and audited[f"{metric}_high"] < undamaged[f"{metric}_low"] - DAMAGE
    ):
        return _verdict("damaged", "forgetting has cost retain samples", _named([metric], audited, undamaged))
    if original is not None and not _apart(original, retrained or _as_unseen(original), above=True):
        return _verdict(
            "unclear",
            f"not even the original model could be told from {baseline}: use more samples or shadow models",
        )
    return _verdict("consistent", f"within the intervals, no different from {baseline}")


def _as_unseen(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that forget samples would have, were they unseen samples: their accuracy, and attacks at chance."""
    accuracies = {
        name.replace("unseen", "forget"): value for name, value in metrics.items() if "unseen_accuracy" in name
    }
    return accuracies | {f"{name}{end}": 0.5 for name in REMEMBERING[1:] for end in ("", "_low", "_high")}


def _apart(one: Mapping[str, float], other: Mapping[str, float], above: bool) -> list[str]:
    """The metrics whose intervals do not overlap, with `one` above or below."""
    higher, lower = (one, other) if above else (other, one)
    shared = [name for name in REMEMBERING if f"{name}_low" in one and f"{name}_low" in other]
    return [name for name in shared if higher[f"{name}_low"] > lower[f"{name}_high"]]


LEADS = {
    "consistent": "Consistent with having forgotten",
    "remembers": "Still remembers",
    "over-forgotten": "Over-forgotten",
    "hidden": "Hidden, not forgotten",
    "damaged": "Forgotten, but damaged",
    "unclear": "Unclear",
}


def _verdict(level: str, why: str, evidence: Sequence[str] = ()) -> dict[str, str]:
    details = f" ({'; '.join(evidence)})" if evidence else ""
    return {"level": level, "sentence": f"{LEADS[level]}: {why}{details}."}


def _named(names: Sequence[str], audited: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {audited[name]:.3f} against {other[name]:.3f}" for name in names]
