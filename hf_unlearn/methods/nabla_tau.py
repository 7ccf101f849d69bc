"""∇τ: ascend on the forget dataset up to the loss of unseen data."""

from __future__ import annotations

import math

from typing_extensions import override

from hf_unlearn.methods import bibliography
from hf_unlearn.methods.base import Method

# The authors measure the unseen loss again every five passes over the forget dataset (published notebooks).
REFRESH_PASSES = 5
REFRESHES = 10  # tenths of a run
# With fewer retain samples a forget sample, unseen samples are damaged, and a target that follows them diverges.
RETAIN_PER_FORGET = 2


class NablaTau(Method):
    """`alpha * target(forget losses) + (1 - alpha) * L_r` (Trippa et al. 2024, arXiv 2403.14339, eq. 3).

    Published form, exactly: `UnlearningArguments(forget_target="mean", hinge="squared")`. The target is then
    `relu(L_v - L_f)^2` with L_v the mean loss of unseen data, measured again every five passes over the forget
    dataset, and alpha starts at `5/3 * |D_f| / |D|` and falls linearly to 0 (text: constant 0.5).

    The default is proposed here: the target follows the request (`hf_unlearn.targets`): quantile matching for samples
    and groups, the original's prediction without the class for a whole class, with a retain weight of 0.7. In the
    second half of the run, when the learning rate falls, a target from unseen data follows the model (proposed here):
    the unseen losses `l(x; theta_t)` are measured again at t = 5/10, 6/10, ..., 9/10 of the steps. The losses of
    unseen samples under the original are too low where many samples are forgotten, as a model trained on fewer samples
    errs more. Its limit: damage to unseen samples raises the target, too. When it was followed from the first step on,
    this did more harm than good, and with less than two retain samples a forget sample the target diverges, so there
    it stays fixed.
    """

    name = "nabla_tau"
    title = "∇τ"
    paper = "Trippa et al. 2024, arXiv 2403.14339"
    bibtex = bibliography.TRIPPA_2024
    converges_at_target = True
    passes, min_steps = 2, 50
    default_retain_weight = 0.7

    @property
    def published(self) -> bool:
        """Whether the target is the paper's: the mean of unseen losses."""
        return self.settings.forget_target == "mean"

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """`1 - alpha`; the published schedule where the published target is used and no weight is given."""
        if not self.published or self.settings.retain_weight is not None:
            return super().retain_weight(progress, step)
        if self.info.is_text:
            return 0.5
        share = self.info.forget_samples / (self.info.forget_samples + self.info.retain_samples)
        return 1 - min(1.0, 5 / 3 * share) * (1 - progress)

    @override
    def remeasures_target(self, step: int, max_steps: int, forget_per_step: int) -> bool:
        """Every tenth of the run from its middle on; in the published form, every five passes over the forget data."""
        if not self.published:
            enough_retain_samples = self.info.retain_samples >= RETAIN_PER_FORGET * self.info.forget_samples
            return enough_retain_samples and 2 * step >= max_steps and step % max(1, max_steps // REFRESHES) == 0
        return step > 0 and step % math.ceil(REFRESH_PASSES * self.info.forget_samples / forget_per_step) == 0
