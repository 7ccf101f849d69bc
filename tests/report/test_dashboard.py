"""The dashboard of requests and comparisons: what it finds, what it shows, and what it never runs."""

import hashlib
import html
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from browser import framed, phone, serving
from test_html_report import EVIL, example_report

from hf_unlearn.cli import main
from hf_unlearn.hub.dashboard import make_dashboard
from hf_unlearn.hub.record import make_record

OUTCOME = {
    "ending": "reached", "sentence": "Target reached", "target_loss": 0.31, "sample_passes": 12000.0,
    "processor_seconds": 33.3, "cost_of_retraining": 0.08,
}  # fmt: skip


def report_with(level="consistent", depth=None):
    report = example_report()
    metrics = report.metrics if depth is None else {**report.metrics, "depth": depth}
    return replace(report, verdict={"level": level, "sentence": f"A sentence about {level}."}, metrics=metrics)


def save_release(folder, request_id=None, date="2025-01-11T10:00:00+00:00", method="nabla_tau", outcome=OUTCOME,
                 report=None, after=None):  # fmt: skip
    """Record and audit of a run, without its weights."""
    folder.mkdir(parents=True)
    record = make_record(
        forget_ds=[{"x": [float(i)]} for i in range(40)], columns=["x"], request="class", request_id=request_id,
        method={"name": method}, settings={}, report=report, outcome=outcome, after=after,
        weights={"kind": "model", "before": None, "after": None},
    )  # fmt: skip
    if report is not None:
        for write, name in ((report.to_json, "audit.json"), (report.to_html, "audit.html")):
            record["files"][name] = hashlib.sha256(write(folder / name).read_bytes()).hexdigest()
    (folder / "unlearning.json").write_text(json.dumps({**record, "date": date}))


def results_of(request="one class", model="nabla_tau", error="needs labels"):
    def run(name, accuracy, **values):
        metrics = {"forget_accuracy": accuracy, "forget_loss": 2.0 - accuracy, "gap": 50 * accuracy}
        return {"request": request, "seed": 0, "model": name, "status": "done", "clock": "seconds", "seconds": 2.0,
                "metrics": metrics, **values}  # fmt: skip

    refused = {"request": request, "seed": 0, "model": "npo", "status": "refused", "error": error}
    runs = [run("original", 1.0), run("retrained", 0.1), run(model, 0.2, seconds=1.0), refused]
    return {"name": "digits", "requests": {request: ["label=1"]}, "runs": runs}


