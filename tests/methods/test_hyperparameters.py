"""Hyper-parameters of methods: their defaults, what they change, and which are refused."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import make
from transformers.modeling_outputs import CausalLMOutput

from hf_unlearn.losses import head_of
from hf_unlearn.methods import FORGETTING_LOSSES, METHODS, Method, RunInfo

# As published, or where the class says so as in public code.
DEFAULTS = {
    "npo": {"beta": 0.1},
    "idk_dpo": {"beta": 0.1},
    "simnpo": {"beta": 2.5, "gamma": 0.0},
    "wga": {"alpha": 1.0},
    "satimp": {"beta1": 5.0, "beta2": 1.0},
    "undial": {"beta": 10.0},
    "rmu": {"scale": 5.0, "depth": 7 / 32, "layers": 3},
    "scrub": {"alpha": 0.001, "gamma": 0.99, "max_step_share": 2 / 3},
    "l1_sparse": {"gamma": 5e-5},
    "cf_k": {"k": 2},
    "eu_k": {"k": 2},
    "undo": {"alpha": 0.3, "beta": 0.1},
    "msg": {"share": 0.3, "slow": 0.1},
    "ssd": {"alpha": 10.0, "lambda_": 1.0},
    "gdr_gma": {"gamma": 100.0, "epsilon": 0.02},
}


def method(name, **method_kwargs):
    settings = SimpleNamespace(
        retain_weight=None, seed=1, forget_target="auto", projection="gradient", forgetting_loss="nabla_tau",
        method_kwargs=method_kwargs,
    )  # fmt: skip
    return METHODS[name](settings, RunInfo(1, 90))


@pytest.mark.parametrize("name", METHODS)
def test_defaults(name):
    assert dataclasses.asdict(method(name).hp) == DEFAULTS.get(name, {})


@pytest.mark.parametrize("name", METHODS)
def test_every_hyperparameter_is_frozen_and_says_what_it_means(name):
    fields = dataclasses.fields(METHODS[name].hyperparameters)
    assert all(field.metadata["help"] for field in fields)
    assert METHODS[name].hyperparameters.__dataclass_params__.frozen


def test_settings_without_method_kwargs_give_the_defaults():
    assert METHODS["npo"](SimpleNamespace(method_kwargs=None), RunInfo(1, 1)).hp.beta == 0.1


def label_log_probs(samples=4):
    """A causal head, a batch, logits, and by hand the log-probabilities of every sample's label tokens."""
    model, make_batch = make("gpt2")
    batch = make_batch(samples, seed=3)
    logits = torch.randn(*batch["labels"].shape, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_probs = logits.log_softmax(-1).numpy()
    by_sample = [
        [log_probs[i, t - 1, label] for t, label in enumerate(labels.tolist()) if t and label != -100]
        for i, labels in enumerate(batch["labels"])
    ]
    return head_of(model), batch, CausalLMOutput(logits=logits), by_sample


def value(objective, head, batch, outputs):
    scores, _ = objective.scores(outputs, batch, head, torch.arange(len(batch["labels"])))
    return objective.combine(scores).item()


def test_beta_of_npo_by_hand():
    head, batch, outputs, log_probs = label_log_probs()
    original = np.array([2.0, 3.5, 4.0, 3.0])  # mean token losses
    log_ratios = [sum(sample) + len(sample) * loss for sample, loss in zip(log_probs, original, strict=True)]
    for beta in (0.1, 0.5):
        objective = method("npo", beta=beta).objective(None, torch.tensor(original))
        expected = np.mean([2 / beta * math.log(1 + math.exp(beta * ratio)) for ratio in log_ratios])
        assert value(objective, head, batch, outputs) == pytest.approx(expected, rel=1e-9)


def test_beta_and_gamma_of_simnpo_by_hand():
    head, batch, outputs, log_probs = label_log_probs()
    losses = [-np.mean(sample) for sample in log_probs]
    for beta, gamma in ((2.5, 0.0), (4.5, 0.5)):
        objective = method("simnpo", beta=beta, gamma=gamma).objective(None, None)
        expected = np.mean([2 / beta * math.log(1 + math.exp(gamma - beta * loss)) for loss in losses])
        assert value(objective, head, batch, outputs) == pytest.approx(expected, rel=1e-9)


def test_layers_and_depth_of_rmu_choose_what_trains():
    model, _ = make("gpt2")  # two layers
    steered = method("rmu", depth=1, layers=1)
    steered.on_init_end(model, False)
    assert steered.layer == 1
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".h.1." in name for name in trained)


