"""The model card: what was forgotten, how, and what an audit says about it."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import peft
import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers.modelcard import TASK_MAPPING

import hf_unlearn
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.report.tables import metric_names, metrics_by_model, show_interval

REQUESTS = {"samples": "single samples", "class": "a whole class", "group": "a group"}
# What the model-index calls the sets; the first word of a metric says which one it was measured on.
SETS = {"forget": "Forget set", "retain": "Retain set", "unseen": "Unseen set"}
MEASURED_TOGETHER = "Forget set against unseen dataset"


@dataclass(frozen=True)
class CardFacts:
    """What a card says.

    Attributes:
        name: the model's.
        kind: `"merged"`, `"adapter"` (one that the user trained, and that held the data) or `"adapter_alone"` (ours:
            its base model holds the data; the card makes no claim).
        architecture: class of the model.
        base: Hub name of the model that came in; None where it is a local one.
        base_revision: its commit.
        method: `name`, `title` and `paper`.
        settings: from `hf_unlearn.hub.record.settings_of`.
        request: `"samples"`, `"class"` or `"group"`.
        counts: samples of `forget`, `retain` and, where there is one, `unseen`.
        forget_request: the request in the user's own words, published as given.
        report: the audit, already fit for publication.
        metadata: further fields of `huggingface_hub.ModelCardData`: `language`, `license`, `tags`, `datasets`, ...
    """

    name: str
    kind: Literal["merged", "adapter", "adapter_alone"]
    architecture: str
    base: str | None
    base_revision: str | None
    method: Mapping[str, str]
    settings: Mapping[str, Any]
    request: str
    counts: Mapping[str, int]
    forget_request: str | None = None
    report: AuditReport | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the Hub's metadata on top; the audit stands there as `model-index`."""
    environment = Environment(
        loader=PackageLoader("hf_unlearn.hub"), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    models = {} if facts.report is None else metrics_by_model(facts.report)
    papers = [] if facts.method["paper"] == "-" else [f"{facts.method['title']}: {facts.method['paper']}"]
    page = environment.get_template("card.md").render(
        vars(facts)
        | {
            "metadata": _metadata(facts).to_yaml(),
            "base": "a local model, not on the Hub" if facts.base is None else f"[{facts.base}](/{facts.base})",
            "models": list(models),
            "metrics": [
                [name.replace("_", " "), *(show_interval(metrics, name) for metrics in models.values())]
                for name in metric_names(models)
            ],
            "versions": versions(),
            "papers": papers,
            "REQUESTS": REQUESTS,
        }
    )
    return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"


def versions() -> str:
    """The libraries that made the model."""
    found = {
        "hf_unlearn": hf_unlearn.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "peft": peft.__version__,
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _metadata(facts: CardFacts) -> ModelCardData:
    further = dict(facts.metadata)
    task = further.pop("pipeline_tag", None) or _task(facts.architecture)
    wanted = further.pop("tags", None) or []
    tags = ["hf_unlearn", "machine-unlearning", facts.method["name"]]
    if facts.kind == "adapter_alone":
        tags.remove("machine-unlearning")
    return ModelCardData(
        base_model=facts.base,
        library_name="transformers" if facts.kind == "merged" else "peft",
        pipeline_tag=task,
        tags=[*([wanted] if isinstance(wanted, str) else wanted), *tags],
        model_name=facts.name,
        eval_results=None if facts.report is None else _results(facts.report, task),
        **further,
    )


def _task(architecture: str) -> str | None:
    """The pipeline tag of a class, as `Trainer`'s own card has it."""
    for task, mapping in TASK_MAPPING.items():
        classes: Mapping[str, Any] = mapping  # type: ignore[assignment]
        if any(architecture in (found if isinstance(found, tuple) else (found,)) for found in classes.values()):
            return task
    return None


def _results(report: AuditReport, task: str | None) -> list[EvalResult]:
    found = []
    for name in metric_names({"audited": report.metrics}):
        first, _, rest = name.partition("_")
        found.append(
            EvalResult(
                task_type=task or "other",
                dataset_type="private",
                dataset_name=SETS.get(first, MEASURED_TOGETHER),
                dataset_split=first if first in SETS else "forget_and_unseen",  # what the Hub groups metrics by
                metric_type=rest if first in SETS else name,
                metric_name=name.replace("_", " "),
                metric_value=round(report.metrics[name], 6),
            )
        )
    return found
