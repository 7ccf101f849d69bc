"""The kind of request that trainer and audit derive from a column: a class is what the model's head predicts."""

import datasets
import numpy as np
import tiny
import torch

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit, split_forget_retain

PEOPLE = datasets.ClassLabel(names=["ada", "bo", "cy"])


def samples(name, seed, columns):
    """18 samples of a tiny model, with labels 0, 1, 2 by turns if it has classes, and columns of type ClassLabel."""
    items = tiny.samples(tiny.make(name)[1](18, seed))
    if isinstance(items[0]["labels"], int):
        items = [{**item, "label": i % 3} for i, item in enumerate(items)]
        for item in items:
            del item["labels"]
    dataset = datasets.Dataset.from_list(items)
    for column, values in columns.items():
        dataset = dataset.add_column(column, values).cast_column(column, PEOPLE)
    return dataset


def request(folder, name, column, after_split=lambda dataset: dataset, **columns):
    """The kind of request when the samples with value 1 in a column are forgotten."""
    train_ds, unseen_ds = (samples(name, seed, columns) for seed in (0, 1))
    splits = split_forget_retain(train_ds, column=column, values=[1])
    forget_ds, retain_ds, unseen_ds = (after_split(dataset) for dataset in (*splits, unseen_ds))
    model = tiny.make(name)[0]
    args = UnlearningArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args)
    report = audit(model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=unseen_ds, resamples=10)
    assert report.about["request"] == trainer.request
    return trainer.request


def test_label_of_images(tmp_path):
    assert request(tmp_path, "vit", "label") == "class"


def test_intent_that_was_copied_to_label(tmp_path):
    assert request(tmp_path, "bert", "intent", intent=[0, 1, 2] * 6) == "class"


def test_speaker_of_a_speech_recogniser(tmp_path):
    assert request(tmp_path, "whisper", "speaker", speaker=[0, 0, 1] * 6) == "group"


def test_speaker_of_a_classifier_of_something_else(tmp_path):
    assert request(tmp_path, "wav2vec2", "speaker", speaker=[0, 1] * 9) == "group"


def test_speaker_of_a_classifier_of_speakers(tmp_path):
    def as_label(dataset):
        return dataset.remove_columns("label").rename_column("speaker", "label")

    assert request(tmp_path, "wav2vec2", "speaker", as_label, speaker=[0, 0, 1] * 6) == "class"


def test_a_label_among_several_is_forgotten_and_the_others_are_kept(tmp_path):
    """Of pictures with a bright half, left or right, or with none; the label of the left one is forgotten."""
    rng = np.random.default_rng(0)
    has = np.array([[1, 0], [0, 1], [0, 0]])[np.arange(96) % 3]
    pixels = 0.3 * rng.normal(size=(96, 3, 32, 32))
    pixels[:, :, :, :16] += has[:, 0, None, None, None]
    pixels[:, :, :, 16:] += has[:, 1, None, None, None]
    labels = np.column_stack((has, np.ones(96)))  # and one that all have
    train_ds = datasets.Dataset.from_dict({"pixel_values": pixels.astype(np.float32), "labels": labels})
    model = tiny.make("vit")[0]
    model.config.problem_type = "multi_label_classification"
    train_ds = train_ds.with_format("torch")
    batch = {"pixel_values": train_ds[:]["pixel_values"], "labels": train_ds[:]["labels"].float()}
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()
    before = model(pixel_values=batch["pixel_values"]).logits.detach()
    assert ((before > 0) == (batch["labels"] > 0.5)).float().mean() > 0.97

    forget_ds, retain_ds = split_forget_retain(
        train_ds, where=lambda sample: bool(sample["labels"][0]), request="class"
    )
    args = UnlearningArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = UnlearningTrainer(model, forget_ds, retain_ds, args)
    trainer.train()
    assert trainer.target.classes == [0]
    after = trainer.model(pixel_values=batch["pixel_values"]).logits.detach()
    forgotten = has[:, 0] == 1
    assert (before[forgotten, 0] > 0).all() and (after[forgotten, 0] > 0).float().mean() < 0.1
    # As unlikely as on samples without it, and no further; the others stay.
    of_forgotten, of_others = after[forgotten, 0], after[~forgotten, 0]
    assert abs(of_forgotten.mean() - before[~forgotten, 0].mean()) < 2 * before[~forgotten, 0].std().clamp_min(1)
    assert of_forgotten.quantile(0.1) <= of_others.quantile(0.7)  # no number brings them back alone
    assert ((after[:, 1:] > 0) == (before[:, 1:] > 0)).float().mean() > 0.97
