"""Numbers, ticks and names as a reader sees them."""

import math
from itertools import pairwise

import pytest

from hf_unlearn.report.numbers import natural_key, show, significant, tick
from hf_unlearn.report.svg import bins, linear, log, symlog


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("forget_accuracy", 0.94712, "94.7 %"),
        ("forget_wer", 1.2, "120.0 %"),
        ("mia_loss_tpr_at_1pct_fpr", 0.021, "2.1 %"),
        ("mia_loss_tpr_at_01pct_fpr", 0.0012, "0.12 %"),
        ("forget_loss", 0.01234, "0.0123"),
        ("retain_loss", 99.83, "99.8"),
        ("unseen_loss", 1e30, "1.00·10³⁰"),
        ("relearn_loss_advantage", -0.1144, "-0.114"),
        ("relearn_accuracy_advantage", 50.04, "50.0"),
        ("gap", 0.64, "0.6"),
        ("mia_loss_auc", 0.5, "0.500"),
        ("forget_js_divergence", 0.0351, "0.035"),
        ("samples", 31000, "31,000"),
        ("seconds", 1234.6, "1,235"),
        ("gap", None, "-"),
        ("forget_loss", math.nan, "not finite"),
        ("forget_accuracy", math.inf, "not finite"),
    ],
)
def test_a_metric_has_the_decimals_of_its_kind(name, value, text):
    assert show(value, name) == text


def test_no_number_is_written_as_a_programmer_writes_it():
    for power in range(-12, 31):
        for factor in (1.0, 2.5, 9.996):
            for text in (significant(factor * 10.0**power), tick(factor * 10.0**power), tick(-factor * 10.0**power)):
                assert "e" not in text and len(text) <= 12, text


@pytest.mark.parametrize("largest", [1e-3, 0.97, 12.0, 100.0, 480.0, 99000.0, 3e7, 1e30])
def test_ticks_of_an_axis_are_few_and_differ(largest):
    edges = [0.0, *(1e-3 * (max(largest, 0.01) / 1e-3) ** (i / 30) for i in range(31))]
    axes = [linear("", [0.0, largest]), symlog("", [largest]), bins("loss", edges)]
    for axis in [*axes, log("", [min(largest, 1.0) / 1e6, 1.0])]:
        texts = [text for _, text in axis.ticks]
        assert 1 < len(texts) == len(set(texts)) <= 8 and not any("e" in text for text in texts)
        positions = [axis.at(value) for value, _ in axis.ticks]
        assert positions == sorted(positions) and min(b - a for a, b in pairwise(positions)) > 0.02


def test_a_log_scale_says_so_and_has_minor_ticks():
    for axis in (log("rate", [0.001, 1.0]), symlog("loss", [3.0]), bins("loss", [0.0, 0.001, 0.01, 0.1, 5.0])):
        assert ", log scale" in axis.label and axis.minor
        assert all(axis.low <= value <= axis.high for value in axis.minor)
    assert not linear("step", [0.0, 10.0]).minor


def test_steps_have_whole_numbers():
    assert [text for _, text in linear("step", [0, 3], whole=True).ticks] == ["0", "1", "2", "3"]
    assert linear("step", [0, 20000], whole=True).ticks[-1] == (20000.0, "20,000")


def test_names_are_in_the_order_of_their_numbers():
    names = ["speaker 10", "speaker 2", "Speaker 1", "", "7", "10", "a1b10", "a1b9", "9" * 5000, "۳", "speaker 02"]
    ordered = sorted(names, key=natural_key)
    for before, after in [("speaker 2", "speaker 10"), ("Speaker 1", "speaker 2"), ("7", "10"), ("a1b9", "a1b10")]:
        assert ordered.index(before) < ordered.index(after)
