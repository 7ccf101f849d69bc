"""The HTML report of an audit, and its table in the terminal."""

import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import framed, phone, serving
from rich.console import Console

from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.report.meanings import metric_label
from hf_unlearn.report.numbers import show
from hf_unlearn.report.svg import bins, linear, log, symlog
from hf_unlearn.report.tables import print_report

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
        for attack in ("loss", "population", "margin", "entropy"):
            area = {"original": 0.783, "audited": 0.527, "retrained": 0.504}[model] + 0.02 * generator.random()
            of_model |= {
                f"mia_{attack}_auc": area,
                f"mia_{attack}_auc_low": area - 0.05,
                f"mia_{attack}_auc_high": area + 0.05,
            }
            of_model[f"mia_{attack}_tpr_at_1pct_fpr"] = 0.021 + 0.004 * generator.random()
        metrics[model] = of_model
    roc = {}
    for attack, power in {"loss": 0.8, "population": 0.86, "margin": 0.7, "entropy": 0.97}.items():
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
        differences=[
            {"metric": "forget_accuracy", "audited": 0.86, "expected": 0.87, "value": -0.01, "low": -0.04,
             "high": 0.02, "sampling": 0.01},
            {"metric": "forget_loss", "audited": 0.9, "expected": 0.45, "value": 0.69, "low": 0.3, "high": 1.1,
             "sampling": 0.1},
        ],
        roc=roc,
        histograms={"edges": edges.tolist(), "counts": counts},
        relearning=relearning,
        breakdown=breakdown,
        training=training,
        notes=["RMIA was left out: it needs shadow models.", f"A note with {EVIL} and an [/italic] in it."],
        about={"head": "single_label", "forget_samples": 400, "retain_samples": 31000, "unseen_samples": 400,
               "measured": {"forget": 400, "retain": 2000, "unseen": 360}, "groups": 4,
               "attacked": {attack: {"forget": 398, "unseen": 20 if attack == "population" else 40} for attack in roc},
               "seed": 0, "device": "cpu", "versions": {"hf_unlearn": "0.1.0", "torch": "2.13.0"}, "remark": EVIL},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report_html(tmp_path_factory):
    return example_report().to_html(tmp_path_factory.mktemp("report") / "audit.html").read_text()


def test_what_the_verdict_goes_by_is_shown(report_html):
    table = re.search(r"<caption>Differences of the audited model</caption>.*?</table>", report_html, re.S)[0]
    for cells in (("forget accuracy", "86.0 %", "87.0 %", "-4.0 to +2.0 points", "no"),
                  ("forget loss", "0.900", "0.450", "1.35 to 3.00 times", "yes")):  # fmt: skip
        columns = ("audited", "expected", "difference", "apart")
        expected = (
            f'<td role="cell" data-model="{name}">{cell}</td>' for name, cell in zip(columns, cells[1:], strict=True)
        )
        assert "".join(expected) in table and f">{cells[0]}<" in table


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
    models = {EVIL: evil.metrics_by_model["retrained"]}
    counts = {EVIL: evil.histograms["counts"]["retrained"]}
    curves = {EVIL: evil.relearning["retrained"]}
    evil = replace(evil, metrics_by_model=models, histograms={**evil.histograms, "counts": counts}, relearning=curves)
    assert EVIL not in evil.to_html(tmp_path / "evil.html").read_text()


def test_every_section_is_there_and_charts_are_named(report_html):
    assert all(f'<section aria-labelledby="{name}">' in report_html for name in ("glance", "metrics", *SECTIONS))
    ids = re.findall(r' id="([^"]+)"', report_html)
    assert len(ids) == len(set(ids))
    named = re.findall(r'<svg [^>]*role="img" aria-labelledby="(\S+) (\S+)"', report_html)
    assert len(named) == CHARTS and all(part in ids for pair in named for part in pair)
    assert [int(level) for level in re.findall(r"<h(\d)", report_html)] == [1] + [2] * (report_html.count("<h2"))
    assert report_html.count("<details>") == 5 and report_html.count("<table") == report_html.count("<caption>") == 9
    assert "nan" not in report_html and "None" not in report_html


def test_sections_without_data_are_left_out(tmp_path):
    full = example_report()
    small = AuditReport(
        metrics={"forget_loss": 2.5}, verdict=full.verdict, metrics_by_model={"audited": {"forget_loss": 2.5}}
    )
    text = small.to_html(tmp_path / "small.html").read_text()
    assert "2.50" in text and 'aria-labelledby="metrics"' in text and "<svg" not in text
    # What was not given stands where a note would.
    sections = [name for name in SECTIONS if f'aria-labelledby="{name}"' in text]
    assert sections == ["notes"] and 'aria-labelledby="glance"' not in text
    for missing in ("No retrained model", "Nothing was tried to bring the data back"):
        assert missing in text


