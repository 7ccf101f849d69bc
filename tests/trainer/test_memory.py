"""The memory that a step is predicted to take, of models and batches whose tensors can be counted by hand."""

import logging
import types

import accelerate
import pytest
import tiny
import torch
import transformers as tf
from torch import nn

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.trainer.memory import Footprint, MemoryPrediction, Surgery, footprint, predict, warn_of_memory

# Older releases of transformers say gradient_checkpointing.
CHECKPOINTING = "activation_checkpointing"
if not hasattr(UnlearningArguments, f"{CHECKPOINTING}_kwargs"):
    CHECKPOINTING = "gradient_checkpointing"


class TwoLayers(nn.Module):
    """Saves its input [k, 6], the first layer's output [k, 8] and the result of its tanh [k, 8]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return types.SimpleNamespace(logits=self.second(self.first(x).tanh()))


def run(model):
    def run(batch):
        outputs = model(batch["x"])
        return outputs, outputs.logits.sum(1)

    return run


def test_a_footprint_counts_what_autograd_saves():
    model = TwoLayers()
    found = footprint(model, run(model), {"x": torch.randn(5, 6)}, samples=10)
    # The input and the result of tanh; not the weights, of which the second is saved as well.
    assert found.saved == 4 * 10 * (6 + 8)
    assert found.widest == 4 * 10 * 8
    assert found.backprops == 4 * 10 * (8 + 4)
    assert found.factors == 4 * 10 * (6 + 8 + 8 + 4) and found.formed == 4 * 10 * (6 * 8 + 8 + 8 * 4 + 4)
    assert found.logits == 4 * 10 * 4 and found.chunked == 0 and found.logits_at_once == 2 * found.logits


def test_the_terms_of_a_prediction():
    model = TwoLayers()
    model.first.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    weights, trained, largest = 4 * (6 * 8 + 8 + 8 * 4 + 4), 4 * (8 * 4 + 4), 4 * 8 * 4
    forget = Footprint(100, 0, 10, 0, 0, 0, 0, 0)
    retain = Footprint(1000, 0, 10, 50, 400, 900, 20, 0)
    loss = predict(model, optimizer, forget, retain, copies=2)
    assert loss == MemoryPrediction(weights, 2 * trained, 2 * trained, trained + largest, 1000, 0, 0, 40)
    surgery = Surgery(chunks=5, samples=10, geometries=2)
    found = predict(model, optimizer, forget, retain, copies=2, surgery=surgery)
    inner = 2 * 8 * 10**2 + 4 * largest + 2000  # as many numbers formed as are kept
    assert found == MemoryPrediction(weights, 2 * trained, 2 * trained, 4 * trained, 0, 5 * 400, inner, 0)
    assert found.largest == "gramian" and "Most is gramian" in found.sentence


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_it_is_said_before_the_first_step_and_changes_nothing(method, unlearn, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "hf_unlearn"):
        trainer = unlearn("llama", method=method)
        trainer.train()
    assert caplog.text.count("A step takes about") == 1
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    monkeypatch.setattr(type(trainer), "_predict_memory", lambda *args: MemoryPrediction())
    again = unlearn("llama", method=method, folder="again")
    again.train()
    assert all(torch.equal(p, weights[name]) for name, p in again.model.named_parameters())


def test_activation_checkpointing_is_seen(unlearn):
    plain, checkpointed = (
        unlearn("llama", method="nabla_tau", folder=str(flag), **{CHECKPOINTING: flag}) for flag in (False, True)
    )
    plain.train(), checkpointed.train()
    assert 0 < checkpointed.memory.activations < 0.9 * plain.memory.activations


def test_too_little_memory_is_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_memory(MemoryPrediction(weights=2.0**60, gradients=2.0**20), torch.device("cpu"))
        assert not caplog.text  # the weights are there
        warn_of_memory(MemoryPrediction(activations=2.0**60), torch.device("cpu"))
    assert "Most is activations: a smaller per_device_train_batch_size" in caplog.text


def test_offloaded_weights_are_refused(unlearn, tmp_path):
    model = accelerate.disk_offload(tiny.make("llama")[0], str(tmp_path / "weights"), torch.device("cpu"))
    samples = tiny.Samples(tiny.samples(tiny.make("llama")[1](8)))
    with pytest.raises(ValueError, match=r"^model: \d+ of its weight tensors are offloaded"):
        UnlearningTrainer(model, samples, samples, UnlearningArguments(str(tmp_path / "out"), use_cpu=True))


@pytest.mark.parametrize("tokens", [512, pytest.param(8192, marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_long_sequences_by_chunks_of_samples_and_logits(method, tokens, tmp_path):
    """The same step from one batch as from chunks of one sample with activation checkpointing."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 49_152, (4, tokens), generator=generator)
    labels = ids.clone()
    labels[:, :-400] = -100  # more than a chunk of logits has positions
    samples = tiny.Samples([{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)])
    forget_ds, retain_ds = (tiny.Samples(samples[i : i + 2]) for i in (0, 2))
    steps = []
    for chunks in (1, 2):
        torch.manual_seed(0)
        model = tf.LlamaForCausalLM(
            tf.LlamaConfig(
                vocab_size=49_152, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1,
                num_key_value_heads=1, max_position_embeddings=8192,
            )
        )  # fmt: skip
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        args = UnlearningArguments(
            str(tmp_path / str(chunks)), method=method, max_steps=1, per_device_train_batch_size=2 // chunks,
            gradient_accumulation_steps=chunks, optim="sgd", learning_rate=10.0, max_grad_norm=0.0, forget_target=12.0,
            stop_at_target=False, use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=2,
            **{CHECKPOINTING: chunks > 1},
        )  # fmt: skip
        trainer = UnlearningTrainer(model, forget_ds, retain_ds, args, peft_config=None)
        trainer.train()
        steps.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
        assert trainer.memory.logits == 4 * min(2**24, (2 // chunks) * 400 * 49_152)
    scale = max(float(step.norm()) for step in steps[0].values())
    assert scale > 0
    for name, step in steps[0].items():
        assert (step - steps[1][name]).norm() <= 1e-6 * scale, name
