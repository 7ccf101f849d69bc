"""Datasets that are refused."""

import datasets
import pytest

from hf_unlearn.data.splitting import split_forget_retain
from hf_unlearn.data.validation import check_datasets


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
