"""Pairs of forget and retain samples."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unlearn.data.pairing import Pair, PairCollator, PairedDataset, PairSampler


def paired(forget=5, retain=11, per_step=(4, 6), seed=0):
    pair = [[{"x": i} for i in range(n)] for n in (forget, retain)]
    return PairedDataset(*pair, forget_per_step=per_step[0], retain_per_step=per_step[1], seed=seed)


@settings(max_examples=40, deadline=None)
@given(
    forget=st.integers(1, 9), retain=st.integers(1, 30), ratio=st.sampled_from([(1, 1), (1, 3), (2, 1), (4, 3)]),
    processes=st.integers(1, 3), accumulation=st.integers(1, 4),
)  # fmt: skip
def test_batches_hold_the_same_samples_however_they_are_split(forget, retain, ratio, processes, accumulation):
    parts = processes * accumulation
    whole = paired(forget, retain, (ratio[0] * parts, ratio[1] * parts))
    assert len(whole) % (ratio[0] * parts) == 0
    collate = PairCollator(lambda samples: [sample["x"] for sample in samples])
    for step in range(whole.steps):
        positions = [step * ratio[0] * parts + i for i in range(ratio[0] * parts)]
        pairs = [whole[p] for p in positions]
        batches = [collate(pairs[i : i + ratio[0]]) for i in range(0, len(pairs), ratio[0])]
        assert all(len(b["forget"]) == ratio[0] and len(b["retain"]) == ratio[1] for b in batches)


def test_every_sample_is_seen_once_before_any_is_seen_again():
    data = paired(retain=11, forget=5, per_step=(4, 6))
    stream = [data[p] for p in range(3 * len(data))]
    retain = [r["x"] for pair in stream for r in pair.retain]
    forget = [pair.forget["x"] for pair in stream]
    for numbers, size in ((retain, 11), (forget, 5)):
        passes = [numbers[i : i + size] for i in range(0, len(numbers) - size + 1, size)]
        assert all(sorted(p) == list(range(size)) for p in passes)
        assert len({tuple(p) for p in passes}) > 1  # shuffled anew
    assert [pair.number for pair in stream] == forget
    assert [p.forget["x"] for p in stream] != [paired(seed=1)[i].forget["x"] for i in range(len(stream))]


def test_one_epoch_covers_the_larger_dataset():
    assert len(paired(forget=5, retain=100, per_step=(8, 8))) == 13 * 8
    assert len(paired(forget=100, retain=5, per_step=(8, 8))) == 13 * 8
    sampler = PairSampler(6, current_epoch=lambda: 2)
    assert list(sampler) == [12, 13, 14, 15, 16, 17] and len(sampler) == 6


def test_pair_collator_keeps_the_numbers_of_forget_samples():
    batch = PairCollator(lambda samples: samples)([Pair({"x": 1}, [{"x": 2}, {"x": 3}], 7), Pair({"x": 4}, [], 9)])
    assert batch["forget"] == [{"x": 1}, {"x": 4}] and batch["retain"] == [{"x": 2}, {"x": 3}]
    assert batch["index"].tolist() == [7, 9]


def order(seed, cycle, name, size=7):
    """The numbers of the samples of one dataset, in the order of one pass over all of them."""
    data = paired(forget=size, retain=size, per_step=(1, 1), seed=seed)
    pairs = [data[cycle * size + position] for position in range(size)]
    return [pair.number if name == "forget" else pair.retain[0]["x"] for pair in pairs]


def test_orders_are_known_values_in_every_process():
    assert order(0, 0, "forget") == [5, 2, 6, 0, 1, 4, 3]
    assert order(0, 0, "retain") == [6, 2, 3, 0, 5, 1, 4]
    assert order(0, 1, "forget") == [6, 2, 3, 5, 1, 4, 0]
    assert order(1, 0, "forget") == [1, 6, 0, 3, 2, 5, 4]


def test_datasets_passes_and_seeds_have_orders_of_their_own():
    seeds = (-1, 0, 1, 2**32, 2**40)  # larger than a word of entropy, too
    orders = [order(seed, cycle, name, 20) for seed in seeds for cycle in range(3) for name in ("forget", "retain")]
    assert all(sorted(numbers) == list(range(20)) for numbers in orders)
    assert len({tuple(numbers) for numbers in orders}) == len(orders)
