"""Commands whose runs are independent, under a launcher that has started several processes together."""

from __future__ import annotations

import os

# What makes a process one of several, and its runs those of an engine.
PROCESS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
ENGINE = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def workers_of_launcher() -> int:
    """How many workers the first of the started processes is to have, which is one of several no longer.

    Returns:
        The number of processes that `accelerate launch` or torchrun has started, 1 without them; on all but the first
        process 0: there is nothing to do.
    """
    if "LOCAL_RANK" not in os.environ:
        return 1
    if os.environ["RANK"] != "0":
        return 0
    started = int(os.environ["WORLD_SIZE"])
    for name in (*PROCESS, *ENGINE):
        os.environ.pop(name, None)
    return started
