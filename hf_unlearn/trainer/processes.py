"""What the engine of a run on several processes cannot do: refused by name, before any work is done."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from hf_unlearn.methods import Method, SurgeryMethod
from hf_unlearn.per_sample import PerSampleGradients
from hf_unlearn.per_sample.layers import NotCovered
from hf_unlearn.per_sample.loop import Batch
from hf_unlearn.per_sample.plan import GradientMismatch, Way

GATHERS = "stage3_gather_16bit_weights_on_model_save"


def check_processes(
    accelerator: Accelerator, model: nn.Module, method: Method, *, sharded: bool, adds_adapter: bool, goes_back: bool
) -> None:
    """Refuse what would be wrong, or would not end, on the processes and with the engine of a run.

    Args:
        accelerator: of the run.
        model: of the run.
        method: of the run.
        sharded: whether FSDP or DeepSpeed hold the weights.
        adds_adapter: whether the trainer adds the adapter that it trains.
        goes_back: whether the weights go back before the first step.

    Raises:
        ValueError: one line that names what was found and what to do.
    """
    check_launched(accelerator.num_processes)
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if is_deepspeed and method.is_gradient_surgery:
        raise ValueError(
            f"deepspeed: {method.name} writes the gradients itself, which ZeRO does not allow; use DDP or FSDP2, or a "
            "method that descends a loss"
        )
    if is_deepspeed and zero_stage(accelerator) == 3 and not _zero(accelerator).get(GATHERS):
        raise ValueError(
            f"deepspeed: ZeRO-3 saves no model that loads without {GATHERS}; set it to true, in a configuration of "
            "accelerate zero3_save_16bit_model"
        )
    if is_deepspeed and any(p.dtype == torch.float64 for p in model.parameters()):
        raise ValueError("deepspeed: trains in float32 at most, and the model is float64; give model.float()")
    method.check_weights(adapter=adds_adapter, sharded=sharded)
    if sharded and isinstance(method, SurgeryMethod) and method.corrects_step:
        raise ValueError('projection: "update" is not supported for weights spread over processes; use "gradient"')
    if sharded and goes_back:
        raise ValueError(
            "reset: is not supported for weights spread over processes (FSDP, DeepSpeed); use DDP, or reset=0"
        )


def check_rules(method: Method, gradients: PerSampleGradients, batch: Batch) -> None:
    """Refuse weights that FSDP2 is to spread, and of which it would then not be seen where they meet the samples.

    Args:
        method: of the run.
        gradients: of the model, still whole, with the engine "hooks".
        batch: two samples, or one.

    Raises:
        ValueError: some parameters are used outside of a layer that has a rule; one line that names them.
    """
    try:
        gradients(batch)
        names = [name for name, way in gradients.ways.items() if way != Way.LAYER]
    except (NotCovered, GradientMismatch) as error:
        names = [str(error)]
    if names:
        raise ValueError(
            f"method: {method.name} needs the gradient of every sample, of which there is none under FSDP2 for "
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}; use DDP, freeze them, "
            "or train an adapter"
        )


def check_launched(num_processes: int) -> None:
    """Refuse processes that were started together and do not know of each other: each would train alone.

    Args:
        num_processes: that this process knows of.

    Raises:
        ValueError: more were started.
    """
    started = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if started != num_processes:
        raise ValueError(
            f"processes: {started} were started, and each knows of {num_processes} alone; on CPUs give use_cpu=True, "
            'or set ACCELERATE_USE_CPU=true, and under DeepSpeed ddp_backend="gloo" in their place'
        )


def zero_stage(accelerator: Accelerator) -> int:
    """Of DeepSpeed: which parts of a training run it spreads over processes; with 3 the weights, too."""
    return int(_zero(accelerator).get("stage", 0))


def _zero(accelerator: Accelerator) -> dict[str, Any]:
    return accelerator.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