def test_every_metric_and_interval_is_in_the_html_report(report_html):
    for metrics in (*example_report().metrics_by_model.values(), example_report().metrics):
        for name, value in metrics.items():
            if not name.endswith(("_low", "_high")):
                assert f">{show(value, name)}<" in report_html, name
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
    with pytest.raises(ValueError, match="schema version 99 is not 3"):
        AuditReport.from_json(path)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_verdict_and_intervals(width):
    console = Console(width=width, record=True, file=io.StringIO())
    report = replace(example_report(), verdict={"level": "hidden", "sentence": "It [bold]came[/bold] back."})
    print_report(report, console)
    text = console.export_text()
    assert text.startswith("hidden: It [bold]came[/bold] back.\n")
    for part in ("original", "audited", "retrained", "94.7 (91.6 - 97.4) %", "0.6 (0.2 - 1.4)", "population"):
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


def many_models_and_groups():
    """A report with seven retrained models, and names of groups as people have them."""
    report = example_report()
    more = [f"retrained {i}" for i in (10, 2, 3, 4, 5, 6)]
    counts, curves = report.histograms["counts"], report.relearning
    names = ["speaker 10", "speaker 2", "مرحبا", "a" * 300, "", *(f"words {i} " * 9 for i in range(60))]
    return replace(
        report,
        metrics_by_model=report.metrics_by_model | dict.fromkeys(more, report.metrics_by_model["retrained"]),
        histograms={**report.histograms, "counts": counts | dict.fromkeys(more, counts["retrained"])},
        relearning=curves | dict.fromkeys(more, curves["retrained"]),
        breakdown=[
            {"group": name, "dataset": "unseen", "samples": 1234567, **dict.fromkeys(["audited", "retrained 2"], 0.25)}
            for name in names
        ],
        about={**report.about, "groups": 1000},
    )


def section(text, name):
    return text.split(f'<section aria-labelledby="{name}">')[1].split("</section>")[0]


def test_every_model_is_in_every_section(tmp_path):
    text = many_models_and_groups().to_html(tmp_path / "audit.html").read_text()
    header = section(text, "metrics").split("</thead>")[0]
    order = re.findall(r'"columnheader">([^<]+)', header)
    assert order == ["original", "audited", *(f"retrained{i}" for i in ("", " 2", " 3", " 4", " 5", " 6", " 10"))]
    for name in ("glance", "losses", "relearning"):
        for model in order[2:]:
            assert f">{model}<" in section(text, name), (name, model)
    # Colour is never the only difference.
    marks = re.findall(r'<path class="line" stroke-dasharray="([^"]*)"[^>]*/>\s*(?:<path class="marks" d="([^"]*)")?',
                       section(text, "relearning").split("</ul>")[0])  # fmt: skip
    assert len(marks) == 8 and len(set(marks)) >= 7


def test_groups_are_all_there_in_the_order_of_their_numbers(tmp_path):
    text = section(many_models_and_groups().to_html(tmp_path / "audit.html").read_text(), "groups")
    groups = re.findall(r"<bdi>([^<]*)</bdi>", text)
    assert len(groups) == 65 and groups.index("speaker 2") < groups.index("speaker 10") and groups[0] == "(no name)"
    assert groups.index("words 9 " * 9) < groups.index("words 10 " * 9)
    assert "65 of 1,000 groups are listed" in text and "1,234,567" in text
    full = section(example_report().to_html(tmp_path / "audit.html").read_text(), "groups")
    assert "listed" not in full and "every group" in full
    assert re.findall(r'class="block"[^>]*>([^<]+)', full) == ["Forget samples", "Unseen samples"]


def test_nothing_is_hidden_in_a_box_that_scrolls(report_html):
    assert "max-height" not in report_html and "overflow: hidden" not in report_html


def test_a_missing_metric_is_a_dash_and_no_bar(tmp_path):
    report = example_report()
    entry = {key: value for key, value in report.breakdown[0].items() if key != "audited"}
    text = section(replace(report, breakdown=[entry]).to_html(tmp_path / "audit.html").read_text(), "groups")
    cell = re.search(r'data-model="audited">(.*?)</td>', text)
    assert cell[1] == "-" and text.count('class="bar"') == 2


def test_the_counts_are_those_of_metrics_and_attacks(report_html):
    table = section(report_html, "about").split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["samples", "forget", "retain", "unseen"],
        ["given", "400", "31,000", "400"],
        ["measured", "400", "2,000", "360"],
        ["attacked by loss, margin, entropy", "398", "-", "40"],
        ["attacked by population", "398", "-", "20"],
    ]
    assert "audited (400 forget, 400 unseen)" in report_html  # what a histogram draws


def test_notes_stand_with_the_verdict(report_html):
    assert report_html.index("RMIA was left out") < report_html.index("<main>")


