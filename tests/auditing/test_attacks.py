"""Attacks by one threshold and by regression, where the answer is known."""

import time

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import auc, roc_auc_score, roc_curve

from hf_unlearn.auditing.attacks import RATES, logistic_attack, roc, threshold_attack

METRICS = {"auc", "balanced_accuracy", *RATES}


def by_sklearn(members, others):
    """The metrics without an interval, from every threshold of scikit-learn's curve."""
    truth, scores = np.repeat([1, 0], [len(members), len(others)]), np.concatenate([members, others])
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    shares = {name: tpr[fpr <= rate + 1e-12].max() for name, rate in RATES.items()}
    return {"auc": roc_auc_score(truth, scores), **shares}


def test_scores_that_separate_perfectly():
    samples = np.linspace(0, 1, 1000)
    estimates = threshold_attack(samples + 2, samples, resamples=50)
    assert set(estimates) == METRICS
    for name, (value, low, high) in estimates.items():
        # A threshold from one half of the samples may miss the last member of the other.
        assert value >= 0.998 and low >= 0.99 and high >= 0.999, name
    assert estimates["auc"] == (1.0, 1.0, 1.0)
    assert estimates["tpr_at_1pct_fpr"].value == estimates["tpr_at_01pct_fpr"].value == 1.0
    assert logistic_attack(samples[:50] + 2, samples[:50]) == (1.0, 1.0, 1.0)
    # Pushed below what was never seen, samples are as easy to tell, with the sign turned.
    below = threshold_attack(samples - 2, samples, resamples=50)
    assert below["auc"] == (0.0, 0.0, 0.0) and below["tpr_at_1pct_fpr"].value == 0.0
    assert below["balanced_accuracy"].value == pytest.approx(0.5, abs=0.002)
    assert logistic_attack(samples[:50] - 2, samples[:50]).value == 1.0


def test_scores_that_do_not_separate_at_all():
    samples = np.linspace(0, 1, 1000)
    estimates = threshold_attack(samples, samples, resamples=200)
    assert estimates["auc"].value == pytest.approx(0.5) and estimates["auc"].low < 0.5 < estimates["auc"].high
    assert estimates["balanced_accuracy"].value == pytest.approx(0.5, abs=0.03)
    assert estimates["tpr_at_1pct_fpr"].value == 0.01 and estimates["tpr_at_01pct_fpr"].value == 0.001
    same = threshold_attack(np.zeros(10), np.zeros(10), resamples=10)
    assert same == {"auc": (0.5, 0.5, 0.5), "balanced_accuracy": (0.5, 0.5, 0.5)}
    assert logistic_attack(np.zeros(10), np.zeros(10)).value == 0.5


def test_two_normal_distributions_against_theory():
    generator = np.random.default_rng(0)
    members, others = generator.normal(1, 1, 4000), generator.normal(0, 1, 4000)
    estimates = threshold_attack(members, others, resamples=200)
    expected = {
        "auc": norm.cdf(1 / 2**0.5),
        "balanced_accuracy": norm.cdf(0.5),
        "tpr_at_1pct_fpr": norm.sf(norm.isf(0.01) - 1),
        "tpr_at_01pct_fpr": norm.sf(norm.isf(0.001) - 1),
    }
    widths = {"auc": 0.025, "balanced_accuracy": 0.03, "tpr_at_1pct_fpr": 0.07, "tpr_at_01pct_fpr": 0.06}
    assert set(estimates) == set(expected)
    for name, (value, low, high) in estimates.items():
        assert low <= value <= high and low - 0.005 <= expected[name] <= high + 0.005, name
        assert high - low < widths[name], name
    assert estimates["auc"].value == pytest.approx(mannwhitneyu(members, others).statistic / 4000**2, abs=1e-9)
    accuracy = logistic_attack(members[:400], others[:400])
    assert accuracy.low < norm.cdf(0.5) < accuracy.high and accuracy.high - accuracy.low < 0.12


@pytest.mark.parametrize("levels", [None, 1000, 30, 5, 2])
def test_the_figures_are_those_of_scikit_learn(levels):
    """Scores on few levels are tied heavily: samples of one score pass a threshold together."""
    for seed, sizes in enumerate([(50, 1000), (313, 1234), (1000, 3000)]):
        generator = np.random.default_rng(seed)
        members, others = (generator.normal(shift, 1, size) for shift, size in zip((0.5, 0), sizes, strict=True))
        if levels is not None:
            members, others = (np.floor(norm.cdf(side) * levels) for side in (members, others))
        estimates = threshold_attack(members, others, resamples=2)
        for name, value in by_sklearn(members, others).items():
            assert estimates[name].value == pytest.approx(value, abs=1e-9), name
            if name in RATES:
                assert estimates[name].low <= value <= estimates[name].high


