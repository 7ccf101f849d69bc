"""Forgetting by what a teacher predicts: the original model, an untrained one, or the original corrected or noised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import set_seed
from typing_extensions import override

from hf_unlearn.data.randomness import unchanged_randomness
from hf_unlearn.losses import Head
from hf_unlearn.losses.functional import IGNORED, at_least_float32, divergences, labelled_mean, token_losses
from hf_unlearn.losses.head import Batch
from hf_unlearn.methods import bibliography
from hf_unlearn.methods.ascent import Finetune
from hf_unlearn.methods.base import CalibrationPass, Method, SequenceMethod
from hf_unlearn.methods.hyperparameters import hyperparameter
from hf_unlearn.models.original import untrained
from hf_unlearn.targets import Ascent, ForgetTarget, Objective

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Heads that choose one class out of many, once or several times a sample: what a divergence can be formed of.
DECISION_HEADS = (
    "single_label", "token", "question_answering", "multiple_choice", "contrastive", "segmentation", "masked_lm",
    *SequenceMethod.head_kinds,
)  # fmt: skip


class Distillation(Objective):
    """`divergence * mean_t KL(q_t || p_t) + loss * l` of a sample with loss l.

    q_t: the teacher's prediction, p_t: the model's. The mean is over the sample's labelled decisions: its tokens, its
    start and end, its one class.

    Args:
        teacher: maps the model's inputs to its output.
        divergence: weight of the divergence.
        loss: weight of the sample's own loss.
        lowered: how far the label's logit is lowered in the teacher's prediction.
    """

    teacher_passes = 1
    logits = True

    def __init__(
        self, teacher: Callable[..., Any] | None, divergence: float = 1.0, loss: float = 0.0, lowered: float = 0.0
    ):
        assert teacher is not None
        self.teacher, self.divergence, self.loss, self.lowered = teacher, divergence, loss, lowered

    @override
    def scores(self, outputs: Any, batch: Batch, head: Head, index: Tensor) -> tuple[Tensor, Tensor]:
        logits, labels = head.decisions(outputs, batch)  # shape: [n, decisions, classes], [n, decisions]
        with torch.no_grad():
            teacher_logits, _ = head.decisions(head.run(self.teacher, batch, logits=True), batch)
            teacher_logits = at_least_float32(teacher_logits)
            labels = labels.to(teacher_logits.device)
            labelled = labels != IGNORED
            if self.lowered:
                classes = labels.where(labelled, 0)[..., None]
                change = torch.full_like(classes, -self.lowered, dtype=teacher_logits.dtype)
                teacher_logits = teacher_logits.scatter_add(-1, classes, change)
            teacher_log_probs = teacher_logits.log_softmax(-1)
        scores = self.divergence * labelled_mean(divergences(teacher_log_probs, logits) * labelled, labels)
        if self.loss:
            losses = head.losses(outputs, batch)
            scores = scores + self.loss * losses
        else:
            losses = token_losses(logits.detach(), labels)
        return scores, losses.detach()


class KL(Method):
    """Descend `-L_f` and `KL(ref || model)` on the retain samples (Maini et al. 2024, TOFU, arXiv 2401.06121).

    The paper (KL minimization) has equal weights; here the retain weight is 0.9. The divergence is the mean over
    a sample's decisions: of a language model, its label tokens. It keeps the original's predictions on retain samples,
    right or wrong. The ascent never ends, so training stops at the target.
    """

    name = "kl"
    learning_rate = 3e-5
    default_retain_weight = 0.9
    title = "KL minimization"
    paper = "Maini et al. 2024, arXiv 2401.06121"
    bibtex = bibliography.MAINI_2024
    head_kinds = DECISION_HEADS
    needs_original_model = True

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """Minus the forget loss; the target only says when to stop."""
        return Ascent()

    @override
    def retain_objective(self) -> Objective:
        """The divergence from the original."""
        return Distillation(self.original_model)


class BadTeacher(Method):
    """Descend `KL(q || model)` on forget samples, `KL(ref || model)` on retain samples (Chundawat et al. 2023).

    arXiv 2205.08096. q: an incompetent teacher, a model of the same class and configuration with random weights (drawn
    from the seed); temperature 1; the weights are equal. A second model is in memory for it, a plain one also where
    the trained model is an adapter on a frozen base. Random weights need not err as unseen data does, so training
    stops at the target.
    """

    name = "bad_teacher"
    learning_rate = 1e-4
    title = "bad teacher"
    paper = "Chundawat et al. 2023, arXiv 2205.08096"
    bibtex = bibliography.CHUNDAWAT_2023
    head_kinds = DECISION_HEADS
    needs_original_model = True

    @classmethod
    @override
    def check_weights(cls, *, adapter: bool, sharded: bool) -> None:
        """Sharded weights are refused with an adapter, too."""
        if sharded:
            raise ValueError(
                f"method: {cls.name} needs a second, untrained model, which is not supported beside weights spread "
                "over processes (FSDP, DeepSpeed); use DDP"
            )

    @override
    def on_init_end(self, model: PreTrainedModel | PeftModel, added_adapter: bool) -> None:
        """Keep the original, and make the incompetent teacher."""
        super().on_init_end(model, added_adapter)
        self.incompetent = untrained(model, self.settings.seed)

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The divergence from the incompetent teacher; the target only says when to stop."""
        return Distillation(self.incompetent)

    @override
    def retain_objective(self) -> Objective:
        """The divergence from the original."""
        return Distillation(self.original_model)


