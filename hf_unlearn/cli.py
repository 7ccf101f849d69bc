"""`hf-unlearn`: the command line."""

from __future__ import annotations

import argparse


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hf-unlearn", description="Machine unlearning for Hugging Face models.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo", help="train a tiny ViT on handwritten digits, make it forget, compare with retraining (2 minutes)"
    )
    demo.add_argument("--output_dir", default="unlearn-demo", help="where pictures and figures go")
    demo.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    # Imported late: `--help` should not wait for torch.
    from hf_unlearn.demo import quiet, run_demo

    quiet()
    run_demo(args.output_dir, args.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
