"""Retain samples from a stream: samples to forget are left out, and it goes on from where it was."""

import gc
import threading
import weakref

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_unlearn.data import streaming
from hf_unlearn.data.hashing import sample_hash
from hf_unlearn.data.pairing import PairCollator, PairSampler, StreamedPairs
from hf_unlearn.data.streaming import open_stream

COLUMNS = ["pixel_values", "labels"]


def sample(number, label=None):
    return {"pixel_values": [number + 0.1, 0.5], "labels": number % 3 if label is None else label}


def shards(numbers):
    for start, stop in numbers:
        yield from map(sample, range(start, stop))


def stream(count=24, parts=1):
    numbers = [(i * count // parts, (i + 1) * count // parts) for i in range(parts)]
    return datasets.IterableDataset.from_generator(shards, gen_kwargs={"numbers": numbers})


def opened(dataset, forget=(5, 11)):
    return open_stream(dataset, datasets.Dataset.from_list([sample(i) for i in forget]), COLUMNS)


def numbers(samples):
    return [round(float(s["pixel_values"][0]) - 0.1) for s in samples]


KINDS = {
    "plain": lambda: stream(),
    "shards": lambda: stream(parts=3),
    "from Arrow": lambda: datasets.Dataset.from_list([sample(i) for i in range(24)]).to_iterable_dataset(num_shards=2),
    "torch": lambda: stream().with_format("torch"),
    "mapped": lambda: stream().map(lambda s: {**s, "labels": s["labels"] + 1}).map(
        lambda s: {**s, "labels": [n - 1 for n in s["labels"]]}, batched=True, batch_size=5
    ),
    "shuffled": lambda: stream(parts=3).shuffle(seed=3, buffer_size=7),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_leaves_out_what_is_to_be_forgotten_and_goes_on_from_any_place(kind):
    retain = opened(KINDS[kind]())
    assert retain._has_exact_state == (kind != "shuffled")
    whole = retain.reader()
    first = numbers(whole.take(0, 22))
    assert sorted(first) == [i for i in range(24) if i not in (5, 11)]
    assert (first == sorted(first)) == (kind != "shuffled")
    second = numbers(whole.take(22, 44))  # it begins again
    assert sorted(second) == sorted(first)
    assert whole.state()["skipped"] == 4 and whole.place == 44
    for place in (1, 8, 21, 22, 30):
        reader = retain.reader()
        reader.take(0, place)
        state = reader.state()
        assert numbers(retain.reader(state=state).take(place, 44)) == [*first, *second][place:]
        assert numbers(retain.reader(state=state).take(place + 2, 44)) == [*first, *second][place + 2 :]
    assert numbers(retain.head) == first


def test_a_shuffled_stream_has_another_order_in_each_pass():
    reader = opened(KINDS["shuffled"]()).reader()
    assert numbers(reader.take(0, 22)) != numbers(reader.take(22, 44))


def test_parts_of_a_stream_are_its_shards():
    retain = opened(stream(parts=4))
    assert [retain.count_readers(*split) for split in ((1, 0), (2, 1), (2, 2), (1, 4), (3, 1), (2, 4))] == [
        1, 2, 4, 4, 1, 1
    ]  # fmt: skip
    parts = [numbers(retain.reader(i, 2).rest_of_pass) for i in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(numbers(retain.head)) and all(len(part) == 11 for part in parts)


def test_the_head_is_bounded(monkeypatch):
    monkeypatch.setattr(streaming, "HEAD_SAMPLES", 4)
    assert numbers(opened(stream(10**9)).head) == [0, 1, 2, 3]


def test_classes_are_left_out_as_they_come_along():
    forget = datasets.Dataset.from_list([sample(1), sample(4)])
    retain = open_stream(stream(), forget, COLUMNS)
    retain.leave_out_classes(forget)
    assert {s["labels"] for s in retain.head} == {0, 2} and len(retain.head) == 16
    reader = retain.reader()
    assert {s["labels"] for s in reader.take(0, 32)} == {0, 2}
    assert reader.state()["skipped"] == 16


@pytest.mark.parametrize("kind", ["float64", "numpy", "torch", "tuple"])
def test_a_sample_is_known_in_any_container_and_precision(kind):
    values = np.random.default_rng(0).normal(size=(2, 3))
    other = {
        "float64": values.tolist(), "numpy": values.astype(np.float32), "torch": torch.tensor(values),
        "tuple": tuple(map(tuple, values.tolist())),
    }[kind]  # fmt: skip
    stored = datasets.Dataset.from_dict(
        {"x": [values.tolist()]}, features=datasets.Features({"x": datasets.Array2D((2, 3), "float32")})
    )
    assert sample_hash({"x": other, "y": 1}, ["x"]) == sample_hash(stored[0], ["x"])
    assert sample_hash({"x": other}, ["x"]) != sample_hash({"x": values + 1e-3}, ["x"])


def augmented(numbers):
    for number in range(*numbers[0]):
        yield {**sample(number), "pixel_values": torch.rand(2).tolist()}


class Augmented(list):
    def __getitem__(self, number):
        return {**super().__getitem__(number), "pixel_values": torch.rand(2)}


def test_what_cannot_be_compared_is_refused():
    forget = datasets.Dataset.from_list([sample(1)])
    random = datasets.IterableDataset.from_generator(augmented, gen_kwargs={"numbers": [(0, 24)]})
    with pytest.raises(ValueError, match=r"^retain_ds: is a stream that gives other samples each time it is read"):
        open_stream(random, forget, COLUMNS)
    with pytest.raises(ValueError, match=r"^forget_ds: a sample is another each time it is read"):
        open_stream(stream(), Augmented([sample(1)]), COLUMNS)
    with pytest.raises(ValueError, match=r"^forget_ds: has a transform"):
        open_stream(stream(), forget.with_transform(lambda batch: batch), COLUMNS)
    with pytest.raises(ValueError, match=r"^forget_ds: stores labels, by which"):
        open_stream(stream(), [{"labels": 0}], COLUMNS)
    with pytest.raises(ValueError, match=r"^retain_ds: is empty, or holds samples to forget alone"):
        opened(stream(2), forget=(0, 1))
    assert open_stream([sample(1)], forget, COLUMNS) is None


# ---- batches ----


def pairs(dataset, readers, steps=12):
    forget = [{"x": i} for i in range(5)]
    return StreamedPairs(
        forget, opened(dataset), forget_per_step=4, retain_per_step=6, seed=0, steps=steps, readers=readers
    )


def batches(data, workers=0, start=0, batch=2):
    """All batches of the run from a number on, as a data loader gives them."""
    positions = list(PairSampler(len(data), lambda: 0))[start * batch :]
    collate = PairCollator(lambda samples: numbers(samples) if "labels" in samples[0] else samples)
    return list(DataLoader(data, batch_size=batch, sampler=positions, num_workers=workers, collate_fn=collate))


def contents(batches):
    return [(batch["index"].tolist(), batch["retain"]) for batch in batches]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("parts", [1, 4])
def test_batches_go_on_where_they_were_with_any_number_of_workers(parts, workers):
    def made():
        return pairs(stream(parts=parts), opened(stream(parts=parts)).count_readers(1, workers), steps=6)

    whole = batches(made(), workers)
    assert sorted(i for batch in whole for i in batch["retain"])[:4] == [0, 0, 1, 1]
    data = made()
    data.remember(batch["stream"] for batch in whole[:5])  # an odd number: the next is not the first worker's
    assert contents(batches(data, workers, start=5)) == contents(whole[5:])
    data.remember(batch["stream"] for batch in whole)
    assert data.skipped == 4 or parts == 4  # 36 samples: two of each pass


def test_one_part_is_the_same_in_any_split():
    alone = contents(batches(pairs(stream(), 1), batch=4))
    assert [contents(batches(pairs(stream(), 1), workers, batch=4)) for workers in (1, 2)] == [alone] * 2
    halves = contents(batches(pairs(stream(), 1)))
    joined = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(halves[::2], halves[1::2], strict=True)]
    assert joined == alone


@pytest.mark.parametrize("kind", ["plain", "shuffled"])
def test_a_reader_that_is_left_is_closed_at_once(kind):
    """Not by the collector of cycles, which may come in a thread that is just beginning, and wait there forever."""
    retain = opened(KINDS[kind]())
    gc.disable()
    try:
        before = set(threading.enumerate())
        reader = retain.reader()
        reader.take(0, 3)
        left, threads = weakref.ref(reader), set(threading.enumerate()) - before
        del reader
        assert left() is None and not any(thread.is_alive() for thread in threads)
    finally:
        gc.enable()
