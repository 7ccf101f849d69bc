"""One step of OrthoGrad on a model sharded by FSDP2, and on the whole model, same samples; see test_processes.py."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate import Accelerator
from tiny import make
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_unlearn.losses import head_of
from hf_unlearn.methods import METHODS, RunInfo
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.per_sample.loop import slice_batch
from hf_unlearn.trainer.surgery_step import SurgeryStep

LAYERS = {"vit": lambda m: m.vit.layers, "llama": lambda m: m.model.layers}


def adapted(name):
    model, batch = make(name)
    model = add_adapter(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.1)
    return model, lambda n, seed: {k: v.double() if v.is_floating_point() else v for k, v in batch(n, seed).items()}


def gradients(model, accelerator, forget, retain, shard=lambda model: None):
    """As in the trainer, the step is built from the sharded model."""
    args = SimpleNamespace(
        forgetting_loss="grad_ascent",
        retain_weight=0.3,
        projection="gradient",
        forget_target="auto",
        method_kwargs=None,
    )
    method = METHODS["orthograd"](args, RunInfo(4, 4))
    shard(model)
    objective = method.objective(None, None)
    step = SurgeryStep(method, head_of(model), accelerator, objective, model=model, engine="hooks", per_tensor=False)
    for i in range(2):  # two accumulated batches
        index = torch.arange(2)
        pairs = {
            "forget": slice_batch(forget, 2 * i, 2 * i + 2),
            "retain": slice_batch(retain, 2 * i, 2 * i + 2),
            "index": index,
        }
        if i == 0:
            step.prepare_step(model, [pairs, pairs], 0.3)
        step.loss(model, pairs, 0.3, is_last=i == 1)
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in grads.items()}


def save(folder):
    accelerator = Accelerator(cpu=True)
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, layers in LAYERS.items():
        model, batch = adapted(name)
        forget, retain = (slice_batch(batch(8, seed), 4 * rank, 4 * rank + 4) for seed in (1, 2))

        def shard(model, layers=layers):
            for layer in layers(model.get_base_model()):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)

        whole = gradients(model, accelerator, forget, retain)
        sharded = gradients(adapted(name)[0], accelerator, forget, retain, shard)
        if rank == 0:
            torch.save({"whole": whole, "sharded": sharded}, f"{folder}/{name}.pt")
    dist.barrier()
