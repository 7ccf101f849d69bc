"""The forgetting target: which losses the forget dataset should end with, for which request.

A model that never saw the forget dataset has some loss on every sample of it: the target losses. A target is an
objective that is lowest when the forget losses reach them. Like every objective it scores each sample (`scores`) and
combines the scores of a whole optimizer step, over all accumulated batches and all processes, into one number to
minimise (`combine`).
"""

from hf_unlearn.targets.choosing import (
    FORGET_TARGETS,
    ForgetTargetName,
    ForgetTargetSetting,
    make_target,
    resolve_kind,
    restore_target,
)
from hf_unlearn.targets.distributions import DistributionTarget, MaskedClassTarget, MaskedLabelTarget
from hf_unlearn.targets.objectives import (
    Ascent,
    ForgetTarget,
    Hinge,
    MeanTarget,
    Objective,
    Statistics,
    TargetKind,
)

__all__ = [
    "FORGET_TARGETS", "Ascent", "DistributionTarget", "ForgetTarget", "ForgetTargetName", "ForgetTargetSetting",
    "Hinge", "MaskedClassTarget", "MaskedLabelTarget", "MeanTarget", "Objective", "Statistics", "TargetKind",
    "make_target", "resolve_kind", "restore_target",
]  # fmt: skip
