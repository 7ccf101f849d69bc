"""`hf-unlearn demo`: unlearning and retraining on handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass

from hf_unlearn.cli.settings import check_at_least, parse, setting
from hf_unlearn.demo import run_demo
from hf_unlearn.training import quiet


@dataclass
class DemoSettings:
    """The settings of `demo`."""

    output_dir: str = setting("unlearn-demo", "Folder of pictures, audits and metrics.")
    seed: int = setting(0, "Seed of everything.")


SETTINGS = (DemoSettings,)


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    parsed = parse("demo", SETTINGS, argv)
    if parsed is None:
        return 0
    [settings] = parsed
    check_at_least(0, settings, "seed")
    quiet()
    run_demo(settings.output_dir, settings.seed)
    return 0
