"""Uses of parameters that looked right in one batch and were wrong in the next, and what an engine must not leave."""

import copy
import logging
import time

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from tiny import make
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import cached
from torch.utils.checkpoint import checkpoint

from hf_unlearn.losses import head_of
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.plan import Way


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Model(nn.Module):
    """Two layers and a function of them and of the batch."""

    def __init__(self, function, **parts):
        super().__init__()
        self.layer, self.head, self.function = nn.Linear(4, 4), nn.Linear(4, 2), function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, **batch):
        return self.function(self, **batch)


def squares(model):
    return lambda batch: model(**batch).flatten(1).square().sum(1)


def plain(model, x):
    return model.head(model.layer(x).tanh())


def assert_exact(model, batches, losses=None, before=lambda model, number: None, tolerance=1e-9):
    losses = losses or squares(model)
    engine, loop = PerSampleGradients(model, losses), PerSampleGradients(model, losses, "loop")
    for number, batch in enumerate(batches):
        before(model, number)
        found, expected = engine(batch), loop(batch)
        torch.testing.assert_close(found.losses, expected.losses)
        found, expected = found.gradients(engine.parameters), expected.gradients(engine.parameters)
        for name, samples in expected.items():
            error = float((found[name] - samples).norm()) / max(float(samples.norm()), 1e-12)
            assert error < tolerance, (number, name, error)
    return engine


def x(*shape):
    return torch.randn(*shape, 4)


def masked(lengths, width=5):
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return {"x": x(len(lengths), width), "mask": mask}


def packed(keep):
    def function(model, x, **batch):
        kept = keep(x, **batch)
        return torch.zeros_like(x).masked_scatter(kept[..., None], model.layer(x[kept]).sin())

    return function


# ---- a check without a gradient says nothing ----


def test_a_gate_that_opens_later():
    def function(model, x):
        return model.head((x + model.gate * model.table(torch.arange(x.shape[1]))).tanh())

    model = Model(function, gate=nn.Parameter(torch.zeros(1)), table=nn.Embedding(9, 4))
    assert_exact(model, [{"x": x(4, 4)}] * 2, before=lambda m, i: m.gate.data.fill_(i))


def test_an_adapter_that_begins_at_zero():
    def function(model, x):
        return model.head((x + model.up(model.down(x.transpose(0, 1))).transpose(0, 1)).tanh())

    model = Model(function, down=nn.Linear(4, 2), up=nn.Linear(2, 4))
    assert_exact(model, [{"x": x(4, 4)}] * 2, before=lambda m, i: m.up.weight.data.fill_(i))


def test_a_penalty_that_counts_later():
    model = Model(plain)

    def losses(batch):
        penalty = batch["c"] * model.layer.weight.square().sum()
        return model(x=batch["x"]).square().sum((1, 2)) + penalty

    assert_exact(model, [{"x": x(3, 5), "c": torch.full((3,), c)} for c in (0.0, 1.0)], losses)


def test_losses_that_count_later():
    def function(model, x):
        return model.head((x + model.table(torch.arange(x.shape[1]))).tanh())

    model = Model(function, table=nn.Embedding(9, 4))
    batches = [{"x": x(4, 4), "w": torch.full((4,), w)} for w in (0.0, 1.0)]
    assert_exact(model, batches, lambda batch: model(x=batch["x"]).square().sum((1, 2)) * batch["w"])


# ---- equal samples say nothing of a check ----


@pytest.mark.parametrize("order", [(0, 0, 0), (0, 1, 0)], ids=["all", "first and last"])
def test_equal_samples_and_a_layer_that_meets_them_backwards(order):
    def function(model, x):
        return model.head(model.layer(x.flip(0)).flip(0).tanh())

    samples = x(2, 5)
    assert_exact(Model(function), [{"x": samples[list(order)]}, {"x": x(3, 5)}])


# ---- packed and sorted samples ----

LENGTHS = ((4, 4), (3, 5))


@pytest.mark.parametrize(
    ("keep", "batch"),
    [
        (lambda x, n: torch.arange(5)[None] < n[:, None], lambda n: {"x": x(2, 5), "n": torch.tensor(n)}),
        (lambda x, mask: mask.bool(), lambda n: {"x": x(2, 5), "mask": masked(n)["mask"].double()}),
        (lambda x, ids: ids != 1, lambda n: {"x": x(2, 5), "ids": torch.where(masked(n)["mask"] > 0, 7, 1)}),
        (lambda x, labels: labels != -100, lambda n: {"x": x(2, 5), "labels": masked(n)["mask"] * 107 - 100}),
    ],
    ids=["lengths", "float mask", "padding", "labels"],
)
def test_packed_samples(keep, batch):
    assert_exact(Model(packed(keep)), [batch(lengths) for lengths in LENGTHS])


