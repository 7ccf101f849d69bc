"""Content hashes of samples."""

import datasets
import torch

from hf_unlearn.data.hashing import sample_hashes


def test_hashes_compare_content_in_any_container():
    data = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0], [1.0, 2.0]], "t": ["a", "b", "a"]})
    one = sample_hashes(data)
    assert one[0] == one[2] != one[1]
    shuffled = sample_hashes(data.select([1, 2, 0]))
    assert shuffled == [one[1], one[0], one[0]]
    assert sample_hashes(datasets.concatenate_datasets([data.select([1]), data.select([0])])) == [one[1], one[0]]
    listed = [{"x": torch.tensor([1.0])}, {"x": torch.tensor([2.0])}, {"x": torch.tensor([1.0])}]
    hashes = sample_hashes(listed)
    assert hashes[0] == hashes[2] != hashes[1]


def test_hashes_depend_on_content_only():
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
