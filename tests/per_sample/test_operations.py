"""Weights that meet the batch in functions: grouped matrix products of experts, convolutions."""

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from tiny import make
from torch import nn

from hf_unlearn.losses import head_of
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.experts import GroupedOuter
from hf_unlearn.per_sample.loop import loop_gradients
from hf_unlearn.per_sample.plan import Way

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}


def mixtral():
    return make("mixtral")[0]


def qwen2_moe():
    config = tf.Qwen2MoeConfig(**SIZES, **HEADS, **EXPERTS, num_experts=6, shared_expert_intermediate_size=8)
    return tf.Qwen2MoeForCausalLM(config)


def olmoe():
    return tf.OlmoeForCausalLM(tf.OlmoeConfig(**SIZES, **HEADS, num_experts=4, num_experts_per_tok=3))


def gpt_oss():
    """Its experts have their matrices the other way round, and biases, which no rule covers."""
    config = tf.GptOssConfig(**SIZES, **HEADS, head_dim=8, num_local_experts=4, num_experts_per_tok=2)
    return tf.GptOssForCausalLM(config)


def mamba():
    return tf.MambaForCausalLM(tf.MambaConfig(**SIZES, state_size=4))


def mamba2():
    sizes = {"num_heads": 4, "head_dim": 8, "n_groups": 2, "state_size": 4, "chunk_size": 4}
    return tf.Mamba2ForCausalLM(tf.Mamba2Config(**{**SIZES, **sizes}))


def lfm2():
    return tf.Lfm2ForCausalLM(tf.Lfm2Config(**SIZES, **HEADS, layer_types=["conv", "full_attention"]))


def built(build):
    torch.manual_seed(0)
    return build().eval()


def batch(size, length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (size, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def assert_exact(engine, values, tolerance):
    found, expected = engine(values), loop_gradients(engine.losses, values, engine.parameters)
    found, expected = found.gradients(engine.parameters), expected.gradients(engine.parameters)
    scale = max(float(samples.norm()) for samples in expected.values())
    for name, samples in expected.items():
        error = float((found[name] - samples).norm())
        assert error <= tolerance * max(float(samples.norm()), 1e-3 * scale), (name, error)


@pytest.mark.parametrize("build", [mixtral, qwen2_moe, olmoe, gpt_oss])
def test_experts_go_by_the_graph(build):
    """Grouped matrix products are in float32: torch has none in float64 on CPUs."""
    model = built(build)
    head = head_of(model)
    engine = PerSampleGradients(model, lambda batch: head.losses(head.run(model, batch), batch), "hooks")
    for size, length in ((3, 5), (2, 8), (3, 5)):
        assert_exact(engine, batch(size, length, seed=size + length), 1e-4)
    weights = [way for name, way in engine.ways.items() if "experts." in name and not name.endswith("bias")]
    assert weights and set(weights) == {Way.GRAPH}


@pytest.mark.parametrize("build", [mamba, mamba2, lfm2])
def test_kernels_go_by_the_graph(build):
    model = built(build).double()
    head = head_of(model)
    engine = PerSampleGradients(model, lambda batch: head.losses(head.run(model, batch), batch), "hooks")
    for size, length in ((3, 5), (2, 8)):
        assert_exact(engine, batch(size, length, seed=size + length), 1e-9)
    kernels = {name: way for name, way in engine.ways.items() if ".conv1d." in name or ".conv.conv." in name}
    assert kernels and set(kernels.values()) == {Way.GRAPH}


class Convolved(nn.Module):
    """A convolution called as a function."""

    def __init__(self, axes, groups, **options):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 4 // groups, *[3] * axes))
        self.shift = nn.Parameter(torch.randn(4))
        self.function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        self.options = {"groups": groups, **options}
        self.first = nn.Linear(5, 5)

    def forward(self, x):
        x = self.first(x)
        return self.function(x, self.kernel, self.shift, **self.options).tanh() + self.function(
            x, self.kernel * 2, **self.options
        )


@pytest.mark.parametrize(
    "options",
    [{}, {"padding": 2}, {"padding": "same"}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}],
    ids=str,
)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolutions_called_as_functions(axes, groups, options):
    torch.manual_seed(0)
    model = Convolved(axes, groups, **options).double()
    engine = PerSampleGradients(model, lambda batch: model(batch["x"]).flatten(1).square().sum(1), "hooks")
    for size in (3, 2):
        assert_exact(engine, {"x": torch.randn(size, 4, *[5] * axes, dtype=torch.float64)}, 1e-9)
    assert engine.ways["kernel"] == engine.ways["shift"] == Way.GRAPH


def test_operations_on_grouped_factors():
    """Every operation against the gradients that they stand for, with experts and samples without a token."""
    torch.manual_seed(0)
    places = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3])
    sample_of_row = torch.tensor([0, 3, 0, 1, 1, 0, 3, 3])
    factors = GroupedOuter(torch.randn(8, 4), torch.randn(8, 12), places, sample_of_row, 5, 4)
    expected = torch.zeros(4, 5, 4, 12)
    for row, column, place, sample in zip(factors.rows, factors.columns, places, sample_of_row, strict=True):
        expected[sample, place] += torch.outer(row, column)
    weights = torch.randn(4)
    torch.testing.assert_close(factors.row_gradients(0, 5), expected.flatten(1))
    torch.testing.assert_close(factors.row_gradients(1, 3), expected[:, 1:3].flatten(1))
    torch.testing.assert_close(factors.row_gradients(1, 2), expected[:, 1:2].flatten(1))
    torch.testing.assert_close(factors.combine(weights), (weights @ expected.flatten(1)))
    halves = expected.unflatten(0, (2, 2)).sum(1).flatten(1)
    torch.testing.assert_close(factors.grouped(2).row_gradients(0, 5), halves)
    assert factors.stored_numel == 8 * 16


def test_rows_that_no_look_up_explains_run_again():
    """A product whose rows are sliced, not looked up: which sample a row is of is not in the graph."""

    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(2, 8, 8))

        def forward(self, x):
            x = self.first(x)
            rows = x.transpose(0, 1).reshape(-1, 8)  # shape: [2 * k, 8], a matrix for each position
            ends = torch.tensor([len(x), 2 * len(x)], dtype=torch.int32)
            return F.grouped_mm(rows, self.weight, offs=ends).view(2, len(x), 8).transpose(0, 1)

    torch.manual_seed(0)
    around = nn.Sequential(Sliced())
    engine = PerSampleGradients(around, lambda batch: around(batch["x"]).flatten(1).square().sum(1))
    assert_exact(engine, {"x": torch.randn(3, 2, 8)}, 1e-5)
    assert engine.ways["0.weight"] == Way.MODULE
