"""A class that was forgotten does not come back when the model is trained on others, or by one number."""

import copy

import pytest
import transformers as tf
from tiny import Samples

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.auditing.measuring import statistics_of
from hf_unlearn.auditing.one_offset import class_margins, one_offset
from hf_unlearn.auditing.relearning import finetune
from hf_unlearn.demo import digits_data
from hf_unlearn.training import train_from_scratch

FORGOTTEN = 3


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small ViT that was trained on 500 digits, these, and those that it never saw."""
    data = digits_data(0)
    train, test = Samples(list(data["train"])[:500]), Samples(list(data["test"]))
    tf.set_seed(0)
    config = tf.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = tf.ViTForImageClassification(config)
    train_from_scratch(
        model, train, num_train_epochs=30, learning_rate=2e-3, per_device_train_batch_size=32, use_cpu=True,
        output_dir=str(tmp_path_factory.mktemp("out")),
    )  # fmt: skip
    return model.eval(), train, test


def forgotten(model, train, folder, **settings):
    forget = Samples([sample for sample in train if sample["label"] == FORGOTTEN])
    retain = Samples([sample for sample in train if sample["label"] != FORGOTTEN])
    args = UnlearningArguments(
        str(folder), request="class", report_to="none", disable_tqdm=True, use_cpu=True, **settings
    )
    trainer = UnlearningTrainer(model, forget, retain, args)
    trainer.train()
    return trainer, forget, retain


@pytest.mark.parametrize("method", ["nabla_tau", "orthograd"])
def test_a_forgotten_class_stays_forgotten(digits, tmp_path, method):
    model, train, test = digits
    trainer, forget, retain = forgotten(copy.deepcopy(model), train, tmp_path, method=method)
    unlearned = trainer.model.eval()
    before, after = (finetune(m, retain, forget, measure_every=50)["forget_accuracy"][-1] for m in (model, unlearned))
    assert before > 0.5 and after < 0.05

    def offset(model):
        forget_, unseen = (statistics_of(model, samples, log_probs=True) for samples in (forget, test))
        return min(one_offset(margins) for margins in class_margins(forget_, unseen, [FORGOTTEN], []))

    assert offset(model) < 0.05 and offset(unlearned) > 0.4
