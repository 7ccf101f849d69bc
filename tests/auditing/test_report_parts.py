"""What a report says about groups and counts, from statistics that are known."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import spearmanr

from hf_unlearn.auditing.report_parts import MAX_GROUPS, breakdown, sample_counts
from hf_unlearn.auditing.sample_scores import sample_scores
from hf_unlearn.auditing.statistics import SampleStatistics


def statistics(values, correct=None):
    losses = torch.tensor(values, dtype=torch.float)
    correct = torch.full_like(losses, torch.nan) if correct is None else torch.tensor(correct, dtype=torch.float)
    return SampleStatistics(losses, correct)


def test_of_a_thousand_classes_the_forgotten_one_is_listed():
    # Class 7 is the smallest of all, and the one that was forgotten.
    unseen = [f"class {i}" for i in range(1000) for _ in range(1 if i == 7 else 2 + i % 5)]
    groups = {"forget": ["class 7"] * 3, "unseen": unseen}
    of_model = {name: statistics([1.0] * len(of_dataset)) for name, of_dataset in groups.items()}
    entries = breakdown({"audited": of_model}, groups)
    assert [entry["dataset"] for entry in entries if entry["group"] == "class 7"] == ["forget", "unseen"]
    listed = [entry["group"] for entry in entries if entry["dataset"] == "unseen"]
    assert len(listed) == MAX_GROUPS and listed == sorted(listed, key=lambda name: int(name.split()[1]))
    assert sample_counts(of_model, {}, groups)["groups"] == 1000


def test_a_model_without_a_finite_mean_hides_no_group():
    groups = {"forget": ["a", "b"], "unseen": []}
    models = {
        "original": {"forget": statistics([1.0, 2.0]), "unseen": statistics([])},
        "audited": {"forget": statistics([torch.inf, 3.0]), "unseen": statistics([])},
    }
    assert breakdown(models, groups) == [
        {"group": "a", "dataset": "forget", "samples": 1, "original": 1.0},
        {"group": "b", "dataset": "forget", "samples": 1, "original": 2.0, "audited": 3.0},
    ]


def test_attacked_are_samples_with_a_finite_score():
    measured = {"forget": statistics([1.0] * 4), "retain": statistics([1.0] * 9), "unseen": statistics([1.0] * 5)}
    sides = {"loss": (torch.tensor([0.0, torch.inf, 1.0]).numpy(), torch.tensor([torch.nan, 1.0]).numpy())}
    assert sample_counts(measured, sides, {}) == {
        "measured": {"forget": 4, "retain": 9, "unseen": 5},
        "attacked": {"loss": {"forget": 2, "unseen": 1}},
        "groups": 0,
    }


@pytest.mark.parametrize("classes, names", [(10, {"loss", "margin", "entropy"}), (2, {"loss", "entropy"})])
def test_no_attack_ranks_samples_as_another_does(classes, names):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(400, classes, generator=generator), torch.arange(400) % classes
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    head = SimpleNamespace(kind_for=lambda batch: "single_label")
    scores = {"loss": -losses, **sample_scores(head, {"logits": logits}, {"labels": labels})}
    assert scores.keys() == names
    for one, other in combinations(scores.values(), 2):
        assert abs(spearmanr(one, other).statistic) < 0.999
