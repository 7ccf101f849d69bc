"""Real kernels of 8 and 4 bits beside the simulation, and what the audit says of them."""

import pytest
import tiny
import torch
from test_relearning import accuracy, assert_same, small_vit, state

from hf_unlearn import audit
from hf_unlearn.auditing.recovery import SIMULATED, quantisation_kernel, quantised, quantised_by_kernels
from hf_unlearn.demo import digits_data
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.training import train_from_scratch

needs_kernels = pytest.mark.skipif(quantisation_kernel() == SIMULATED, reason="bitsandbytes is not installed")


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def distance(one, other):
    return float((one - other).abs().mean() / other.abs().mean())


@needs_kernels
@pytest.mark.parametrize("name", ["bert", "convnext", "gpt2", "llama", "whisper", "wav2vec2_ctc", "t5", "resnet"])
def test_kernels_are_as_far_from_the_model_as_the_simulation(name):
    """Eight bits within 2 % of logits, as the simulation is; nf4 no more than four times as far as rounding to 4."""
    model, batch = tiny.make(name)
    inputs = batch(8, seed=1)
    exact = logits(model, inputs)
    eight, simulated = (logits(f(model, 8), inputs) for f in (quantised_by_kernels, quantised))
    assert 0 < distance(eight, exact) < 0.02 and distance(eight, simulated) < 0.02
    four, simulated = (distance(logits(f(model, 4), inputs), exact) for f in (quantised_by_kernels, quantised))
    assert 0.25 < four / simulated < 4
    print(name, distance(eight, exact), four, simulated)


@needs_kernels
def test_four_bits_are_the_nearest_of_sixteen_numbers_a_block():
    """Of every row, blocks of 64 weights; the numbers are up to 0.31 of the block's largest weight apart."""
    import bitsandbytes

    model, _ = tiny.make("vit")  # rows of 16 and 32 weights, which end within a block
    copied = quantised_by_kernels(model, 4)
    checked = 0
    for name, layer in model.named_modules():
        if type(layer) is torch.nn.Linear:
            kernel = copied.get_submodule(name).weight
            rounded = bitsandbytes.functional.dequantize_4bit(kernel.data, kernel.quant_state)
            exact, width = layer.weight.data, layer.in_features
            largest = exact.abs().amax(1, keepdim=True)
            assert ((rounded[:, :width] - exact).abs() <= 0.155 * largest).all()
            assert all(len(row.unique()) <= 16 for row in rounded) and not rounded[:, width:].any()
            checked += 1
    assert checked > 10


@needs_kernels
def test_accuracies_of_a_trained_model_are_those_of_the_simulation(tmp_path):
    samples = list(digits_data(0)["train"].select(range(400)))
    model = small_vit(0)
    train_from_scratch(
        model, samples[:300], use_cpu=True, num_train_epochs=15, learning_rate=2e-3, per_device_train_batch_size=32,
        output_dir=str(tmp_path),
    )  # fmt: skip
    model.eval()
    exact = accuracy(model, samples)
    assert exact > 0.9
    for bits, tolerance in ((8, 0.01), (4, 0.05)):
        by_kernels, simulated = (accuracy(f(model, bits), samples) for f in (quantised_by_kernels, quantised))
        print(bits, exact, by_kernels, simulated)
        assert abs(by_kernels - simulated) <= tolerance


@needs_kernels
def test_a_model_and_its_adapter_stay_and_what_transformers_keeps_is_kept():
    model, batch = tiny.make("gpt2")
    adapted = add_adapter(model)
    before = state(adapted)
    copied = quantised_by_kernels(adapted, 4)
    assert copied.transformer.h[0].attn.c_attn.weight.dtype == torch.uint8  # two weights each
    assert copied.lm_head.weight is copied.transformer.wte.weight  # the embedding
    assert logits(copied, batch(2)).isfinite().all()
    assert_same(before, state(adapted))
    with pytest.raises(ValueError, match=r"^bits: found 3; use one of \(4, 8\)"):
        quantised_by_kernels(model, 3)


def test_the_report_says_what_rounded():
    model, batch = tiny.make("vit")
    samples = tiny.samples(batch(60))
    datasets_by_name = {"forget_ds": samples[:20], "retain_ds": samples[20:40], "unseen_ds": samples[40:]}
    report = audit(model, **datasets_by_name, relearning=True, resamples=10)
    assert report.about["kernel"] == quantisation_kernel()
    assert {"int8_forget_accuracy", "int4_forget_loss"} <= report.metrics.keys()
    notes = [note for note in report.notes if "simulated" in note]
    assert len(notes) == (report.about["kernel"] == SIMULATED)
    assert "kernel" not in audit(model, **datasets_by_name, resamples=10).about
