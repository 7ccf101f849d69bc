"""How fast and how long a run goes, by the losses that its steps compute anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_unlearn.targets import ForgetTarget

# The learning rate as a multiple of the method's own: where a run begins, and what it is kept between.
FIRST, LOWEST, HIGHEST = 1 / 3, 1 / 12, 1.0
# Nats by which forget losses have to rise for a run to begin there: where a model is as good on samples that it never
# saw, steps at that rate do harm alone (a recogniser repeats words without end after a dozen).
# Of a sample of many tokens each of them is a decision, and most of its loss is that of a few.
LITTLE, LITTLE_OF_TOKENS = 0.05, 0.15
# Steps in which it rises to that: Adam's first ones move every weight alike, by noise as much as by what counts.
WARM_UP = 6
# It is raised by a tenth a step while samples have moved by less than this part of what was planned, until half of
# the way is done; and lowered when they reach the target, then once a window while they are past it.
RAISE, TOO_SLOW, HELD, LOWER, TOO_FAR = 1.1, 0.7, 0.5, 2.0, 1.0
# Where the run diverged at a rate that was chosen here, it goes on at a part of it, and is never raised to half.
AGAIN, NEVER_AGAIN = 4.0, 2.0
# The steps at the beginning whose rate is so low, where it is chosen here, that retain losses are the original's.
EARLY = 3
# Nats that the retain loss may rise by where its noise is less: a fiftieth of the probability of what is right.
RETAIN_TOLERANCE = 0.02
# A target should be reached in so many steps, or in a pass over the forget dataset if that takes more.
STEPS_TO_TARGET = 16
# Once the target is reached the rate falls to a tenth, in a quarter of the steps done before.
LAST, DECAY, MIN_DECAY, MAX_DECAY = 0.1, 0.25, 2, 10
# A window of steps brings the forget losses nearer to the target, or the run ends as near as it comes.
NEARER = 0.9
# The steps whose losses count: of a pass, within these; where ascent does not end by itself, the latest.
MIN_WINDOW, MAX_WINDOW, LATEST = 5, 50, 3
NUMBERS = (  # that change
    "factor", "highest", "began", "held", "lowered", "arrived", "nearest", "retain_nearest", "retain_before",
)  # fmt: skip


@dataclass(frozen=True)
class Observation:
    """The losses of one optimizer step, over all its batches and processes, under the weights before it.

    Attributes:
        scores: of the forget samples, [n] or [n, m], as their objective scores them; empty where the step has none.
        losses: of the forget samples [n].
        numbers: of the forget samples in the forget dataset [n].
        retain_losses: of the retain samples [r]; empty where the step has none.
    """

    scores: Tensor
    losses: Tensor
    numbers: Tensor
    retain_losses: Tensor


@dataclass
class Pace:
    """Learning rate and end of a run.

    A rate that nobody has given begins low, is raised or lowered until the forget losses move as planned, and is held.
    A run of a method that ends by itself has arrived when the forget losses of the last pass match the target and the
    retain loss is back, each within its own sampling noise, or when one of them comes no nearer; the rate then falls
    to a tenth in a quarter of the steps done, ten at most, and the run ends. Other methods end as soon as their forget
    losses have reached the target.

    Where the original loss of a forget sample is not known, movement is counted from the sample's first step, and the
    sample shows how fast it moves at its second.

    Attributes:
        target: of the run.
        need: how far the mean forget loss has to move; None where there is no target.
        retain_before: losses of retain samples under the original model [r]: those measured before the first step and
            those of the first steps.
        first_losses: of the forget samples [m], under the original model or at their first step; NaN before that.
        forget_per_step: forget samples of a step.
        max_steps: the last step at the latest.
        converges: whether the method ends by itself.
        calibrates: whether the learning rate is chosen here.
        stops: whether the run may end before `max_steps`.
        begins_with_original: whether its first steps are the original model's; not so where a model is trained again.
        factor: of the learning rate, apart from the decay.
        highest: that it is raised to.
        began: the step from which it warms up: the first, or that at which a run that diverged goes on.
        held: whether it is raised no more.
        lowered: the step at which it was last lowered.
        arrived: the number of steps done when the target was reached.
        window: the last observations.
        nearest: the mean distance of the forget losses from the target in the window before.
        retain_nearest: how far the retain losses were above those of the original in the window before, where the
            forget losses matched the target.
    """

    target: ForgetTarget
    need: float | None
    retain_before: Tensor
    first_losses: Tensor
    forget_per_step: int
    max_steps: int
    converges: bool
    calibrates: bool
    stops: bool
    begins_with_original: bool = True
    factor: float = 1.0
    highest: float = HIGHEST
    began: int = 0
    held: bool = False
    lowered: int = -MAX_WINDOW
    arrived: int | None = None
    window: list[Observation] = field(default_factory=list)
    nearest: float = math.inf
    retain_nearest: float = math.inf

    def __post_init__(self) -> None:
        self._measured_before = self.retain_before

    @property
    def pass_steps(self) -> int:
        """Steps of a pass over the forget dataset."""
        return math.ceil(len(self.first_losses) / self.forget_per_step)

    @property
    def window_steps(self) -> int:
        """Steps whose losses count: of a pass, but no fewer than five, in which a noisy run goes up and down."""
        return max(MIN_WINDOW, min(self.pass_steps, MAX_WINDOW))

    @property
    def planned_steps(self) -> int:
        """Steps in which the target should be reached."""
        return planned_steps(self.pass_steps)

    def observe(self, step: int, observation: Observation) -> None:
        """Take in the losses of a step, before its update.

        Args:
            step: number of steps before it.
            observation: its losses.
        """
        self.window = [*self.window, observation][-self.window_steps :]
        if self.begins_with_original and step < (EARLY if self.calibrates else 1):
            self.retain_before = torch.cat([self.retain_before, observation.retain_losses.to(self.retain_before)])
        if self.arrived is None and self.stops and step > self.began and self._has_arrived(step):
            self.arrived = step
        if self.calibrates and self.arrived is None:
            self._calibrate(step, observation.numbers, observation.losses)
        numbers = observation.numbers.long()
        known = self.first_losses[numbers]
        self.first_losses[numbers] = torch.where(known.isnan(), observation.losses.to(known), known)

    def rate(self, step: int) -> float:
        """The factor of the learning rate at a step.

        Args:
            step: number of steps before it.
        """
        end = self.last_step
        begin = end - min(MAX_DECAY, round(DECAY * end)) if self.arrived is None else self.arrived
        if step < begin:
            return self.factor * min(1.0, (step + 1 - self.began) / WARM_UP)
        return self.factor * (LAST + (1 - LAST) * max(0.0, (end - step) / max(1, end - begin)))

    @property
    def last_step(self) -> int:
        """The number of steps after which the run ends, as far as is known."""
        if self.arrived is None:
            return self.max_steps
        decay = min(MAX_DECAY, max(MIN_DECAY, round(DECAY * self.arrived))) if self.converges else 0
        return min(self.max_steps, self.arrived + decay)

    # ---- whether the target is reached ----

    def _has_arrived(self, step: int) -> bool:
        """Whether the forget losses of the last pass match the target, and the retain loss is back, within noise."""
        if self.target.value is None or not len(self.window[-1].losses):
            return False
        if not self.converges:
            return self.target.is_reached(torch.cat([o.losses for o in self.window[-LATEST:]]))
        if len(self.window) < self.window_steps:
            return False
        scores = torch.cat([o.scores for o in self.window])
        if not self.target.is_met(scores):
            return self._comes_no_nearer(step, "nearest", float(self.target.combine(scores)))
        if self._retain_is_back():
            return True
        if self.calibrates:
            self._lower(step)  # the forget samples are there, and steps of this length do harm
        return self._comes_no_nearer(step, "retain_nearest", self._retain_rise())

    def _comes_no_nearer(self, step: int, nearest: str, distance: float) -> bool:
        """Whether a window of steps has brought losses, which have moved most of the way, no nearer."""
        if step % self.window_steps:
            return False
        before = getattr(self, nearest)
        setattr(self, nearest, distance)
        may_rise = self.calibrates and self._has_to_rise and not self.held
        return not may_rise and step - self.began >= self.planned_steps and distance >= NEARER * before

    def _retain_rise(self) -> float:
        """How far the mean retain loss of the window is above that of the original."""
        return float(torch.cat([o.retain_losses for o in self.window]).double().mean() - self.retain_before.mean())

    def _retain_is_back(self) -> bool:
        losses, before = torch.cat([o.retain_losses for o in self.window]).double(), self.retain_before.double()
        if min(len(losses), len(before)) < 2:
            return True
        noise = math.hypot(*(float(of.std()) / len(of) ** 0.5 for of in (before, losses)))
        return self._retain_rise() <= max(noise, RETAIN_TOLERANCE)

    # ---- the learning rate ----

    @property
    def _has_to_rise(self) -> bool:
        return self.need is not None and self.need > 0

    def _calibrate(self, step: int, numbers: Tensor, losses: Tensor) -> None:
        """Change the rate where samples have moved less or more than planned by more than their noise."""
        first = self.first_losses[numbers.long()]
        moved = (losses.to(first) - first)[~first.isnan()]
        step_of_plan = step - self.began
        if not self._has_to_rise or len(moved) < 2 or step_of_plan == 0:
            return
        need = float(self.need or 0.0)
        # Losses rise ever faster, from almost nothing to where the model is unsure, and Adam's momentum takes some
        # steps to find the way: a rate that was raised for what the first steps did not do does harm.
        planned = min(1.0, step_of_plan / self.planned_steps) ** 2
        done, error = float(moved.mean()) / need, float(moved.std()) / len(moved) ** 0.5 / need
        self.held = self.held or done >= HELD
        is_slow = step_of_plan >= self.planned_steps / 2 and done + error < TOO_SLOW * planned
        if is_slow and not self.held:
            self.factor = min(self.highest, self.factor * RAISE)
        elif done - error > TOO_FAR:
            self._lower(step)

    def _lower(self, step: int) -> None:
        """Once a window: losses take that long to follow."""
        if step - self.lowered >= self.window_steps:
            self.factor, self.lowered = max(LOWEST, self.factor / LOWER), step

    def begin_again(self, step: int) -> bool:
        """Go on after a divergence, with good weights, at a lower rate.

        Args:
            step: number of steps done.

        Returns:
            Whether it can: not at the lowest rate, nor at one that was given.
        """
        if not self.calibrates or self.factor <= LOWEST:
            return False
        self.highest, self.factor = self.factor / NEVER_AGAIN, max(LOWEST, self.factor / AGAIN)
        self.began = self.lowered = step
        self.held, self.arrived, self.window, self.retain_before = False, None, [], self._measured_before
        self.nearest = self.retain_nearest = math.inf
        return True

    # ---- a resumed run ----

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        return {**numbers, "first_losses": self.first_losses, "window": [vars(o) for o in self.window]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name in NUMBERS:
            setattr(self, name, state[name])
        self.first_losses = state["first_losses"]
        self.window = [Observation(**values) for values in state["window"]]


def planned_steps(pass_steps: int) -> int:
    """Steps in which a target should be reached, for so many of a pass over the forget dataset."""
    return max(STEPS_TO_TARGET, pass_steps)
