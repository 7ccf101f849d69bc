"""One sentence about a model that should have forgotten, from metrics with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Metrics in which forgetting shows: higher means better remembered.
REMEMBERING = ("forget_accuracy", "mia_loss_auc", "mia_lira_auc", "mia_rmia_auc")
# Points of accuracy on retain samples below which nobody calls a model damaged, whatever the interval says.
DAMAGE = 0.02


def verdict_of(
    metrics: Mapping[str, Mapping[str, float]],
    request: str,
    hidden: Sequence[str] = (),
) -> dict[str, str]:
    """What the metrics say: `level` and `sentence`.

    The yardstick is the model retrained without the forget samples, where there is one. Without it, unseen samples are: for
    random samples and groups an attack at chance, and the accuracy on unseen samples. After a class was removed, neither
    says anything: the class is told from others by itself. Where the original model cannot be told either, the metrics
    have no power, and the verdict is "unclear".

    Args:
        metrics: model ("audited", and where there are "original", "retrained") to flat metrics with intervals.
        request: `"samples"`, `"class"` or `"group"`.
        hidden: what showed that the data is still there behind the predictions.
    """
    audited, original, retrained = (metrics.get(name) for name in ("audited", "original", "retrained"))
    assert audited is not None
    if retrained is None and request == "class":
        return _verdict("unclear", "without a model retrained without the class, chance means nothing")
    yardstick = "samples that it has never seen" if retrained is None else "a model retrained without them"
    known = "can be told from" if retrained is None else "are better known than to"
    wanted = retrained or _as_unseen(audited)
    if not any(f"{name}_low" in audited and f"{name}_low" in wanted for name in REMEMBERING[1:]):
        return _verdict("unclear", "too few samples for an attack")
    if above := _apart(audited, wanted, above=True):
        return _verdict("remembers", f"the forget samples {known} {yardstick}", _named(above, audited, wanted))
    if hidden:
        return _verdict("hidden", "the predictions have changed, but the data is still in the model", hidden)
    if below := _apart(audited, wanted, above=False):
        why = (
            f"the forget samples stand out the other way, against {yardstick}: pushed too far, they can be told again"
        )
        return _verdict("over-forgotten", why, _named(below, audited, wanted))
    kept, lost = retrained or original, "retain_accuracy"
    if kept is not None and f"{lost}_low" in kept and audited[f"{lost}_high"] < kept[f"{lost}_low"] - DAMAGE:
        return _verdict("damaged", "forgetting has cost retain samples", _named([lost], audited, kept))
    if original is not None and not _apart(original, retrained or _as_unseen(original), above=True):
        return _verdict(
            "unclear",
            f"not even the original model could be told from {yardstick}: more samples or shadow models say more",
        )
    return _verdict("consistent", f"within the intervals, no different from {yardstick}")


def _as_unseen(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a model's forget samples would look like, were they unseen samples: their accuracy, and attacks at chance."""
    found = {name.replace("unseen", "forget"): value for name, value in metrics.items() if "unseen_accuracy" in name}
    return found | {f"{name}{end}": 0.5 for name in REMEMBERING[1:] for end in ("", "_low", "_high")}


def _apart(one: Mapping[str, float], other: Mapping[str, float], above: bool) -> list[str]:
    """The metrics whose intervals do not meet, with `one` above or below."""
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
    shown = f" ({'; '.join(evidence)})" if evidence else ""
    return {"level": level, "sentence": f"{LEADS[level]}: {why}{shown}."}


def _named(names: Sequence[str], audited: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    return [f"{name.replace('_', ' ')} {audited[name]:.3f} against {other[name]:.3f}" for name in names]
