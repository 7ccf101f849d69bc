"""From logits and labels to one loss, and one share of right predictions, per sample: pure functions of tensors.

Logits may be in half precision; the losses are then float32, as in transformers. float64 stays float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def at_least_float32(values: Tensor) -> Tensor:
    """Float32 for half precision, the tensor itself otherwise."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def position_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at each position; 0 where there is no label.

    Args:
        logits: `[batch, positions, classes]`.
        labels: `[batch, positions]`, integer, -100 where there is no label.

    Returns:
        Shape `[batch, positions]`.
    """
    flat, targets = at_least_float32(logits).flatten(0, 1), labels.to(logits.device).flatten()
    return F.cross_entropy(flat, targets, ignore_index=IGNORED, reduction="none").view(labels.shape)


def divergences(target: Tensor, logits: Tensor) -> Tensor:
    """`KL(target || model)` at each position, in nats; a class whose target probability is 0 contributes nothing.

    Args:
        target: `[..., classes]`, log-probabilities, minus infinity for 0; no gradient flows into them.
        logits: `[..., classes]`, the model's.

    Returns:
        Shape `[...]`.
    """
    log_probs = at_least_float32(logits).log_softmax(dim=-1)
    target = target.detach().to(log_probs)
    return torch.where(target > -torch.inf, target.exp() * (target - log_probs), 0.0).sum(dim=-1)


def labelled_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled positions of each sample; 0 for a sample with none.

    Args:
        values: `[batch, positions]`, 0 where there is no label.
        labels: `[batch, positions]`, -100 where there is no label.

    Returns:
        Shape `[batch]`.
    """
    return values.sum(dim=1) / (labels.to(values.device) != IGNORED).sum(dim=1).clamp_min(1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, averaged over the labelled positions of each sample; 0 for a sample with none.

    Args:
        logits: `[batch, positions, classes]`.
        labels: `[batch, positions]`, integer, -100 where there is no label.

    Returns:
        Shape `[batch]`.
    """
    return labelled_mean(position_losses(logits, labels), labels)


def token_loss_profiles(logits: Tensor, labels: Tensor, parts: int) -> Tensor:
    """Each sample's cross-entropies in ascending order, averaged over `parts` equal shares of them: see `profiles_of`.

    Args:
        logits: `[batch, positions, classes]`.
        labels: `[batch, positions]`, integer, -100 where there is no label.
        parts: number of shares.

    Returns:
        Shape `[batch, parts]`, differentiable; 0 for a sample without labels.

    Examples:
        >>> logits = torch.tensor([[[0.0, 4.0], [0.0, 0.0], [1.0, 9.0], [9.0, 9.0]]])
        >>> token_loss_profiles(logits, torch.tensor([[0, 0, 0, -100]]), 2).round(decimals=2)
        tensor([[1.8000, 6.6700]])
    """
    return profiles_of(position_losses(logits, labels), labels, parts)


def profiles_of(losses: Tensor, labels: Tensor, parts: int) -> Tensor:
    """Each sample's position losses in ascending order, averaged over `parts` equal shares of them.

    A position that lies across two shares counts in both, in proportion, so samples of any length have profiles of one
    length, and the mean of a profile is the sample's loss (`labelled_mean`).

    Args:
        losses: `[batch, positions]`.
        labels: `[batch, positions]`, integer, -100 where there is no label.
        parts: number of shares.

    Returns:
        Shape `[batch, parts]`, differentiable; 0 for a sample without labels.
    """
    labelled = labels.to(losses.device) != IGNORED  # shape: [batch, positions]
    order = losses.detach().masked_fill(~labelled, torch.inf).argsort(dim=1, stable=True)
    ordered = losses.gather(1, order)
    # On a line of length n * parts a sample's n positions are pieces of length `parts`, the shares pieces of length n.
    count = labelled.sum(dim=1)[:, None, None]
    position = torch.arange(losses.shape[1], device=losses.device)[:, None]
    share = torch.arange(parts, device=losses.device)
    ends = torch.minimum((position + 1) * parts, (share + 1) * count)
    starts = torch.maximum(position * parts, share * count)
    weights = (ends - starts).clamp_min(0).to(ordered) / count.clamp_min(1)  # shape: [batch, positions, parts]
    # No matrix product: under autocast it would be one in half precision.
    return (ordered[..., None] * weights).sum(dim=1)


def token_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of each sample's labelled positions whose largest logit is the label's; NaN for a sample with none.

    Args:
        logits: `[batch, positions, classes]`.
        labels: `[batch, positions]`, integer, -100 where there is no label.

    Returns:
        Shape `[batch]`, float32.
    """
    return labelled_share(logits.argmax(dim=-1) == labels.to(logits.device), labels)


def labelled_share(correct: Tensor, labels: Tensor) -> Tensor:
    """Share of each sample's labelled positions `[batch, positions]` where `correct` is true; NaN for one with none.

    Returns:
        Shape `[batch]`, float32.
    """
    labelled = labels.to(correct.device) != IGNORED
    return (correct & labelled).sum(dim=1) / labelled.sum(dim=1)


def multi_label_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over the labels of each sample.

    Args:
        logits: `[batch, num_labels]`.
        labels: `[batch, num_labels]`, in [0, 1].

    Returns:
        Shape `[batch]`.
    """
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none").mean(dim=1)


def multi_label_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of each sample's labels whose probability is on the right side of one half.

    Args:
        logits: `[batch, num_labels]`.
        labels: `[batch, num_labels]`, in [0, 1].

    Returns:
        Shape `[batch]`, float32.
    """
    return ((logits > 0) == (labels.to(logits) > 0.5)).float().mean(dim=1)


def regression_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Squared error, averaged over the targets of each sample.

    Args:
        logits: `[batch, num_labels]`.
        labels: `[batch, num_labels]`, or `[batch]` for a single target.

    Returns:
        Shape `[batch]`.
    """
    logits = at_least_float32(logits)
    return (logits - labels.to(logits).view(logits.shape)).square().mean(dim=1)


def ctc_losses(
    logits: Tensor, labels: Tensor, frames: Tensor, blank: int, reduction: str, zero_infinity: bool
) -> Tensor:
    """Connectionist temporal classification: the negative log-likelihood of each sample's transcription.

    The arithmetic of ForCTCLoss (transformers/loss/loss_ctc.py), but in float64 where the logits are.

    Args:
        logits: `[batch, max_frames, vocabulary]`.
        labels: `[batch, length]`; -100 and the blank are padding.
        frames: `[batch]`, integer, the number of valid frames of each sample.
        blank: the id of the blank token.
        reduction: the config's `ctc_loss_reduction`; `"mean"` divides by the target length, `"sum"` does not.
        zero_infinity: 0 instead of infinity (and no gradient) for a transcription too long for its frames.

    Returns:
        Shape `[batch]`.
    """
    labels = labels.to(logits.device)
    labelled = (labels != IGNORED) & (labels != blank)
    lengths = labelled.sum(dim=1)
    log_probs = at_least_float32(logits).log_softmax(dim=-1).transpose(0, 1)
    # Without cuDNN, as in transformers.
    with torch.backends.cudnn.flags(enabled=False):
        losses = F.ctc_loss(
            log_probs, labels[labelled], frames, lengths, blank, reduction="none", zero_infinity=zero_infinity
        )
    return losses / lengths.clamp_min(1) if reduction == "mean" else losses
