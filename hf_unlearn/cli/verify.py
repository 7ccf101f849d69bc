"""`hf-unlearn verify`: does a record match a model, and samples?"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hf_unlearn.cli import UsageError
from hf_unlearn.cli.datasets import load_datasets
from hf_unlearn.cli.settings import DataSettings, parse, setting
from hf_unlearn.hub.record import verify
from hf_unlearn.models.loading import load_model
from hf_unlearn.training import quiet


@dataclass
class VerifySettings(DataSettings):
    """The settings of `verify`."""

    request: str | None = setting(None, "samples, class or group; default: by the column that forget names.")
    seed: int = setting(42, "Of a random share, as in run.")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code: 1 where something does not match."""
    record, flags = (None, argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    found = parse("verify RECORD", [VerifySettings], flags)
    if found is None:
        return 0
    [settings] = found
    if record is None:
        raise UsageError("RECORD: expected the file unlearning.json first, got None")
    if not os.path.isfile(record):
        raise UsageError(f"RECORD: there is no file {record!r}; `run` and push_to_hub leave it with the model")
    settings.require("model")
    quiet()
    samples = None
    if settings.dataset is not None:
        settings.require("forget")
        sets, _ = load_datasets(settings, load_model(settings.model), settings.request, settings.seed)
        samples = sets["forget_ds"]
    verification = verify(record, settings.model, samples)
    print(verification)
    return 0 if verification.matches else 1
