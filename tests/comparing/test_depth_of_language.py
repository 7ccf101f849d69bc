"""A comparison of language models with attempts to bring data back: they are asked for their answers, too."""

import numpy as np
import tiny_data

from hf_unlearn.comparing.running import with_depth
from hf_unlearn.comparing.task import Task
from hf_unlearn.data.preprocessing import prepare


class Author(Task):
    """A tiny causal language model on questions and answers; the `seed` draws its weights."""

    def load(self):
        model, self.processor = tiny_data.text()
        samples = prepare(tiny_data.text_samples(60, np.random.default_rng(0)), model, self.processor)
        return {"train": samples.select(range(40)), "unseen": samples.select(range(40, 60)), "test": samples}

    def build(self, seed):
        return tiny_data.text()[0]


def test_answers_and_losses_are_in_the_depth_of_a_comparison():
    task = Author(0)
    train, unseen = task.datasets["train"], task.datasets["unseen"]
    datasets_by_name = {
        "forget_ds": train.select(range(8)),
        "retain_ds": train.select(range(8, 40)),
        "unseen_ds": unseen,
    }
    models = {"original": task.build(0), "retrained": task.build(1), "retrained 2": task.build(2)}
    runs = [
        {
            "request": "an author", "seed": 0, "model": name, "status": "done",
            "metrics": task.metrics(
                model, models["retrained"], **datasets_by_name, relearning=True, training_passes=20, resamples=10
            ),
        }
        for name, model in models.items()
    ]  # fmt: skip
    original = with_depth(runs)[0]["metrics"]
    assert {"extraction_advantage", "extraction_advantage_low", "forget_rouge_l_recall"} <= original.keys()
    assert {
        "depth_extraction",
        "depth_finetuned_loss",
        "depth_relearned_loss",
        "depth_relearned",
        "depth_int4",
    } <= original.keys()
