"""Per-sample gradients of a whole batch from one forward and one backward pass, by hooks on the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hf_unlearn.per_sample.layers import RULES
from hf_unlearn.per_sample.loop import Batch, Losses, Rows, batch_size


class NotCovered(Exception):
    """No rule gives the exact per-sample gradients; the message names the modules."""


def owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, dict[str, str]]:
    """The modules that hold trainable parameters: module to {attribute: parameter name}.

    Raises:
        NotCovered: when a parameter hangs on a module without a rule.
    """
    names = {id(p): name for name, p in parameters.items()}
    found: dict[nn.Module, dict[str, str]] = {}
    missing = []
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None or id(parameter) not in names:
                continue
            if type(module) not in RULES:
                missing.append(f"{path} ({type(module).__name__})")
            found.setdefault(module, {})[attribute] = names[id(parameter)]
    if missing:
        raise NotCovered(", ".join(dict.fromkeys(missing)))
    return found


def recorded_gradients(
    modules: Mapping[nn.Module, Mapping[str, str]],
    losses: Losses,
    batch: Batch,
    parameters: Mapping[str, nn.Parameter],
    verify: bool = False,
) -> tuple[torch.Tensor, Rows]:
    """The gradient of every sample's loss, by one ordinary batched forward and backward pass.

    Every layer that holds trainable parameters lets its input and the place of its output in the graph be seen; the
    backward pass then goes to those outputs only, and no weight gradient of the batch is ever formed. Right for models
    that treat the samples of a batch independently (BatchNorm in eval mode) and keep them on the leading axis.

    Args:
        modules: as `owners` gives them, of the model that `losses` runs.
        losses: gives the per-sample losses [k] of a batch, with gradient.
        batch: k collated rows.
        parameters: name to trainable parameter.
        verify: also form the gradient of a randomly weighted sum of the losses, and compare.

    Returns:
        As [`loop_gradients`]: the detached losses [k], and per parameter the flattened gradients [k, numel].

    Raises:
        NotCovered: when a layer has no rule, its leading axis is not the batch, or the check of `verify` fails.
    """
    size = batch_size(batch)
    uses: list[tuple[nn.Module, torch.Tensor, torch.Size, GradientEdge]] = []
    handles = [module.register_forward_hook(_record(uses), with_kwargs=True) for module in modules]
    try:
        values = losses(batch)
    finally:
        for handle in handles:
            handle.remove()
    grads = torch.autograd.grad(values.sum(), [edge for *_, edge in uses], retain_graph=verify, allow_unused=True)

    rows: Rows = {name: torch.zeros(size, p.numel(), dtype=p.dtype, device=p.device) for name, p in parameters.items()}
    for (module, inputs, shape, _), grad in zip(uses, grads, strict=True):
        if grad is None:
            continue
        grad = grad.view(shape)
        if inputs.shape[0] != size or grad.shape[0] != size:
            names = ", ".join(modules[module].values())
            raise NotCovered(f"{names} (leading axis {inputs.shape[0]} is not the batch of {size})")
        dtype = next(iter(module._parameters.values())).dtype  # type: ignore[union-attr]
        gradients = RULES[type(module)](module, inputs.to(dtype), grad.to(dtype))
        for attribute, name in modules[module].items():
            rows[name] += gradients[attribute].flatten(1)
    if verify:
        _verify(values, rows, parameters)
    return values.detach(), rows


def _record(uses: list) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor) -> None:
        if output.requires_grad:
            inputs = args[0] if args else next(iter(kwargs.values()))
            # A linear layer's output is often a view of what it computed. A model that then writes into it (padding
            # set to zero) reroutes the view's gradient, but not the base's.
            base = output._base
            origin = output if base is None or base.numel() != output.numel() else base
            uses.append((module, inputs.detach(), output.shape, get_gradient_edge(origin)))

    return hook


def _verify(values: torch.Tensor, rows: Rows, parameters: Mapping[str, nn.Parameter]) -> None:
    # Random weights, so that rows given to the wrong sample are seen as well as rows that are missing.
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(values), generator=generator).to(values) + 0.5
    grads = torch.autograd.grad((weights * values).sum(), list(parameters.values()), allow_unused=True)
    scale = max((float(g.norm()) for g in grads if g is not None), default=0.0)
    tolerance = 1e-3 if values.dtype == torch.float32 else 1e-6
    for (name, row), grad in zip(rows.items(), grads, strict=True):
        expected = torch.zeros_like(row[0]) if grad is None else grad.flatten()
        error = float((weights.to(row) @ row - expected).norm())
        if error > tolerance * max(float(expected.norm()), 1e-3 * scale):
            raise NotCovered(f"{name} (its layer does not treat the samples independently, or is bypassed)")
