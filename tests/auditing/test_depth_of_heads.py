"""The depth of models of speech and text: what is tried on every kind of head, what is not, and what it takes."""

import copy

import pytest
import tiny
import torch
import transformers as tf

from hf_unlearn import audit
from hf_unlearn.data.collator import default_collator
from tests.auditing.test_audit import words

RELEARNED = {"depth_relearned", "depth_finetuned", "depth_int8", "depth_int4"}
LOSSES = {"depth_relearned_loss", "depth_finetuned_loss"}
# Head to a model of it, the parts of the depth, and words of the note of what was not tried.
HEADS = {
    "whisper": (RELEARNED | LOSSES, "a probe of the features (a seq2seq_lm head has no label a sample)"),
    "wav2vec2_ctc": (LOSSES | {"depth_int8_loss", "depth_int4_loss"}, "anything by accuracy (a ctc head has none"),
    "gpt2": (RELEARNED | LOSSES | {"depth_extraction"}, "one number, added to the output of the class (no class"),
    "tokens": (RELEARNED | LOSSES, "asking for the answers (only causal language models are asked, not a token head)"),
    "hubert": (RELEARNED | LOSSES | {"depth_probe"}, "asking for the answers"),
    "t5": (RELEARNED | LOSSES, "a probe of the features"),
}


def make(name):
    if name != "tokens":
        return tiny.make(name)
    tf.set_seed(0)
    model = tf.BertForTokenClassification(tf.BertConfig(**tiny.DECODER, **tiny.CLASSES)).eval()
    return model, lambda n: {**(batch := tiny.text_classes(n)), "labels": batch["input_ids"] % tiny.NUM_LABELS}


def moved(model, scale):
    """The model, its matrices moved by noise of that share of their deviation."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.add_(torch.randn(p.shape, generator=generator) * p.std(), alpha=scale)
    return model


def learned(model, samples, steps=60):
    """The model after training on samples: what it then remembers, a retrained model does not know."""
    model = copy.deepcopy(model)
    batch = default_collator(model)(samples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", HEADS)
def test_every_attempt_is_made_or_named(name):
    """A model that remembers its forget samples is deep under two that do not: by every loss, and by name."""
    model, batch = make(name)
    samples = tiny.samples(batch(80))
    datasets_by_name = {"forget_ds": samples[:24], "retain_ds": samples[24:56], "unseen_ds": samples[56:]}
    retrained = [moved(model, 0.01), moved(model, 0.02)]
    report = audit(
        learned(model, samples[:24]), **datasets_by_name, retrained=retrained, relearning=True, resamples=10,
        processing_class=words() if name == "gpt2" else None, training_passes=60,
    )  # fmt: skip
    parts, untried = HEADS[name]
    depths = {key: value for key, value in report.metrics.items() if key.startswith("depth")}
    print(depths, report.notes)
    assert depths.keys() == parts | {"depth"}
    assert depths["depth_finetuned_loss"] > 2 and depths["depth_relearned_loss"] > 0, "it remembers"
    for metric in ("relearned_forget_loss", "finetuned_forget_loss"):
        assert report.metrics[f"{metric}_low"] < report.metrics[metric] < report.metrics[f"{metric}_high"]
    note = next(note for note in report.notes if note.startswith("Not tried: "))
    assert untried in note
    assert ("relearned_forget_accuracy" in report.metrics) == (name != "wav2vec2_ctc")
    assert report.relearning["audited"].keys() <= {"steps", "forget_loss", "forget_accuracy"}
