"""Pictures of training runs and of comparisons, drawn with matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_unlearn.report.comparison import Line
from hf_unlearn.report.numbers import tick

if TYPE_CHECKING:
    from matplotlib.axis import Axis

# The palette of Okabe and Ito, which people with red-green blindness can tell apart.
LOSS_COLOURS = {"forget_loss": "#D55E00", "retain_loss": "#0072B2"}
TARGET_COLOUR, RETRAINED_COLOUR = "#000000", "#009E73"


def plot_loss_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    retrained_forget_loss: float,
    title: str,
    path: Path,
) -> Path:
    """Forget and retain loss over the steps, one panel a method, with the forgetting target and the retrained loss.

    Args:
        histories: method to the log history of its run (`trainer.state.log_history`).
        retrained_forget_loss: loss of the retrained model on the forget dataset.
        title: of the picture: what is forgotten.
        path: of the picture.

    Returns:
        `path`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(histories), 3.6), layout="constrained")
    panels = figure.subplots(1, len(histories), sharey=True, squeeze=False)[0]
    losses = [
        entry[key] for history in histories.values() for entry in history for key in LOSS_COLOURS if key in entry
    ]
    highest = max(retrained_forget_loss, *losses)
    for panel, (name, history) in zip(panels, histories.items(), strict=True):
        for key, colour in LOSS_COLOURS.items():
            points = [(entry["step"], entry[key]) for entry in history if key in entry and "loss" in entry]
            panel.plot(*zip(*points, strict=True), color=colour, label=key.replace("_", " "))
        target = next((entry["target"] for entry in history if "target" in entry), None)
        if target is not None:
            panel.axhline(target, color=TARGET_COLOUR, linestyle="--", linewidth=1, label="target")
        panel.axhline(retrained_forget_loss, color=RETRAINED_COLOUR, linestyle=":", label="retrained: forget loss")
        # Losses range from thousandths to tens; a symmetric log scale shows both ends, and zero.
        panel.set_yscale("symlog", linthresh=0.01)
        panel.set_ylim(0, 2 * highest)
        _label_ticks(panel.xaxis)
        _label_ticks(panel.yaxis)
        panel.set(title=name, xlabel="step")
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("loss (nats), log scale from 0.01")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"Forgetting {title}")
    figure.savefig(path, dpi=130)
    return path


def plot_gaps(lines: Sequence[Line], title: str, path: Path) -> Path:
    """Forgetting gap against utility gap of every method, one panel a request, and the times in a panel of their own.

    Args:
        lines: of a comparison's table; methods are numbered.
        title: of the picture.
        path: of the picture.

    Returns:
        `path`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    requests = list(dict.fromkeys(line.request for line in lines))
    models = list(dict.fromkeys(line.model for line in lines if not line.model.startswith(("original", "retrained"))))
    colours = {model: colormaps["tab20"](number % 20) for number, model in enumerate(models)}
    figure = Figure(figsize=(4.2 * len(requests) + 4, 4.4), layout="constrained")
    panels = figure.subplots(1, len(requests) + 1, squeeze=False)[0]
    for panel, request in zip(panels[:-1], requests, strict=True):
        for line in [line for line in lines if line.request == request]:
            x, y = statistics.mean(line.utility), statistics.mean(line.forgetting)
            if line.model in colours:
                panel.plot(x, y, "o", color=colours[line.model], markersize=7)
                panel.annotate(models.index(line.model) + 1, (x, y), xytext=(5, 3), textcoords="offset points", size=7)
            elif line.model not in ("original", "retrained"):
                panel.plot(x, y, "*", color="black", markersize=12)
        # Gaps range from tenths of a point to fifty.
        panel.set_xscale("symlog", linthresh=1)
        panel.set_yscale("symlog", linthresh=1)
        panel.set(title=request, xlabel="utility gap (points), log scale from 1", xlim=(0, None), ylim=(0, None))
        _label_ticks(panel.xaxis)
        _label_ticks(panel.yaxis)
        panel.grid(alpha=0.2)
    panels[0].set_ylabel("forgetting gap (points), log scale from 1")
    for number, (model, colour) in enumerate(colours.items(), start=1):
        times = [time for line in lines if line.model == model for time in line.values.get("time / retraining", [])]
        panels[-1].barh(f"{model}  {number}", statistics.mean(times) if times else 0.0, color=colour)
    panels[-1].axvline(1, color=TARGET_COLOUR, linestyle="--", linewidth=1)
    panels[-1].invert_yaxis()
    panels[-1].set(title="time / retraining", xlabel="time / time of retraining")
    _label_ticks(panels[-1].xaxis)
    figure.suptitle(f"{title}: distance to the retrained model (lower left is best; the star: a second one)")
    figure.savefig(path, dpi=110)
    return path


def _label_ticks(axis: Axis) -> None:
    """Numbers as the HTML report writes them: 100, not 10²."""
    axis.set_major_formatter(lambda value, _: tick(value))
