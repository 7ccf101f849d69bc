"""`hf-unlearn demo`: the main job on handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass

from hf_unlearn.cli.settings import parse, setting
from hf_unlearn.demo import run_demo
from hf_unlearn.training import quiet


@dataclass
class DemoSettings:
    """The settings of `demo`."""

    output_dir: str = setting("unlearn-demo", "Where pictures and metrics go.")
    seed: int = setting(0, "Seed of everything.")


def main(argv: list[str]) -> int:
    """Run the command; returns its exit code."""
    found = parse("demo", [DemoSettings], argv)
    if found is not None:
        quiet()
        run_demo(found[0].output_dir, found[0].seed)
    return 0
