"""Real processes (gloo), forked from one that has imported everything: that takes longer than what they do."""

import gc
import multiprocessing
import os
import socket
import time

import torch

# Not the tests' own modules, which the first process does not find: those are imported after the fork.
IMPORTED = [
    "hf_unlearn.comparing.running",
    "hf_unlearn.trainer.callbacks",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
]


def _enter(rank, run, arguments, environment):
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    run(*arguments)


def _alone(number, run, arguments):
    gc.freeze()  # as in conftest.py
    torch.set_num_threads(1)
    run(number, *arguments)


def together(run, processes, *arguments, timeout=500):
    """`run(*arguments)` in so many processes, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
    start(_enter, processes, run, arguments, environment, timeout=timeout)


def start(run, processes, *arguments, timeout=500):
    """`run(number, *arguments)` in so many processes."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    running = torch.multiprocessing.start_processes(
        _alone, (run, arguments), processes, join=False, start_method="forkserver"
    )
    until = time.monotonic() + timeout
    try:
        while not running.join(timeout=1):  # raises what a process raised
            assert time.monotonic() < until, f"the processes take more than {timeout} s"
    finally:
        for process in running.processes:
            process.kill()
