"""The kind of request that trainer and audit derive from a column: a class is what the model's head predicts."""

import datasets
import tiny

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
