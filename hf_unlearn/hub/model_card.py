"""The model card: what was forgotten and how, and the results of an audit."""

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
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers.modelcard import TASK_MAPPING

from hf_unlearn._version import __version__
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.report.tables import metric_names, metrics_by_model, show_interval

REQUESTS = {"samples": "single samples", "class": "a whole class", "group": "a group"}
# Names in the model-index; the first word of a metric says on which dataset it was measured.
DATASET_NAMES = {"forget": "Forget dataset", "retain": "Retain dataset", "unseen": "Unseen dataset"}
FORGET_AGAINST_UNSEEN = "Forget against unseen dataset"


@dataclass(frozen=True)
class CardFacts:
    """The contents of a model card.

    Attributes:
        name: name of the model.
        kind: `"merged"`, `"adapter"` (one that the user trained on the data) or `"adapter_alone"` (added by the
            trainer: its base model still holds the data; the card makes no claim).
        architecture: class of the model.
        base: Hub name of the original model; None for a local one.
        base_revision: its commit.
        method: `name`, `title` and `paper`.
        settings: as plain values: no path, no token.
        request: `"samples"`, `"class"` or `"group"`.
        counts: number of samples of `forget`, of `retain` unless it is a stream, and, if given, `unseen`.
        forget_request: the request in the user's own words, shown unchanged.
        report: the audit, without names of groups (see `hf_unlearn.hub.release.anonymise_groups`).
        cost: what the run has cost, in words.
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
    cost: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the Hub's metadata on top, which holds the audit as `model-index`."""
    environment = Environment(
        loader=PackageLoader("hf_unlearn.hub"), autoescape=False, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"text": as_text, "code": as_code}
    models = {} if facts.report is None else metrics_by_model(facts.report)
    papers = [] if facts.method["paper"] == "-" else [f"{facts.method['title']}: {facts.method['paper']}"]
    markdown = environment.get_template("card.md").render(
        vars(facts)
        | {
            "metadata": _metadata(facts).to_yaml(),
            "base": _link(facts.base),
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
    return re.sub(r"\n{3,}", "\n\n", markdown).rstrip() + "\n"


def as_text(value: Any) -> str:
    r"""One line of Markdown that shows a text as it is, whoever has written it: no markup, no link, no HTML.

    Examples:
        >>> print(as_text("<b>see</b> [here](https://x.y)"))
        \<b\>see\</b\> \[here\](https:\/\/x.y)
    """
    line = " ".join(str(value).split())
    line = re.sub(r"[\\`*_\[\]<>&|~$#@]", r"\\\g<0>", line)
    line = line.replace("://", r":\/\/").replace("www.", r"www\.")  # links without brackets
    line = re.sub(r"^(\d+)([.)])", r"\1\\\2", line)  # a list
    return re.sub(r"^[-+=]", r"\\\g<0>", line)


def as_code(value: Any) -> str:
    """A text in one line, between backticks."""
    return "`" + " ".join(str(value).replace("`", "'").replace("|", "/").split()) + "`"


def _link(base: str | None) -> str:
    if base is None:
        return "a local model, not on the Hub"
    try:
        validate_repo_id(base)
    except HFValidationError:
        return as_text(base)
    return f"[{as_text(base)}](/{base})"


def versions() -> str:
    """The versions of the libraries in use."""
    versions_by_name = {
        "hf_unlearn": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "peft": peft.__version__,
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in versions_by_name.items())


def _metadata(facts: CardFacts) -> ModelCardData:
    # A line of three dashes within a value would end the metadata.
    further = {name: _one_line(value) for name, value in facts.metadata.items()}
    task = further.pop("pipeline_tag", None) or _task(facts.architecture)
    user_tags = further.pop("tags", None) or []
    tags = ["hf_unlearn", "machine-unlearning", facts.method["name"]]
    if facts.kind == "adapter_alone":
        tags.remove("machine-unlearning")
    return ModelCardData(
        base_model=_one_line(facts.base),
        library_name="transformers" if facts.kind == "merged" else "peft",
        pipeline_tag=task,
        tags=[*([user_tags] if isinstance(user_tags, str) else user_tags), *tags],
        model_name=_one_line(facts.name),
        eval_results=None if facts.report is None else _results(facts.report, task),
        **further,
    )


def _one_line(value: Any) -> Any:
    """A text, or the texts of a list, without line breaks."""
    if isinstance(value, list):
        return [_one_line(item) for item in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def _task(architecture: str) -> str | None:
    """The pipeline tag of a class, as in `Trainer`'s model card."""
    for task, mapping in TASK_MAPPING.items():
        classes: Mapping[str, Any] = mapping  # type: ignore[assignment]
        if any(architecture in (name if isinstance(name, tuple) else (name,)) for name in classes.values()):
            return task
    return None


def _results(report: AuditReport, task: str | None) -> list[EvalResult]:
    results = []
    for name in metric_names({"audited": report.metrics}):
        first, _, rest = name.partition("_")
        results.append(
            EvalResult(
                task_type=task or "other",
                dataset_type="private",
                dataset_name=DATASET_NAMES.get(first, FORGET_AGAINST_UNSEEN),
                dataset_split=first if first in DATASET_NAMES else "forget_and_unseen",  # the Hub groups metrics by it
                metric_type=rest if first in DATASET_NAMES else name,
                metric_name=name.replace("_", " "),
                metric_value=round(report.metrics[name], 6),
            )
        )
    return results