def test_a_parameter_on_packed_samples():
    def function(model, x, mask):
        kept = mask.bool()
        return model.head(torch.zeros_like(x).masked_scatter(kept[..., None], (x[kept] @ model.matrix).sin()))

    assert_exact(Model(function, matrix=nn.Parameter(x(4))), [masked(lengths) for lengths in LENGTHS])


def test_the_head_of_a_model_on_labelled_tokens_alone():
    config = tf.ModernBertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, sparse_prediction=True,
        max_position_embeddings=32,
    )  # fmt: skip
    model = tf.ModernBertForMaskedLM(config).double().eval()

    def losses(batch):
        logits, kept = model(**batch).logits, batch["labels"] != -100
        values = F.cross_entropy(logits, batch["labels"][kept], reduction="none")
        return values.new_zeros(kept.shape).masked_scatter(kept, values).sum(1)

    def batch(counts):
        ids = torch.randint(4, 40, (len(counts), 8))
        labels = torch.where(torch.arange(8)[None] < torch.tensor(counts)[:, None], ids, -100)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    assert_exact(model, [batch(counts) for counts in ((2, 2, 2), (1, 3, 2), (3, 2, 1))], losses)


def test_samples_that_are_sorted_by_length():
    def function(model, x, mask):
        order = mask.sum(1).argsort(descending=True, stable=True)
        return model.head(model.layer(x[order]).tanh()[order.argsort()]) * mask[..., None]

    assert_exact(Model(function), [masked((5, 4, 3)), masked((3, 5, 4))])


def test_another_branch_from_some_length_on():
    def function(model, x):
        return model.head((model.layer(x.flip(0)).flip(0) if x.shape[1] > 8 else model.layer(x)).tanh())

    assert_exact(Model(function), [{"x": x(3, t)} for t in (4, 5, 7, 8, 10)])


# ---- hooks and other numbers ----


def test_a_hook_of_the_users_that_changes_an_output():
    model = Model(plain)
    model.scale = 1.0
    model.layer.register_forward_hook(lambda module, args, output: output * model.scale)
    assert_exact(model, [{"x": x(3, 5)}] * 2, before=lambda m, i: setattr(m, "scale", 1.0 + i))


@pytest.mark.parametrize("engine", ["auto", "hooks", "loop"])
@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_is_refused_by_name(kind, engine):
    """Clipping the gradient of a batch is not clipping those of its samples, and masking is left out by rules."""
    model = Model(plain)
    engine = PerSampleGradients(model, squares(model), engine)
    hook = getattr(model.layer.weight, kind)(lambda p: None)
    with pytest.raises(NotCovered, match=r"layer\.weight \(a hook changes its gradient.*remove it"):
        engine({"x": x(3, 5)})
    hook.remove()
    assert len(engine({"x": x(3, 5)}).losses) == 3


def test_ids_that_count_from_the_end():
    def function(model, ids):
        return model.head(model.table[ids].tanh())

    batches = [{"ids": torch.randint(*limits, (3, 4))} for limits in ((0, 6), (-6, 0))]
    assert_exact(Model(function, table=nn.Parameter(x(6))), batches)


def test_an_infinite_loss_is_of_its_sample():
    def function(model, x, n):
        return model.head((x + model.table(torch.arange(x.shape[1]))).tanh()) / n[:, None, None]

    model = Model(function, table=nn.Embedding(9, 4))
    batch = {"x": x(4, 4), "n": torch.tensor([1.0, 0.0, 2.0, 3.0])}
    engine, loop = (PerSampleGradients(model, squares(model), kind) for kind in ("auto", "loop"))
    found, expected = engine(batch).gradients(engine.parameters), loop(batch).gradients(loop.parameters)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda model, x: model.head((x / x.abs().max()).tanh()),
        lambda model, x: model.head((model.layer(x) / model.layer(x).detach().abs().max()).tanh()),
    ],
    ids=["inputs", "statistic"],
)
def test_samples_that_are_mixed_are_said(function, caplog):
    engine = assert_exact(Model(function), [{"x": x(4, 3)}])
    assert engine.engine == "loop" and "depends on others" in caplog.text


def test_a_model_that_does_not_take_one_sample(caplog):
    def function(model, x):
        if len(x) < 2:
            raise RuntimeError("two at least")
        return plain(model, x)

    model = Model(function)
    engine = PerSampleGradients(model, squares(model))
    found = engine({"x": x(3, 5)})
    assert engine.engine == "auto" and "two at least" in caplog.text and found.losses.isfinite().all()


