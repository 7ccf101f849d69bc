"""Numbers and names as a reader sees them: one function for every table, chart and card."""

from __future__ import annotations

import math
import re

# The last words of a metric's name to how it is shown: per cent, or decimals; losses have three significant digits.
PERCENT = ("accuracy", "wer", "share", "one_offset", "1pct_fpr")
PRECISE_PERCENT = ("01pct_fpr",)
SIGNIFICANT = ("loss", "loss_advantage", "target")
POINTS = ("gap", "accuracy_advantage", "detectable")
COUNTS = ("seconds", "samples", "step", "steps")
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def show(value: float | None, name: str) -> str:
    """A metric as text, with the decimals of its kind.

    Shares are per cent with one decimal, losses have three significant digits, points and depths one decimal, counts
    none; areas under curves, divergences and scores have three decimals. A metric that is missing is a dash.

    Examples:
        >>> show(0.9471, "forget_accuracy"), show(0.01234, "retain_loss"), show(0.5, "mia_loss_auc")
        ('94.7 %', '0.0123', '0.500')
        >>> show(12345, "samples"), show(None, "gap"), show(float("nan"), "gap"), show(1.6, "depth_one_offset")
        ('12,345', '-', 'not finite', '1.6')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    if name.startswith("depth"):  # in deviations, whatever the attempt is measured in
        return f"{value:.1f}"
    if name.endswith(PRECISE_PERCENT):
        return f"{100 * value:.2f} %"
    if name.endswith(PERCENT):
        return f"{100 * value:.1f} %"
    if name.endswith(SIGNIFICANT):
        return significant(value)
    if name.endswith(POINTS):
        return f"{value:.1f}"
    return f"{value:,.{0 if name.endswith(COUNTS) else 3}f}"


def show_difference(low: float, high: float, name: str) -> str:
    """The interval of a difference of metrics: in points, for areas in their own unit, for losses as factors.

    Args:
        low: the lower end; of losses that of the difference of their logarithms.
        high: the upper end.
        name: of the metric.

    Examples:
        >>> show_difference(-0.031, 0.012, "forget_accuracy"), show_difference(-0.02, 0.1, "mia_loss_auc")
        ('-3.1 to +1.2 points', '-0.020 to +0.100')
        >>> show_difference(-0.7, 0.1, "forget_loss")
        '0.497 to 1.11 times'
    """
    if name.endswith(SIGNIFICANT):
        return f"{significant(math.exp(min(low, 700)))} to {significant(math.exp(min(high, 700)))} times"
    if name.endswith(PERCENT):
        return f"{100 * low:+.1f} to {100 * high:+.1f} points"
    return f"{low:+.3f} to {high:+.3f}"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits; a power of ten only where it would be mostly zeros.

    Examples:
        >>> [significant(value) for value in (0.0, 0.00123, 2.5, 99.83, 12345.0, 1.2e-7, 1e30)]
        ['0', '0.00123', '2.50', '99.8', '12,300', '1.20·10⁻⁷', '1.00·10³⁰']
    """
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if not -4 <= int(exponent) < 6:
        return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return f"{float(f'{mantissa}e{exponent}'):,.{max(0, digits - 1 - int(exponent))}f}"


def tick(value: float) -> str:
    """A round number as it stands at an axis.

    Examples:
        >>> [tick(value) for value in (0.0, 0.001, 0.25, 100.0, 20000.0, 1e6, 2e-7, 1e9)]
        ['0', '0.001', '0.25', '100', '20,000', '10⁶', '2·10⁻⁷', '10⁹']
    """
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.6f}".rstrip("0").rstrip(".")
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    factor = mantissa.rstrip("0").rstrip(".")
    return power if factor == "1" else f"{factor}·{power}"


def natural_key(name: str) -> list[tuple[str, int, str]]:
    """A sort key by which numbers in names count as numbers.

    Examples:
        >>> sorted(["speaker 10", "Speaker 2", "speaker 1"], key=natural_key)
        ['speaker 1', 'Speaker 2', 'speaker 10']
    """
    parts = re.findall(r"([^0-9]*)([0-9]*)", name.casefold())
    # Digits by length, then as text: a name may have more digits than an integer.
    return [(text, len(digits.lstrip("0")), digits.lstrip("0")) for text, digits in parts]
