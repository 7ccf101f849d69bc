"""Targets against hand-computed losses and plain numpy."""

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from hf_unlearn.auditing.statistics import SampleStatistics
from hf_unlearn.targets import (
    Ascent,
    DistributionTarget,
    MaskedClassTarget,
    MaskedLabelTarget,
    MeanTarget,
    make_target,
    resolve_kind,
    restore_target,
)


def gradient(target, scores):
    scores = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    value = target.combine(scores)
    (grad,) = torch.autograd.grad(value, scores)
    return value.item(), grad.tolist()


def test_nabla_tau_by_hand():
    # tau = 2, losses 0.5 and 1.5: (2 - 1)^2 = 1, gradient -2 (2 - 1) / 2 a sample; linear: 1 and -1/2.
    assert gradient(MeanTarget(2.0), [0.5, 1.5]) == (1.0, [-1.0, -1.0])
    assert gradient(MeanTarget(2.0, "linear"), [0.5, 1.5]) == (1.0, [-0.5, -0.5])
    # The hinge is on the mean: one sample above tau does not save the other.
    assert gradient(MeanTarget(2.0), [0.0, 3.0]) == (0.25, [-0.5, -0.5])
    # The published notebooks' trap is squaring before the relu, which pulls back from above tau.
    assert gradient(MeanTarget(2.0), [5.0, 7.0]) == (0.0, [0.0, 0.0])


def test_ascent():
    assert gradient(Ascent(), [1.0, 3.0]) == (-2.0, [-0.5, -0.5])


def test_distribution_by_hand():
    # Two samples get the quantiles 1/4 and 3/4 of {0, 2, 4, 6}, which are 1 and 5: the loss 8 falls, 0.5 rises.
    target = DistributionTarget(torch.tensor([4.0, 0.0, 6.0, 2.0]))
    assert gradient(target, [8.0, 0.5]) == (1.75, [0.5, -0.5])
    assert target.value == 3.0


def test_distribution_is_the_wasserstein_distance_of_equal_samples():
    rng = np.random.default_rng(0)
    unseen, forget = rng.exponential(size=40), rng.exponential(size=40) * 3
    target = DistributionTarget(torch.tensor(unseen))
    assert target.combine(torch.tensor(forget)).item() == pytest.approx(
        wasserstein_distance(unseen, forget), rel=1e-12
    )
    assert target.combine(torch.tensor(unseen)).item() == pytest.approx(0, abs=1e-12)


def test_profiles_are_matched_eighth_by_eighth():
    # The first column is as in the example by hand; the others are at their quantiles, with the samples swapped.
    unseen = torch.tensor([4.0, 0.0, 6.0, 2.0])
    target = DistributionTarget(torch.stack([unseen, *[10 + unseen] * 7], dim=1))
    assert target.value == 3 + 7 * 10 / 8
    value, grad = gradient(target, [[8.0, *[11.0] * 7], [0.5, *[15.0] * 7]])
    assert (value, grad) == (1.75 / 8, [[0.5 / 8, *[0.0] * 7], [-0.5 / 8, *[0.0] * 7]])
    again = restore_target(target.state())
    assert gradient(again, [[8.0] * 8, [0.5] * 8]) == gradient(target, [[8.0] * 8, [0.5] * 8])


def test_profiles_tell_apart_what_a_mean_does_not():
    """Half of the tokens known and the others absurd, or all of them unlikely: the mean loss is the same."""
    unlikely, absurd = torch.full((5, 8), 4.0), torch.tensor([0.0] * 4 + [8.0] * 4).repeat(5, 1)
    assert DistributionTarget(unlikely.mean(1)).combine(absurd.mean(1)) == 0
    assert DistributionTarget(unlikely).combine(absurd) == 4


