"""Splitting, the kind of request, subsampling."""

import datasets
import pytest
import torch

from hf_unlearn.data.splitting import in_memory, request_of, split_forget_retain, subsample


def samples(count=12, **columns):
    return datasets.Dataset.from_dict(
        {"x": [[float(i), 0.5] for i in range(count)], "label": [i % 3 for i in range(count)], **columns}
    )


def test_split_by_class_and_by_group():
    speakers = ["a", "b", "c", "a"] * 3
    forget, retain = split_forget_retain(samples(speaker=speakers), column="label", values=[1])
    assert (set(forget["label"]), set(retain["label"])) == ({1}, {0, 2})
    assert (request_of(forget), request_of(retain)) == ("class", "class")
    forget, retain = split_forget_retain(samples(speaker=speakers), column="speaker", values=["a", "c"])
    assert set(forget["speaker"]) == {"a", "c"} and set(retain["speaker"]) == {"b"}
    assert request_of(forget) == "group"


def test_small_datasets_are_read_into_memory_and_large_ones_stay(monkeypatch):
    forget, retain = split_forget_retain(samples(), column="label", values=[1])
    retained = in_memory(retain)
    assert (
        list(retained) == list(retain)
        and not isinstance(retained, datasets.Dataset)
        and request_of(retained) == "class"
    )
    monkeypatch.setattr("hf_unlearn.data.splitting.MAX_BYTES_IN_MEMORY", samples().data.nbytes // 2)
    assert in_memory(retain) is retain  # two thirds of the table
    assert list(in_memory(forget)) == list(forget) and not isinstance(in_memory(forget), datasets.Dataset)


def test_split_by_fraction_is_seeded_and_stratified():
    data = samples(90)
    one, other = (split_forget_retain(data, fraction=0.1, seed=s)[0]["x"][:] for s in (0, 1))
    assert len(one) == 9 and one != other
    assert one == split_forget_retain(data, fraction=0.1, seed=0)[0]["x"][:]
    forget, retain = split_forget_retain(data, fraction=0.1, stratify_by="label")
    assert sorted(forget["label"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2] and len(retain) == 81
    assert request_of(forget) == "samples"


def test_split_by_indices_and_predicate_on_any_map_style_dataset():
    class Plain(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            return {"x": torch.tensor([float(i)]), "label": torch.tensor(i % 2)}

    forget, retain = split_forget_retain(Plain(), indices=[4, 0])
    assert [int(r["x"]) for r in forget] == [0, 4] and len(retain) == 4
    forget, _ = split_forget_retain(Plain(), where=lambda sample: sample["x"].item() > 2)
    assert [int(r["x"]) for r in forget] == [3, 4, 5] and request_of(forget) == "samples"
    forget, _ = split_forget_retain(Plain(), column="label", values=[1])
    assert [int(r["x"]) for r in forget] == [1, 3, 5] and request_of(forget) == "class"


def test_the_request_survives_the_transforms_of_datasets():
    forget, _ = split_forget_retain(samples(), column="label", values=[1])
    assert request_of(forget.map(lambda r: {"y": 1}).shuffle(seed=0).select([0, 1]).remove_columns("y")) == "class"
    again, _ = split_forget_retain(forget, fraction=0.5)
    assert request_of(again) == "samples" and request_of(samples()) is None


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, "give exactly one of"),
        ({"fraction": 0.1, "indices": [1]}, "give exactly one of"),
        ({"column": "label"}, "values: say which"),
        ({"column": "nope", "values": [1]}, "'nope' is not in the dataset"),
        ({"column": "label", "values": [7]}, r"has no \[7\]; it has 0, 1, 2"),
        ({"fraction": 1.5}, "strictly between 0 and 1"),
        ({"indices": [99]}, r"must lie in \[0, 12\)"),
        ({"indices": []}, "forget dataset would be empty"),
        ({"column": "label", "values": [0, 1, 2]}, "retain dataset would be empty"),
        ({"fraction": 0.5, "request": "speaker"}, "expected one of"),
    ],
)
def test_split_refuses(choice, message):
    with pytest.raises(ValueError, match=message):
        split_forget_retain(samples(), **choice)


def test_subsample_is_fixed_by_its_seed():
    data = samples()
    assert subsample(data, 99) is data
    assert subsample(data, 4)["x"][:] == subsample(data, 4)["x"][:]
    assert len(subsample([1, 2, 3], 2)) == 2
