"""How much the attempts to bring data back may take: a tenth of training again."""

from __future__ import annotations

from dataclasses import dataclass

# Of the sample passes of training again, and of that: looks at forget samples, training on forget samples, on retain
# samples, features for the probe.
BUDGET = 0.1
LOOKING, RELEARNING, TUNING, PROBING = 0.35, 0.15, 0.35, 0.15
# Passes over the retain dataset that training takes where nobody says how many: what people fine-tune for.
EPOCHS = 3.0
# Relearning is looked at five times, further training twice, and two copies with rounded weights and one without its
# adapter once each.
LOOKS = 10
RELEARNING_STEPS, MEASURE_EVERY, TUNING_STEPS = 12, 3, 50
MOST_LOOKED_AT, MOST_RELEARNED, LARGEST_BATCH, MOST_PROBED = 2000, 16, 64, 2000
# Of a class alone any model learns its label: its samples are shown among so many times as many retain samples.
RETAIN_PER_RELEARNED = 7
PASSES_OF_AN_ANSWER = 2
# A sample forward and backward: the backward pass takes about twice what the forward pass takes.
PASSES_WITH_GRADIENT = 3


@dataclass(frozen=True)
class Budget:
    """What the attempts on one model take.

    Attributes:
        looked_at: forget samples that are measured after an attempt.
        relearned: forget samples that relearning trains on.
        mixed: samples that relearning of a class trains on, one of the class to `RETAIN_PER_RELEARNED` retain ones.
        tuning_steps: steps of further training on retain samples.
        tuning_batch: retain samples of one.
        probed: samples of a dataset whose features the probe gets.
    """

    looked_at: int
    relearned: int
    mixed: int
    tuning_steps: int
    tuning_batch: int
    probed: int

    @classmethod
    def of(cls, retain_samples: int, epochs: float = EPOCHS, asked: int = 0) -> Budget:
        """A tenth of the sample passes of training on `retain_samples` for `epochs`, within what attempts can use.

        Of a language model that is asked for the answers of `asked` forget samples, less what that takes: the tokens
        of the greedy answer one after the other, which are as many as those of a sample, and the true ones once.

        Below 270 samples at three epochs (342 where 32 answers are asked for) it is more, as an attempt has one sample
        at least: of 50 samples 0.15. Of a class below 540, as relearning has one of it and one of others at least.

        Examples:
            >>> Budget.of(2000)
            Budget(looked_at=63, relearned=7, mixed=7, tuning_steps=50, tuning_batch=4, probed=135)
            >>> Budget.of(60000)
            Budget(looked_at=1890, relearned=16, mixed=64, tuning_steps=50, tuning_batch=64, probed=2000)
        """
        passes = max(0.0, BUDGET * PASSES_WITH_GRADIENT * epochs * retain_samples - PASSES_OF_AN_ANSWER * asked)
        tuned = TUNING * passes / PASSES_WITH_GRADIENT
        batch = _within(tuned / TUNING_STEPS, LARGEST_BATCH)
        relearned = RELEARNING * passes / (PASSES_WITH_GRADIENT * RELEARNING_STEPS)
        return cls(
            looked_at=_within(LOOKING * passes / LOOKS, MOST_LOOKED_AT),
            relearned=_within(relearned, MOST_RELEARNED),
            mixed=max(2, _within(relearned, LARGEST_BATCH)),
            tuning_steps=_within(tuned / batch, TUNING_STEPS),
            tuning_batch=batch,
            probed=max(2, _within(PROBING * passes / 2, MOST_PROBED)),
        )


def _within(count: float, most: int) -> int:
    return max(1, min(most, int(count)))
