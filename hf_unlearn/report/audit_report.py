"""The report of an audit: its result, and the ways in which a person sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_unlearn.report.audit_result import AuditResult
from hf_unlearn.report.tables import print_report


@dataclass(frozen=True)
class AuditReport(AuditResult):
    """The result of `hf_unlearn.audit`, which prints and draws itself.

    Its fields are those of `AuditResult`.

        report = audit(model, forget_ds=forget_ds, retain_ds=retain_ds, unseen_ds=test_ds, retrained=retrained)
        print(report.verdict["sentence"], report.metrics["mia_loss_auc"])
        report.to_html("audit.html")
    """

    def to_html(self, path: str | Path) -> Path:
        """Write the HTML report: one file that needs no network and no other file."""
        from hf_unlearn.report.html_report import to_html

        return to_html(self, path)

    def print(self) -> None:
        """Print the verdict and the metrics in the terminal."""
        print_report(self)
