"""Running a benchmark by its name."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_unlearn._version import __version__
from hf_unlearn.auditing.extraction import can_extract
from hf_unlearn.benchmarks import muse, rwku, tofu, wmdp
from hf_unlearn.benchmarks.examined import Examined
from hf_unlearn.benchmarks.loading import Part, is_there, load_part
from hf_unlearn.data.splitting import subsample
from hf_unlearn.losses import head_of
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.names import did_you_mean


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as data.

    Attributes:
        source: its dataset on the Hub.
        parts: name to samples.
        measure: the model, and a retain model or None, to metrics.
        retain_models: part of the name of an architecture or of a model to the published model that was trained
            without the forget samples; {} where none is used.
        examples: parts that a limit does not shorten.
    """

    source: str
    parts: Mapping[str, Part]
    measure: Callable[[Examined, Examined | None], dict[str, float]]
    retain_models: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()


RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
TOFU_ARCHITECTURES = (
    "Llama-3.2-1B-Instruct", "Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct", "Llama-2-7b-chat-hf", "gemma-7b-it",
    "phi-1_5", "zephyr-7b-beta",
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {
    **{
        f"tofu-{forget}": Benchmark(
            tofu.SOURCE, tofu.parts(forget), tofu.measure,
            {name: f"open-unlearning/tofu_{name}_{RETAIN_OF[forget]}" for name in TOFU_ARCHITECTURES},
        )
        for forget in tofu.FORGET
    },
    **{
        f"muse-{corpus}": Benchmark(
            source, muse.PARTS, muse.measure,
            {source.rpartition("/")[2]: f"{source}_retrain"}, muse.EXAMPLES,
        )
        for corpus, source in muse.SOURCES.items()
    },
    "wmdp": Benchmark(wmdp.SOURCE, wmdp.PARTS, wmdp.measure),
    "rwku": Benchmark(rwku.SOURCE, rwku.PARTS, rwku.measure),
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark says of a model: numbers, and how they were taken; no sample.

    Attributes:
        benchmark: its name.
        metrics: name to number.
        samples: part to the number of samples that were used.
        limit: samples that were drawn of each part; None where all were used.
        notes: what was missing.
        about: model, retain model, data, subject, seed, versions.
    """

    benchmark: str
    metrics: dict[str, float]
    samples: dict[str, int]
    limit: int | None
    notes: list[str]
    about: dict[str, Any]

    @property
    def title(self) -> str:
        """The benchmark, and whether this is a part of it."""
        return self.benchmark if self.limit is None else f"{self.benchmark}, at most {self.limit} samples of each part"

    def to_json(self, path: str | Path) -> Path:
        """Write all fields as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name: must be one of {', '.join(BENCHMARKS)}, got {name!r}{did_you_mean(name, BENCHMARKS)}")
    return BENCHMARKS[name]


def default_retain_model(name: str, model_name: str) -> str | None:
    """The published retain model of a benchmark for a model, by the architecture in its name; None where none is.

    Examples:
        >>> default_retain_model("tofu-forget10", "me/tofu_Llama-3.2-1B-Instruct_npo")
        'open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90'
        >>> default_retain_model("wmdp", "me/zephyr-rmu")
    """
    known = find_benchmark(name).retain_models
    return next((retain for part, retain in known.items() if part.lower() in model_name.lower()), None)


def run_benchmark(
    name: str,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    *,
    retain_model: Model | None = None,
    data: str | Path | None = None,
    subject: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> BenchmarkResult:
    """The metrics of a published benchmark.

    Args:
        name: one of `BENCHMARKS`.
        model: a causal language model, on its device.
        tokenizer: of the model.
        retain_model: a model of the same tokenizer that never saw the forget samples.
        data: a folder in place of the Hub, of the same layout: see `load_part`.
        subject: of RWKU, the person that was forgotten; default: all.
        limit: at most so many samples of each part, drawn with the seed, for a quick look; the result names it.
        batch_size: texts in a batch.
        seed: of the samples that are drawn.

    Raises:
        ValueError: one line, before the model is asked: no such benchmark, data that is missing or has other columns,
            a model that writes no text.
    """
    benchmark = find_benchmark(name)
    for role, given in (("model", model), ("retain_model", retain_model)):
        if given is not None and not can_extract(given, head_of(given).kind, tokenizer):
            given_class = type(inner_model(given)).__name__
            raise ValueError(f"{role}: is a {given_class}; a benchmark asks causal language models, give one")
    if retain_model is not None and not benchmark.retain_models:
        raise ValueError(f"retain_model: {name} compares with none; leave it out")
    if retain_model is not None and _vocabulary(retain_model) != _vocabulary(model):
        raise ValueError(
            f"retain_model: has {_vocabulary(retain_model)} tokens, the model {_vocabulary(model)}; give one with the "
            "model's tokenizer"
        )
    if subject is not None and name != "rwku":
        raise ValueError(f"subject: {name} is not about single people; leave it out")
    if find_spec("rouge_score") is None and name != "wmdp":
        raise ValueError(f"name: {name} needs rouge-score; pip install hf-unlearn[text]")
    notes = [
        f"{part.name} is not there, and what needs it is left out."
        for part in benchmark.parts.values()
        if not is_there(part, data)
    ]
    parts = {
        part_name: load_part(part, benchmark.source, data)
        for part_name, part in benchmark.parts.items()
        if part.is_needed or is_there(part, data)
    }
    if subject is not None:
        parts = {part: _about(samples, subject) for part, samples in parts.items()}
    if limit is not None:
        parts |= {part: subsample(parts[part], limit, seed) for part in parts.keys() - set(benchmark.examples)}
    if benchmark.retain_models and retain_model is None:
        notes.append("No retain model: there is no forget quality, and privacy leakage is beside chance.")
    examined = Examined(model, tokenizer, parts, batch_size)
    retain = None if retain_model is None else Examined(retain_model, tokenizer, parts, batch_size)
    metrics = benchmark.measure(examined, retain)
    return BenchmarkResult(
        benchmark=name,
        metrics=metrics,
        samples={part: len(samples) for part, samples in parts.items()},
        limit=limit,
        notes=notes,
        about={
            "model": type(inner_model(model)).__name__,
            "data": benchmark.source if data is None else "folder",
            **({} if subject is None else {"subject": subject}),
            "seed": seed,
            "hf_unlearn": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    )


def _about(samples: Dataset, subject: str) -> Dataset:
    """The samples about one person; all, where they are about nobody."""
    if "subject" not in samples.column_names:
        return samples
    people = samples["subject"][:]
    if subject not in people:
        raise ValueError(
            f"subject: there is nothing about {subject!r}{did_you_mean(subject, set(people))}; use a name of the data"
        )
    return samples.select([i for i, person in enumerate(people) if person == subject])


def _vocabulary(model: Model) -> int:
    return inner_model(model).get_output_embeddings().weight.shape[0]
