"""One sentence about a model that should have forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.differences import Difference, Z, constant, difference
from hf_unlearn.auditing.evidence import ATTACKS, Evidence, Statistics
from hf_unlearn.report.audit_result import is_retrained
from hf_unlearn.report.meanings import metric_label
from hf_unlearn.report.numbers import show, significant

# A loss of accuracy on samples that should have stayed up to this is no damage, whatever the interval says: beside a
# retrained model, and beside the original, which was trained on more data.
DAMAGE, DAMAGE_TO_ORIGINAL = 0.02, {"retain": 0.02, "unseen": 0.05, "general": 0.02}
# A loss of accuracy (a rise of the word error rate), and a rise of the loss, that is damage whatever the interval
# says.
WRECKED_ACCURACY, WRECKED_LOSS = 0.1, float(np.log(2))
# General ability is not what was trained on: a rise of its loss by this is damage where the interval says so, too.
GENERAL_LOSS = 0.1
# A class whose output takes fewer of the other classes' samples than this in the one-offset test is known to the
# model: two models retrained without it lose 16 to 85 %, originals 0 to 1 %.
ONE_OFFSET = 0.1
# One-offset shares of models that never met a class differ by factors: below this part of the smallest one is too
# small.
ONE_OFFSET_FACTOR = 0.5
# A forgotten class may cost as much as the classes that a model knows not to be there, and somewhat more.
WRONG_CLASS_FACTOR = 3.0
# The chance that an audit of the size that it names finds what the original remembers.
POWER_Z = 0.84

LEADS = {
    "consistent": "Consistent with having forgotten",
    "remembers": "Still remembers",
    "over-forgotten": "Over-forgotten",
    "hidden": "Hidden, not forgotten",
    "damaged": "Damaged",
    "unclear": "Unclear",
}


@dataclass(frozen=True)
class Judgement:
    """What evidence comes to.

    Attributes:
        level: a key of `LEADS`.
        sentence: for a reader.
        differences: the differences that it goes by.
        notes: what it does not know.
    """

    level: str
    sentence: str
    differences: Sequence[Difference] = ()
    notes: Sequence[str] = field(default_factory=list)


def judge(evidence: Evidence) -> Judgement:
    """The verdict that the evidence allows.

    Asked in this order: is the model damaged, on retain and on unseen samples; does it still remember; is the data
    hidden in it; has it gone too far; could this audit have told the original apart. Else it is consistent with
    having forgotten. Retrained models are what a model is compared with, on the same samples. Without them, the forget
    samples are compared with unseen samples, and damage with the original. Of a class without a retrained
    model no more can be said than what speaks against forgetting.
    """
    damages, differences = _damage_differences(evidence), _forgetting_differences(evidence)
    level, why, details = _level(evidence, damages, differences)
    details_text = f" ({'; '.join(details)})" if details else ""
    return Judgement(level, f"{LEADS[level]}: {why}{details_text}.", [*differences, *damages], _notes(evidence, level))


def _level(
    evidence: Evidence, damages: Sequence[Difference], differences: Sequence[Difference]
) -> tuple[str, str, list[str]]:
    """Level, reason and details."""
    if broken := _broken(evidence):
        return "damaged", "the model does not compute", broken
    above, below = [d for d in differences if _remembers(d)], [d for d in differences if _is_beyond(d)]
    above_text = _named(above) + _class_remembered(evidence)
    beside = _expectation(evidence)
    unit = _loss_unit(damages)
    if damaged := [d for d in damages if _is_damage(d, bool(evidence.retrained), unit)]:
        also = f"; it still remembers as well: {'; '.join(above_text)}" if above_text else ""
        return "damaged", f"samples that should have been kept are lost, beside {_undamaged(evidence)}", [
            "; ".join(_named(damaged)) + also
        ]  # fmt: skip
    if above_text:
        return "remembers", f"the forget samples are better known than {beside}", above_text
    if hidden := [*evidence.hidden, *_held_down(evidence)]:
        return "hidden", "the predictions have changed, but the data is still in the model", hidden
    if below_text := _masked(evidence) + _named(below) + _class_beyond(evidence):
        return "over-forgotten", f"the forget samples stand out the other way, further than {beside}", below_text
    if evidence.request == "class" and not evidence.retrained:
        return (
            "unclear",
            "no model was given that was retrained without the class; what can be said",
            _of_class(evidence),
        )
    if not any(d.metric.startswith("mia") for d in differences):
        return "unclear", "too few samples for an attack", []
    if not any(d.metric.startswith("retain") for d in damages):
        advice = "give the original model or retrained ones, and 8 retain samples or more"
        return "unclear", f"no different from {_ground_truth(evidence)}, and damage cannot be judged", [advice]
    if evidence.original is not None and (power := _missing_power(evidence)):
        return "unclear", power, []
    return "consistent", f"within the intervals, no different from {_ground_truth(evidence)}", []


# ---- what is compared ------------------------------------------------------------------------------------------


def _forgetting_differences(evidence: Evidence, of: Statistics | None = None) -> list[Difference]:
    """How far the metrics of forgetting are from what is expected; of the audited model, or of `of`."""
    audited = evidence.audited if of is None else of
    attacks = [f"mia_{attack}_auc" for attack in ATTACKS]
    if evidence.retrained:
        names = ["forget_accuracy", "forget_loss", *attacks]
        return [
            difference(name, audited[name], [r[name] for r in evidence.retrained], spread=True)
            for name in names
            if name in audited and all(name in r for r in evidence.retrained)
        ] + _against_chance(evidence, audited)
    if evidence.request == "class":
        return []
    chance = [difference(name, audited[name], [constant(0.5)], spread=False) for name in attacks if name in audited]
    beside_unseen = [
        difference(f"forget_{name}", audited[f"forget_{name}"], [audited[f"unseen_{name}"]], spread=False)
        for name in ("accuracy", "loss")
        if f"forget_{name}" in audited and f"unseen_{name}" in audited
    ]
    return chance + beside_unseen


def _against_chance(evidence: Evidence, audited: Statistics) -> list[Difference]:
    """Attacks on random samples beside chance as well, where the retrained models are at chance themselves."""
    if evidence.request != "samples":  # a class or a group may stand out in a model that never met it
        return []
    differences = []
    for name in (f"mia_{attack}_auc" for attack in ATTACKS):
        if name in audited and all(name in r for r in evidence.retrained):
            retrained = [difference(name, r[name], [constant(0.5)], spread=False) for r in evidence.retrained]
            if all(d.low <= 0 <= d.high for d in retrained):
                differences.append(difference(name, audited[name], [constant(0.5)], spread=False))
    return differences


def _damage_differences(evidence: Evidence) -> list[Difference]:
    """How far retain and unseen metrics are from the retrained models', or else from the original's.

    General ability is the original's own: it is compared with that, and only without it with the retrained models'.
    """
    original = [] if evidence.original is None else [evidence.original]
    undamaged = {"general": original or evidence.retrained}
    differences = []
    for dataset in ("retain", "unseen", "general"):
        others = undamaged.get(dataset, evidence.retrained or original)
        for name in (f"{dataset}_{metric}" for metric in ("accuracy", "wer", "loss")):
            if others and name in evidence.audited and all(name in other for other in others):
                is_retrained = others is evidence.retrained
                expected = [other[name] for other in others]
                differences.append(difference(name, evidence.audited[name], expected, spread=is_retrained))
    return differences


# ---- what it means ---------------------------------------------------------------------------------------------


def _remembers(of: Difference) -> bool:
    return of.high < 0 if of.metric.endswith("loss") else of.low > 0


def _is_beyond(of: Difference) -> bool:
    return of.low > 0 if of.metric.endswith("loss") else of.high < 0


def _loss_unit(damages: Sequence[Difference]) -> float:
    """A likelihood's losses are in nats; others, as those of regression, are measured by the undamaged model's."""
    expected = {d.metric: d.expected for d in damages}
    return 1.0 if "retain_accuracy" in expected else expected.get("unseen_loss", 1.0)


def _is_damage(of: Difference, is_retrained: bool, loss_unit: float) -> bool:
    dataset, _, metric = of.metric.partition("_")
    if of.metric == "general_loss":
        return of.audited - of.expected >= GENERAL_LOSS * loss_unit and of.low > 0
    if metric == "loss":
        return of.audited - of.expected >= WRECKED_LOSS * loss_unit and of.low > 0
    lost = of.value if metric == "wer" else -of.value
    margin = DAMAGE if is_retrained else DAMAGE_TO_ORIGINAL[dataset]
    surely_lost = of.low if metric == "wer" else -of.high
    return (surely_lost > 0 and lost > margin) or lost >= WRECKED_ACCURACY


def _broken(evidence: Evidence) -> list[str]:
    return [
        f"{count:,} of {total:,} {dataset} samples have a loss that is not finite"
        for dataset, (count, total) in evidence.broken.items()
        if count
    ]


def _masked(evidence: Evidence) -> list[str]:
    return [f"{evidence.infinite:,} of them have an infinite loss"] if evidence.infinite else []


def _class_remembered(evidence: Evidence) -> list[str]:
    """Without a retrained model: a class that is answered more often than by chance."""
    if evidence.request != "class" or evidence.retrained or evidence.classes is None:
        return []
    if "forget_accuracy" not in evidence.audited:  # too few samples
        return []
    by_chance = difference(
        "forget_accuracy", evidence.audited["forget_accuracy"], [constant(1 / evidence.classes)], spread=False
    )
    return _named([by_chance]) if by_chance.low > 0 else []


def _held_down(evidence: Evidence) -> list[str]:
    """The one-offset test, where the class comes back at too small a price."""
    audited = evidence.one_offsets.get("audited")
    if audited is None:
        return []
    retrained = [estimate for name, estimate in evidence.one_offsets.items() if is_retrained(name)]
    if not retrained:
        return [_price(audited)] if audited.high < ONE_OFFSET else []
    lowest = min(retrained, key=lambda estimate: estimate.value)
    if audited.high < ONE_OFFSET_FACTOR * lowest.low or (audited.high < ONE_OFFSET and audited.high < lowest.low):
        return [f"{_price(audited)}, {_percent(lowest.value)} in a retrained model"]
    return []


def _class_beyond(evidence: Evidence) -> list[str]:
    """Without a retrained model: a class that costs far more than the classes that are not there."""
    loss = evidence.audited.get("forget_loss")
    if evidence.retrained or evidence.wrong_class_loss is None or loss is None:
        return []
    if np.exp(loss.value) <= WRONG_CLASS_FACTOR * evidence.wrong_class_loss:
        return []
    return [_losses_of_classes(loss.value, evidence.wrong_class_loss)]


def _missing_power(evidence: Evidence) -> str:
    """Why nothing could have been found, where not even the original can be told apart; else nothing."""
    assert evidence.original is not None
    differences = _forgetting_differences(evidence, evidence.original)
    if any(_remembers(d) for d in differences):
        return ""
    untold = f"not even the original model can be told from {_ground_truth(evidence)} by these samples"
    sizes = [size for d in differences if (size := _needed(d)) is not None]
    counts = {name: len(x) for name, x in evidence.original["mia_loss_auc"].influence.items()}
    if not sizes:
        return f"{untold}, and no number of samples would do: use shadow models"
    factor = min(sizes)
    needed = " and ".join(f"{int(np.ceil(factor * count / 10) * 10):,} {name}" for name, count in counts.items())
    return f"{untold}; about {needed} samples would tell a difference of this size, or shadow models"


def _needed(of: Difference) -> float | None:
    """How many times as many samples tell this difference, four times of five; None where no number does."""
    distance = -of.value if of.metric.endswith("loss") else of.value
    half = (of.high - of.low) / 2
    between_models = max(half**2 - (Z * of.sampling) ** 2, 0.0) ** 0.5
    if distance <= between_models or not of.sampling:
        return None
    return ((Z + POWER_Z) * of.sampling / (distance - between_models)) ** 2


def _notes(evidence: Evidence, level: str) -> list[str]:
    """What a verdict does not know."""
    notes = []
    if len(evidence.retrained) == 1:
        notes.append(
            "One retrained model was given: how far two of them differ on this data is not known. The intervals take "
            "what was measured elsewhere; give several, retrained=[...], with other seeds."
        )
    if evidence.original is None and level == "consistent":
        notes.append("The original model was not given: whether this audit would have told it apart is not known.")
    return notes


# ---- words -----------------------------------------------------------------------------------------------------


def _ground_truth(evidence: Evidence) -> str:
    if not evidence.retrained:
        return "samples that it has never seen"
    count = len(evidence.retrained)
    return "a model retrained without them" if count == 1 else f"{count} models retrained without them"


def _expectation(evidence: Evidence) -> str:
    if evidence.retrained:
        return f"in {_ground_truth(evidence)}"
    return "chance" if evidence.request == "class" else _ground_truth(evidence)


def _undamaged(evidence: Evidence) -> str:
    if not evidence.retrained:
        return "the original model"
    return "a retrained model" if len(evidence.retrained) == 1 else f"{len(evidence.retrained)} retrained models"


def _of_class(evidence: Evidence) -> list[str]:
    """What can be said of a class without a retrained model."""
    audited, said = evidence.audited, []
    if "forget_accuracy" in audited:
        said.append(f"{_percent(audited['forget_accuracy'].value)} of the class are right")
    if "audited" in evidence.one_offsets:
        said.append(_price(evidence.one_offsets["audited"]))
    if evidence.wrong_class_loss is not None and "forget_loss" in audited:
        said.append(_losses_of_classes(audited["forget_loss"].value, evidence.wrong_class_loss))
    return said


def _price(one_offset: Estimate) -> str:
    taken = _percent(one_offset.value)
    return f"one number added to its output brings 90 % of the class back and takes {taken} of others"


def _losses_of_classes(log_loss: float, wrong_class_loss: float) -> str:
    loss, other = significant(float(np.exp(log_loss))), significant(wrong_class_loss)
    return f"loss {loss}, of other classes that a sample is not in {other}"


def _percent(share: float) -> str:
    return show(share, "share")


def _named(differences: Sequence[Difference]) -> list[str]:
    """Each metric with that of the audited model and what was expected; one that was compared twice is named once."""
    texts = [
        f"{metric_label(d.metric)} {show(d.audited, d.metric)} against {show(d.expected, d.metric)}"
        for d in differences
    ]
    return list(dict.fromkeys(texts))
