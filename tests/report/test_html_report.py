"""The HTML report of an audit, and its table in the terminal."""

import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import phone, serving
from rich.console import Console

from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.report.svg import bins, linear, log, symlog
from hf_unlearn.report.tables import print_report, show

EVIL = "<script>alert(1)</script>"
CHARTS = 9  # two at a glance, three histograms, one of ROC curves, two of relearning, one of training
SECTIONS = ("losses", "roc", "relearning", "training", "groups", "notes", "about")


def example_report():
    """Everything a report can hold, from synthetic numbers; the same every time."""
    generator = np.random.default_rng(0)
    names = ["forget_accuracy", "retain_accuracy", "unseen_accuracy"]
    metrics = {}
    for model, values in {
        "original": [0.998, 0.997, 0.942], "audited": [0.947, 0.991, 0.938], "retrained": [0.941, 0.996, 0.944],
    }.items():  # fmt: skip
        of_model = {}
        for name, value in zip(names, values, strict=True):
            of_model |= {name: value, f"{name}_low": value - 0.031, f"{name}_high": min(1.0, value + 0.027)}
            of_model[name.replace("accuracy", "loss")] = 2.4 * (1 - value) + 0.011
        for attack in ("loss", "confidence", "margin", "entropy"):
            area = {"original": 0.783, "audited": 0.527, "retrained": 0.504}[model] + 0.02 * generator.random()
            of_model |= {
                f"mia_{attack}_auc": area,
                f"mia_{attack}_auc_low": area - 0.05,
                f"mia_{attack}_auc_high": area + 0.05,
            }
            of_model[f"mia_{attack}_tpr_at_1pct_fpr"] = 0.021 + 0.004 * generator.random()
        metrics[model] = of_model
    roc = {}
    for attack, power in {"loss": 0.8, "confidence": 0.86, "margin": 0.7, "entropy": 0.97}.items():
        fpr = np.concatenate([[0.0], np.geomspace(0.001, 1, 60)])
        roc[attack] = {"fpr": fpr.tolist(), "tpr": (fpr**power).tolist()}
    edges = np.concatenate([[0.0], np.geomspace(0.001, 12, 24)])
    losses = {"original": (-5, -3), "audited": (-2.9, -3), "retrained": (-3, -3)}
    counts = {
        model: {
            name: np.histogram(generator.lognormal(mean, 1.4, 400).clip(0, 12), edges)[0].tolist()
            for name, mean in {"forget": means[0], "retain": -5, "unseen": means[1]}.items()
        }
        for model, means in losses.items()
    }
    steps = list(range(0, 21, 2))
    relearning = {
        model: {
            "steps": steps,
            "forget_loss": [2.4 * float(np.exp(-speed * step)) for step in steps],
            "forget_accuracy": [0.9 - 0.8 * float(np.exp(-speed * step)) for step in steps],
        }
        for model, speed in {"audited": 0.2, "retrained": 0.17}.items()
    }
    breakdown = [
        {
            "group": group,
            "dataset": name,
            "samples": 40 + 3 * i,
            "original": 0.99,
            "audited": 0.9 - 0.06 * i,
            "retrained": 0.93,
        }
        for i, group in enumerate(["digit 0", "digit 1", "speaker Ængström", EVIL])
        for name in ("forget", "unseen")
    ]
    training = [
        {"step": i, "forget_loss": 0.006 * 1.25**i, "retain_loss": 0.01 + 0.002 * (i % 3), "target": 0.31}
        for i in range(1, 21)
    ]
    return AuditReport(
        metrics={
            **metrics["audited"], "gap": 0.64, "gap_low": 0.21, "gap_high": 1.37,
            "relearn_loss_advantage": 0.137, "probe_forget_accuracy": 0.93,
        },
        verdict={
            "level": "consistent",
            "sentence": "The attacks tell forgotten samples from unseen ones no better than on the retrained model.",
        },
        metrics_by_model=metrics,
        roc=roc,
        histograms={"edges": edges.tolist(), "counts": counts},
        relearning=relearning,
        breakdown=breakdown,
        training=training,
        notes=["RMIA was left out: it needs shadow models.", f"A note with {EVIL} and an [/italic] in it."],
        about={"samples": {"forget": 400, "retain": 3000, "unseen": 400}, "seed": 0, "device": "cpu",
               "versions": {"hf_unlearn": "0.1.0", "torch": "2.13.0"}, "remark": EVIL},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report_html(tmp_path_factory):
    return example_report().to_html(tmp_path_factory.mktemp("report") / "audit.html").read_text()


def test_the_html_report_fetches_nothing_and_runs_nothing(report_html):
    # "#id" and "data:," stay within the file.
    for match in re.finditer(r"""(?:src|href|srcset|action|poster|data)\s*=\s*["']?([^"'\s>]*)""", report_html):
        assert match[1].startswith(("#", "data:")), match[0]
    for never in ("http:", "https:", "@import", "url(", "<script", '<link rel="stylesheet', "javascript:", "onload"):
        assert never not in report_html
    assert "default-src 'none'" in report_html


def test_texts_of_a_report_are_never_html(tmp_path):
    report = example_report()
    attack = {EVIL: report.roc["loss"]}
    evil = replace(report, verdict={"level": "unclear", "sentence": EVIL}, roc=attack, about={EVIL: {EVIL: [EVIL]}})
    text = evil.to_html(tmp_path / "evil.html").read_text()
    assert EVIL not in text and "<script" not in text
    # Sentence; group twice; note; about three times; the attack in legend, description and numbers.
    assert text.count(html.escape(EVIL)) >= 1 + 2 + 1 + 3 + 3


def test_every_section_is_there_and_charts_are_named(report_html):
    assert all(f'<section aria-labelledby="{name}">' in report_html for name in ("glance", "metrics", *SECTIONS))
    ids = re.findall(r' id="([^"]+)"', report_html)
    assert len(ids) == len(set(ids))
    named = re.findall(r'<svg [^>]*role="img" aria-labelledby="(\S+) (\S+)"', report_html)
    assert len(named) == CHARTS and all(part in ids for pair in named for part in pair)
    assert [int(level) for level in re.findall(r"<h(\d)", report_html)] == [1] + [2] * (report_html.count("<h2"))
    assert report_html.count("<details>") == 5 and report_html.count("<table>") == report_html.count("<caption>") == 7
    assert "nan" not in report_html and "None" not in report_html


def test_sections_without_data_are_left_out(tmp_path):
    full = example_report()
    small = AuditReport(
        metrics={"forget_loss": 2.5}, verdict=full.verdict, metrics_by_model={"audited": {"forget_loss": 2.5}}
    )
    text = small.to_html(tmp_path / "small.html").read_text()
    assert "2.50" in text and 'aria-labelledby="metrics"' in text and "<svg" not in text
    assert not any(f'aria-labelledby="{name}"' in text for name in ("glance", *SECTIONS))


def test_every_metric_and_interval_is_in_the_html_report(report_html):
    for metrics in (*example_report().metrics_by_model.values(), example_report().metrics):
        for name, value in metrics.items():
            if not name.endswith(("_low", "_high")):
                assert f"<td>{show(value, name)}<" in report_html, name
            if f"{name}_low" in metrics:
                ends = [show(metrics[f"{name}_{end}"], name).removesuffix(" %") for end in ("low", "high")]
                assert f"<small>{ends[0]} – {ends[1]}</small>" in report_html, name  # noqa: RUF001


@pytest.mark.parametrize("level", ["consistent", "remembers", "over-forgotten", "hidden", "damaged", "unclear"])
def test_every_verdict_has_a_badge(tmp_path, level):
    report = replace(example_report(), verdict={"level": level, "sentence": "A sentence."})
    assert f"</span>{level}</div>" in report.to_html(tmp_path / "audit.html").read_text()


def test_a_report_is_the_same_after_json(tmp_path):
    report = example_report()
    assert AuditReport.from_json(report.to_json(tmp_path / "audit.json")) == report


def test_another_schema_is_refused(tmp_path):
    path = example_report().to_json(tmp_path / "audit.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99 is not 2"):
        AuditReport.from_json(path)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_verdict_and_intervals(width):
    console = Console(width=width, record=True, file=io.StringIO())
    report = replace(example_report(), verdict={"level": "hidden", "sentence": "It [bold]came[/bold] back."})
    print_report(report, console)
    text = console.export_text()
    assert text.startswith("hidden: It [bold]came[/bold] back.\n")
    for part in ("original", "audited", "retrained", "94.7 (91.6 - 97.4) %", "0.6 (0.2 - 1.4)", "confidence"):
        assert part in text


def test_a_report_prints_itself(capsys):
    example_report().print()
    assert "consistent" in capsys.readouterr().out


def test_axes():
    assert [text for _, text in linear("", [0.0, 0.97], percent=True).ticks] == [
        "0 %",
        "20 %",
        "40 %",
        "60 %",
        "80 %",
        "100 %",
    ]
    assert linear("", [0.911, 0.998], zero=False).low == 0.9 and linear("", [1.0, 1.0], zero=False).high == 1.0
    assert linear("", [0.0, 0.0]).at(0.0) == 0.0
    assert log("", [0.0, 0.004, 1.0]).low == 0.001 and log("", [0.0, 0.004]).at(0.0) == 0.0
    assert log("", [0.001, 1.0]).at(0.1) == pytest.approx(2 / 3)
    assert symlog("", [0.0, 0.0]).at(0.0) == 0.0 and symlog("", [30.0]).ticks[-1] == (10.0, "10")
    # Uneven bins are drawn equally wide.
    assert [bins("", [0.0, 0.1, 5.0, 50.0]).at(edge) for edge in (0.1, 5.0)] == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_contrast(report_html, mode):
    light, dark = report_html.split("prefers-color-scheme: dark")
    colours = dict(re.findall(r"--(\w+): (#\w+);", light))
    if mode == "dark":
        colours |= dict(re.findall(r"--(\w+): (#\w+);", dark.split("</style>")[0]))

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        return np.dot(
            [0.2126, 0.7152, 0.0722], [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        )

    for name in ("ink", "muted", "blue", "vermillion", "green", "purple"):
        for ground in ("background", "panel"):
            low, high = sorted(luminance(colours[key]) for key in (name, ground))
            # WCAG 2.2: 4.5 for text, 3 for lines.
            assert (high + 0.05) / (low + 0.05) >= (4.5 if name in ("ink", "muted") else 3.0), (name, ground)


@pytest.fixture
def browse(tmp_path):
    with serving(tmp_path, tmp_path / "profile") as visit:
        yield visit


def test_a_browser_shows_the_html_report(browse, tmp_path):
    example_report().to_html(tmp_path / "audit.html")
    dom, console, asked = browse("audit.html")
    assert dom.count('role="img"') == CHARTS and console == [] and asked == ["/audit.html"]
    # The same check sees an error, and a picture that is fetched.
    (tmp_path / "bad.html").write_text("<img src='/other.png'><script>console.error('wrong')</script>")
    _, console, asked = browse("bad.html")
    assert any("wrong" in line for line in console) and "/other.png" in asked


def test_nothing_is_wider_than_a_phone(browse, tmp_path):
    example_report().to_html(tmp_path / "audit.html")
    (tmp_path / "phone.html").write_text(phone("audit.html"))
    dom, _, _ = browse("phone.html")
    assert 'data-excess="0"' in dom