def table(text, kind):
    """Lines of a table: its cells as text without marks."""
    [body] = re.findall(rf'class="sortable {kind}".*?<tbody[^>]*>(.*?)</tbody>', text, re.DOTALL)
    cells = [re.findall(r"<t[hd] [^>]*>(.*?)</t[hd]>", line, re.DOTALL) for line in body.split("</tr>")[:-1]]
    return [[" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in line] for line in cells]


def test_a_record_is_one_line(tmp_path):
    save_release(tmp_path / "runs" / "1", "class 3", report=report_with(depth=0.7))
    save_release(tmp_path / "runs" / "2", date="2025-02-01T00:00:00+00:00", outcome=None)
    text = make_dashboard([tmp_path / "runs"], tmp_path / "dashboard.html").read_text()
    newest, oldest = table(text, "requests")
    assert newest == ["runs/2 class, 40 samples", "2025-02-01", "nabla_tau", "-", "-", "no audit", "-", "-"]
    assert oldest == [
        "class 3 runs/1 class, 40 samples", "2025-01-11", "nabla_tau", "0.310 reached", "0.520",
        "✓ consistent what it means A sentence about consistent. report of class 3",
        "12,000 0.080 of retraining 33.3 processor seconds", "0.7",
    ]  # fmt: skip
    assert 'href="runs/1/audit.html"' in text and "1 without an audit" in text
    curve = re.search(r'aria-label="(Over [^"]*)"', text)[1]
    assert curve == (
        "Over 20 steps: forget loss from 0.00750 to 0.520; target from 0.310 to 0.310; "
        "retain loss from 0.0120 to 0.0140"
    )


def test_a_curve_ends_at_its_target(tmp_path):
    training = [{"step": i, "forget_loss": 0.01 * i, "target": 1.0} for i in range(101)]
    save_release(tmp_path / "1", report=replace(report_with(), training=training))
    text = make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text()
    target, forget = re.findall(r'class="line" style="[^"]*"[^>]*d="(M3.0[^"]*)"', text)
    assert target.rpartition("L")[2] == forget.rpartition("L")[2]  # the last point, whatever was thinned out
    assert len(forget.split("L")) == 51 and forget.startswith("M3.0 43.0L")


def test_requests_in_turn_are_one_line_each(tmp_path):
    """Those before are in the record of the last; one that has a folder of its own has its audit there."""
    save_release(tmp_path / "first", "first", report=report_with("hidden"))
    first = json.loads((tmp_path / "first" / "unlearning.json").read_text())
    save_release(tmp_path / "second", "second", date="2025-01-12", report=report_with(), after=first)
    second = json.loads((tmp_path / "second" / "unlearning.json").read_text())
    save_release(tmp_path / "third", "third", date="2025-01-13", after=second)
    for gone, places in (
        (None, ["third", "second", "first"]),
        ("second", ["third", "third/unlearning.json", "first"]),
    ):
        if gone is not None:
            shutil.rmtree(tmp_path / gone)
        lines = table(make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text(), "requests")
        assert [line[0].split()[:2] for line in lines] == [
            [name, "class," if name == place else place]
            for name, place in zip(("third", "second", "first"), places, strict=True)
        ]
        assert [line[5].split()[0] for line in lines] == ["no", "✓", "✗"]
        assert [line[4] for line in lines] == ["-", "0.520" if gone is None else "-", "0.520"]


def test_an_audit_without_a_record_is_one_line(tmp_path):
    audits = tmp_path / "my audits"
    audits.mkdir()
    report_with("hidden", depth=9.0).to_json(audits / "100 %.json")
    report_with("hidden").to_html(audits / "100 %.html")
    text = make_dashboard([tmp_path], tmp_path / "out" / "dashboard.html").read_text()
    [[name, date, _, target, loss, verdict, cost, depth]] = table(text, "requests")
    assert name == "../my audits/100 % ../my audits/100 %.json 400 samples"
    assert (date, target, loss, cost, depth) == ("-", "0.310", "0.520", "-", "9.0") and verdict.startswith("✗ hidden")
    assert 'href="../my%20audits/100%20%25.html"' in text


def test_a_comparison_is_a_table(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results_of()))
    text = make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text()
    assert table(text, "comparison") == [
        ["one class", "original", "100.00", "-", "-", "-", "50.00", "0.53", "-", "-"],
        ["one class", "retrained", "10.00", "-", "-", "-", "5.00", "1.00", "1.00", "-"],
        ["one class", "nabla_tau", "20.00", "-", "-", "-", "10.00", "0.95", "0.50", "-"],
    ]
    assert "Refused: npo (needs labels)." in text and "Comparison: <bdi>digits</bdi>" in text


def test_an_audit_that_has_changed_is_not_shown(tmp_path):
    save_release(tmp_path / "1", report=report_with())
    (tmp_path / "1" / "audit.json").write_text((tmp_path / "1" / "audit.json").read_text() + " ")
    text = make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text()
    [[name, *_, curve, verdict, _, _]] = table(text, "requests")
    assert "audit.json not as the run wrote it" in name and curve == "-" and "report" not in verdict
    assert "href=" not in text.replace('href="data:,"', "")


def test_damaged_files_are_named_and_others_are_not_ours(tmp_path):
    save_release(tmp_path / "good", "good", report=report_with())
    save_release(tmp_path / "bad", "bad", report=report_with())
    record = json.loads((tmp_path / "bad" / "unlearning.json").read_text())
    damaged = {
        "a": {**record, "salt": "no"}, "b": {**record, "outcome": {"target_loss": "much"}},
        "c": {**record, "audit": {"level": "perfect", "sentence": "", "metrics": {}}}, "d": {**record, "audit": {}},
        "e": {**record, "outcome": {"target_loss": 10**400}},
    }  # fmt: skip
    for name, content in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "unlearning.json").write_text(json.dumps(content))
    for name, content in (("f", '{"name": 1, "requests": [], "runs": 3}'), ("g", "[" * 100_000), ("h", '{"acc": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(content)
    for training in ([{"step": 1, "forget_loss": 1.7e308}], [{"step": float("inf"), "forget_loss": 1.0}], 7):
        audit = json.dumps({**report_with().to_dict(), "training": training})
        (tmp_path / "bad" / "x.json").write_text(audit)
        (tmp_path / "bad" / "x.html").write_text("")
        text = make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text()
        assert re.findall(r"<li>([a-z]+/[a-z.]+): \w+", text) == [
            "a/unlearning.json", "b/unlearning.json", "bad/x.json",
            *(f"{name}/unlearning.json" for name in "cde"), "f/results.json", "g/results.json",
        ]  # fmt: skip
        assert len(table(text, "requests")) == 2  # h is somebody else's


def test_nothing_to_show(tmp_path):
    with pytest.raises(ValueError, match=r"^folder: there is no folder '.*/no'; give those of runs"):
        make_dashboard([tmp_path / "no"], tmp_path / "dashboard.html")
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^folder: no unlearning.json, .* below "):
        make_dashboard([tmp_path], tmp_path / "dashboard.html")
    assert not (tmp_path / "dashboard.html").exists()


def evil_dashboard(folder):
    """Everything that comes from a file, down to its name, is an attack."""
    evil = replace(
        report_with(), verdict={"level": "hidden", "sentence": EVIL}, about={"request": EVIL, "method": EVIL}
    )
    save_release(folder / '"><img src=x onerror=alert(1)>' / "javascript:alert(1)", EVIL, date=EVIL, method=EVIL,
                 report=evil)  # fmt: skip
    evil.to_json(folder / "'onfocus='alert(1).json")
    evil.to_html(folder / "'onfocus='alert(1).html")
    (folder / "results.json").write_text(json.dumps({**results_of(EVIL, EVIL, EVIL), "name": EVIL}))
    (folder / "no").mkdir()
    (folder / "no" / "unlearning.json").write_text(json.dumps({"schema_version": EVIL}))
    return make_dashboard([folder], folder / "dashboard.html").read_text()


def test_texts_of_files_are_never_html(tmp_path):
    text = evil_dashboard(tmp_path)
    # Record: number thrice, date twice and cut, method twice, sentence; audit: kind, method twice, sentence.
    assert EVIL not in text and text.count(html.escape(EVIL)) >= 8 + 4 + 3 and text.count("<script") == 1
    assert "<img" not in text and set(re.findall(r'href="([^"]*)"', text)) == {
        "data:,", "%22%3E%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/javascript%3Aalert%281%29/audit.html",
        "%27onfocus%3D%27alert%281%29.html",
    }  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_a_name_that_is_no_text(tmp_path):
    save_release(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), report=report_with())
    text = make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text()
    assert "<bdi>?</bdi>" in text and 'href="%FF/audit.html"' in text


def test_no_name_of_a_group_and_no_sample(tmp_path):
    save_release(tmp_path / "1", report=report_with())
    text = make_dashboard([tmp_path], tmp_path / "dashboard.html").read_text()
    assert "speaker" not in text  # of the breakdown of the audit
    record = json.loads((tmp_path / "1" / "unlearning.json").read_text())
    assert not any(secret in text for secret in (record["salt"], *record["sample_hashes"]))


def test_the_command(tmp_path, capsys):
    save_release(tmp_path / "runs", report=report_with())
    path = tmp_path / "seen" / "all.html"
    assert main(["dashboard", str(tmp_path / "runs"), f"--out={path}"]) == 0
    assert capsys.readouterr().out == f"Dashboard: {path}\n" and len(table(path.read_text(), "requests")) == 1


# ---- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture
def browse(tmp_path):
    with serving(tmp_path, tmp_path / "profile") as visit:
        yield visit


def test_a_click_sorts(browse, tmp_path):
    for name, loss, passes in (("b", 10.0, None), ("a", 9.0, 200.0), ("c", None, 1000.0)):
        outcome = {**OUTCOME, "target_loss": loss, "sample_passes": passes}
        save_release(tmp_path / name, f"request {name}", outcome=outcome, date=f"2025-01-0{ord(name) - 96}")
    make_dashboard([tmp_path], tmp_path / "dashboard.html")
    script = """
      const table = page.querySelector("table.requests"), said = [];
      const look = () => said.push([...table.tBodies[0].rows].map(
        line => line.cells[0].dataset.key.slice(-1)).join("") + " " + [...table.querySelectorAll("[aria-sort]")].map(
        head => head.textContent.trim() + " " + head.getAttribute("aria-sort")).join());
      look();
      for (const column of [0, 0, 3, 3, 6, 1]) {
        const button = table.tHead.rows[0].cells[column].firstElementChild;
        button.focus();
        if (page.activeElement !== button) said.push("no focus");
        button.click();
        look();
      }
      page.defaultView.parent.document.title = [...said,
        page.querySelector("[role=status]").textContent].join("; ");
      return 0;
    """
    (tmp_path / "clicks.html").write_text(framed(["dashboard.html"], [1300], script))
    dom, console, asked = browse("clicks.html")
    assert re.search("<title>(.*?)</title>", dom)[1].split("; ") == [
        "cba date descending", "abc request ascending", "cba request descending", "abc target ascending",
        "bac target descending", "acb cost ascending", "abc date ascending", "Sorted by date, ascending",
    ]  # fmt: skip
    assert console == [] and set(asked) <= {"/clicks.html", "/dashboard.html", "/favicon.ico"}  # of the frame


def test_a_browser_runs_nothing_of_what_files_say(browse, tmp_path):
    text = evil_dashboard(tmp_path)
    dom, console, asked = browse("dashboard.html")
    assert console == [] and asked == ["/dashboard.html"] and dom.count("<script") == 1
    # Even what would slip through is not run.
    (tmp_path / "slipped.html").write_text(text.replace("<main>", "<main><script>document.title = 'run'</script>"))
    dom, console, _ = browse("slipped.html")
    assert "<title>Unlearning dashboard</title>" in dom and any("Content Security Policy" in line for line in console)


def test_nothing_is_wider_than_a_phone(browse, tmp_path):
    save_release(tmp_path / ("folder" * 20), "REQ-2025-" * 12, report=report_with(depth=0.7))
    (tmp_path / "results.json").write_text(json.dumps(results_of(model="a name that is rather long " * 4)))
    make_dashboard([tmp_path], tmp_path / "dashboard.html")
    (tmp_path / "phone.html").write_text(phone("dashboard.html"))
    dom, _, _ = browse("phone.html")
    assert 'data-excess="0"' in dom
    widest = "return Math.max(...[...page.querySelectorAll('.table')].map(box => box.scrollWidth - box.clientWidth));"
    (tmp_path / "widths.html").write_text(framed(["dashboard.html"], [360, 700, 1180, 1190, 1300], widest))
    dom, _, _ = browse("widths.html")
    assert 'data-excess="0"' in dom
