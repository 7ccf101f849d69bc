"""Every layer rule against one backward pass a sample, in float64; and what the factors are asked for."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers.models.dinov2.modeling_dinov2 import Dinov2LayerScale
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm, GemmaTextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.pytorch_utils import Conv1D

from hf_unlearn.per_sample.layers import NotCovered, leaf, rule_of

K = 4


def real(*shape):
    return lambda: torch.randn(K, *shape, dtype=torch.float64)


def ids(*shape):
    return lambda: torch.randint(0, 6, (K, *shape))


def layer_scale():
    return Dinov2LayerScale(type("Config", (), {"layerscale_value": 0.5, "hidden_size": 5})())


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), real(7, 5)),
    "linear on vectors": (lambda: nn.Linear(5, 3), real(5)),
    "linear on grids": (lambda: nn.Linear(5, 3, bias=False), real(2, 3, 5)),
    "conv1d of gpt2": (lambda: Conv1D(3, 5), real(7, 5)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), real(4, 9)),
    "conv1d, dilated": (lambda: nn.Conv1d(4, 6, 3, padding=2, dilation=2, bias=False), real(4, 9)),
    "conv1d, groups": (lambda: nn.Conv1d(4, 6, 3, groups=2), real(4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), real(3, 8, 7)),
    "conv2d, dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2), real(3, 8, 7)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), real(4, 5, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), real(4, 5, 5)),
    "conv1d, same padding": (lambda: nn.Conv1d(4, 6, 4, padding="same", dilation=2), real(4, 9)),
    "conv2d, valid padding": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), real(3, 8, 7)),
    "conv2d, circular": (lambda: nn.Conv2d(3, 4, (3, 2), padding=(1, 2), padding_mode="circular"), real(3, 8, 7)),
    "conv1d, reflect": (lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), real(4, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 1), (1, 2, 1), (0, 1, 1), (1, 1, 2), 2), real(2, 4, 5, 3)),
    "embedding": (lambda: nn.Embedding(6, 3), ids(5)),
    "embedding, sparse": (lambda: nn.Embedding(6, 3, sparse=True), ids(5)),
    "embedding, padding": (lambda: nn.Embedding(6, 3, padding_idx=1), ids(5)),
    "scaled embedding": (lambda: GemmaTextScaledWordEmbedding(6, 3, 0, embed_scale=2.5), ids(5)),
    "layer norm": (lambda: nn.LayerNorm(5), real(7, 5)),
    "layer norm over two": (lambda: nn.LayerNorm((7, 5)), real(2, 7, 5)),
    "layer norm without bias": (lambda: nn.LayerNorm(5, bias=False), real(5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), real(4, 5, 5)),
    "batch norm": (lambda: nn.BatchNorm2d(4), real(4, 5, 5)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(4), real(4, 2, 3, 2)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), real(4, 5)),
    "rms norm": (lambda: nn.RMSNorm(5), real(7, 5)),
    "rms norm of Llama": (lambda: LlamaRMSNorm(5), real(7, 5)),
    "rms norm of Gemma": (lambda: GemmaRMSNorm(5), real(7, 5)),
    "rms norm of Qwen3": (lambda: Qwen3RMSNorm(5), real(3, 7, 5)),
    "rms norm of T5": (lambda: T5LayerNorm(5), real(7, 5)),
    "layer scale": (layer_scale, real(7, 5)),
}


def built(name):
    torch.manual_seed(0)
    make, inputs = LAYERS[name]
    module = make().double().eval()
    for p in module.parameters():  # norms start at one and zero, which would hide mistakes
        nn.init.normal_(p)
    for buffer in module.buffers():
        if buffer.is_floating_point() and buffer.dim():
            buffer.uniform_(0.5, 2)
    return module, inputs()


def by_the_loop(module, inputs, grads):
    parameters = dict(module.named_parameters())
    samples = {name: [] for name in parameters}
    for x, g in zip(inputs, grads, strict=True):
        grads_of_sample = torch.autograd.grad(module(x[None]), list(parameters.values()), g[None])
        for name, values in zip(parameters, grads_of_sample, strict=True):
            samples[name].append(values.to_dense().flatten())
    return {name: torch.stack(values) for name, values in samples.items()}


@pytest.mark.parametrize("name", LAYERS)
def test_a_rule_equals_the_loop(name):
    module, inputs = built(name)
    grads = torch.randn_like(module(inputs))
    factors_by_attribute, expected = rule_of(module)(module, inputs, grads), by_the_loop(module, inputs, grads)
    weights = torch.randn(K, dtype=torch.float64)
    for attribute, samples in expected.items():
        factors, parameter = factors_by_attribute[attribute], getattr(module, attribute)
        assert factors.samples == K and factors.stored_numel > 0
        scale = float(samples.abs().max()) * (1e-6 if "rms" in name else 1e-12)  # these norms compute in float32
        torch.testing.assert_close(factors.row_gradients(0, len(parameter)), samples, rtol=1e-5, atol=scale)
        torch.testing.assert_close(
            factors.row_gradients(1, 3), samples.view(K, len(parameter), -1)[:, 1:3].flatten(1), rtol=1e-5, atol=scale
        )
        torch.testing.assert_close(factors.combine(weights), weights @ samples, rtol=1e-5, atol=K * scale)
        # Two entries of the leading axis for every sample, as windows of an image.
        pairs = factors.grouped(K // 2)
        assert pairs.samples == K // 2
        halves = samples.view(K // 2, 2, -1)
        torch.testing.assert_close(pairs.row_gradients(0, len(parameter)), halves.sum(1), rtol=1e-5, atol=2 * scale)
        torch.testing.assert_close(pairs.combine(weights[:2]), weights[:2] @ halves.sum(1), rtol=1e-5, atol=K * scale)


def test_every_rule_is_tested():
    from hf_unlearn.per_sample.layers import RULES

    assert set(RULES) <= {type(make()) for make, _ in LAYERS.values()}


def test_inner_products_of_short_sequences_by_factors():
    module, inputs = built("linear")
    grads = torch.randn_like(module(inputs))
    factors, samples = rule_of(module)(module, inputs, grads)["weight"], by_the_loop(module, inputs, grads)["weight"]
    torch.testing.assert_close(factors.gram(), samples @ samples.T, rtol=1e-5, atol=1e-8)
    gradient = torch.randn(3, 5, dtype=torch.float64)
    assert factors.shape == (3, 5)
    torch.testing.assert_close(factors.cross(gradient), samples @ gradient.flatten(), rtol=1e-5, atol=1e-8)


def test_half_precision_factors_give_the_parameters_type():
    module, inputs = nn.Linear(5, 3), torch.randn(K, 7, 5, dtype=torch.bfloat16)
    factors_by_attribute = rule_of(module)(module, inputs, torch.randn(K, 7, 3, dtype=torch.bfloat16))
    assert {f.row_gradients(0, 3).dtype for f in factors_by_attribute.values()} == {torch.float32}
    assert {f.combine(torch.ones(K)).dtype for f in factors_by_attribute.values()} == {torch.float32}


@pytest.mark.parametrize(
    "module, message",
    [
        (nn.Embedding(6, 3, scale_grad_by_freq=True), "scale_grad_by_freq"),
    ],
)
def test_what_is_not_covered_is_refused_by_name(module, message):
    with pytest.raises(NotCovered, match=message):
        rule_of(module)(module, torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3))


def test_which_modules_have_a_rule():
    assert rule_of(nn.ConvTranspose2d(2, 2, 2)) is None and rule_of(nn.Bilinear(2, 2, 2)) is None
    assert rule_of(LlamaRMSNorm(4)) is leaf
    # Weight normalisation makes a class of its own, with the rule of the class it came from.
    assert rule_of(weight_norm(nn.Conv1d(2, 2, 2))) is rule_of(nn.Conv1d(2, 2, 2))

    class Doubled(nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    assert rule_of(Doubled(2, 2)) is None
