"""Splitting, hashing, pairing and collating."""

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make

from hf_unlearn.data.collator import default_collator
from hf_unlearn.data.hashing import sample_hashes
from hf_unlearn.data.pairing import Pair, PairCollator, PairedDataset, PairSampler
from hf_unlearn.data.splitting import in_memory, request_of, split_forget_retain, subsample
from hf_unlearn.data.validation import check_datasets


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


def test_small_sets_are_read_into_memory_and_large_ones_stay(monkeypatch):
    forget, retain = split_forget_retain(samples(), column="label", values=[1])
    kept = in_memory(retain)
    assert list(kept) == list(retain) and not isinstance(kept, datasets.Dataset) and request_of(kept) == "class"
    monkeypatch.setattr("hf_unlearn.data.splitting.SMALL", samples().data.nbytes // 2)
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


def test_request_travels_through_the_transforms_of_datasets():
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


def test_hashes_compare_content_wherever_it_stands():
    data = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0], [1.0, 2.0]], "t": ["a", "b", "a"]})
    one = sample_hashes(data)
    assert one[0] == one[2] != one[1]
    shuffled = sample_hashes(data.select([1, 2, 0]))
    assert shuffled == [one[1], one[0], one[0]]
    assert sample_hashes(datasets.concatenate_datasets([data.select([1]), data.select([0])])) == [one[1], one[0]]
    listed = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([2.0])}, {"x": torch.tensor([1.0])}]
    hashes = sample_hashes(listed)
    assert hashes[0] == hashes[2] != hashes[1]


def test_hashes_depend_on_content_alone():
    plain = {
        "x": [[1.0, 2.0], [3.5, 4.0]],
        "n": [1, 2, 3],
        "t": "a",
        "s": ["p", "q"],
        "r": [[1], [2, 3]],
        "e": [],
        "z": None,
    }
    data = datasets.Dataset.from_list([plain, plain | {"t": "b"}])
    small = data.cast_column("x", datasets.Array2D((2, 2), "float32")).cast_column(
        "n", datasets.List(datasets.Value("int16"))
    )
    tensors = plain | {"x": torch.tensor(plain["x"]), "n": torch.tensor(plain["n"])}
    shuffled = dict(reversed(plain.items()))
    one = sample_hashes(data)
    assert one[0] != one[1]
    for same in (small, [plain], [tensors], [shuffled], data.select_columns(sorted(data.column_names, reverse=True))):
        assert sample_hashes(same)[0] == one[0]
    assert one[0].hex() == "b62181b3e3150188600e9452bc5e76ac"  # in any process
    for column, other in {
        "x": [[1.0, 2.0, 3.5, 4.0]],
        "s": ["pq"],
        "r": [[1, 2], [3]],
        "z": "None",
        "n": [1.0, 2.0, 3.0],
    }.items():
        assert sample_hashes([plain | {column: other}])[0] != one[0], column


def test_sets_with_a_transform_are_compared_on_what_they_store():
    data = samples().with_transform(lambda batch: {"pixel_values": batch["x"], "labels": batch["label"]})
    forget, retain = split_forget_retain(data, fraction=0.3)
    check_datasets(forget, retain, columns=["pixel_values", "label", "labels"])
    with pytest.raises(ValueError, match=r"^forget_ds and retain_ds share 4 samples"):
        check_datasets(forget, data, columns=["pixel_values", "label", "labels"])


def test_check_sets_refuses_by_name():
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


def paired(forget=5, retain=11, per_step=(4, 6), seed=0):
    sets = [[{"x": i} for i in range(n)] for n in (forget, retain)]
    return PairedDataset(*sets, forget_per_step=per_step[0], retain_per_step=per_step[1], seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    forget=st.integers(1, 9), retain=st.integers(1, 30), ratio=st.sampled_from([(1, 1), (1, 3), (2, 1), (4, 3)]),
    processes=st.integers(1, 3), accumulation=st.integers(1, 4),
)  # fmt: skip
def test_batches_hold_the_same_rows_however_they_are_split(forget, retain, ratio, processes, accumulation):
    parts = processes * accumulation
    whole = paired(forget, retain, (ratio[0] * parts, ratio[1] * parts))
    assert len(whole) % (ratio[0] * parts) == 0
    collate = PairCollator(lambda found: [r["x"] for r in found])
    for step in range(whole.steps):
        positions = [step * ratio[0] * parts + i for i in range(ratio[0] * parts)]
        pairs = [whole[p] for p in positions]
        batches = [collate(pairs[i : i + ratio[0]]) for i in range(0, len(pairs), ratio[0])]
        assert all(len(b["forget"]) == ratio[0] and len(b["retain"]) == ratio[1] for b in batches)