@dataclass(frozen=True)
class ScrubHyperparameters:
    """Of `Scrub`."""

    alpha: float = hyperparameter(0.001, "alpha, weight of the divergence on retain samples", at_least=0)
    gamma: float = hyperparameter(0.99, "gamma, weight of the retain loss", at_least=0)
    max_step_share: float = hyperparameter(
        2 / 3, "share of the run after which min steps alone follow (the paper's number of max steps)",
        at_least=0, at_most=1,
    )  # fmt: skip


class Scrub(Method):
    """By turns `max KL(ref || model)` on forget samples, `min alpha KL(ref || model) + gamma L_r` on retain samples.

    Kurmanji et al. 2023, arXiv 2302.09880, alg. 1; alpha 0.001, gamma 0.99 as in their code. Three differences:

    - The turns are single steps, where the paper has passes over the datasets. The first is a min step, as at the
      original itself the divergence has no gradient: the paper's first moves only by what dropout and BatchNorm do.
    - Max steps end after two thirds of the run, as in the paper min steps alone follow at the end.
    - The paper's rewind (SCRUB+R) takes the checkpoint whose forget error is nearest to that of unseen samples. It
      is replaced by stopping at the target, which is checked every few steps.

    `retain_weight` has no effect.
    """

    name = "scrub"
    learning_rate = 3e-5
    title = "SCRUB"
    paper = "Kurmanji et al. 2023, arXiv 2302.09880"
    bibtex = bibliography.KURMANJI_2023
    head_kinds = DECISION_HEADS
    needs_original_model = True
    hyperparameters = ScrubHyperparameters
    hp: ScrubHyperparameters

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """Minus the divergence from the original; the target only says when to stop."""
        return Distillation(self.original_model, divergence=-1.0)

    @override
    def retain_objective(self) -> Objective:
        """The divergence from the original, and the loss."""
        return Distillation(self.original_model, divergence=self.hp.alpha, loss=self.hp.gamma)

    @override
    def retain_weight(self, progress: float, step: int = 0) -> float:
        """0 at a max step, 1 at a min step."""
        return float(step % 2 == 0 or progress >= self.hp.max_step_share)


@dataclass(frozen=True)
class UndialHyperparameters:
    """Of `Undial`."""

    beta: float = hyperparameter(10.0, "beta, how far the logit of the label token is lowered", above=0)


class Undial(SequenceMethod):
    """Descend `KL(q || model)` on forget samples, and `L_r` (Dong et al. 2024, arXiv 2402.10052), beta 10.

    q: the original's prediction with the logit of the label token lowered by beta, so that the original's next best
    answers are learned: self-distillation with adjusted logits. The paper writes the cross-entropy to q, whose
    gradient is the same, and uses no retain samples (`retain_weight=0`). The loss has a minimum, but where it lies
    depends on beta, not on the target: training stops at the target.
    """

    name = "undial"
    title = "UNDIAL"
    paper = "Dong et al. 2024, arXiv 2402.10052"
    bibtex = bibliography.DONG_2024
    needs_original_model = True
    hyperparameters = UndialHyperparameters
    hp: UndialHyperparameters

    @override
    def objective(self, target: ForgetTarget, original: Tensor | None) -> Objective:
        """The divergence from the original's adjusted prediction; the target only says when to stop."""
        return Distillation(self.original_model, lowered=self.hp.beta)


@dataclass(frozen=True)
class UNDOHyperparameters:
    """Of `UNDO`."""

    alpha: float = hyperparameter(0.3, "alpha, share of the weights that noise replaces", at_least=0, at_most=1)
    beta: float = hyperparameter(0.1, "beta, size of the noise", at_least=0)


class UNDO(Finetune):
    """Set `w` to `(1 - alpha) w + alpha beta N`, and descend `KL(ref || model)` on retain samples (Lee et al. 2025).

    Unlearn, noise, distill on outputs: arXiv 2506.06278. N: noise as of a fresh initialisation (Xavier) for weights of
    two and more dimensions, drawn with the run's seed, 0 for others. beta 0.1; alpha 0.3, of the paper's 0.2 to 0.8: a
    run of default length brings retain samples of small models back from that, not from 0.6, which takes several
    times as many passes (`num_train_epochs`).

    ref: the model that the run begins with. This is the second and third of the paper's steps. The first, unlearning,
    is a run of another method before: `undo` takes the model that came of that as its original. Given a model that
    has forgotten nothing, it distils what that model says of retain samples.
    """

    name = "undo"
    title = "UNDO"
    paper = "Lee et al. 2025, arXiv 2506.06278"
    bibtex = bibliography.LEE_2025
    head_kinds = DECISION_HEADS
    needs_original_model = True
    needs_full_weights = True
    resets_weights = True
    hyperparameters = UNDOHyperparameters
    hp: UNDOHyperparameters

    @override
    @torch.no_grad()
    def on_train_begin(self, calibration: CalibrationPass) -> None:
        """Shrink the weights, and add noise."""
        with unchanged_randomness():
            set_seed(self.settings.seed)
            for p in calibration.gradients.parameters.values():
                noise = nn.init.xavier_uniform_(torch.empty(p.shape)) if p.dim() > 1 else torch.zeros(p.shape)
                p.lerp_(self.hp.beta * noise.to(p), self.hp.alpha)

    @override
    def retain_objective(self) -> Objective:
        """The divergence from the model that the run began with."""
        return Distillation(self.original_model)
