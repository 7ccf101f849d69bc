"""Two kills of `benchmarks/kills.py`, which has fifty: while a checkpoint, and while a release, is written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kills


@pytest.mark.parametrize(("case", "number"), [("nabla_tau-2", 0), ("orthograd_lora-1", 2)])
def test_a_killed_run_ends_bitwise_where_it_would_have_ended(tmp_path, case, number):
    whole = tmp_path / "whole"
    whole.mkdir()
    result = kills.try_kill(case, number, whole, tmp_path, kills.left_alone(case, whole))
    assert result["bitwise"] and len(result["compared"]) >= 6, result
    complete = [int(name.removeprefix("checkpoint-")) for name in result["left"]["complete"]]
    assert result["resumed_from_step"] == max(complete, default=0)
