"""Reading and measuring samples draws random numbers; a run gets the same ones, however often it is measured."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """The generators of Python, numpy and torch are at the end of the block where they were at its beginning.

    Examples:
        >>> torch.manual_seed(0).initial_seed(), torch.rand(1).item() > 0
        (0, True)
        >>> state = torch.get_rng_state()
        >>> with unchanged_randomness():
        ...     _ = torch.rand(3), random.random()
        >>> torch.equal(state, torch.get_rng_state())
        True
    """
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
