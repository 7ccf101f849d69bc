"""Random small models, whose parameters are used in all kinds of ways, against one backward pass a sample."""

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from hf_unlearn.per_sample import PerSampleGradients

D, ROWS = 4, 16


def parameter(*shape):
    return nn.Parameter(torch.randn(shape, dtype=torch.float64) * 0.5)


class Positions(nn.Module):
    """A table that is looked up by position."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(ROWS, D)

    def forward(self, length):
        return self.table(torch.arange(length))


class Gated(nn.Module):
    """A module of several inputs with parameters that are no layer's."""

    def __init__(self):
        super().__init__()
        self.gate, self.mix = parameter(D), parameter(D, D)

    def forward(self, mask, x, *, scale=1.0):
        x = x @ self.mix * torch.sigmoid(self.gate) * scale
        return x if mask is None else x.masked_fill(mask, 0.0)


class Experts(nn.Module):
    """Tokens are sorted by what they hold, and each expert gets its own."""

    def __init__(self):
        super().__init__()
        self.weights, self.router = parameter(3, D, D), nn.Linear(D, 3)

    def forward(self, x):
        tokens = x.reshape(-1, D)
        scores = self.router(tokens).softmax(-1)
        chosen, result = scores.argmax(-1), torch.zeros_like(tokens)
        for expert in range(3):
            rows = (chosen == expert).nonzero()[:, 0]
            result = result.index_add(0, rows, tokens[rows] @ self.weights[expert] * scores[rows, expert, None])
        return result.view_as(x)


class Random(nn.Module):
    """A few steps on x [k, t, 4], chosen by numbers."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.parts = steps, nn.ModuleList()
        self.shared, self.table = nn.Linear(D, D), nn.Embedding(ROWS, D)
        self.rows, self.columns = parameter(ROWS, 1), parameter(1, D)
        self.vector, self.scalar, self.idle = parameter(D), parameter(), parameter(2)
        self.grid, self.token, self.heads = parameter(1, ROWS, D), parameter(1, 1, D), parameter(2, D, 2)
        makers = {
            "linear": lambda: nn.Linear(D, D), "norm": lambda: nn.LayerNorm(D), "rms": lambda: nn.RMSNorm(D),
            "conv": lambda: nn.Conv1d(D, D, 3, padding="same", groups=2),
            "gru": lambda: nn.GRU(D, D, batch_first=True),
            "weight_norm": lambda: weight_norm(nn.Linear(D, D)), "positions": Positions, "gated": Gated,
            "experts": Experts, "prelu": lambda: nn.PReLU(),
            "attention": lambda: nn.MultiheadAttention(D, 2, batch_first=True),
        }  # fmt: skip
        for step in steps:
            self.parts.append(makers[step]() if step in makers else nn.Identity())

    def forward(self, x):
        for step, part in zip(self.steps, self.parts, strict=True):
            x = self.step(step, part, x).tanh() + x
        return x.flatten(1).square().mean(1)

    def step(self, step, part, x):
        k, t, _ = x.shape
        match step:
            case "linear" | "norm" | "rms" | "weight_norm" | "experts" | "prelu":
                return part(x)
            case "shared":
                return self.shared(x)
            case "shared as function":
                return F.linear(x, self.shared.weight.T)
            case "half bypassed":
                return self.shared(x) if t < 4 else F.linear(x.flip(1), self.shared.weight) + self.shared(x)
            case "checkpointed":
                return checkpoint(self.shared, x, use_reentrant=False)
            case "functional":
                return functional_call(self.shared, {"weight": self.shared.weight * 2, "bias": self.vector}, (x,))
            case "conv":
                return part(x.transpose(1, 2)).transpose(1, 2)
            case "gru":
                return part(x)[0]
            case "attention":
                return part(x, x, x, need_weights=False)[0]
            case "positions":
                return x + part(t)
            case "gated":
                return part(x > 1, x) + part(None, x, scale=0.5)
            case "ids":
                return self.table((x[..., 0] * 3).long().abs() % ROWS)
            case "output layer of a table":
                return (x @ self.table.weight[:D].T).softmax(-1)
            case "rows and columns":
                return x + (self.rows + self.columns)[:t]
            case "rows, then columns":
                return (x + self.rows[:t]) * self.columns
            case "grid":
                return x * self.grid[:, :t]
            case "gate on a table":
                return x + (self.vector.sigmoid() * self.grid)[:, :t]
            case "vector":
                return x / (1 + self.vector.exp())
            case "scalar":
                return x * self.scalar - self.scalar
            case "token":
                return torch.cat([self.token.expand(k, -1, -1), x], 1)[:, :t]
            case "heads":
                return torch.einsum("ktd,hde->kthe", x, self.heads).flatten(2)
            case "samples on the second axis":
                return self.shared(x.transpose(0, 1)).transpose(0, 1)
            case "samples behind each other":
                return self.shared(x.reshape(k * t, D)).view(k, t, D)
            case "in place":
                y = self.shared(x) * 1
                y[:, 0] = 0
                return y.add_(self.vector)
            case "branch":
                return self.shared(x) if t % 2 else x * self.vector
            case "attention over positions":
                return (self.grid[0, :t] @ self.grid[0, :t].T).softmax(-1) @ x
            case "where":
                return torch.where(x > 0, self.vector, x)


STEPS = [
    "linear", "norm", "rms", "weight_norm", "experts", "prelu", "shared", "shared as function", "half bypassed",
    "checkpointed", "functional", "conv", "gru", "attention", "positions", "gated", "ids", "output layer of a table",
    "rows and columns", "rows, then columns", "grid", "gate on a table", "vector", "scalar", "token", "heads",
    "samples on the second axis", "samples behind each other", "in place", "branch", "attention over positions",
    "where",
]  # fmt: skip


def check(steps, sizes, seed):
    torch.manual_seed(seed)
    model = Random(steps).double().eval()
    engine, loop = (PerSampleGradients(model, lambda batch: model(batch["x"]), kind) for kind in ("auto", "loop"))
    for k, t in sizes:
        batch = {"x": torch.randn(k, t, D, dtype=torch.float64)}
        found, expected = engine(batch).gradients(engine.parameters), loop(batch).gradients(loop.parameters)
        for name, samples in expected.items():
            torch.testing.assert_close(found[name], samples, rtol=1e-7, atol=1e-9, msg=lambda text: f"{name}: {text}")  # noqa: B023


def examples(count):
    kinds = st.lists(st.sampled_from(STEPS), min_size=1, max_size=5)
    sizes = st.lists(st.tuples(st.integers(2, 5), st.integers(2, 6)), min_size=1, max_size=3)
    random = given(kinds, sizes, st.integers(0, 1000))

    def decorate(function):
        slow = settings(
            max_examples=count, deadline=None, derandomize=True, database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )  # fmt: skip
        return slow(random(function))

    return decorate


@pytest.mark.parametrize("step", STEPS)
def test_each_step(step):
    check([step], [(3, 5), (5, 5), (4, 2), (2, 4)], 0)


@examples(60)
def test_random_modules(steps, sizes, seed):
    check(steps, sizes, seed)


@pytest.mark.slow
@examples(int(os.environ.get("RANDOM_MODULES", "10000")))
def test_many_random_modules(steps, sizes, seed):
    check(steps, sizes, seed)
