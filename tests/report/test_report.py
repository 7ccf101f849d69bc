"""Tables and pictures."""

import io
import re

import pytest
from rich.console import Console

from hf_unlearn.report.comparison import Line
from hf_unlearn.report.numbers import show
from hf_unlearn.report.plots import plot_gaps, plot_loss_curves
from hf_unlearn.report.tables import print_comparison, print_metrics


def test_metrics_as_text():
    assert show(0.1234, "forget_accuracy") == "12.3 %" and show(0.5, "surviving_share") == "50.0 %"
    assert (
        show(1.23456, "retain_loss") == "1.23"
        and show(1.23456, "forget_loss") == "1.23"
        and show(12.6, "seconds") == "13"
        and show(None, "gap") == "-"
    )


@pytest.mark.parametrize("width", [80, 140])
def test_tables_hold_every_metric(width):
    console = Console(width=width, record=True, file=io.StringIO())
    models = {"original": {"forget_accuracy": 1.0}, "∇τ": {"forget_accuracy": 0.88, "gap": 0.54}}
    print_comparison({"class 3": models}, {"forget": "forget_accuracy", "gap": "gap"}, "caption", console)
    print_metrics({"before": {"forget_loss": 0.1}, "after": {"forget_loss": 2.5}}, "run", console)
    text = console.export_text()
    for part in ("class 3", "100.0", "88.0", "0.5", "caption", "forget loss", "0.10", "2.50"):
        assert part in text


def test_loss_curves_are_drawn_with_the_target(tmp_path):
    history = [{"loss": 1.0, "forget_loss": 0.1 * i, "retain_loss": 0.1, "target": 0.5, "step": i} for i in range(5)]
    history.append({"train_runtime": 1.0, "step": 5})
    path = plot_loss_curves({"∇τ": history}, 0.4, "class 3", tmp_path / "curves.png")
    assert path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000


def texts_of(path):
    """The texts of an SVG picture, which matplotlib leaves as comments beside their outlines."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_log_scales_of_pictures_say_so_and_have_plain_numbers(tmp_path):
    history = [{"loss": 1.0, "forget_loss": 0.001 * 10**i, "retain_loss": 0.1, "step": 1000 * i} for i in range(6)]
    texts = texts_of(plot_loss_curves({"∇τ": history}, 0.4, "class 3", tmp_path / "curves.svg"))
    assert {"loss (nats), log scale from 0.01", "0.1", "100", "4,000"} <= set(texts)
    lines = [
        Line("class 3", model, {"time / retraining": [0.1]}, forgetting=[gap], utility=[5 * gap])
        for model, gap in [("npo", 20.0), ("scrub", 0.4)]
    ]
    texts += texts_of(plot_gaps(lines, "digits", tmp_path / "gaps.svg"))
    assert {"utility gap (points), log scale from 1", "time / time of retraining", "100"} <= set(texts)
    assert not any("mathdefault" in text or "^" in text for text in texts)