def test_dropout_is_not_drawn_again():
    """Another mask than that of the batch would be wrong without a word."""
    model = Model(lambda model, x: model.head(F.dropout(model.rnn(x)[0], 0.5, model.training)), rnn=nn.GRU(4, 4))
    engine = PerSampleGradients(model.eval(), squares(model))
    engine({"x": x(3, 5)})
    model.train()
    engine({"x": x(3, 5)})
    assert engine.engine == "loop"


def test_what_autocast_hides_is_seen_in_the_graph():
    """Two per cent of a use are less than rounding, and no check would find them."""
    torch.set_default_dtype(torch.float32)

    def function(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = model.layer(x) + 0.02 * F.linear(x.cos(), model.layer.weight)
            return model.head(y.tanh()).float()

    model = Model(function)
    engine = PerSampleGradients(model, squares(model))
    engine({"x": x(4, 6)})
    assert engine.ways["layer.weight"] == Way.GRAPH


def test_gradients_that_cancel_are_not_taken_for_wrong():
    torch.set_default_dtype(torch.float32)
    model, batch = make("vit")
    head = head_of(model.eval())

    def losses(values):
        with torch.autocast("cpu", torch.bfloat16):
            return head.losses(head.run(model, values), values)

    engine = PerSampleGradients(model, losses)
    for k in range(2, 10):
        engine(batch(k, seed=k))
    assert max(engine.ways.values()) <= Way.TABLE


# ---- batches ----


def test_a_list_and_a_nested_batch_have_samples_too():
    def function(model, x, n):
        return torch.stack([model.layer(row[:count]).sum(0) for row, count in zip(x["v"], n, strict=True)])

    model = Model(function)
    losses = squares(model)
    batch = {"labels": torch.arange(3.0), "x": {"v": x(3, 5)}, "n": [2, 5, 3]}

    def given(batch):
        return losses({name: batch[name] for name in ("x", "n")})

    assert_exact(model, [batch], given)


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize(
    ("losses", "batch", "message"),
    [
        (lambda model, batch: model(x=batch["x"]).mean(), {"x": x(3, 5)}, r"losses: found shape \[\]"),
        (lambda model, batch: model(x=batch["x"])[..., 0], {"x": x(3, 5)}, r"losses: found shape \[\d, 5\]"),
        (lambda model, batch: squares(model)(batch), {"x": x(0, 5)}, "batch: found no samples"),
        (lambda model, batch: squares(model)({"x": batch["x"]}), {"p": torch.arange(5)[None], "x": x(3, 5)}, "losses"),
    ],
    ids=["one loss", "a loss a token", "no samples", "another first axis"],
)
def test_what_is_no_loss_a_sample_is_refused(engine, losses, batch, message):
    model = Model(plain)
    batch = {name: values.double() for name, values in batch.items()}
    with pytest.raises(ValueError, match=message):
        PerSampleGradients(model, lambda batch: losses(model, batch), engine)(batch)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_checkpoint_that_hides_gradients_is_refused(engine):
    model = Model(lambda model, x: model.head(checkpoint(lambda v: model.layer(v).tanh(), x, use_reentrant=True)))
    with pytest.raises(ValueError, match="use_reentrant=False"):
        PerSampleGradients(model, squares(model), engine)({"x": x(2, 5).requires_grad_()})


def test_parameters_that_train_later_on():
    model = Model(plain)
    model.head.requires_grad_(False)

    def before(model, number):
        model.head.requires_grad_(number == 1)
        model.layer.requires_grad_(number < 2)

    losses = squares(model)
    engine = PerSampleGradients(model, losses)
    for number in range(2):
        before(model, number)
        batch = {"x": x(3, 5)}
        found, expected = engine(batch), PerSampleGradients(model, losses, "loop")(batch)
        assert found.factors.keys() == expected.factors.keys()
        torch.testing.assert_close(found.gradients(engine.parameters), expected.gradients(engine.parameters))


def test_complex_parameters_are_refused():
    model = Model(lambda model, x: torch.view_as_real(torch.fft.fft(x) * model.p), p=nn.Parameter(x(1).cfloat()))
    with pytest.raises(NotCovered, match=r"p .*view_as_real"):
        PerSampleGradients(model, squares(model))({"x": x(3, 5)})


def test_parameters_without_entries():
    assert_exact(Model(plain, nothing=nn.Parameter(torch.empty(3, 0))), [{"x": x(3, 5)}])


# ---- what is left ----


class Counts(nn.Module):
    """Keeps a statistic and counts its calls."""

    def __init__(self):
        super().__init__()
        self.weight, self.last = nn.Parameter(x(1)[0]), torch.zeros(())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        y = x * self.weight
        self.last = y.detach().abs().mean()
        return y


@pytest.mark.parametrize("rnn", [False, True], ids=["leaf", "module that runs again"])
def test_the_model_is_as_after_one_forward_pass(rnn):
    def function(model, x):
        return model.head(model.counts(model.rnn(x)[0] if rnn else model.layer(x)).tanh())

    model = Model(function, counts=Counts(), rnn=nn.GRU(4, 4, batch_first=True))
    batch = {"x": x(3, 5)}
    reference = copy.deepcopy(model)
    reference(**batch)
    PerSampleGradients(model, squares(model))(batch)
    assert model.counts.calls == 1 and torch.equal(model.counts.last, reference.counts.last)
    copy.deepcopy(model)(**batch)


def test_spectral_norm_takes_one_iteration():
    model = Model(plain)
    spectral_norm(model.layer)
    batch, reference = {"x": x(3, 5)}, copy.deepcopy(model)
    reference(**batch)
    PerSampleGradients(model, squares(model))(batch)
    torch.testing.assert_close(dict(model.named_buffers()), dict(reference.named_buffers()))


def lazy(model, x):
    x = model.layer(x)
    if model.cache is None:
        model.cache = torch.arange(4.0).to(x.dtype)
    return model.head((x + model.cache).tanh())


def lazy_of_batch(model, x):
    if model.cache is None:
        model.cache = x.new_zeros(len(x), 1, 4)
    return model.head((model.layer(x) + model.cache).tanh())


@pytest.mark.parametrize(
    "function",
    [lazy, lazy_of_batch, lambda model, x: model.head(model.layer(x.to(torch.bfloat16)).tanh())],
    ids=["a cache of a type", "a cache of a batch", "an input that is cast"],
)
def test_half_precision_and_what_knows_its_type(function):
    model = Model(function, cache=None).bfloat16()
    batch = {"x": x(4, 3).bfloat16()}
    assert PerSampleGradients(model, squares(model))(batch).losses.isfinite().all()
    model(**batch)


# ---- crashes and time ----


class Mul(torch.autograd.Function):
    """Has the name of an operation of torch's."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        return (grad * b).sum((0, 1)), grad * a


def test_a_function_of_the_users():
    model = Model(lambda model, x: model.head(Mul.apply(model.p, model.layer(x)).tanh()), p=nn.Parameter(x(1)[0]))
    assert_exact(model, [{"x": x(3, 5)}])


def test_weights_that_are_computed_before_the_batch():
    model = Model(plain)
    weight_norm(model.layer)
    engine, loop = (PerSampleGradients(model, squares(model), kind) for kind in ("auto", "loop"))
    for _ in range(2):
        batch = {"x": x(3, 5)}
        expected = loop(batch).gradients(loop.parameters)
        with cached():
            torch.testing.assert_close(engine(batch).gradients(engine.parameters), expected)


def test_a_table_with_many_operations():
    def chain(model, x):
        table = model.table
        for _ in range(1200):
            table = table.neg()
        return model.head((x + table[: x.shape[1]]).tanh())

    def grown(model, x):
        table = model.table
        for _ in range(14):
            table = table + table.sigmoid()
        return model.head((x + table[: x.shape[1]]).tanh())

    started = time.perf_counter()
    for function in (chain, grown):
        engine = assert_exact(Model(function, table=nn.Parameter(x(6))), [{"x": x(3, 5)}])
        assert engine.ways["table"] == Way.GRAPH
    assert time.perf_counter() - started < 30


def test_an_output_that_is_returned_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 4, batch_first=True)

        def forward(self, x):
            y = self.rnn(x)[0]
            return {"last": y, "hidden": (x, y)}

    model = Model(lambda model, x: model.head(model.twice(x)["last"]), twice=Twice())
    engine = assert_exact(model, [{"x": x(3, 5)}])
    assert max(engine.ways.values()) == Way.MODULE


def test_a_module_that_runs_again_does_so_as_the_batch_did(caplog):
    """Under autocast, too: or its output would be another."""
    torch.set_default_dtype(torch.float32)

    def function(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model.head(model.bilinear(x, x)).float()

    model = Model(function, bilinear=nn.Bilinear(4, 4, 4))
    engine = PerSampleGradients(model, squares(model))
    with caplog.at_level(logging.WARNING):
        engine({"x": x(4, 3)})
    assert engine.ways["bilinear.weight"] == Way.MODULE and "depends on others" not in caplog.text
