"""Which samples are measured before and after a run: few beside those of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hf_unlearn.data.splitting import subsample_numbers

# Steps that a run takes for one that is planned, where nobody says how many: half as many again.
TAKEN = 1.5
# As a share of a run's sample passes, and of that: most for what sets the target, as its noise is that of the run.
MEASURED = 0.1
SETS_TARGET, FORGET, RETAIN, UNSEEN_AFTER = 0.7, 0.1, 0.05, 0.05
LEAST_DRAWN, LEAST_FOR_TARGET = 8, 16


@dataclass(frozen=True)
class Draw:
    """The samples of a dataset that are measured, by their numbers.

    Attributes:
        before: those measured before the first step.
        after: those of them that are measured again at the end.
    """

    before: list[int]
    after: list[int]


def draw_counts(passes: float, sets_target: bool) -> dict[str, tuple[int, int]]:
    """How many samples of each dataset are measured before and after a run.

    Args:
        passes: sample passes of its steps, as far as they are known.
        sets_target: whether unseen samples set the target; otherwise retain samples do.

    Examples:
        >>> draw_counts(4000, sets_target=True)
        {'forget': (40, 40), 'retain': (20, 20), 'unseen': (280, 20), 'general': (20, 20)}
    """
    budget = MEASURED * passes
    forget, retain, after = (max(LEAST_DRAWN, round(share * budget)) for share in (FORGET, RETAIN, UNSEEN_AFTER))
    most = max(LEAST_FOR_TARGET, round(SETS_TARGET * budget))
    if sets_target:
        counts = {"forget": (forget, forget), "retain": (retain, retain), "unseen": (most, after)}
    else:
        counts = {"forget": (forget, forget), "retain": (most, retain), "unseen": (after, after)}
    return {**counts, "general": counts["retain"]}


def draw_samples(sizes: Mapping[str, int], counts: Mapping[str, tuple[int, int]], seed: int) -> dict[str, Draw]:
    """Draw the samples of each dataset.

    Args:
        sizes: of the datasets, by name.
        counts: of the samples measured before and after, by name.
        seed: of the draws.

    Examples:
        >>> draw_samples({"forget": 3}, {"forget": (16, 16)}, seed=0)
        {'forget': Draw(before=[0, 1, 2], after=[0, 1, 2])}
    """
    draws = {}
    for name, size in sizes.items():
        before = subsample_numbers(size, counts[name][0], seed)
        places = subsample_numbers(len(before), counts[name][1], seed)
        draws[name] = Draw(before, [before[place] for place in places])
    return draws
