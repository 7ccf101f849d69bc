"""A queue that is killed at random moments and started again does every request exactly once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import queue_kills


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queue")
    queue_kills.prepare(folder)
    return folder, queue_kills.left_alone(folder)


@pytest.mark.parametrize("number", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 20))])
def test_every_request_is_done_exactly_once(queue, number):
    result = queue_kills.try_kills(*queue[:1], number, queue[1])
    assert queue_kills.is_right(result), result
