"""Which target a request gets, and how it is made from what the original model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import torch

from hf_unlearn.data.splitting import LABEL_COLUMNS
from hf_unlearn.data.types import RequestKind
from hf_unlearn.data.validation import check_disjoint_classes
from hf_unlearn.losses.head import TOKEN_KINDS
from hf_unlearn.targets.distributions import DistributionTarget, MaskedClassTarget, MaskedLabelTarget
from hf_unlearn.targets.objectives import Ascent, ForgetTarget, Hinge, MeanTarget, Statistics, TargetKind

ForgetTargetName: TypeAlias = Literal["auto", "distribution", "masked_class", "mean", "none"]
FORGET_TARGETS: tuple[ForgetTargetName, ...] = get_args(ForgetTargetName)
# A `ForgetTargetName`, None for "auto", a target mean loss, losses [m], or token-loss profiles [m, 8].
ForgetTargetSetting: TypeAlias = float | str | list[float] | list[list[float]] | None


def restore_target(state: Mapping[str, Any]) -> ForgetTarget:
    """The target with the state that `ForgetTarget.state` returned."""
    kinds = {cls.kind: cls for cls in (Ascent, MeanTarget, DistributionTarget, MaskedClassTarget, MaskedLabelTarget)}
    cls = kinds[state["kind"]]
    target = cls.__new__(cls)
    vars(target).update({k: v for k, v in state.items() if k != "kind"})
    return target


def resolve_kind(
    forget_target: ForgetTargetSetting, *, request: RequestKind, head_kind: str, has_unseen: bool
) -> TargetKind:
    """The kind of target for a request.

    Args:
        forget_target: the setting: a name, a number (tau), or a sample of losses or token-loss profiles.
        request: `"samples"`, `"class"` or `"group"`.
        head_kind: kind of the model's head (`Head.kind`).
        has_unseen: whether unseen data was given.

    Returns:
        `"masked_class"`, `"distribution"`, `"mean"` or `"none"`.

    Raises:
        ValueError: when a named target is not available for this request, head or data.
    """
    if isinstance(forget_target, list) and isinstance(forget_target[0], list) and head_kind not in TOKEN_KINDS:
        raise ValueError(
            f"forget_target: holds loss profiles, but a {head_kind} head scores a sample once; give one loss a sample"
        )
    forget_target = "auto" if forget_target is None else forget_target
    if not isinstance(forget_target, str):
        return "mean" if isinstance(forget_target, (int, float)) else "distribution"
    is_of_classifier = request == "class" and head_kind in ("single_label", "multi_label")
    if forget_target == "masked_class" and not is_of_classifier:
        raise ValueError(
            'forget_target: "masked_class" needs a request="class" and a classification head, got '
            f"request={request!r} and a {head_kind} head; use another forget_target"
        )
    if forget_target in ("distribution", "mean") and not has_unseen:
        raise ValueError(
            f"forget_target: {forget_target!r} needs unseen_ds, samples the model was never trained on; give them, or "
            "a number or a sample of losses as forget_target"
        )
    if forget_target != "auto":
        return cast(TargetKind, forget_target)
    if is_of_classifier:
        return "masked_class"
    return "distribution" if has_unseen else "none"


def make_target(
    kind: TargetKind,
    setting: ForgetTargetSetting,
    hinge: Hinge,
    statistics: Mapping[str, Statistics],
    forgotten_labels: Sequence[int] | None = None,
) -> ForgetTarget:
    """The target of a resolved kind, from the original model's statistics of the datasets.

    Args:
        kind: as returned by `resolve_kind`.
        setting: the `forget_target` setting: a number or a list of losses or profiles replaces the unseen losses.
        hinge: `"squared"`, `"linear"` or `"two_sided"`, for `kind="mean"`.
        statistics: the original model's statistics of the `"forget"`, `"retain"` and, if given, `"unseen"` dataset.
        forgotten_labels: of samples with several labels, for `kind="masked_class"`: which of them are forgotten, see
            `hf_unlearn.data.validation.check_classes`.

    Raises:
        ValueError: the retain dataset still has samples of a forgotten class, or it is not known which labels are.
    """
    if kind == "none":
        return Ascent()
    if kind == "masked_class":
        return _masked_class_target(statistics["forget"], statistics["retain"], forgotten_labels)
    if kind == "mean":
        return MeanTarget(setting if isinstance(setting, float) else float(statistics["unseen"].losses.mean()), hinge)
    if isinstance(setting, list):
        return DistributionTarget(torch.tensor(setting))
    unseen = statistics["unseen"]
    return DistributionTarget(unseen.losses if unseen.token_loss_profiles is None else unseen.token_loss_profiles)


def _masked_class_target(
    forget: Statistics, retain: Statistics, forgotten_labels: Sequence[int] | None
) -> MaskedClassTarget:
    if forget.label_logits is not None and retain.label_logits is not None:
        if forgotten_labels is None:
            raise ValueError(
                'forget_target: "masked_class" needs to know which labels are forgotten, but the datasets store none '
                f"in a column {', '.join(LABEL_COLUMNS)}; store them there, or use another forget_target"
            )
        return MaskedLabelTarget(forget.label_logits, forgotten_labels, retain.label_logits, retain.losses)
    if forget.labels is None or retain.labels is None or forget.log_probs is None or retain.log_probs is None:
        raise ValueError('forget_target: "masked_class" needs labels of one kind, integers or values in [0, 1]')
    classes = sorted(set(forget.labels.tolist()))
    check_disjoint_classes(set(classes), set(retain.labels.tolist()))
    return MaskedClassTarget(forget.log_probs, classes, retain.log_probs)
