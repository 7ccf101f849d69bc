"""Every module of torch.nn that has parameters, alone and inside of a model, against one backward pass a sample."""

import inspect
from math import prod

import pytest
import torch
from torch import nn

from hf_unlearn.per_sample import PerSampleGradients

X = (5, 6)  # time, features


class Call(nn.Module):
    """A module and how it is called, on x [k, 5, 6]."""

    def __init__(self, module, use):
        super().__init__()
        self.module, self.use = module, use

    def forward(self, x):
        return self.use(self.module, x)


def plain(module, x):
    return module(x)


def channels(*shape):
    return lambda module, x: module(x.flatten(1)[:, : prod(shape)].reshape(len(x), *shape))


def ids(module, x):
    return module((x[..., 0] * 3).long().abs() % 7)


def first(module, x):
    return module(x)[0]


def time_first(module, x):
    return module(x.transpose(0, 1))[0].transpose(0, 1)


def twice(module, x):
    return module(x, x)


def attention(module, x):
    return module(x, x, x, need_weights=False)[0]


def attention_time_first(module, x):
    return attention(module, x.transpose(0, 1)).transpose(0, 1)


def cell(module, x):
    state = module(x[:, 0])
    return (module(x[:, 1], state)[0] if isinstance(state, tuple) else module(x[:, 1], state))[:, None]


def decoder(module, x):
    return module(x, x.flip(1))


def adaptive(module, x):
    targets = ((x[..., 0] * 3).long().abs() % 12).flatten()
    return module(x.flatten(0, 1), targets).output.view(len(x), -1, 1)


FEATURES = {"d_model": 6, "nhead": 2, "dim_feedforward": 7, "dropout": 0.0, "batch_first": True}
CALLS = {
    "AdaptiveLogSoftmaxWithLoss": (lambda: nn.AdaptiveLogSoftmaxWithLoss(6, 12, [4, 8], div_value=2.0), adaptive),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(5), plain),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), channels(2, 5, 3)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), channels(2, 5, 3, 1)),
    "Bilinear": (lambda: nn.Bilinear(6, 6, 3), twice),
    "Conv1d": (lambda: nn.Conv1d(5, 4, 3, padding="same"), plain),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 2, padding="valid"), channels(2, 5, 3)),
    "Conv3d": (lambda: nn.Conv3d(2, 2, (2, 2, 1)), channels(2, 5, 3, 1)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(5, 4, 3, stride=2), plain),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 4, 2), channels(2, 5, 3)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 2, (2, 2, 1)), channels(2, 5, 3, 1)),
    "Embedding": (lambda: nn.Embedding(7, 3, padding_idx=1), ids),
    "Embedding, max_norm": (lambda: nn.Embedding(7, 3, max_norm=0.5), ids),
    "Embedding, sparse": (lambda: nn.Embedding(7, 3, sparse=True), ids),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(7, 3, mode="mean"), ids),
    "GRU": (lambda: nn.GRU(6, 4, num_layers=2, bidirectional=True, batch_first=True), first),
    "GRUCell": (lambda: nn.GRUCell(6, 6), cell),
    "GroupNorm": (lambda: nn.GroupNorm(5, 5), plain),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(5, affine=True), plain),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(2, affine=True), channels(2, 5, 3)),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(2, affine=True), channels(2, 5, 3, 1)),
    "LSTM": (lambda: nn.LSTM(6, 4, proj_size=3, batch_first=True), first),
    "LSTM, time first": (lambda: nn.LSTM(6, 4), time_first),
    "LSTMCell": (lambda: nn.LSTMCell(6, 6), cell),
    "LayerNorm": (lambda: nn.LayerNorm((5, 6)), plain),
    "Linear": (lambda: nn.Linear(6, 4), plain),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(6, 2, batch_first=True), attention),
    "MultiheadAttention, time first": (lambda: nn.MultiheadAttention(6, 2), attention_time_first),
    "PReLU": (lambda: nn.PReLU(5), plain),
    "PReLU, one": (lambda: nn.PReLU(), plain),
    "RMSNorm": (lambda: nn.RMSNorm(6), plain),
    "RNN": (lambda: nn.RNN(6, 4, batch_first=True), first),
    "RNNCell": (lambda: nn.RNNCell(6, 6), cell),
    "Transformer": (lambda: nn.Transformer(6, 2, 1, 1, 7, 0.0, batch_first=True), decoder),
    "TransformerDecoder": (lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**FEATURES), 1), decoder),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(**FEATURES), decoder),
    "TransformerEncoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**FEATURES), 1), plain),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(**FEATURES), plain),
}
# Without parameters of their own before or ever: made for others to fill, or with a first batch.
WITHOUT = ("Lazy", "Container", "Module", "Parameter", "DataParallel", "RNNBase", "RNNCellBase")
# Statistics of the batch at hand, over processes.
MIXES = {"SyncBatchNorm"}


class Model(nn.Module):
    """The module between two layers."""

    def __init__(self, module, use):
        super().__init__()
        self.first, self.call = nn.Linear(6, 6), Call(module, use)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return (self.call(self.first(x).sin() * 2) * self.scale).tanh()


def largest_error(model, batch, engine):
    model = model.double().eval()

    def losses(values):
        return model(values["x"]).flatten(1).square().mean(1)

    loop = PerSampleGradients(model, losses, "loop")
    found, expected = engine(batch), loop(batch)
    torch.testing.assert_close(found.losses, expected.losses)
    found, expected = found.gradients(engine.parameters), expected.gradients(loop.parameters)
    assert any(samples.any() for samples in expected.values())
    return max(float((found[n] - e).norm() / e.norm().clamp_min(1e-12)) for n, e in expected.items())


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside"])
@pytest.mark.parametrize("name", CALLS)
def test_a_module_of_torch(name, inside):
    torch.manual_seed(0)
    make, use = CALLS[name]
    model = (Model if inside else Call)(make(), use).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    engine = PerSampleGradients(model, lambda batch: model(batch["x"]).flatten(1).square().mean(1))
    for k in (3, 5, 2):
        assert largest_error(model, {"x": torch.randn(k, *X, dtype=torch.float64)}, engine) < 1e-9


def test_every_module_of_torch_is_here():
    with_parameters = set()
    for name, kind in vars(nn).items():
        if inspect.isclass(kind) and issubclass(kind, nn.Module) and not name.startswith(WITHOUT):
            source = inspect.getsource(kind.__mro__[0]) + "".join(inspect.getsource(c) for c in kind.__mro__[1:-2])
            if "Parameter(" in source or "register_parameter" in source or name.startswith("Transformer"):
                with_parameters.add(name)
    assert with_parameters - MIXES - {name.split(",")[0] for name in CALLS} == set()
