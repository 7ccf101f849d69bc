"""Scores that compare with other models or samples, against their definitions computed sample by sample."""

import numpy as np
import pytest
from scipy.stats import norm

from hf_unlearn.auditing.attacks import threshold_attack
from hf_unlearn.auditing.calibrated import lira_scores, logit_confidence, population_scores, rmia_scores


def halves(generator, models, samples):
    """[models, samples], every sample in exactly half."""
    return generator.random((models, samples)).argsort(0) < models // 2


def deviations(groups, per_sample):
    """Sample deviation of every group of numbers: its own, or one of all groups about their means."""
    if per_sample:
        return [np.std(group, ddof=1) for group in groups]
    squares = sum(((group - np.mean(group)) ** 2).sum() for group in groups)
    return [(squares / sum(len(group) - 1 for group in groups)) ** 0.5] * len(groups)


def lira_by_samples(signal, shadows, members, others, per_sample):
    """A sample at a time; `per_sample` says for members and others whether each sample has its own deviation."""
    scores = np.zeros(len(signal))
    for mask, sign, of_side in ((members, 1, per_sample[0]), (others, -1, per_sample[1])):
        groups = [shadows[mask[:, i], i] for i in range(len(signal))]
        for i, (group, deviation) in enumerate(zip(groups, deviations(groups, of_side), strict=True)):
            scores[i] += sign * norm(group.mean(), deviation).logpdf(signal[i])
    return scores


@pytest.mark.parametrize(("models", "per_sample"), [(64, True), (70, True), (62, False), (16, False), (4, False)])
def test_lira_against_normals_sample_by_sample(models, per_sample):
    """From 32 models a side on every sample has its own deviation, below that all samples share one."""
    generator = np.random.default_rng(models)
    members = halves(generator, models, 25)
    shadows = generator.normal(0, generator.uniform(0.5, 3, 25), (models, 25)) + 1.5 * members
    signal = generator.normal(1, 2, 25)
    expected = lira_by_samples(signal, shadows, members, ~members, (per_sample, per_sample))
    np.testing.assert_allclose(lira_scores(signal, shadows, members), expected, rtol=1e-9, atol=1e-9)
    other = lira_by_samples(signal, shadows, members, ~members, (not per_sample, not per_sample))
    assert np.abs(other - expected).max() > 0.01


def test_lira_by_hand():
    """Two models a side at 1 and 3, and at -1 and 1: deviation sqrt(2), and only the means differ."""
    shadows = np.array([[1.0], [3.0], [-1.0], [1.0]])
    members = np.array([[True], [True], [False], [False]])
    for signal in (-2.0, 0.0, 1.0, 5.0):
        by_hand = (-((signal - 2) ** 2) + signal**2) / 4
        assert lira_scores(np.array([signal]), shadows, members) == pytest.approx(by_hand)


def test_rows_that_an_unlearned_model_kept_count_for_neither_side():
    generator = np.random.default_rng(0)
    trained = halves(generator, 40, 12)
    forgotten = trained & (generator.random((40, 12)) < 0.5)
    shadows, signal = generator.normal(size=(40, 12)), generator.normal(size=12)
    scores = lira_scores(signal, shadows, forgotten, ~trained)
    expected = lira_by_samples(signal, shadows, forgotten, ~trained, (False, False))
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
    retained = trained & ~forgotten
    assert retained.any()
    np.testing.assert_array_equal(lira_scores(signal, np.where(retained, 1e6, shadows), forgotten, ~trained), scores)
    np.testing.assert_array_equal(
        lira_scores(signal, np.where(retained, np.nan, shadows), forgotten, ~trained), scores
    )
    assert (lira_scores(signal, shadows, forgotten) != scores).all()


def test_models_that_all_agree_have_a_deviation_of_rounding():
    members = np.array([[True, True], [True, True], [False, False], [False, False]])
    shadows = np.where(members, 2.0, 1.0)
    scores = lira_scores(np.array([2.0, 1.0]), shadows, members)
    assert np.isfinite(scores).all() and scores[0] > 0 > scores[1]


def test_lira_needs_two_models_on_either_side():
    shadows, signal = np.zeros((4, 3)), np.zeros(3)
    members = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 0, 0]], bool)
    for masks in ((members,), (~members,)):
        with pytest.raises(ValueError, match=r"shadows: some sample has 1 models .* train more, two are the least"):
            lira_scores(signal, shadows, *masks)
    enough = np.array([[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]], bool)
    with pytest.raises(ValueError, match="shadows: some sample has 0 models"):
        lira_scores(signal, shadows, enough, np.zeros((4, 3), bool))


@pytest.mark.parametrize("models", [16, 128])
def test_lira_beats_the_plain_attack_where_rows_differ(models):
    """Samples that are hard for every model hide who was trained on, until other models say how hard they are."""
    generator = np.random.default_rng(0)
    samples = 600
    hard = generator.normal(0, 3, samples)
    members = halves(generator, models, samples)
    shadows = hard + members + 0.7 * generator.normal(size=(models, samples))
    truth = np.arange(samples) < samples // 2
    signal = hard + truth + 0.7 * generator.normal(size=samples)

    def area(scores):
        return threshold_attack(scores[truth], scores[~truth], resamples=50)["auc"]

    calibrated, plain = area(lira_scores(signal, shadows, members)), area(signal)
    assert plain.value < 0.65 and calibrated.low > plain.high
    # The best possible attack: the sample's difficulty is known.
    best = norm.cdf(1 / 0.7 / 2**0.5)
    assert best - 0.06 < calibrated.value < best + 0.04


