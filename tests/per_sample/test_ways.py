"""Which way the gradients of a parameter go, when it is checked again, and what is said of it."""

import logging

import pytest
import torch
import torch.nn.functional as F
from tiny import make
from torch import nn

from hf_unlearn.losses import head_of
from hf_unlearn.per_sample import PerSampleGradients, recorder
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.loop import loop_gradients
from hf_unlearn.per_sample.plan import Way
from hf_unlearn.per_sample.verification import verify


def engines(model):
    def losses(batch):
        return model(**batch).flatten(1).square().sum(1)

    return PerSampleGradients(model, losses), PerSampleGradients(model, losses, "loop")


def assert_exact(engine, loop, batch, tolerance=1e-5):
    found, expected = engine(batch).gradients(engine.parameters), loop(batch).gradients(loop.parameters)
    for name, samples in expected.items():
        error = float((found[name] - samples).norm()) / max(float(samples.norm()), 1e-12)
        assert error < tolerance, (name, error)


def ways(engine):
    return {name: way.name for name, way in engine.ways.items()}


class Packed(nn.Module):
    """Runs a layer on the tokens of all samples behind each other, without the padding."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, mask):
        packed = self.layer(x[mask.bool()]).sin()
        return torch.zeros_like(x).masked_scatter(mask.bool()[..., None], packed)


def masked(lengths):
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return {"x": torch.randn(len(lengths), max(lengths), 4), "mask": mask}


@pytest.mark.parametrize("batches", [[(4, 4), (3, 5)], [(4, 4, 4), (2, 4, 3)], [(5, 4, 3), (5, 4, 3), (4, 4, 4)]])
def test_samples_that_are_packed(batches):
    """Equal lengths look as if the batch were the outer part of the leading axis, and the total may be the same."""
    torch.manual_seed(0)
    engine, loop = engines(Packed())
    for lengths in batches:
        assert_exact(engine, loop, masked(lengths))


class Sorted(nn.Module):
    """Runs a layer on the samples in the order of their first numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        order = x[:, 0, 0].argsort()
        return torch.zeros_like(x).index_copy(0, order, self.layer(x[order]).sin())


class Halves(nn.Module):
    """Has a layer for each of two kinds of samples, as experts are: their numbers alone tell nothing."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        chosen, result = (x[..., 0] > 0).long(), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            result[chosen == i] = expert(x[chosen == i]).sin()
        return result


@pytest.mark.parametrize("kind", [Sorted, Halves])
def test_rows_that_change_places_are_seen(kind):
    """All shapes are the same in every batch, and in the first each sample has its own row."""
    torch.manual_seed(0)
    engine, loop = engines(kind())
    # Of two samples with two tokens each: in order, and each token to another expert; then not so.
    for signs in ([[-1, 1], [1, -1]], [[1, 1], [-1, -1]], [[-1, -1], [1, 1]], [[1, -1], [-1, 1]]):
        x = torch.randn(2, 2, 4)
        x[..., 0] = torch.tensor(signs) * x[..., 0].abs()
        assert_exact(engine, loop, {"x": x})


class GatedTable(nn.Module):
    """Scales a table before the samples meet it."""

    def __init__(self):
        super().__init__()
        self.gate, self.table, self.head = nn.Parameter(torch.randn(4)), nn.Embedding(12, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head((x + self.table(torch.arange(x.shape[1])) * self.gate).tanh())


def test_a_gate_on_a_table_with_other_lengths_later():
    torch.manual_seed(0)
    engine, loop = engines(GatedTable())
    for k, t in ((3, 5), (3, 6), (4, 4), (2, 8)):
        assert_exact(engine, loop, {"x": torch.randn(k, t, 4)})


class Bypassed(nn.Module):
    """Uses its layer's weight as a matrix, too, where the sequence is long."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = self.layer(x)
        return y + F.linear(x.flip(1), self.layer.weight) if x.shape[1] > 3 else y


def test_a_layer_that_is_bypassed_later_on():
    torch.manual_seed(0)
    engine, loop = engines(Bypassed())
    for t in (3, 5):
        assert_exact(engine, loop, {"x": torch.randn(3, t, 4)})


class Sometimes(nn.Module):
    """Uses a layer in some batches alone."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.always(self.sometimes(x) if x.shape[1] > 3 else x)


def test_a_layer_that_is_not_called_keeps_its_rule():
    engine, loop = engines(Sometimes())
    for t in (3, 5, 2):
        assert_exact(engine, loop, {"x": torch.randn(3, t, 4)})
    assert set(ways(engine).values()) == {"LAYER"}


class Hidden(nn.Module):
    """Its layer's weight is used twice, the second time as a function and for a few per cent."""

    def __init__(self, share):
        super().__init__()
        self.layer, self.share = nn.Linear(32, 32, bias=False), share

    def forward(self, x):
        return self.layer(x) + self.share * F.linear(x.roll(1, 1), self.layer.weight)


