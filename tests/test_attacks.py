"""Signals and attacks, where the answer is known."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from hf_unlearn.auditing.attacks import FIGURES, threshold_attack
from hf_unlearn.auditing.signals import Signals


def test_scores_that_separate_perfectly_and_scores_that_do_not_at_all():
    rows = np.linspace(0, 1, 200)
    for name, (value, low, high) in threshold_attack(rows + 2, rows, resamples=50).items():
        assert (value, low, high) == (1.0, 1.0, 1.0), name
    found = threshold_attack(rows, rows, resamples=200)
    assert found["auc"][0] == pytest.approx(0.5) and found["auc"][1] < 0.5 < found["auc"][2]
    assert found["balanced_accuracy"][0] == pytest.approx(0.5, abs=0.01)
    assert found["tpr_at_1pct_fpr"][0] <= 0.02 and found["tpr_at_01pct_fpr"][0] <= 0.01
    # Pushed below what was never seen, rows are as easy to tell, with the sign turned.
    assert threshold_attack(rows - 2, rows, resamples=50)["auc"] == (0.0, 0.0, 0.0)


def test_two_normal_distributions_against_theory():
    generator = np.random.default_rng(0)
    members, others = generator.normal(1, 1, 4000), generator.normal(0, 1, 4000)
    found = threshold_attack(members, others, resamples=200)
    assert set(found) == set(FIGURES)
    expected = {
        "auc": norm.cdf(1 / 2**0.5),
        "balanced_accuracy": norm.cdf(0.5),
        "tpr_at_1pct_fpr": norm.sf(norm.isf(0.01) - 1),
        "tpr_at_01pct_fpr": norm.sf(norm.isf(0.001) - 1),
    }
    for name, (value, low, high) in found.items():
        assert low <= value <= high and low - 0.02 <= expected[name] <= high + 0.02, name
    assert found["auc"][2] - found["auc"][1] < 0.03
    truth, scores = np.repeat([1, 0], 4000), np.concatenate([members, others])
    assert found["auc"][0] == pytest.approx(roc_auc_score(truth, scores))
    assert found["auc"][0] == pytest.approx(mannwhitneyu(members, others).statistic / 4000**2)


def test_ties_and_bad_scores():
    assert threshold_attack(np.zeros(10), np.zeros(10), resamples=10)["auc"][0] == 0.5
    with pytest.raises(ValueError, match="needs two rows on either side, got 1 and 5"):
        threshold_attack(np.zeros(1), np.zeros(5))
    with pytest.raises(ValueError, match="scores must be finite"):
        threshold_attack(np.array([0.0, np.inf]), np.zeros(5))


def test_scores_of_a_prediction_by_hand():
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    losses = -probabilities.gather(1, labels[:, None]).squeeze(1).log()
    signals = Signals(losses, torch.ones(3), labels, probabilities.log())
    found = {name: values.tolist() for name, values in signals.scores().items()}
    assert found["loss"] == pytest.approx((-losses).tolist())
    assert found["confidence"] == pytest.approx([0.7, 0.3, 1.0])
    assert (
        found["margin"][:2] == pytest.approx([np.log(0.7 / 0.2), np.log(0.3 / 0.6)]) and found["margin"][2] == np.inf
    )
    assert found["entropy"] == pytest.approx([-entropy(row) for row in probabilities.numpy()], abs=1e-6)
    assert set(Signals(losses, torch.ones(3)).scores()) == {"loss"}
