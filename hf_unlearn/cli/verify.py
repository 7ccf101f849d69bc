"""`hf-unlearn verify`: whether a record matches a model, and samples."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from hf_unlearn.cli import UsageError, before_work
from hf_unlearn.cli.datasets import load_datasets
from hf_unlearn.cli.settings import DataSettings, check_at_least, parse, setting
from hf_unlearn.data.types import RequestKind
from hf_unlearn.hub.record import verify
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.models.loading import load_model
from hf_unlearn.training import quiet


@dataclass
class VerifySettings(DataSettings):
    """The settings of `verify`."""

    request: RequestKind | None = field(
        default=None, metadata={"help": "Kind of request; default: by the column that --forget names."}
    )
    seed: int = setting(42, "Seed of a random --forget, as in run.")


SETTINGS = (VerifySettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code: 1 if something does not match."""
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    records, flags = argv[:count], argv[count:]
    parsed = parse("verify RECORD", SETTINGS, flags)
    if parsed is None:
        return 0
    [settings] = parsed
    if not records:
        raise UsageError("RECORD: is missing; give the file unlearning.json first")
    for record in records:
        if not os.path.isfile(record):
            raise UsageError(f"RECORD: there is no file {record!r}; `run` and push_to_hub save it with the model")
    samples = None
    with before_work():
        settings.require("model", *(["forget"] if settings.dataset is not None else []))
        check_at_least(0, settings, "seed")
        *earlier, content = map(read_record, records)
        quiet()
        if settings.dataset is not None:
            samples = load_datasets(settings, load_model(settings.model), settings.request, settings.seed).forget_ds
        verification = verify(content, settings.model, samples, earlier)
    print(verification)
    return 0 if verification.matches else 1
