"""Pictures of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's palette: told apart by people who do not see red and green.
LOSSES = {"forget_loss": "#D55E00", "retain_loss": "#0072B2"}
TARGET, REFERENCE = "#000000", "#009E73"


def loss_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    metrics: Mapping[str, Mapping[str, float]],
    title: str,
    path: Path,
) -> Path:
    """Forget and retain loss over the steps, one panel a method, with the target (tau) line and the retrained loss.

    Args:
        runs: method to the log history of its run (`trainer.state.log_history`).
        metrics: model to metrics; `"retrained"` gives the reference line.
        title: heading of the picture.
        path: where the picture goes.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    metric = Figure(figsize=(5 * len(runs), 3.6), layout="constrained")
    panels = metric.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    lines = [metrics["retrained"]["forget_loss"]]
    lines += [entry[key] for history in runs.values() for entry in history for key in LOSSES if key in entry]
    highest = max(lines)
    for panel, (name, history) in zip(panels, runs.items(), strict=True):
        for key, colour in LOSSES.items():
            points = [(entry["step"], entry[key]) for entry in history if key in entry and "loss" in entry]
            panel.plot(*zip(*points, strict=True), color=colour, label=key.replace("_", " "))
        tau = next((entry["target"] for entry in history if "target" in entry), None)
        if tau is not None:
            panel.axhline(tau, color=TARGET, linestyle="--", linewidth=1, label="target")
        panel.axhline(
            metrics["retrained"]["forget_loss"], color=REFERENCE, linestyle=":", label="retrained: forget loss"
        )
        # Losses run from thousandths to tens; a symmetric log shows both ends, and zero.
        panel.set_yscale("symlog", linthresh=0.01)
        panel.set_ylim(0, 2 * highest)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("loss (nats)")
    panels[-1].legend(frameon=False, fontsize=8)
    metric.suptitle(f"Forgetting {title}")
    metric.savefig(path, dpi=130)
    return path


def gaps(lines: Sequence[Any], title: str, path: Path) -> Path:
    """Forgetting gap against utility gap of every method, by its number, one panel a request; beside them the time.

    Args:
        lines: as `hf_unlearn.report.comparison.lines` gives them.
        title: heading of the picture.
        path: where the picture goes.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    requests = list(dict.fromkeys(line.request for line in lines))
    models = list(dict.fromkeys(line.model for line in lines if not line.model.startswith(("original", "retrained"))))
    colours = dict(zip(models, _colours(len(models)), strict=True))
    metric = Figure(figsize=(4.2 * len(requests) + 4, 4.4), layout="constrained")
    panels = metric.subplots(1, len(requests) + 1, squeeze=False)[0]
    for panel, request in zip(panels[:-1], requests, strict=True):
        for line in [each for each in lines if each.request == request]:
            x, y = statistics.mean(line.utility), statistics.mean(line.forgetting)
            if line.model in colours:
                panel.plot(x, y, "o", color=colours[line.model], markersize=7)
                panel.annotate(models.index(line.model) + 1, (x, y), xytext=(5, 3), textcoords="offset points", size=7)
            elif line.model not in ("original", "retrained"):
                panel.plot(x, y, "*", color="black", markersize=12)
        # Gaps run from tenths of a point to fifty.
        panel.set_xscale("symlog", linthresh=1)
        panel.set_yscale("symlog", linthresh=1)
        panel.set(title=request, xlabel="utility gap (points)", xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("forgetting gap (points)")
    for number, (model, colour) in enumerate(colours.items(), start=1):
        times = [each for line in lines if line.model == model for each in line.values.get("time / retraining", [])]
        panels[-1].barh(f"{model}  {number}", statistics.mean(times) if times else 0.0, color=colour)
    panels[-1].axvline(1, color=TARGET, linestyle="--", linewidth=1)
    panels[-1].invert_yaxis()
    panels[-1].set(title="time / retraining")
    metric.suptitle(f"{title}: distance to the retrained model (lower left is best; the star: a second one)")
    metric.savefig(path, dpi=110)
    return path


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab20"](i % 20) for i in range(count)]
