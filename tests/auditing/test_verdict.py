"""The verdict, from per-sample statistics made up so that the answer is known."""

import numpy as np
import pytest

from hf_unlearn.auditing.attacks import Estimate
from hf_unlearn.auditing.differences import (
    auc_statistic,
    difference,
    log_loss_statistic,
    mean_statistic,
    ratio_statistic,
)
from hf_unlearn.auditing.evidence import Evidence
from hf_unlearn.auditing.verdict import judge

N = 1000


def accuracy(dataset, share):
    """A model that has this share right, the same samples first: models differ where their shares do."""
    return mean_statistic(dataset, (np.arange(N) < share * N).astype(float))


def losses(dataset, mean):
    return log_loss_statistic(dataset, mean * np.linspace(0.5, 1.5, N))


def attack(auc):
    """Scores whose area is `auc`: normal, the forget samples' shifted."""
    from scipy.stats import norm

    quantiles = norm.ppf((np.arange(N) + 0.5) / N)
    return auc_statistic(quantiles + norm.ppf(auc) * 2**0.5, quantiles)


def model(
    forget=0.9, attacked=0.5, retain=1.0, unseen=0.9, forget_loss=0.5, unseen_loss=0.5, retain_loss=0.1, wer=None
):
    statistics = {
        "forget_accuracy": accuracy("forget", forget), "retain_accuracy": accuracy("retain", retain),
        "unseen_accuracy": accuracy("unseen", unseen), "forget_loss": losses("forget", forget_loss),
        "retain_loss": losses("retain", retain_loss), "unseen_loss": losses("unseen", unseen_loss),
        "mia_loss_auc": attack(attacked),
    }  # fmt: skip
    if wer is not None:
        errors = np.tile([0.0, 10.0], (N, 1))
        errors[: N // 100, 0] = wer * 1000  # in one utterance of a hundred
        statistics |= {f"{name}_wer": ratio_statistic(name, errors) for name in ("retain", "unseen")}
    return statistics


def verdict(audited=None, *, original=None, retrained=(), request="samples", **others):
    original = None if original is None else model(**original)
    return judge(Evidence(request, model(**audited or {}), original, [model(**r) for r in retrained], **others))


# What the audited model has, what the retrained model has, the level.
AGAINST_RETRAINED = [
    ({}, {}, "consistent"),
    ({"forget": 1.0}, {"forget": 0.8}, "remembers"),
    ({"attacked": 0.7}, {}, "remembers"),
    ({"forget_loss": 0.2}, {}, "remembers"),
    ({"attacked": 0.7}, {"attacked": 0.68}, "consistent"),  # retrained models stand out as well
    ({"attacked": 0.3}, {}, "over-forgotten"),
    ({"forget": 0.5}, {}, "over-forgotten"),
    ({"forget_loss": 2.0}, {}, "over-forgotten"),  # the accuracy of the class was 0 already, say
    ({"forget": 0.5, "attacked": 0.7}, {}, "remembers"),  # remembering is the worse news
    ({"retain": 0.95}, {}, "damaged"),
    ({"unseen": 0.8}, {}, "damaged"),
    ({"unseen_loss": 1.5}, {}, "damaged"),
    ({"retain": 0.985}, {}, "consistent"),  # less than two points
    ({"unseen_loss": 0.55}, {}, "consistent"),
    ({"retain": 0.5, "attacked": 0.3}, {}, "damaged"),
    ({"retain": 0.5, "forget": 0.1}, {}, "damaged"),
]


@pytest.mark.parametrize(("audited", "retrained", "level"), AGAINST_RETRAINED)
@pytest.mark.parametrize("count", [1, 3])
def test_against_retrained_models(audited, retrained, level, count):
    judgement = verdict(audited, retrained=[retrained] * count)
    assert judgement.level == level and "retrained" in judgement.sentence


def test_a_damaged_model_is_not_said_to_have_forgotten():
    judgement = verdict({"retain": 0.35, "unseen": 0.3, "forget": 0.3}, original={"forget": 1.0, "attacked": 0.9})
    assert judgement.level == "damaged" and judgement.sentence.startswith("Damaged: ")
    assert "retain accuracy 35.0 % against 100.0 %" in judgement.sentence and "orgotten" not in judgement.sentence
    judgement = verdict({"retain": 0.35, "attacked": 0.8}, original={"forget": 1.0})
    assert judgement.level == "damaged" and "it still remembers as well: loss AUC 0.8" in judgement.sentence


@pytest.mark.parametrize("audited", [{"wer": 0.25}, {"unseen_loss": 1.3}, {"unseen": 0.78}])
def test_damage_beside_the_original(audited):
    """Whatever the interval: one run-away loop in the word error rate, ten points, a loss that has risen by ln 2."""
    assert verdict(audited, original={"wer": 0.0, "attacked": 0.9}).level == "damaged"
    assert verdict({}, original={"wer": 0.0, "attacked": 0.9}).level == "consistent"


def test_samples_that_are_lost_to_less_data_are_no_damage():
    assert verdict({"unseen": 0.87}, original={"attacked": 0.9}).level == "consistent"
    # Surely higher, and by far less than ln 2.
    assert (
        verdict({"retain_loss": 0.15, "unseen_loss": 0.55, "forget_loss": 0.55}, original={"attacked": 0.9}).level
        == "consistent"
    )


def test_a_loss_that_is_no_number_is_damage():
    judgement = verdict({}, retrained=[{}], broken={"forget": (0, 50), "retain": (3, 200), "unseen": (0, 50)})
    assert judgement.level == "damaged" and "3 of 200 retain samples" in judgement.sentence


def test_masked_labels_are_over_forgotten():
    judgement = verdict({}, retrained=[{}], infinite=50)
    assert judgement.level == "over-forgotten" and "50 of them have an infinite loss" in judgement.sentence


AGAINST_UNSEEN = [
    ({}, "consistent"), ({"attacked": 0.6}, "remembers"), ({"forget": 1.0, "unseen": 0.85}, "remembers"),
    ({"attacked": 0.4}, "over-forgotten"), ({"forget": 0.7}, "over-forgotten"), ({"attacked": 0.52}, "consistent"),
    ({"forget_loss": 2.0}, "over-forgotten"), ({"forget_loss": 0.2}, "remembers"),
]  # fmt: skip


@pytest.mark.parametrize(("audited", "level"), AGAINST_UNSEEN)
@pytest.mark.parametrize("request_", ["samples", "group"])
def test_against_unseen_samples_where_there_is_no_retrained_model(audited, level, request_):
    judgement = verdict(audited, request=request_, original={"attacked": 0.95, "unseen": audited.get("unseen", 0.9)})
    assert judgement.level == level and "samples that it has never seen" in judgement.sentence


def test_ground_truth_does_not_make_the_audit_weaker():
    """An AUC of 0.56 is far from chance, and two unpaired intervals around 0.56 and 0.51 meet."""
    for retrained in ([], [{"attacked": 0.51}], [{"attacked": 0.51}] * 3):
        assert verdict({"attacked": 0.56}, retrained=retrained).level == "remembers"


def test_chance_is_expected_of_random_samples_only():
    """Two points from the retrained model, which is sure of nothing, and four from chance."""
    attacked, retrained = {"attacked": 0.455}, [{"attacked": 0.475}]
    for request, level in (("samples", "over-forgotten"), ("group", "consistent")):
        assert verdict(attacked, retrained=retrained, request=request).level == level


def test_the_spread_between_retrained_models_widens_the_interval():
    # The audited model's AUC is that of the higher one of the two.
    apart = [{"attacked": 0.42}, {"attacked": 0.62}]
    assert verdict({"attacked": 0.62}, retrained=[apart[0]]).level == "remembers"
    assert verdict({"attacked": 0.62}, retrained=apart).level == "consistent"
    one, two = (
        difference("mia_loss_auc", attack(0.5), [attack(auc) for auc in aucs], spread=True)
        for aucs in ([0.5], [0.4, 0.6])
    )
    assert two.high - two.low > one.high - one.low


def test_what_one_retrained_model_leaves_open_is_said():
    one, two = (verdict({}, retrained=[{}] * count, original={"attacked": 0.9}).notes for count in (1, 2))
    assert any("how far two of them differ on this data is not known" in note for note in one) and not two
    assert any("The original model was not given" in note for note in verdict({}, retrained=[{}] * 2).notes)


def test_where_the_original_cannot_be_told_the_size_that_could_is_named():
    for retrained in ([], [{}]):
        judgement = verdict({}, original={}, retrained=retrained)
        assert judgement.level == "unclear" and "no number of samples would do" in judgement.sentence
        judgement = verdict({}, original={"attacked": 0.53}, retrained=retrained)
        assert judgement.level == "unclear"
    needed = int(verdict({}, original={"attacked": 0.53}).sentence.split("about ")[1].split()[0].replace(",", ""))
    deviation = difference("mia_loss_auc", attack(0.53), [attack(0.5)], spread=False).sampling
    assert needed == pytest.approx(N * ((2.576 + 0.84) * attack(0.53).deviation() / 0.03) ** 2, rel=0.02)
    assert deviation < attack(0.53).deviation()  # paired
    assert verdict({}, original={"attacked": 0.7}).level == "consistent"


def test_what_cannot_be_judged_is_not_certified():
    for request in ("samples", "group"):
        assert "damage cannot be judged" in verdict({}, request=request).sentence  # neither original nor retrained
    few = {name: s for name, s in model(retain=0.1).items() if not name.startswith("retain")}
    judgement = judge(Evidence("samples", few, None, [model()]))
    assert judgement.level == "unclear" and "damage cannot be judged" in judgement.sentence


def test_losses_without_a_likelihood_are_measured_by_the_undamaged_models():
    """A regression on targets in [0, 1]: a ruined model's error is far below ln 2."""

    def regression(loss):
        losses_of = {
            f"{d}_loss": losses(d, value) for d, value in zip(("forget", "retain", "unseen"), loss, strict=True)
        }
        return {**losses_of, "mia_loss_auc": attack(0.5)}

    original = {**regression((0.001, 0.001, 0.02)), "mia_loss_auc": attack(0.95)}
    for loss, level in (((0.2, 0.2, 0.2), "damaged"), ((0.02, 0.002, 0.02), "consistent")):
        assert judge(Evidence("samples", regression(loss), original)).level == level


def test_no_attack_no_verdict():
    audited = {name: s for name, s in model().items() if not name.startswith("mia")}
    for retrained in ([], [audited]):
        judgement = judge(Evidence("samples", audited, None, retrained))
        assert judgement.level == "unclear" and "too few samples for an attack" in judgement.sentence


def test_hidden_comes_after_remembering_and_before_going_too_far():
    evidence = ["a probe names them", "6 steps bring them back"]
    for audited, level in (({}, "hidden"), ({"forget": 0.5}, "hidden"), ({"attacked": 0.7}, "remembers")):
        judgement = verdict(audited, retrained=[{}], hidden=evidence)
        assert judgement.level == level
        assert ("a probe names them; 6 steps bring them back" in judgement.sentence) == (level == "hidden")
    assert verdict({"retain": 0.5}, retrained=[{}], hidden=evidence).level == "damaged"


# ---- classes ---------------------------------------------------------------------------------------------------

GONE = {"forget": 0.0, "forget_loss": 7.0}
KNOWN = {"forget": 0.99, "forget_loss": 0.05, "attacked": 0.5}


def near(value):
    return Estimate(value, 0.7 * value, min(1.0, 1.3 * value))


def of_class(audited, one_offset, *, retrained=(), lost=(), **others):
    """The verdict on a class, with the one-offset share of the audited and of the retrained models."""
    names = ["retrained", "retrained 2", "retrained 3"]
    one_offsets = {
        "audited": near(one_offset),
        "original": near(0.005),
        **dict(zip(names, map(near, lost), strict=False)),
    }
    settings = {"wrong_class_loss": 8.0, "classes": 10, **others}
    return verdict(
        {**GONE, **audited}, original=KNOWN, retrained=retrained, request="class", one_offsets=one_offsets, **settings
    )


def test_a_class_without_a_retrained_model():
    judgement = of_class({}, 0.4)
    assert judgement.level == "unclear"
    for said in ("0.0 % of the class are right", "brings 90 % of the class back and takes 40.0 % of others", "loss 7"):
        assert said in judgement.sentence
    assert of_class({"forget": 0.3}, 0.4).level == of_class({"forget": 0.15}, 0.4).level == "remembers"
    assert of_class({}, 0.02).level == "hidden"  # its output is held down
    assert of_class({"forget_loss": 99.8}, 0.4).level == "over-forgotten"
    assert of_class({"retain": 0.9}, 0.4).level == "damaged"


def test_a_class_beside_retrained_models():
    retrained = [GONE, GONE]
    assert of_class({}, 0.4, retrained=retrained, lost=(0.37, 0.85)).level == "consistent"
    assert of_class({}, 0.16, retrained=retrained, lost=(0.16, 0.45)).level == "consistent"
    assert of_class({}, 0.012, retrained=retrained, lost=(0.16, 0.45)).level == "hidden"
    assert of_class({}, 0.05, retrained=retrained, lost=(0.37, 0.85)).level == "hidden"
    assert of_class({"forget_loss": 99.8}, 0.4, retrained=retrained, lost=(0.37, 0.85)).level == "over-forgotten"
    assert of_class({"forget": 0.2}, 0.4, retrained=retrained, lost=(0.37, 0.85)).level == "remembers"
