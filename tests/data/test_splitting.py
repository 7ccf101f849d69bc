"""Splitting, the kind of request, subsampling."""

import copy
import dataclasses
import json
import pickle

import datasets
import pytest
import torch

from hf_unlearn.data.splitting import (
    in_memory,
    request_for_head,
    request_of,
    resolve_request,
    split_forget_retain,
    subsample,
)


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


CLASSES = datasets.ClassLabel(names=["a", "b", "c"])
OPERATIONS = {
    "map": lambda data: data.map(lambda sample: {"y": 1}),
    "map, batched": lambda data: data.map(
        lambda batch: {"y": [1] * len(batch["x"])}, batched=True, remove_columns=["x"]
    ),
    "map, two processes": lambda data: data.map(lambda sample: {"y": 1}, num_proc=2),
    "filter": lambda data: data.filter(lambda sample: sample["x"][0] > 1),
    "select": lambda data: data.select([2, 0]),
    "select_columns": lambda data: data.select_columns(["x"]),
    "remove_columns": lambda data: data.remove_columns("x"),
    "rename_column": lambda data: data.rename_column("label", "labels"),
    "add_column": lambda data: data.add_column("z", [1] * len(data)),
    "cast_column": lambda data: data.cast_column("label", CLASSES),
    "align_labels_with_mapping": lambda data: data.cast_column("label", CLASSES).align_labels_with_mapping(
        {"c": 0, "b": 1, "a": 2}, "label"
    ),
    "with_format": lambda data: data.with_format("torch"),
    "with_transform": lambda data: data.with_transform(lambda batch: batch),
    "train_test_split": lambda data: data.train_test_split(0.5, seed=0)["test"],
    "shuffle": lambda data: data.shuffle(seed=0),
    "sort": lambda data: data.sort("label"),
    "shard": lambda data: data.shard(2, 0),
    "repeat": lambda data: data.repeat(2),
    "flatten_indices": lambda data: data.flatten_indices(),
    "concatenate": lambda data: datasets.concatenate_datasets([data, data]),
    "concatenate parts": lambda data: datasets.concatenate_datasets([data.select([0]), data.select([3, 2])]),
    "interleave": lambda data: datasets.interleave_datasets([data, data]),
    "pickle": lambda data: pickle.loads(pickle.dumps(data)),
    "deepcopy": copy.deepcopy,
    "in_memory": in_memory,
    "dictionary": lambda data: datasets.DatasetDict(train=data).map(lambda sample: {"y": 1})["train"],
}


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # datasets asks pyarrow for it
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_request_survives(operation, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = samples()
    data.info.description = "About numbers."
    for dataset in split_forget_retain(data, column="label", values=[1]):
        result = OPERATIONS[operation](dataset)
        assert request_of(result) == "class"
        if isinstance(result, datasets.Dataset):
            assert result.info.description == "About numbers."
    assert request_of(data) is None


def test_the_request_is_not_written(tmp_path):
    forget, _ = split_forget_retain(samples(), column="label", values=[1], request="group")
    forget.save_to_disk(tmp_path / "saved")
    forget.to_parquet(tmp_path / "samples.parquet")
    for path in [*(tmp_path / "saved").iterdir(), tmp_path / "samples.parquet"]:
        content = path.read_bytes()
        assert b"group" not in content and b"request" not in content and b"hf_unlearn" not in content, path
    published = dataclasses.asdict(forget.info)  # what push_to_hub writes, in either of its two formats
    assert type(json.loads(json.dumps(published, default=str))["description"]) is str
    assert "group" not in json.dumps(published, default=str)
    assert "group" not in repr(forget.info._to_yaml_dict())
    assert request_of(datasets.load_from_disk(tmp_path / "saved")) is None


def test_a_request_that_is_not_stored_is_said(caplog):
    assert resolve_request(None, samples(), samples(), "single_label") == "samples"
    assert caplog.messages == [
        'request: forget_ds has no kind of forget request, "samples" is assumed; set request="class" or "group" if it '
        "is one"
    ]
    caplog.clear()
    forget, retain = split_forget_retain(samples(), column="label", values=[1])
    assert resolve_request(None, forget, retain, "single_label") == "class"
    assert resolve_request("group", forget, retain, "single_label") == "group"
    assert not caplog.messages


def with_class_column(name, values):
    data = samples(**{name: values}).cast_column(name, datasets.ClassLabel(names=["p", "q", "r", "s"]))
    return split_forget_retain(data, column=name, values=[1])


@pytest.mark.parametrize("store", [lambda dataset: dataset, in_memory])
def test_a_class_is_the_label_that_the_head_predicts(store):
    def request(forget, retain, head="single_label"):
        return request_for_head(store(forget), store(retain), head)

    by_label = split_forget_retain(samples(), column="label", values=[1])
    assert request(*by_label) == request(*by_label, "custom") == "class"
    assert request(*by_label, "causal_lm") == request(*by_label, "ctc") == "group"
    # The column that the label was copied from, and one that has nothing to do with it.
    intent, speaker = with_class_column("intent", [i % 3 for i in range(12)]), with_class_column("speaker", [0, 1] * 6)
    assert request(*intent) == "class" and request(*speaker) == "group"
    assert request(*intent, "seq2seq_lm") == "group"
    # The column itself, under the name that a model reads.
    renamed = [dataset.remove_columns("label").rename_column("speaker", "labels") for dataset in speaker]
    assert request(*renamed) == "class"
    given = split_forget_retain(samples(), column="label", values=[1], request="class")
    assert request(*given, "ctc") == "class"


def test_a_class_whose_labels_a_transform_makes():
    forget, retain = (
        dataset.remove_columns("label").with_transform(lambda batch: {"labels": batch["fine"]})
        for dataset in with_class_column("fine", [i % 3 for i in range(12)])
    )
    assert request_for_head(forget, retain, "single_label") == "class"


def test_a_second_split_has_its_own_request():
    forget, _ = split_forget_retain(samples(), column="label", values=[1])
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
        ({"fraction": 0.5, "request": "speaker"}, "must be one of"),
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


def test_requests_that_are_put_together_are_no_request_any_more():
    samples = datasets.Dataset.from_dict({"x": list(range(12)), "label": [0, 1, 2] * 4, "who": ["a", "b"] * 6})
    of_class, _ = split_forget_retain(samples, column="label", values=[1])
    of_group, _ = split_forget_retain(samples, column="who", values=["a"])
    again, _ = split_forget_retain(samples, column="label", values=[2])
    assert request_of(datasets.concatenate_datasets([of_class, again])) == "class"
    for pair in ([of_class, of_group], [of_group, of_class]):
        assert request_of(datasets.concatenate_datasets(pair)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": 1}, r"values: expected a list, got 1; write values=\[1\]"),
        ({"values": "12"}, r"values: expected a list, got '12'; write values=\['12'\]"),
        ({"values": []}, "values: say which values of column 'label' to forget"),
        ({"column": None, "indices": [False, True] * 6}, "indices: got a boolean mask"),
        ({"column": None, "indices": torch.arange(12) > 3}, "indices: got a boolean mask"),
        ({"column": None, "indices": [0.5, 1.0]}, "indices: expected a list of whole numbers, got"),
        ({"column": None, "indices": ["a"]}, "indices: expected a list of whole numbers, got"),
        ({"column": None, "indices": 3}, "indices: expected a list of whole numbers, got 3"),
        ({"column": None, "indices": [0, 12]}, r"indices: must lie in \[0, 12\), got 0 to 12"),
    ],
)
def test_what_selects_nothing_that_was_meant_is_refused(change, message):
    samples = datasets.Dataset.from_dict({"label": [0, 1, 2] * 4})
    with pytest.raises(ValueError, match=f"^{message}"):
        split_forget_retain(samples, **{"column": "label", **change})


def test_streams_and_dicts_of_splits_are_refused():
    samples = datasets.Dataset.from_dict({"label": [0, 1, 2] * 4})
    for dataset, message in (
        (samples.to_iterable_dataset(), "dataset: got a IterableDataset, whose samples have no number"),
        (
            datasets.DatasetDict(train=samples, test=samples),
            r"dataset: got a DatasetDict of \['test', 'train'\]",
        ),
        ("me/images", "dataset: got a str, whose samples have no number"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            split_forget_retain(dataset, fraction=0.1)
