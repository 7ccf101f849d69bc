"""An audit on two real processes (gloo) has the results of one process."""

import json

import pytest
import run_audit
from forked import together


def close(actual, expected, path="", rel=1e-4):
    """Equal up to the rounding of batches of other sizes."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for name in expected:
            close(actual[name], expected[name], f"{path}/{name}", rel)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for i, element in enumerate(expected):
            close(actual[i], element, f"{path}/{i}", rel)
    else:
        assert actual == (pytest.approx(expected, rel=rel, abs=1e-6) if isinstance(expected, float) else expected), (
            path
        )


def test_processes_change_no_metric(tmp_path):
    alone = json.loads(json.dumps(run_audit.run(str(tmp_path / "alone"))))
    together(run_audit.save, 2, str(tmp_path))
    first, second = (json.loads((tmp_path / f"rank{i}.json").read_text()) for i in range(2))
    assert first == second
    for part in ("lengths", "audit", "cached", "during"):
        close(first[part], alone[part], part)
    # Two audits during the run, each of another model than before.
    assert len(alone["last"]) == len(first["last"]) == 2 and alone["last"][0] != alone["last"][1]
