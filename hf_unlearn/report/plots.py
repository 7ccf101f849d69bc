"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# Okabe and Ito's palette: told apart by people who do not see red and green.
LOSSES = {"forget_loss": "#D55E00", "retain_loss": "#0072B2"}
TARGET, REFERENCE = "#000000", "#009E73"


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    figures: Mapping[str, Mapping[str, float]],
    title: str,
    path: Path,
) -> Path:
    """Forget and retain loss over the steps, one panel a method, with the target (tau) line and the retrained loss.

    Args:
        runs: method to the log history of its run (`trainer.state.log_history`).
        figures: model to figures; `"retrained"` gives the reference line.
        title: heading of the picture.
        path: where the picture goes.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(runs), 3.6), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    lines = [figures["retrained"]["forget_loss"]]
    lines += [entry[key] for history in runs.values() for entry in history for key in LOSSES if key in entry]
    highest = max(lines)
    for panel, (name, history) in zip(panels, runs.items(), strict=True):
        for key, colour in LOSSES.items():
            points = [(entry["step"], entry[key]) for entry in history if key in entry and "loss" in entry]
            panel.plot(*zip(*points, strict=True), color=colour, label=key.replace("_", " "))
        tau = next((entry["target"] for entry in history if "target" in entry), None)
        if tau is not None:
            panel.axhline(tau, color=TARGET, linestyle="--", linewidth=1, label="τ: unseen loss")
        panel.axhline(
            figures["retrained"]["forget_loss"], color=REFERENCE, linestyle=":", label="retrained: forget loss"
        )
        # Losses run from thousandths to tens; a symmetric log shows both ends, and zero.
        panel.set_yscale("symlog", linthresh=0.01)
        panel.set_ylim(0, 2 * highest)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("loss (nats)")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Forgetting {title}")
    figure.savefig(path, dpi=130)
    return path
