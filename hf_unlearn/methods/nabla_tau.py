"""∇τ: ascend on the forget dataset up to the loss of unseen data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import SHORT_MEMORY, Method

# The authors measure the unseen loss again every five passes over the forget dataset (published notebooks).
REFRESH_PASSES = 5
# For images they pass about three times over the retain dataset.
RETAIN_PASSES = 3


class NablaTau(Method):
    """`alpha * target(forget losses) + (1 - alpha) * L_r` (Trippa et al. 2024, arXiv 2403.14339, eq. 3).

    As published it is `nabla_tau_images` and `nabla_tau_text`. This form is proposed here: the target follows the
    request (`hf_unlearn.targets`): quantile matching for samples and groups, the original's prediction without the
    class for a whole class, with a retain weight of 0.7.
    """

    name = "nabla_tau"
    title = "∇τ"
    paper = "Trippa et al. 2024, arXiv 2403.14339"
    bibtex = bibliography.TRIPPA_2024
    converges_at_target = True
    default_retain_weight = 0.7
    default_arguments = SHORT_MEMORY


class PublishedNablaTau(Method):
    """What the two published forms of ∇τ share: `alpha * hinge(L_v - L_f) + (1 - alpha) * L_r`, alpha falling to 0.

    L_v: the mean loss of unseen data, measured again every five passes over the forget dataset. The facts are those of
    the authors' notebooks. Arguments and `retain_weight` may be given, and then replace what was published. Batch
    sizes are this package's: the authors had 256 images and 128 texts, in one batch a step.

    Attributes:
        first_alpha: alpha at the first step.
        forget_passes: passes over the forget dataset.
    """

    paper = NablaTau.paper
    bibtex = NablaTau.bibtex
    needs_retain_count = True
    converges_at_target = True
    first_alpha: float
    forget_passes: float

    @override
    def default_steps(self, forget_per_step: int) -> int:
        """So many that every forget sample comes `forget_passes` times."""
        return math.ceil(self.forget_passes * self.info.forget_samples / forget_per_step)

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """`1 - alpha`, alpha falling linearly from `first_alpha` to 0."""
        if self.settings.retain_weight is not None:
            return self.settings.retain_weight
        return 1 - self.first_alpha * (1 - progress)

    @override
    def remeasures_target(self, step: int, max_steps: int, forget_per_step: int) -> bool:
        """Every five passes over the forget dataset."""
        return step > 0 and step % math.ceil(REFRESH_PASSES * self.info.forget_samples / forget_per_step) == 0


class NablaTauImages(PublishedNablaTau):
    """`alpha * relu(L_v - L_f)^2 + (1 - alpha) * L_r` as published for images (Trippa et al. 2024, eq. 3).

    alpha starts at `5/3 * |D_f| / |D|` (1 at most) and falls linearly to 0, by the pass over the forget dataset, not
    by the step. AdamW at 1e-3, falling linearly to 1e-4, nothing clipped; as many passes over the forget dataset as
    take three over the retain dataset; eval mode. Of the authors' notebooks (ResNet-18, batches of 256).
    """

    name = "nabla_tau_images"
    title = "∇τ (images, as published)"
    default_arguments: ClassVar[Mapping[str, Any]] = {
        "forget_target": "mean", "hinge": "squared", "learning_rate": 1e-3, "max_grad_norm": 0.0,
        "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-4, "power": 1.0},
    }  # fmt: skip

    @property
    def first_alpha(self) -> float:  # type: ignore[override]
        """`5/3 * |D_f| / |D|`, 1 at most."""
        return min(1.0, 5 / 3 * self.info.forget_samples / (self.info.forget_samples + self.info.retain_samples))

    @property
    def forget_passes(self) -> float:  # type: ignore[override]
        """Those that take three passes over the retain dataset, with as many retain as forget samples a step."""
        return max(1, round(RETAIN_PASSES * self.info.retain_samples / self.info.forget_samples))

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """`1 - alpha`, with the alpha of the first step of the pass."""
        return super().retain_weight(int(progress * self.forget_passes + 1e-9) / self.forget_passes, step)


class NablaTauText(PublishedNablaTau):
    """`alpha * (L_v - L_f)^2 + (1 - alpha) * L_r` as published for text (Trippa et al. 2024, arXiv 2403.14339).

    The notebook squares before the relu of eq. 3, so the penalty is two-sided. alpha starts at 0.5 and falls linearly
    to 0, by the step. AdamW at a constant 3e-4, nothing clipped; `int(|D_r| / (2 |D_f|))` passes over the forget
    dataset (half an epoch of the retain dataset; here one at least); dropout is on. Of the authors' notebook
    (RoBERTa-base on GoEmotions, batches of 128). With several batches a step, the scores of the whole step are taken
    with another draw of dropout than its losses.
    """

    name = "nabla_tau_text"
    title = "∇τ (text, as published)"
    trains_in_eval_mode = False
    first_alpha = 0.5
    default_arguments: ClassVar[Mapping[str, Any]] = {
        "forget_target": "mean", "hinge": "two_sided", "learning_rate": 3e-4, "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }  # fmt: skip

    @property
    def forget_passes(self) -> float:  # type: ignore[override]
        """`int(|D_r| / (2 |D_f|))`, one at least."""
        return max(1, self.info.retain_samples // (2 * self.info.forget_samples))
