"""Datasets that are refused."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.data.validation import check_classes, check_datasets


def samples(count=12, **columns):
    return datasets.Dataset.from_dict(
        {"x": [[float(i), 0.5] for i in range(count)], "label": [i % 3 for i in range(count)], **columns}
    )


def test_datasets_with_a_transform_are_compared_on_their_stored_columns():
    data = samples().with_transform(lambda batch: {"pixel_values": batch["x"], "labels": batch["label"]})
    forget, retain = split_forget_retain(data, fraction=0.3)
    check_datasets(forget, retain, columns=["pixel_values", "label", "labels"])
    with pytest.raises(ValueError, match=r"^forget_ds and retain_ds share 4 samples"):
        check_datasets(forget, data, columns=["pixel_values", "label", "labels"])


def test_check_datasets_refuses_by_name():
    data = samples()
    forget, retain = data.select([0, 1]), data.select(range(2, 8))
    check_datasets(forget, retain, data.select([10, 11]))
    with pytest.raises(ValueError, match=r"^forget_ds: is empty"):
        check_datasets(data.select([]), retain)
    with pytest.raises(ValueError, match=r"^retain_ds: is empty"):
        check_datasets(forget, data.select([]))
    with pytest.raises(ValueError, match=r"share 1 samples \(sample 1 of forget_ds is sample 3 of retain_ds\)"):
        check_datasets(forget, data.select([5, 6, 7, 1]))
    with pytest.raises(ValueError, match=r"^unseen_ds and retain_ds share 1 samples"):
        check_datasets(forget, retain, data.select([11, 2]))
    with pytest.raises(ValueError, match=r"^retain_ds: its columns \['label'\]"):
        check_datasets(forget, retain.remove_columns("x"))
    # The same content under another sample number: an index column that the model never reads changes nothing.
    numbered = [d.add_column("id", [k] * len(d)) for k, d in enumerate((forget, data.select([1, 7])))]
    check_datasets(*numbered)
    with pytest.raises(ValueError, match="share 1 samples"):
        check_datasets(*numbered, columns=["x", "label"])


# ---- what samples are compared on -----------------------------------------------------------------------------------


def pictures(numbers, labels, **columns):
    """Raw images, as most of the Hub has them: one grey level a number, stored as bytes."""
    files = []
    for number in numbers:
        Image.new("L", (4, 4), number).save(file := io.BytesIO(), "PNG")
        files.append({"bytes": file.getvalue(), "path": f"{number}.png"})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": files, "label": labels}, features)
    for name, values in columns.items():
        data = data.add_column(name, values)
    return data


READ = ["pixel_values", "labels", "label"]


def test_labels_that_repeat_are_no_shared_samples():
    check_datasets(pictures([1, 2], [0, 1]), pictures([3, 4, 5], [0, 1, 1]), pictures([6], [0]), READ)
    as_lists = [[{"image": np.full((4, 4), i), "label": 0}] for i in range(3)]
    check_datasets(*as_lists, READ)
    texts = [datasets.Dataset.from_dict({"text": [t], "label": [1]}) for t in "ab"]
    check_datasets(*texts, columns=["input_ids", "labels", "label"])
    # Columns of no usual name: all of them.
    check_datasets(*(datasets.Dataset.from_dict({"scan": [t], "label": [1]}) for t in "ab"), columns=READ)


APART = {
    "tensor and class": lambda i: {"data": torch.full((2,), float(i)), "target": 0},
    "text and origin": lambda i: {"content": f"text {i}", "source": "web"},
    "constant prompt": lambda i: {"prompt": "Translate.", "translation": {"de": f"{i}", "en": f"{i}"}},
    "labels alone": lambda i: {"label": 0},
}


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("container", [list, datasets.Dataset.from_list])
def test_attributes_that_repeat_are_no_shared_samples(container, name):
    check_datasets(*(container([APART[name](i)]) for i in range(3)), columns=READ)
    if name != "labels alone":
        with pytest.raises(ValueError, match="share 1 samples"):
            check_datasets(*(container([APART[name](0)]) for _ in range(2)), columns=READ)


def test_a_raw_sample_is_found_under_another_number_and_another_path(tmp_path):
    forget, retain = pictures([1, 2], [0, 1], id=[0, 1]), pictures([3, 2], [0, 1], id=[7, 8])
    with pytest.raises(ValueError, match=r"share 1 samples \(sample 1 of forget_ds is sample 1 of retain_ds\)"):
        check_datasets(forget, retain, columns=READ)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 4), 9).save(tmp_path / folder / f"{folder}.png")
    stored = [
        datasets.Dataset.from_dict({"image": [str(tmp_path / name / f"{name}.png")], "label": [0]}).cast_column(
            "image", datasets.Image()
        )
        for name in ("one", "two")
    ]
    with pytest.raises(ValueError, match="share 1 samples"):
        check_datasets(*stored, columns=READ)
    check_datasets(pictures([1], [0]), pictures([1], [1]), columns=READ)  # another label, another sample


def test_a_random_transform_hides_no_sample():
    generator = np.random.default_rng(0)
    data = pictures([1, 2, 3], [0, 1, 0]).with_transform(
        lambda batch: {"pixel_values": generator.normal(size=(len(batch["image"]), 3)), "label": batch["label"]}
    )
    check_datasets(data.select([0]), data.select([1, 2]), columns=READ)
    with pytest.raises(ValueError, match="share 1 samples"):
        check_datasets(data.select([0]), data, columns=READ)


# ---- samples with nothing to score ----------------------------------------------------------------------------------


def tensors(samples):
    return [{name: torch.tensor(value) for name, value in sample.items()} for sample in samples]


@pytest.mark.parametrize("container", [datasets.Dataset.from_list, list, tensors])
@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("causal_lm", [-100, -100, -100], r"1 of 3 samples have nothing to score \(the first is sample 2: all of its"),
        ("causal_lm", [4], r"1 of 3 samples have nothing to score \(the first is sample 2"),  # never predicted
        ("seq2seq_lm", [-100], "1 of 3 samples"),
        ("token", [-100, -100], "1 of 3 samples"),
        ("token", [4], None),
        ("masked_lm", [-100, -100], None),
    ],
)
def test_samples_with_nothing_to_score_are_counted(container, kind, labels, message):
    good = [{"input_ids": [i, 2, 3], "labels": [i, 2, 3]} for i in range(4)]
    bad = container([*good[2:], {"input_ids": [9, 2, 3][: len(labels)], "labels": labels}])
    columns, good = ["input_ids", "labels"], container(good[:2])
    if message is None:
        check_datasets(bad, good, columns=columns, kind=kind)
        return
    for name, data in (("forget_ds", (bad, good)), ("retain_ds", (good, bad))):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            check_datasets(*data, columns=columns, kind=kind)
    check_datasets(bad, good, columns=columns)  # a loss of the user's own


@pytest.mark.parametrize("container", ["table", "map-style"])
def test_the_forgotten_labels_are_those_that_no_retain_sample_has(container):
    def with_labels(values):
        if container == "table":
            return datasets.Dataset.from_dict({"labels": values})
        return [{"labels": torch.tensor(v)} for v in values]

    retain = with_labels([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert check_classes(with_labels([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]), retain) == [2]
    assert check_classes(with_labels([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]]), retain) == [2, 3]
    with pytest.raises(
        ValueError, match=r"retain_ds holds samples of every label that 1 of 2 forget samples have; take"
    ):
        check_classes(with_labels([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]), retain)
    assert (
        check_classes(datasets.Dataset.from_dict({"label": [1]}), datasets.Dataset.from_dict({"label": [0]})) is None
    )
