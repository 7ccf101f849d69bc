"""What the ending of a run and its audit mean: an exit code, and a sentence about the model."""

from __future__ import annotations

from pathlib import Path

from hf_unlearn.cli import NOT_FORGOTTEN
from hf_unlearn.trainer.outcome import Ending

FAILED_ENDINGS: dict[Ending, str] = {"diverged": "the run diverged", "no steps": "the run took no step"}


def exit_code(ending: Ending, level: str | None) -> int:
    """0, or 3 where the run or its audit says that the model is not one that has forgotten.

    Args:
        ending: of the run.
        level: of the audit's verdict; None where there was no audit.
    """
    failed = ending in FAILED_ENDINGS or level not in (None, "consistent", "unclear")
    return NOT_FORGOTTEN if failed else 0


def location(ending: Ending, level: str | None, folder: Path) -> str:
    """Where the model is, and what can be said of it: by the run's ending, then by the level of the verdict."""
    if ending in FAILED_ENDINGS:
        return f"The model in {folder} is not one that has forgotten: {FAILED_ENDINGS[ending]}"
    sentences = {
        "consistent": f"The model that has forgotten is in {folder}",
        "remembers": f"The model in {folder} still remembers",
        "hidden": f"The model in {folder} hides the data and still holds it",
        "over-forgotten": f"The model in {folder} is over-forgotten: its losses give the forget samples away",
        "damaged": f"The model in {folder} is damaged",
        "unclear": f"Warning: the audit cannot tell whether the model in {folder} has forgotten",
        None: f"Warning: without --unseen_dataset there was no audit, nobody knows whether the model in {folder} has "
        "forgotten",
    }  # fmt: skip
    return sentences[level]