def test_logit_confidence():
    chances = np.array([0.001, 0.3, 0.5, 0.9, 0.999999])
    np.testing.assert_allclose(logit_confidence(-np.log(chances)), np.log(chances / (1 - chances)), rtol=1e-9)
    losses = np.array([0.0, 1e-300, 1e-12, 1e-6, 1.0, 50.0, 700.0])
    scores = logit_confidence(losses)
    assert np.isfinite(scores).all() and (np.diff(scores) <= 0).all()
    assert scores[-1] == pytest.approx(-700) and scores[3] == pytest.approx(np.log(1e6), rel=1e-6)


def rmia_by_pairs(losses, shadows, population, population_shadows, gamma, offline):
    """Every sample against every sample of the population, in probabilities."""

    def ratio(loss, others):
        mean = np.mean([np.exp(-other) for other in others])
        if offline is not None:
            mean = 0.5 * ((1 + offline) * mean + (1 - offline))
        return np.exp(-loss) / mean

    beaten = [
        [
            ratio(losses[i], shadows[:, i]) / ratio(population[j], population_shadows[:, j]) >= gamma
            for j in range(len(population))
        ]
        for i in range(len(losses))
    ]
    return np.mean(beaten, axis=1)


@pytest.mark.parametrize("gamma", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("offline", [None, 0.0, 0.3, 1.0])
def test_rmia_against_every_pair(gamma, offline):
    generator = np.random.default_rng(0)
    losses, shadows = generator.exponential(0.7, 30), generator.exponential(1, (6, 30))
    population, population_shadows = generator.exponential(1, 41), generator.exponential(1, (6, 41))
    scores = rmia_scores(losses, shadows, population, population_shadows, gamma=gamma, offline=offline)
    expected = rmia_by_pairs(losses, shadows, population, population_shadows, gamma, offline)
    np.testing.assert_allclose(scores, expected, atol=1e-12)
    assert 0 < scores.mean() < 1 and len(np.unique(scores)) > 5


def test_rmia_by_hand():
    """Ratios: 0.5 / 0.25 = 2 and 0.2 / 0.4 = 0.5; of the population 1, 2 and 4; a tie is a win."""
    losses, shadows = -np.log([0.5, 0.2]), -np.log([[0.125, 0.5], [0.375, 0.3]])
    population, population_shadows = -np.log([0.5, 0.5, 0.5]), -np.log([[0.5, 0.25, 0.125]] * 2)
    losses[0] -= 1e-9
    assert rmia_scores(losses, shadows, population, population_shadows).tolist() == pytest.approx([2 / 3, 0])
    assert rmia_scores(losses, shadows, population, population_shadows, gamma=2.0).tolist() == pytest.approx(
        [1 / 3, 0]
    )
    # a = 1: what models without the sample say is all there is; a = 0: those with it are taken to be certain of it.
    at_zero = rmia_scores(losses, shadows, population, population_shadows, offline=0.0)
    ratios = np.array([0.5 / 0.625, 0.2 / 0.7])
    assert at_zero.tolist() == [np.mean(o >= 0.5 / np.array([0.75, 0.625, 0.5625])) for o in ratios]
    np.testing.assert_array_equal(
        rmia_scores(losses, shadows, population, population_shadows, offline=1.0),
        rmia_scores(losses, shadows, population, population_shadows),
    )


def test_population_scores_by_samples():
    generator = np.random.default_rng(0)
    # On a grid, so that there are ties: a sample with the same loss is not predicted worse.
    losses, population = generator.integers(0, 12, 50) / 4, generator.integers(0, 12, 80) / 4
    scores = population_scores(losses, population)
    np.testing.assert_allclose(scores, [sum(z > x for z in population) / 80 for x in losses], atol=1e-12)
    labels, classes = generator.integers(0, 4, 50), generator.integers(0, 3, 80)
    scores = population_scores(losses, population, labels, classes)
    for x, label, score in zip(losses, labels, scores, strict=True):
        of_class = [z for z, other in zip(population, classes, strict=True) if other == label]
        assert score == pytest.approx(sum(z > x for z in of_class) / len(of_class) if of_class else 0.5, abs=1e-12)
    assert (labels == 3).any() and (scores != population_scores(losses, population)).any()


def test_population_scores_set_a_threshold_for_every_class():
    """A class that is hard for every model hides its members from one threshold for all."""
    generator = np.random.default_rng(0)
    classes, labels = np.repeat([0, 1], 300), np.repeat([0, 1], 100)
    population = 3 * classes + generator.uniform(0, 1, 600)
    members = 3 * labels + generator.uniform(0, 0.5, 200)
    samples = 3 * labels + generator.uniform(0, 1, 200)
    areas = []
    for by_class in ((), (labels, classes)):
        sides = [population_scores(losses, population, *by_class) for losses in (members, samples)]
        areas.append(threshold_attack(*sides, resamples=2)["auc"].value)
    assert areas[0] < 0.66 and areas[1] > 0.7
