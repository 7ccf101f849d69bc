"""The sentence about a model, from metrics made up so that the answer is known."""

import pytest

from hf_unlearn.auditing.verdict import verdict_of


def metrics(forget=0.9, attack=0.5, retain=1.0, unseen=0.9, width=0.05, **others):
    values = {"forget_accuracy": forget, "unseen_accuracy": unseen, "retain_accuracy": retain, "mia_loss_auc": attack}
    values |= others
    low, high = ({f"{k}_{end}": v + by for k, v in values.items()} for end, by in (("low", -width), ("high", width)))
    return values | low | high


# What the audited model has, what the retrained model has, the level.
AGAINST_REFERENCE = [
    ({}, {}, "consistent"),
    ({"forget": 1.0}, {"forget": 0.8}, "remembers"),
    ({"attack": 0.7}, {}, "remembers"),
    ({"attack": 0.7}, {"attack": 0.65}, "consistent"),  # intervals overlap: retrained models stand out as well
    ({"mia_lira_auc": 0.8}, {}, "consistent"),  # the retrained model has no such metric
    ({"mia_lira_auc": 0.8}, {"mia_lira_auc": 0.5}, "remembers"),
    ({"mia_rmia_auc": 0.8}, {"mia_rmia_auc": 0.5}, "remembers"),
    ({"attack": 0.3}, {}, "over-forgotten"),
    ({"forget": 0.5}, {}, "over-forgotten"),
    ({"forget": 0.5, "attack": 0.7}, {}, "remembers"),  # remembering is the worse news
    ({"retain": 0.8}, {}, "damaged"),
    ({"retain": 0.889, "width": 0.05}, {}, "consistent"),  # the intervals are apart, by less than two points
    ({"retain": 0.8, "attack": 0.3}, {}, "over-forgotten"),
]


@pytest.mark.parametrize(("audited", "retrained", "level"), AGAINST_REFERENCE)
def test_against_a_retrained_model(audited, retrained, level):
    verdict = verdict_of({"audited": metrics(**audited), "retrained": metrics(**retrained)}, "samples")
    assert verdict["level"] == level
    assert ("retrained" in verdict["sentence"]) == (level != "damaged")


def test_what_stands_out_is_named():
    verdict = verdict_of({"audited": metrics(forget=1.0, attack=0.8), "retrained": metrics(forget=0.5)}, "class")
    assert verdict["sentence"].startswith("Still remembers: ")
    assert "forget accuracy 1.000 against 0.500; mia loss auc 0.800 against 0.500" in verdict["sentence"]


AGAINST_UNSEEN = [
    ({}, "consistent"), ({"attack": 0.6}, "remembers"), ({"forget": 1.0, "unseen": 0.85}, "remembers"),
    ({"attack": 0.4}, "over-forgotten"), ({"forget": 0.7}, "over-forgotten"), ({"attack": 0.54}, "consistent"),
]  # fmt: skip


@pytest.mark.parametrize(("audited", "level"), AGAINST_UNSEEN)
@pytest.mark.parametrize("request_", ["samples", "group"])
def test_against_unseen_rows_where_there_is_no_retrained_model(audited, level, request_):
    verdict = verdict_of({"audited": metrics(**audited)}, request_)
    assert verdict["level"] == level and "samples that it has never seen" in verdict["sentence"]


def test_damage_without_a_reference_shows_beside_the_original():
    assert verdict_of({"audited": metrics(retain=0.7)}, "samples")["level"] == "consistent"
    assert verdict_of({"audited": metrics(retain=0.7), "original": metrics()}, "samples")["level"] == "damaged"


def test_where_the_original_cannot_be_told_nothing_can():
    for models in ({}, {"retrained": metrics()}):
        assert verdict_of({"audited": metrics(), "original": metrics(), **models}, "samples")["level"] == "unclear"
        told = {"audited": metrics(), "original": metrics(attack=0.9), **models}
        assert verdict_of(told, "samples")["level"] == "consistent"


def test_after_a_class_chance_says_nothing():
    assert verdict_of({"audited": metrics()}, "class", ["a probe"])["level"] == "unclear"
    assert verdict_of({"audited": metrics(), "retrained": metrics()}, "class")["level"] == "consistent"


def test_no_attack_no_verdict():
    without = {name: value for name, value in metrics().items() if not name.startswith("mia")}
    for models in ({"audited": without}, {"audited": without, "retrained": without}):
        verdict = verdict_of(models, "samples", ["a probe"])
        assert verdict == {"level": "unclear", "sentence": "Unclear: too few samples for an attack."}
    # A model that has diverged has no losses, and no attack that the verdict goes by.
    diverged = without | {f"mia_population_auc{end}": 0.5 for end in ("", "_low", "_high")}
    assert verdict_of({"audited": diverged, "retrained": metrics() | diverged}, "samples")["level"] == "unclear"
    # A head without accuracies is judged by the attack alone.
    attack = {name: value for name, value in metrics(attack=0.9).items() if name.startswith("mia")}
    assert verdict_of({"audited": attack}, "samples")["level"] == "remembers"


def test_hidden_comes_after_remembering_and_before_the_rest():
    evidence = ["a probe names them", "6 steps bring them back"]
    models = {"retrained": metrics()}
    for audited, level in (({}, "hidden"), ({"forget": 0.5, "retain": 0.5}, "hidden"), ({"attack": 0.7}, "remembers")):
        verdict = verdict_of({"audited": metrics(**audited), **models}, "samples", evidence)
        assert verdict["level"] == level
        assert ("a probe names them; 6 steps bring them back" in verdict["sentence"]) == (level == "hidden")
