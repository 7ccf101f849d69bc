"""`hf-unlearn benchmark`: a published benchmark of any causal language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_unlearn.benchmarks import default_retain_model, run_benchmark
from hf_unlearn.benchmarks.running import find_benchmark
from hf_unlearn.cli import UsageError, before_work
from hf_unlearn.cli.settings import check_at_least, parse, setting
from hf_unlearn.models.loading import load_model, load_processor
from hf_unlearn.models.precision import DType
from hf_unlearn.report.tables import print_metrics
from hf_unlearn.training import quiet


@dataclass
class BenchmarkSettings:
    """The settings of `benchmark`."""

    model: str | None = setting(None, "Name on the Hub or folder of the model.")
    retain_model: str | None = setting(
        None, "The model trained without the forget samples; none; default: by the architecture in --model's name."
    )
    data: str | None = setting(None, "Folder with the files of the dataset, in place of the Hub.")
    output_dir: str = setting("benchmark", "Folder of the result, NAME.json.")
    subject: str | None = setting(None, "Of rwku: the person that was forgotten.")
    limit: int | None = setting(None, "At most so many samples of each part, for a quick look.")
    batch_size: int = setting(16, "Texts in a batch.")
    dtype: DType = setting("auto", "dtype of the weights; auto: as they were saved.")  # noqa: RUF009
    seed: int = setting(0, "Seed of the samples that --limit draws.")


SETTINGS = (BenchmarkSettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    name, flags = (None, argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    parsed = parse("benchmark NAME", SETTINGS, flags)
    if parsed is None:
        return 0
    [settings] = parsed
    if name is None:
        raise UsageError("NAME: is missing; give a benchmark first, such as tofu-forget10")
    with before_work():
        find_benchmark(name)
    if settings.model is None:
        raise UsageError("model: is missing; give its name on the Hub or its folder")
    check_at_least(1, settings, "batch_size", *(["limit"] if settings.limit is not None else []))
    check_at_least(0, settings, "seed")
    quiet()
    retain_name = settings.retain_model or default_retain_model(name, settings.model)
    retain_name = None if retain_name == "none" else retain_name
    state = PartialState()
    with before_work():
        names = {"model": settings.model, "retain_model": retain_name}
        models: dict[str, Any] = {
            role: load_model(given, settings.dtype, argument=role).to(state.device)
            for role, given in names.items()
            if given
        }
        tokenizer: Any = load_processor(settings.model, models["model"])
        result = run_benchmark(
            name, models["model"], tokenizer, retain_model=models.get("retain_model"), data=settings.data,
            subject=settings.subject, limit=settings.limit, batch_size=settings.batch_size, seed=settings.seed,
        )  # fmt: skip
    result = replace(result, about={**result.about, **{role: given for role, given in names.items() if given}})
    if state.is_main_process:
        print_metrics({"model": result.metrics}, result.title)
        for note in result.notes:
            print(f"Note: {note}")
        print(f"Result: {result.to_json(Path(settings.output_dir) / f'{name}.json')}")
    return 0