def test_the_colour_of_a_verdict_is_its_meaning(tmp_path):
    tones = {}
    for level in ("consistent", "remembers", "over-forgotten", "hidden", "damaged", "unclear"):
        report = replace(example_report(), verdict={"level": level, "sentence": "A sentence."})
        text = report.to_html(tmp_path / "audit.html").read_text()
        tones[level] = re.search(r'class="verdict" style="--tone:var\(--(\w+)\)', text)[1]
    assert tones.pop("consistent") == "green" and tones.pop("unclear") == "muted"
    assert set(tones.values()) == {"vermillion"}


def test_every_axis_has_a_name_and_says_its_scale(report_html):
    for name, labels in {
        "glance": ["accuracy (%)", "area under the ROC curve (AUC); 0.5 is chance"],
        "losses": ["loss (nats), log scale from 0.001", "share of samples (%)"],
        "roc": ["false positive rate (FPR), log scale", "true positive rate (TPR), log scale"],
        "relearning": ["steps of training on forget samples", "forget loss (nats)", "forget accuracy (%)"],
        "training": ["step", "loss (nats), log scale from 0.01"],
    }.items():
        for label in labels:
            assert f">{label}</text>" in section(report_html, name), label
    assert not re.search(r">[^<]*\de[-+]\d[^<]*</text>", report_html)
    assert not re.search(r'text-anchor="middle"></text>', report_html.replace("</g>", ""))


def test_a_loss_without_a_unit_is_given_none(tmp_path):
    report = example_report()
    text = replace(report, about={**report.about, "head": "regression"}).to_html(tmp_path / "audit.html").read_text()
    assert "nats" not in text and ">loss, log scale from 0.001</text>" in text
    assert "Mean loss on the forget samples." in text


def test_no_two_models_or_attacks_share_a_name(tmp_path):
    report = example_report()
    report = replace(report, roc={"reference": report.roc["loss"], **report.roc})
    text = report.to_html(tmp_path / "audit.html").read_text()
    names = {name: re.findall(r"</svg>([^<]*)</li>", section(text, name)) for name in ("glance", "roc")}
    assert names["glance"] == ["original", "audited", "retrained", "chance"]
    assert not set(names["roc"]) & {"original", "audited", "retrained", "reference"}
    assert metric_label("mia_reference_auc") == "reference-model attack AUC"


def test_tables_have_headers_with_a_scope(tmp_path):
    text = many_models_and_groups().to_html(tmp_path / "audit.html").read_text()
    assert not re.findall(r"<th(?![^>]*scope=)(?!ead)[^>]*>", text)
    # Rows that are laid out as a grid are still a table to a screen reader.
    for table in re.findall(r'<table class="models.*?</table>', text, flags=re.DOTALL):
        assert 'role="table"' in table
        assert not re.findall(r"<(?:tr|th|td|thead|tbody)(?![^>]*role=)(?!ead)[^>]*>", table)


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
    many_models_and_groups().to_html(tmp_path / "many.html")
    (tmp_path / "phone.html").write_text(phone("audit.html", "many.html"))
    dom, _, _ = browse("phone.html")
    assert 'data-excess="0"' in dom


# By how many pixels the widest table is wider than its box, its details open.
CUT = """
  for (const part of page.querySelectorAll("details")) part.open = true;
  return Math.max(...[...page.querySelectorAll(".table")].map(box => box.scrollWidth - box.clientWidth));
"""
# How far the text of a chart reaches over the chart's edge, in pixels.
OUTSIDE = """
  const over = text => {
    const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
    return Math.max(outer.left - inner.left, inner.right - outer.right, outer.top - inner.top,
      inner.bottom - outer.bottom);
  };
  return Math.max(0, Math.ceil(Math.max(...[...page.querySelectorAll("svg text")].map(over)) - 1));
"""
# Tables that are not shown.
HIDDEN = """
  return [...page.querySelectorAll("table")].filter(table => !table.checkVisibility()).length;
"""


@pytest.mark.parametrize("measure", [CUT, OUTSIDE], ids=["tables", "charts"])
def test_no_column_and_no_label_is_cut(browse, tmp_path, measure):
    example_report().to_html(tmp_path / "audit.html")
    many_models_and_groups().to_html(tmp_path / "many.html")
    (tmp_path / "framed.html").write_text(framed(["audit.html", "many.html"], [360, 390, 768, 1280], measure))
    assert 'data-excess="0"' in browse("framed.html")[0]


def test_paper_shows_what_is_folded_on_a_screen(browse, tmp_path):
    text = example_report().to_html(tmp_path / "screen.html").read_text()
    assert "@media print" in text
    (tmp_path / "paper.html").write_text(text.replace("@media print", "@media all"))
    for name, hidden in {"screen": 5, "paper": 0}.items():
        (tmp_path / "framed.html").write_text(framed([f"{name}.html"], [700], HIDDEN))
        assert f'data-excess="{hidden}"' in browse("framed.html")[0]