def test_alpha_of_ssd_decides_how_many_retain_samples_are_needed():
    method("ssd", alpha=90)
    with pytest.raises(ValueError, match=r"over 91 times more .* holds 1 of 91 samples"):
        method("ssd", alpha=91)


def test_method_kwargs_are_those_of_the_surgery_method_and_not_of_its_forgetting_loss():
    gdr_gma = method("gdr_gma", gamma=50)
    assert gdr_gma.hp.gamma == 50
    assert not any(dataclasses.fields(cls.hyperparameters) for cls in FORGETTING_LOSSES.values())


def test_hyperparameters_of_a_users_own_method():
    @dataclasses.dataclass(frozen=True)
    class Own:
        weight: float = 1
        schedule: str = "cosine"

    class OwnMethod(Method):
        name, hyperparameters = "own", Own

    assert OwnMethod.check_hyperparameters({"weight": 0.5, "schedule": "linear"}) == Own(0.5, "linear")
    with pytest.raises(TypeError, match="weight of own must be a number"):
        OwnMethod.check_hyperparameters({"weight": "heavy"})


def test_integers_and_numpy_numbers_are_numbers():
    assert method("npo", beta=1).hp.beta == 1 and isinstance(method("npo", beta=1).hp.beta, float)
    assert method("npo", beta=np.float32(0.5)).hp.beta == 0.5
    assert method("rmu", layers=np.int64(2)).hp.layers == 2


def test_text_that_is_a_number_is_that_number():
    assert method("npo", beta="1e-4").hp.beta == 1e-4  # as YAML reads it
    assert method("npo", beta="1").hp.beta == 1 and isinstance(method("npo", beta="1").hp.beta, float)
    assert method("rmu", layers="2").hp.layers == 2 and isinstance(method("rmu", layers="2").hp.layers, int)


@pytest.mark.parametrize(
    ("name", "method_kwargs", "error", "message"),
    [
        ("npo", {"betta": 1}, ValueError, "method_kwargs: npo has no 'betta'; it has beta (did you mean 'beta'?)"),
        ("simnpo", {"x": 1}, ValueError, "method_kwargs: simnpo has no 'x'; it has beta, gamma"),
        ("grad_diff", {"beta": 1}, ValueError, "method_kwargs: grad_diff has no 'beta'; it has no hyper-parameters"),
        ("orthograd", {"beta": 1}, ValueError, "method_kwargs: orthograd has no 'beta'; it has no hyper-parameters"),
        ("npo", {"beta": "much"}, TypeError, "method_kwargs: beta of npo must be a number, got 'much' (str)"),
        ("npo", {"beta": "-1e-4"}, ValueError, "method_kwargs: beta of npo must be greater than 0, got -0.0001"),
        ("npo", {"beta": "inf"}, ValueError, "method_kwargs: beta of npo must be finite, got inf"),
        ("rmu", {"layers": "1.5"}, TypeError, "method_kwargs: layers of rmu must be an integer, got 1.5 (float)"),
        ("npo", {"beta": True}, TypeError, "method_kwargs: beta of npo must be a number, got True (bool)"),
        ("npo", {"beta": None}, TypeError, "method_kwargs: beta of npo must be a number, got None (NoneType)"),
        ("npo", {"beta": math.nan}, ValueError, "method_kwargs: beta of npo must be finite, got nan"),
        ("npo", {"beta": math.inf}, ValueError, "method_kwargs: beta of npo must be finite, got inf"),
        ("npo", {"beta": 0}, ValueError, "method_kwargs: beta of npo must be greater than 0, got 0"),
        ("simnpo", {"gamma": -1}, ValueError, "method_kwargs: gamma of simnpo must be at least 0, got -1"),
        ("rmu", {"depth": 1.5}, ValueError, "method_kwargs: depth of rmu must be at most 1, got 1.5"),
        ("rmu", {"layers": 1.5}, TypeError, "method_kwargs: layers of rmu must be an integer, got 1.5 (float)"),
        ("rmu", {"layers": 0}, ValueError, "method_kwargs: layers of rmu must be at least 1, got 0"),
        ("npo", [1], TypeError, "method_kwargs: found list; give a dict of hyper-parameters"),
    ],
)
def test_what_is_refused(name, method_kwargs, error, message):
    with pytest.raises(error) as refusal:
        METHODS[name].check_hyperparameters(method_kwargs)
    assert str(refusal.value) == message
