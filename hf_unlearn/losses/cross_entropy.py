"""Cross-entropy of a linear output layer over a large vocabulary, in chunks that never hold all logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_unlearn.losses.functional import at_least_float32

# Logits formed at once: 64 MiB in float32.
CHUNK = 2**24


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, with_correct: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of `hidden W^T + b` at each position, with the gradients that the logits would have passed on.

    The logits of a chunk are freed when its losses are known, and formed again for the gradient; where neither weight
    nor bias trains, the gradient is formed with the losses instead.

    Args:
        hidden: `[n, width]`.
        weight: `[classes, width]`, of the same dtype.
        bias: `[classes]`, or None.
        labels: `[n]`, integer.
        with_correct: whether to look for the largest logits as well.

    Returns:
        Losses `[n]`, float32 or better; what normalises the logits, `[n, 2]`: their maximum, and the logarithm of the
        summed exponentials above it; and whether the largest logit is the label's, `[n]`, or `[0]` if not asked for.
    """
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, with_correct, torch.is_grad_enabled())


def residuals(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, normalizers: Tensor, start: int = 0
) -> Tensor:
    """The gradients `p - onehot(label)` of the losses by the logits of the classes from `start` on.

    Args:
        hidden: `[n, width]`.
        weight: `[classes, width]`, the layer's from class `start` on.
        bias: `[classes]`, the same of the layer's, or None.
        labels: `[n]`.
        normalizers: `[n, 2]`, from `linear_cross_entropy`.
        start: the first class.

    Returns:
        Shape `[n, classes]`, float32 or better.
    """
    logits = at_least_float32(F.linear(hidden, weight, bias))
    probs = logits.sub_(normalizers[:, :1]).sub_(normalizers[:, 1:]).exp_()
    inside = ((labels >= start) & (labels < start + len(weight))).nonzero().flatten()
    probs[inside, labels[inside] - start] -= 1
    return probs


def _chunks(count: int, classes: int) -> Iterator[slice]:
    step = max(1, CHUNK // classes)
    return (slice(start, start + step) for start in range(0, count, step))


class _LinearCrossEntropy(torch.autograd.Function):
    """See `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        with_correct: bool,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, *needs_layer = ctx.needs_input_grad[:3]
        # In float16 the gradient has to be formed with the scaled losses, or its small entries vanish.
        at_once = with_gradient and needs_hidden and not any(needs_layer) and hidden.dtype != torch.float16
        grads = torch.empty_like(hidden) if at_once else None
        losses = at_least_float32(hidden.new_empty(0)).new_empty(len(hidden))
        normalizers = losses.new_empty(len(hidden), 2)
        correct = torch.empty(len(hidden) if with_correct else 0, dtype=torch.bool, device=hidden.device)
        for part in _chunks(len(hidden), len(weight)):
            logits = at_least_float32(F.linear(hidden[part], weight, bias))
            if with_correct:
                correct[part] = logits.argmax(1) == labels[part]
            targets = labels[part, None]
            maximum = logits.amax(1, keepdim=True)
            of_label = logits.gather(1, targets) - maximum
            probs = logits.sub_(maximum).exp_()
            total = probs.sum(1, keepdim=True)
            normalizers[part] = torch.cat((maximum, total.log()), 1)
            losses[part] = (total.log() - of_label).squeeze(1)
            if grads is not None:
                probs.div_(total).scatter_add_(1, targets, torch.full_like(total, -1))
                grads[part] = probs.to(weight.dtype) @ weight
            del logits, probs  # before the next chunk's are formed
        ctx.at_once = at_once
        ctx.save_for_backward(*((grads,) if at_once else (hidden, weight, bias, labels, normalizers)))
        ctx.mark_non_differentiable(normalizers, correct)
        return losses, normalizers, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.at_once:
            (grads,) = ctx.saved_tensors
            return (grads * grad[:, None]).to(grads.dtype), None, None, None, None, None
        hidden, weight, bias, labels, normalizers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = at_least_float32(torch.zeros_like(weight)) if needs_weight else None
        grad_bias = at_least_float32(torch.zeros_like(bias)) if needs_bias else None
        for part in _chunks(len(hidden), len(weight)):
            scaled = residuals(hidden[part], weight, bias, labels[part], normalizers[part]).mul_(grad[part, None])
            if grad_bias is not None:
                grad_bias += scaled.sum(0)
            scaled = scaled.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = scaled @ weight
            if grad_weight is not None and grad_weight.dtype == weight.dtype:
                grad_weight.addmm_(scaled.T, hidden[part])
            elif grad_weight is not None:
                grad_weight += scaled.T @ hidden[part]
            del scaled
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None, None, None,
        )  # fmt: skip