def test_masked_class_in_numpy():
    class Head:
        def losses(self, outputs, batch):
            return -outputs["logits"].log_softmax(1)[:, 1]

    rng = np.random.default_rng(0)
    original, current, others = rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), rng.normal(size=(2, 4)) * 3

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    log_probs, other_log_probs = torch.tensor(original).log_softmax(1), torch.tensor(others).log_softmax(1)
    target = MaskedClassTarget(log_probs, [1], other_log_probs)
    samples, logits = torch.tensor([2, 0]), torch.tensor(current, requires_grad=True)
    scores, losses = target.scores({"logits": logits}, {}, Head(), samples)
    model, expected = softmax(current), softmax(original)[samples.numpy()]
    assert np.allclose(losses.numpy(), -np.log(model[:, 1])) and not losses.requires_grad
    expected[:, 1] = 0
    expected /= expected.sum(1, keepdims=True)
    divergence = [
        sum(w * np.log(w / m) for w, m in zip(ws, ms, strict=True) if w)
        for ws, ms in zip(expected, model, strict=True)
    ]
    assert np.allclose(scores[:, 0].detach().numpy(), divergence, rtol=1e-6)
    # two forgotten samples and two others: the quantiles are the others' margins, in order
    margins = [np.sort(logits[:, 1] - np.delete(logits, 1, axis=1).max(1)) for logits in (current, others)]
    assert np.allclose(np.sort(scores[:, 1].detach().numpy()), margins[0])
    deviations = (margins[0] - margins[1]) / max(margins[1].std(), 1)
    value = target.combine(scores)
    assert value.item() == pytest.approx(np.mean(divergence) + np.mean(deviations**2) / 4, rel=1e-6)
    assert target.value == pytest.approx(-np.log(softmax(others)[:, 1]).mean())
    # The gradient of the divergence is model minus target: the forgotten class goes down by all it had.
    (grad,) = torch.autograd.grad(scores[:, 0].sum(), logits)
    assert np.allclose(grad.numpy(), model - expected, atol=1e-6)


def test_masked_class_says_how_unlikely():
    """Where the divergence is flat, the margins have a gradient towards those of other samples, from both sides."""
    log_probs = torch.tensor([[0.9, 0.1, 0.0]]).log()
    target = MaskedClassTarget(log_probs, [2], torch.tensor([[0.0, -1.0, -8.0]] * 5))
    for margin, slope in ((-5.0, 1.5), (-8.0, 0.0), (-11.0, -1.5)):  # in deviations, of which one is a nat at least
        scores = torch.tensor([[0.0, margin]], requires_grad=True)
        (grad,) = torch.autograd.grad(target.combine(scores), scores)
        assert grad[0, 1].item() == pytest.approx(slope)


def test_several_masked_classes_have_margins_of_their_own():
    """Each against the best class that is kept, matched to that class's margins on other samples."""
    others = torch.tensor([[0.0, -1.0, -4.0, -9.0], [-2.0, 0.0, -5.0, -7.0]])
    log_probs = torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]]).log()
    target = MaskedClassTarget(log_probs, [2, 3], others)
    statistics = SampleStatistics(losses=-log_probs[[0, 1], [2, 3]], correct=torch.ones(2), log_probs=log_probs)
    expected = torch.tensor([[0.7, 0.1], [0.3, 0.4]]).log() - torch.tensor([[0.1], [0.2]]).log()
    torch.testing.assert_close(target.measured(statistics), expected)
    again = restore_target(target.state())
    met, missed = torch.tensor([[0.0, -5.0, -9.0]] * 3), torch.tensor([[0.0, -5.0, -1.0]] * 3)
    assert again.is_met(met) and not again.is_met(missed)
    assert again.combine(met) < again.combine(missed)


def test_a_masked_label_in_numpy():
    class Head:
        def losses(self, outputs, batch):
            return outputs["logits"].sum(1)

    def kl(a, z):
        p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-z))
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    rng = np.random.default_rng(0)
    original, current, others = rng.normal(size=(3, 4)), rng.normal(size=(2, 4)), rng.normal(size=(2, 4)) * 3
    target = MaskedLabelTarget(torch.tensor(original), [1], torch.tensor(others), torch.tensor([0.5, 0.7]))
    samples, logits = torch.tensor([2, 0]), torch.tensor(current, requires_grad=True)
    scores, losses = target.scores({"logits": logits}, {}, Head(), samples)
    assert np.allclose(losses.numpy(), current.sum(1)) and not losses.requires_grad
    divergence = np.delete(kl(original[samples.numpy()], current), 1, axis=1).sum(1)
    assert np.allclose(scores.detach().numpy(), np.stack((divergence, current[:, 1]), 1), rtol=1e-5)
    # two forgotten samples and two others: the quantiles are the others' logits of the label, in order
    distances = np.sort(current[:, 1]) - np.sort(others[:, 1])
    deviation = max(others[:, 1].std(), 1)
    expected = (divergence.mean() + np.mean((distances / deviation) ** 2) / 4) / 4  # of four labels
    assert target.combine(scores).item() == pytest.approx(expected, rel=1e-5)
    # The others' losses, had they the label: softplus(-z) is softplus(z) - z.
    assert target.value == pytest.approx(np.mean([0.5, 0.7] - others[:, 1] / 4))
    (grad,) = torch.autograd.grad(scores[:, 0].sum(), logits)
    sigmoid = 1 / (1 + np.exp(-np.stack((current, original[samples.numpy()]))))
    expected_grad = sigmoid[0] - sigmoid[1]
    expected_grad[:, 1] = 0  # the forgotten label is left to its margin
    assert np.allclose(grad.numpy(), expected_grad, atol=1e-6)


