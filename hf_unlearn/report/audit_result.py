"""The result of an audit as data: metrics with their intervals, the curves behind them, and a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import Self

SCHEMA_VERSION = 3
# The models of an audit, in the order in which they are shown; further retrained models follow.
MODELS = ("original", "audited", "retrained")


def is_retrained(name: str) -> bool:
    """Whether this is the name of a retrained model: "retrained", "retrained 2", ..."""
    return name.split()[0] == "retrained"


@dataclass(frozen=True)
class AuditResult:
    """What an audit has found. Plain numbers and short strings: no sample, text or file name of any dataset.

    Attributes:
        metrics: flat metrics of the audited model: `forget_accuracy`, `unseen_loss`, `mia_loss_auc`, `gap`, ...; each
            estimated one with its 95 % interval in `<name>_low` and `<name>_high`.
        verdict: `level`, one of "consistent", "remembers", "over-forgotten", "hidden", "damaged", "unclear", and
            `sentence`, what it means in words.
        metrics_by_model: model ("original", "audited", "retrained", "retrained 2", ...) to its flat metrics, intervals
            included.
        differences: what the verdict goes by, one entry a metric: `metric`, `audited`, `expected`, `value` (the
            difference; of losses that of the logarithms), `low` and `high` (its 99 % interval), `sampling`.
        roc: of the audited model: attack ("loss", "margin", ...) to `{"fpr": [...], "tpr": [...]}`.
        histograms: of the losses: `edges` [bins + 1], and `counts`: model to dataset ("forget", "retain", "unseen") to
            counts [bins].
        relearning: model to `{"steps": [...], "forget_loss": [...], "forget_accuracy": [...]}`; may be empty.
        breakdown: one entry a class or group: `group`, `dataset` ("forget", ...), `samples`, and model to accuracy (or
            loss), where it is finite.
        training: the log of the run, when a trainer made the model: `step`, `forget_loss`, `retain_loss`, `target`.
        notes: what could not be measured, and why; what else a reader has to know.
        about: samples given (`forget_samples`, ...), `measured` (dataset to the samples that its metrics are of) and
            `attacked` (attack to forget and unseen samples), `groups`, `head`, `request`, seed, device, versions.
    """

    metrics: dict[str, float]
    verdict: dict[str, str]
    metrics_by_model: dict[str, dict[str, float]]
    differences: list[dict[str, Any]] = field(default_factory=list)
    roc: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    histograms: dict[str, Any] = field(default_factory=dict)
    relearning: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    breakdown: list[dict[str, Any]] = field(default_factory=list)
    training: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON, with the version of the schema."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def to_json(self, path: str | Path) -> Path:
        """Write the report as JSON; all of its numbers are finite."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The report that `to_dict` returned.

        Raises:
            ValueError: when it has another version of the schema.
        """
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"AuditReport: schema version {version!r} is not {SCHEMA_VERSION}; audit the model again")
        return cls(**{name: value for name, value in values.items() if name != "schema_version"})

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """The report that `to_json` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text()))