@pytest.mark.parametrize("share", [0.03, 0.001])
def test_half_precision_does_not_hide_a_use(share):
    torch.manual_seed(0)
    model = Hidden(share).bfloat16()
    before = model.layer.weight.detach().clone()
    engine, loop = engines(model)
    assert_exact(engine, loop, {"x": torch.randn(6, 8, 32).bfloat16()}, tolerance=2e-2)
    assert ways(engine) == {"layer.weight": "GRAPH"}
    assert model.layer.weight.dtype == torch.bfloat16 and torch.equal(model.layer.weight, before)


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "llama", "t5", "whisper", "resnet"])
def test_rounding_is_not_taken_for_an_error(name):
    model, batch = make(name)
    head, model = head_of(model), model.bfloat16().eval()
    values = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch(4, seed=3).items()}
    engine = PerSampleGradients(model, lambda batch: head.losses(head.run(model, batch), batch))
    engine(values)
    assert max(engine.ways.values()) <= Way.TABLE


def test_only_what_no_rule_covers_runs_again(caplog):
    model, batch = make("mixtral")
    model.set_experts_implementation("eager")  # one expert after the other, not all in one grouped matrix product
    head = head_of(model.eval())
    engine = PerSampleGradients(model, lambda batch: head.losses(head.run(model, batch), batch))
    with caplog.at_level(logging.WARNING):
        for seed in (2, 3):
            values = batch(3, seed=seed)
            found, expected = engine(values), loop_gradients(engine.losses, values, engine.parameters)
            found, expected = found.gradients(engine.parameters), expected.gradients(engine.parameters)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    again = {name for name, way in engine.ways.items() if way >= Way.MODULE}
    assert again == {name for name in engine.parameters if ".experts." in name}
    assert len(caplog.records) == 1 and "the module that holds them runs once a sample" in caplog.text


class Mixing(nn.Module):
    """A sample's loss depends on the others."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        return self.last(x - x.mean(0))


def test_where_samples_are_mixed_all_gradients_are_of_samples_alone(caplog):
    engine, loop = engines(Mixing())
    assert_exact(engine, loop, {"x": torch.randn(3, 5, 4)})
    assert engine.engine == "loop" and "depends on others" in caplog.text
    model = Mixing()
    with pytest.raises(NotCovered, match="depends on others"):
        PerSampleGradients(model, lambda batch: model(batch["x"]).flatten(1).sum(1), "hooks")({"x": torch.randn(3, 4)})


@pytest.mark.parametrize("engine", ["auto", "loop", "hooks"])
def test_batch_norm_in_training_mode_is_refused_by_name(engine):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(NotCovered, match=r"1 .*put it in eval mode"):
        PerSampleGradients(model, lambda batch: model(batch["x"]).sum(1), engine)({"x": torch.randn(3, 4)})


class ChannelsLast(nn.Module):
    """As LeViT's embeddings: the gradient of the normalisation's output lies in memory channels last."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm(x).flatten(2).mT.sin() * torch.arange(5.0)


def test_batch_norm_of_one_sample_whose_gradient_is_channels_last():
    """torch's own gradient is wrong there; the loop's must not be, nor that of a batch of one sample."""
    torch.manual_seed(0)
    model = ChannelsLast().eval()
    batch = {"x": torch.randn(3, 5, 4, 4)}
    wanted = []
    for i in range(3):  # two copies of a sample are no sample
        twice = {"x": batch["x"][[i, i]]}
        loss = model(**twice)[0].square().sum()
        wanted.append(torch.autograd.grad(loss, list(model.parameters())))
    for kind in ("auto", "loop"):
        engine = PerSampleGradients(model, lambda batch: model(**batch).flatten(1).square().sum(1), kind)
        found = engine(batch).gradients(engine.parameters)
        for name, *samples in zip(engine.parameters, *wanted, strict=True):
            torch.testing.assert_close(found[name], torch.stack(samples), rtol=1e-4, atol=1e-4)
        one = engine.gradient(lambda values: model(**values).square().sum(), {"x": batch["x"][:1]})
        torch.testing.assert_close(list(one.values()), list(wanted[0]), rtol=1e-4, atol=1e-4)


def test_checks_end_where_samples_are_alone_on_the_leading_axis(monkeypatch):
    """Texts are of ever new lengths, and a check costs a backward pass."""
    checked = []

    def counted(values, *rest):
        checked.append(len(values))
        return verify(values, *rest)

    monkeypatch.setattr(recorder, "verify", counted)
    engine, loop = engines(GatedTable())
    for t in (6, 7, 8, 9, 11, 12):
        assert_exact(engine, loop, {"x": torch.randn(5, t, 4)})
    assert len(checked) == 4
    assert_exact(engine, loop, {"x": torch.randn(5, 10, 4)})  # as many positions as two for each sample
    assert len(checked) > 4
    checked.clear()
    engine, loop = engines(Packed())
    for lengths in ((2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (2, 2)):
        assert_exact(engine, loop, masked(lengths))
    assert len(checked) == 5