def test_a_masked_label_is_met_where_it_is_as_unlikely_as_elsewhere():
    others = torch.tensor([[2.0, -4.0], [3.0, -6.0], [1.0, -5.0]])
    target = restore_target(MaskedLabelTarget(others, [1], others, torch.zeros(3)).state())
    met, missed = torch.tensor([[0.0, -5.0]] * 3), torch.tensor([[0.0, -1.0]] * 3)
    assert target.is_met(met) and not target.is_met(missed) and target.combine(met) < target.combine(missed)
    statistics = SampleStatistics(torch.zeros(2), torch.ones(2), label_logits=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert target.measured(statistics).tolist() == [[2.0], [4.0]]


@pytest.mark.parametrize(
    ("setting", "request_", "head", "unseen", "kind"),
    [
        ("auto", "samples", "single_label", True, "distribution"),
        ("auto", "samples", "single_label", False, "none"),
        ("auto", "class", "single_label", False, "masked_class"),
        ("auto", "class", "multi_label", True, "masked_class"),
        ("auto", "samples", "multi_label", True, "distribution"),
        ("auto", "class", "causal_lm", True, "distribution"),
        ("auto", "group", "seq2seq_lm", True, "distribution"),
        ("mean", "samples", "single_label", True, "mean"),
        (2.3, "class", "single_label", False, "mean"),
        ([1.0, 2.0], "group", "ctc", False, "distribution"),
    ],
)
def test_the_request_decides(setting, request_, head, unseen, kind):
    assert resolve_kind(setting, request=request_, head_kind=head, has_unseen=unseen) == kind


@pytest.mark.parametrize("setting", ["mean", "distribution"])
def test_refuses_without_unseen_data(setting):
    with pytest.raises(ValueError, match=f"forget_target: '{setting}' needs unseen_ds"):
        resolve_kind(setting, request="samples", head_kind="single_label", has_unseen=False)


def test_profiles_need_samples_of_many_tokens():
    profiles = [[1.0] * 8]
    assert resolve_kind(profiles, request="group", head_kind="seq2seq_lm", has_unseen=False) == "distribution"
    with pytest.raises(ValueError, match="forget_target: holds loss profiles, but a ctc head scores a sample once"):
        resolve_kind(profiles, request="group", head_kind="ctc", has_unseen=False)


def test_masked_class_needs_a_class_and_a_classifier():
    for request, head in (("samples", "single_label"), ("class", "causal_lm")):
        with pytest.raises(ValueError, match='needs a request="class" and a classification'):
            resolve_kind("masked_class", request=request, head_kind=head, has_unseen=True)


def test_a_forgotten_class_may_not_be_in_the_retain_set():
    def statistics(labels):
        n = len(labels)
        return SampleStatistics(torch.zeros(n), torch.ones(n), torch.tensor(labels), log_probs=torch.zeros(n, 3))

    by_name = {"forget": statistics([1, 1]), "retain": statistics([0, 1, 2])}
    with pytest.raises(ValueError, match=r"retain_ds still holds samples of the forgotten classes \[1\]"):
        make_target("masked_class", "auto", "squared", by_name)
    by_name["retain"] = statistics([0, 2])
    assert make_target("masked_class", "auto", "squared", by_name).classes == [1]


def test_which_labels_are_forgotten_has_to_be_known():
    statistics = SampleStatistics(torch.zeros(2), torch.ones(2), label_logits=torch.zeros(2, 3))
    by_name = {"forget": statistics, "retain": statistics}
    assert make_target("masked_class", "auto", "squared", by_name, [1]).classes == [1]
    with pytest.raises(
        ValueError, match=r"needs to know which labels are forgotten, but the datasets store none in a"
    ):
        make_target("masked_class", "auto", "squared", by_name)


def test_targets_survive_a_checkpoint(tmp_path):
    targets = [
        Ascent(),
        MeanTarget(1.5, "linear"),
        DistributionTarget(torch.tensor([3.0, 1.0])),
        MaskedClassTarget(torch.zeros(2, 3), [0], torch.zeros(4, 3)),
        MaskedLabelTarget(torch.zeros(2, 3), [0], torch.zeros(4, 3), torch.zeros(4)),
    ]
    for target in targets:
        torch.save(target.state(), tmp_path / "t.pt")
        again = restore_target(torch.load(tmp_path / "t.pt", weights_only=True))
        assert type(again) is type(target) and again.state().keys() == target.state().keys()
        for name, value in target.state().items():
            same = (
                torch.equal(value, again.state()[name])
                if isinstance(value, torch.Tensor)
                else value == again.state()[name]
            )
            assert same
