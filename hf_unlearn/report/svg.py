"""Geometry of small charts: from numbers to SVG paths. The template draws and escapes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_unlearn.report.numbers import tick

# Narrow enough for a phone at full size, so that the text in a chart is never scaled down.
WIDTH, HEIGHT, TOP, RIGHT, BOTTOM, LEFT = 340, 230, 10, 20, 42, 52
# Below this, the symmetric log axis of losses is linear, as in `plots.plot_loss_curves`.
LINEAR_BELOW = 0.01
# Pixels a letter of a label, and the most marks that stand beside each other on an axis.
LETTER, MOST_MARKS = 6.5, 7


@dataclass(frozen=True)
class Style:
    """Colour, dashes and marker of a series; colour is never the only difference."""

    colour: str  # a CSS variable of the template, so that it follows dark mode
    dash: str = ""
    shape: str = "circle"


# Okabe and Ito's palette, by the names of the template's CSS variables.
MODEL_STYLES = {
    "original": Style("blue", "2 3", "square"),
    "audited": Style("vermillion", "", "circle"),
    "retrained": Style("green", "7 3", "triangle"),
}
DATASET_STYLES = {
    "forget": Style("vermillion"),
    "retain": Style("blue", "7 3", "square"),
    "unseen": Style("ink", "3 2", "triangle"),
    "target": Style("ink", "2 4", "diamond"),
}
# Retrained models have one colour, as they show one thing: how far ground truths differ.
SHAPES = ("triangle", "diamond", "down", "square", "circle")
CHANCE = Style("muted", "1 4")
COLOURS = ("vermillion", "blue", "green", "purple", "ink")
DASHES = ("", "7 3", "2 3", "9 3 2 3")


def model_style(model: str, others: Sequence[str]) -> Style:
    """The style of a model; `others`: those that have no style of their own, in the order in which they are shown."""
    if model in MODEL_STYLES:
        return MODEL_STYLES[model]
    number = 1 + others.index(model)
    colour = "green" if model.startswith("retrained") else "purple"
    return Style(colour, DASHES[(number + 1) % len(DASHES)], SHAPES[number % len(SHAPES)])


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with a label and ticks; `minor` ticks have no text, and show a log scale."""

    label: str
    low: float
    high: float
    ticks: list[tuple[float, str]]
    warp: Callable[[float], float] = float
    minor: list[float] = field(default_factory=list)

    def at(self, value: float) -> float:
        """The position of a value: 0 at `low`, 1 at `high`; values outside are put on the border."""
        low, high = self.warp(self.low), self.warp(self.high)
        return min(1.0, max(0.0, (self.warp(value) - low) / (high - low)))


def linear(label: str, values: Sequence[float], percent: bool = False, zero: bool = True, whole: bool = False) -> Axis:
    """From a round number at or below the smallest value to one at or above the largest.

    Args:
        label: name and unit.
        values: on the axis.
        percent: whether values are shares, shown per cent.
        zero: whether the axis starts at zero.
        whole: whether only whole numbers have a tick: steps.
    """
    low, high = (min(0.0, *values), max(0.0, *values)) if zero else (min(values), max(values))
    if low == high:
        low, high = (low - 0.1, high) if high > 0 else (0.0, 1.0)
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 5)
    step = max(step, 1.0) if whole else step
    # A little tolerance: 0.3 / 0.1 is less than 3.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    marks = [round(i * step, 12) for i in range(first, last + 1)]
    ticks = [(mark, f"{tick(round(100 * mark, 9))} %" if percent else tick(mark)) for mark in marks]
    return Axis(label, marks[0], marks[-1], ticks)


def log(label: str, values: Sequence[float]) -> Axis:
    """Shares from the decade of the smallest value above zero to 1; zero is put on the border."""
    decade = min(-2, math.floor(math.log10(min(v for v in values if v > 0))))
    low, ticks = 10.0**decade, [(m, f"{tick(100 * m)} %") for m in _decades(decade, 0)]
    return Axis(f"{label}, log scale", low, 1.0, ticks, lambda v: math.log10(max(v, low)), _between(decade, 0))


def symlog(label: str, values: Sequence[float]) -> Axis:
    """A symmetric log scale for losses, which run from thousandths to tens: it shows both ends, and zero."""
    high = max(LINEAR_BELOW, 1.2 * max(values))
    first, last = -2, math.floor(math.log10(high))
    minor = [m for m in _between(first, last + 1) if m <= high]
    label = f"{label}, log scale from {tick(LINEAR_BELOW)}"
    axis = Axis(label, min(0.0, *values), high, [], lambda v: math.asinh(v / LINEAR_BELOW), minor)
    return _with_ticks(axis, [0.0, *_decades(first, last)], lambda _: LETTER / HEIGHT)