def test_intervals_hold_chance_where_rows_cannot_be_told():
    chance = {"auc": 0.5, "balanced_accuracy": 0.5, **RATES}
    held = dict.fromkeys(chance, 0)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        members, others = generator.normal(size=120), generator.normal(size=1000)
        estimates = threshold_attack(members, others, resamples=100, seed=seed)
        assert set(estimates) == set(chance)
        for name, (value, low, high) in estimates.items():
            assert low <= value <= high, name
            held[name] += low <= chance[name] <= high
    assert min(held.values()) >= 36, held


def test_intervals_of_the_regression_hold_chance_where_rows_cannot_be_told():
    held = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        _, low, high = logistic_attack(generator.normal(size=30), generator.normal(size=30), folds=3, repeats=2)
        held += low <= 0.5 <= high
    assert held >= 36


def test_shares_at_a_rate_need_samples():
    """Below 100 (1,000) samples never seen there is no threshold with 1 % (0.1 %) of false alarms."""
    generator = np.random.default_rng(0)
    members = generator.normal(size=2000)
    for count, missing in [(99, set(RATES)), (100, {"tpr_at_01pct_fpr"}), (999, {"tpr_at_01pct_fpr"}), (1000, set())]:
        assert set(threshold_attack(members, generator.normal(size=count), resamples=2)) == METRICS - missing


def test_a_seed_repeats_bitwise_and_the_rows_may_come_in_any_order():
    generator = np.random.default_rng(0)
    members, others = generator.normal(0.3, 1, 150), generator.normal(size=200)
    estimates = threshold_attack(members, others, resamples=100, seed=1)
    assert threshold_attack(members, others, resamples=100, seed=1) == estimates
    other = threshold_attack(members, others, resamples=100, seed=2)
    assert other["auc"].value == estimates["auc"].value and other["auc"].low != estimates["auc"].low
    turned = threshold_attack(members[::-1], others[::-1], resamples=2)
    assert turned["auc"].value == estimates["auc"].value and turned["tpr_at_1pct_fpr"] == estimates["tpr_at_1pct_fpr"]


def test_ten_thousand_rows_and_a_thousand_resamples_take_seconds():
    """Scale: 5,000 samples a side, four scores, 1,000 resamples each, in 5 s of processor time (2 s when written)."""
    generator = np.random.default_rng(0)
    scores = [(generator.normal(0.2, 1, 5000), generator.normal(size=5000)) for _ in range(4)]
    start = time.process_time()
    for members, others in scores:
        threshold_attack(members, others, resamples=1000)
    assert time.process_time() - start <= 5


def test_the_curve_runs_from_corner_to_corner():
    generator = np.random.default_rng(0)
    cases = {
        "normal": (generator.normal(1, 1, 700), generator.normal(size=1500)),
        "perfect": (np.arange(50) + 100.0, np.arange(50.0)),
        "reversed": (np.arange(50.0), np.arange(50) + 100.0),
        "tied": (np.zeros(30), np.zeros(30)),
        "few": (generator.normal(0.5, 1, 9), generator.normal(size=8)),
    }
    for name, (members, others) in cases.items():
        curve = roc(members, others)
        fpr, tpr = np.array(curve["fpr"]), np.array(curve["tpr"])
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1), name
        assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all() and len(fpr) <= 203, name
        # Thinned, not changed: every point is one of the whole curve, and hardly any area is lost.
        thresholds = np.append(np.concatenate([members, others]), np.inf)
        reached = {((others >= t).mean(), (members >= t).mean()) for t in thresholds}
        assert set(zip(fpr, tpr, strict=True)) <= reached, name
        assert auc(fpr, tpr) == pytest.approx(
            by_sklearn(members, others)["auc"], abs=1e-9 if len(others) < 100 else 0.005
        ), name
    # The corner that matters is kept: members found before the first false alarm.
    members, others = cases["normal"]
    curve = roc(members, others)
    at_zero = max(y for x, y in zip(curve["fpr"], curve["tpr"], strict=True) if x == 0)
    assert at_zero == (members > others.max()).mean() > 0


def test_bad_scores_are_refused():
    for attack in (threshold_attack, logistic_attack, roc):
        with pytest.raises(ValueError, match=f"{attack.__name__}: needs two samples on either side, got 1 and 5"):
            attack(np.zeros(1), np.zeros(5))
        with pytest.raises(ValueError, match=f"{attack.__name__}: needs two samples on either side, got 5 and 0"):
            attack(np.zeros(5), np.zeros(0))
        for bad in (np.inf, np.nan):
            with pytest.raises(ValueError, match=f"{attack.__name__}: scores must be finite"):
                attack(np.array([0.0, bad]), np.zeros(5))