def test_every_row_is_seen_once_before_any_is_seen_again():
    data = paired(retain=11, forget=5, per_step=(4, 6))
    stream = [data[p] for p in range(3 * len(data))]
    retain = [r["x"] for pair in stream for r in pair.retain]
    forget = [pair.forget["x"] for pair in stream]
    for found, size in ((retain, 11), (forget, 5)):
        passes = [found[i : i + size] for i in range(0, len(found) - size + 1, size)]
        assert all(sorted(p) == list(range(size)) for p in passes)
        assert len({tuple(p) for p in passes}) > 1  # shuffled anew
    assert [pair.number for pair in stream] == forget
    assert [p.forget["x"] for p in stream] != [paired(seed=1)[i].forget["x"] for i in range(len(stream))]


def test_one_epoch_covers_the_larger_set():
    assert len(paired(forget=5, retain=100, per_step=(8, 8))) == 13 * 8
    assert len(paired(forget=100, retain=5, per_step=(8, 8))) == 13 * 8
    sampler = PairSampler(6)
    sampler.epoch = 2
    assert list(sampler) == [12, 13, 14, 15, 16, 17] and len(sampler) == 6


def test_collator_pads_for_every_modality():
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Wav2Vec2Config,
        Wav2Vec2ForSequenceClassification,
    )

    bert = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, pad_token_id=3)
    )
    batch = default_collator(bert)([{"input_ids": [5, 6], "label": 1}, {"input_ids": [7], "label": 0}])
    assert batch["input_ids"].tolist() == [[5, 6], [7, 3]] and batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [1, 0]
    padded = {"input_ids": [0, 5, 6, 0], "attention_mask": [0, 1, 1, 0]}
    assert default_collator(make("gpt2")[0])([padded])["labels"].tolist() == [[-100, 5, 6, -100]]
    tokens = default_collator(bert)([{"input_ids": [5, 6], "labels": [1, 0]}, {"input_ids": [7], "labels": [2]}])
    assert tokens["labels"].tolist() == [[1, 0], [2, -100]]
    images = default_collator(bert)([{"pixel_values": torch.ones(1, 2, 2, dtype=torch.float64)}] * 2)
    assert images["pixel_values"].shape == (2, 1, 2, 2) and images["pixel_values"].dtype == torch.float64
    for norm, masked in (("layer", True), ("group", False)):
        config = Wav2Vec2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, feat_extract_norm=norm,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
            conv_dim=(8,), conv_stride=(2,), conv_kernel=(2,),
        )  # fmt: skip
        audio = default_collator(Wav2Vec2ForSequenceClassification(config))
        batch = audio([{"input_values": [0.1, 0.2, 0.3], "label": 0}, {"input_values": [0.4], "label": 1}])
        assert batch["input_values"].shape == (2, 3) and ("attention_mask" in batch) == masked


def test_pair_collator_keeps_forget_row_numbers():
    batch = PairCollator(lambda found: found)([Pair({"x": 1}, [{"x": 2}, {"x": 3}], 7), Pair({"x": 4}, [], 9)])
    assert batch["forget"] == [{"x": 1}, {"x": 4}] and batch["retain"] == [{"x": 2}, {"x": 3}]
    assert batch["index"].tolist() == [7, 9]


def test_sample_rows_is_fixed():
    data = samples()
    assert subsample(data, 99) is data
    assert subsample(data, 4)["x"][:] == subsample(data, 4)["x"][:]
    assert len(subsample([1, 2, 3], 2)) == 2