def bins(label: str, edges: Sequence[float]) -> Axis:
    """A scale on which all bins are equally wide, whatever their edges, so that bars compare by height.

    Powers of ten have a tick: the bins of losses grow, which makes it a log scale but for the first bin.
    """
    numbers = np.arange(len(edges))
    positive = [edge for edge in edges if edge > 0]
    first, last = math.ceil(math.log10(positive[0]) - 1e-9), math.floor(math.log10(positive[-1]) + 1e-9)
    axis = Axis(
        f"{label}, log scale from {tick(10.0**first)}", edges[0], edges[-1], [],
        lambda v: float(np.interp(v, edges, numbers)), [m for m in _between(first, last + 1) if m <= edges[-1]],
    )  # fmt: skip
    width = LETTER / (WIDTH - LEFT - RIGHT)
    return _with_ticks(axis, [edges[0], *_decades(first, last)], lambda text: width * len(text) / 2)


def _with_ticks(axis: Axis, marks: Sequence[float], half: Callable[[str], float]) -> Axis:
    """The axis with those marks whose texts have room; `half`: the room of a text on either side, as a share."""
    end = -1.0
    for mark in marks:
        text = tick(mark)
        if axis.at(mark) - half(text) > end:
            axis.ticks.append((mark, text))
            end = axis.at(mark) + half(text)
    return axis


def _decades(first: int, last: int) -> list[float]:
    """Powers of ten, thinned out where they are too many for an axis."""
    every = -(-(last - first + 1) // MOST_MARKS)
    return [10.0**power for power in range(first, last + 1, every)]


def _between(first: int, last: int) -> list[float]:
    """The multiples 2 to 9 of powers of ten; none where they would be a blur."""
    powers = range(first, last if last - first <= MOST_MARKS else first)
    return [factor * 10.0**power for power in powers for factor in range(2, 10)]


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name, its style, its path, and its markers as a second path."""

    name: str
    style: Style
    path: str
    marks: str = ""
    filled: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart. `title` and `description` are for screen readers; `title` is also the caption.

    A chart with `categories` has a name above each of them in place of ticks on the y axis.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: list[Series] = field(default_factory=list)
    categories: list[tuple[float, str]] = field(default_factory=list)
    height: int = HEIGHT

    @property
    def left(self) -> float:
        """Pixels left of the axis: the texts of its ticks, and its label."""
        if self.categories:
            return RIGHT
        return max(LEFT, 26 + LETTER * max(len(text) for _, text in self.y.ticks))

    def px(self, value: float) -> float:
        """Pixel of a value on the x axis."""
        return round(self.left + self.x.at(value) * (WIDTH - RIGHT - self.left), 1)

    def py(self, value: float) -> float:
        """Pixel of a value on the y axis."""
        return round(self.height - BOTTOM - self.y.at(value) * (self.height - BOTTOM - TOP), 1)

    def line(self, name: str, style: Style, points: Sequence[tuple[float, float]], marked: bool = False) -> None:
        """Add a line through `points`, with a marker on each when `marked`."""
        pixels = [(self.px(x), self.py(y)) for x, y in points]
        marks = "".join(marker(style.shape, x, y) for x, y in pixels) if marked else ""
        self.series.append(Series(name, style, "M" + "L".join(f"{x} {y}" for x, y in pixels), marks))

    def bars(self, name: str, style: Style, edges: Sequence[float], heights: Sequence[float], filled: bool) -> None:
        """Add the outline of a histogram."""
        path = f"M{self.px(edges[0])} {self.py(0)}"
        for right, height in zip(edges[1:], heights, strict=True):
            path += f"V{self.py(height)}H{self.px(right)}"
        self.series.append(Series(name, style, path + f"V{self.py(0)}", filled=filled))

    def interval(self, name: str, style: Style, row: float, value: float, low: float, high: float) -> None:
        """Add a marker at `value`, with whiskers from `low` to `high`, at the height of `row`."""
        y = self.py(row)
        whisker = f"M{self.px(low)} {y}H{self.px(high)}" + "".join(f"M{self.px(end)} {y - 3}v6" for end in (low, high))
        solid = Style(style.colour, "", style.shape)  # short whiskers would vanish in dashes
        self.series.append(Series(name, solid, whisker, marker(style.shape, self.px(value), y, 4.5)))


def marker(shape: str, x: float, y: float, r: float = 3.5) -> str:
    """Path of a marker around a point."""
    if shape == "circle":
        return f"M{x - r} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if shape == "square":
        return f"M{x - r} {y - r}h{2 * r}v{2 * r}h{-2 * r}z"
    if shape == "down":
        return f"M{x} {y + r}l{r} {-2 * r}h{-2 * r}z"
    if shape == "triangle":
        return f"M{x} {y - r}l{r} {2 * r}h{-2 * r}z"
    return f"M{x} {y - r}l{r} {r}l{-r} {r}l{-r} {-r}z"
