"""A retain stream on two real processes (gloo): read once by each, or shared out, and resumed."""

import pytest
import run_stream
import torch
from forked import together

CASES = [("nabla_tau", 1), ("orthograd", 1), ("nabla_tau", 2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    together(run_stream.save, 2, str(folder), [(*case, 4) for case in CASES])
    ranks = [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(2)]
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_with_the_same_weights_on_all_processes(two, case):
    (whole, resumed), (other, _) = two[case]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]) and torch.equal(weight, other["weights"][name])
    assert whole["readers"] == case[1]
    assert whole["skipped"] == resumed["skipped"] > 0


@pytest.mark.parametrize("case", CASES[:2])
def test_a_stream_of_one_part_trains_as_on_one_process(two, case, tmp_path):
    alone, many = run_stream.run(str(tmp_path), *case, 8), two[case][0][0]
    for name, weight in alone["weights"].items():
        assert torch.allclose(weight, many["weights"][name], rtol=0, atol=1e-10), name
    assert many["metrics"] == pytest.approx(alone["metrics"])
    assert many["skipped"] == alone["skipped"]
