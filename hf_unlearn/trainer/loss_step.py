"""One optimizer step: its losses, as functions of all its samples, however they are split into batches.

An optimizer step has several accumulated batches on several processes. The hinge of ∇τ, the ranks of its quantiles and
the span of OrthoGrad's basis are functions of all samples of the step; a step object makes them so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from hf_unlearn.auditing.budget import PASSES_WITH_GRADIENT
from hf_unlearn.losses import Head
from hf_unlearn.methods import Method
from hf_unlearn.models.sharding import local_part, spread_again
from hf_unlearn.per_sample.loop import batch_size
from hf_unlearn.targets import DistributionTarget, Objective
from hf_unlearn.trainer.cost import CostCounter
from hf_unlearn.trainer.memory import Footprint, MemoryPrediction, footprint, predict
from hf_unlearn.trainer.pace import MIN_WINDOW, Observation

Batch = Mapping[str, Any]
NO_INDEX = torch.empty(0, dtype=torch.long)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copy_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of what this process has of the parameters that train, by name, in the memory of the CPU."""
    spread_again(model)
    return {name: local_part(p.detach()).to("cpu", copy=True) for name, p in trainable_parameters(model).items()}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set parameters to copies of them, by name."""
    spread_again(model)
    named = dict(model.named_parameters())
    for name, weight in weights.items():
        local_part(named[name]).copy_(weight)


def others_by_now(latest: Tensor, ages: Tensor, scores: Tensor, numbers: Tensor) -> Tensor:
    """What the scores of forget samples that are not in a step are by now, as far as they are known.

    While scores move fast, those of a step are above all that were scored before; ranked among these as they were,
    they would be matched to the highest losses of the target, and sent far beyond it. So the others move on by what
    the samples of the step have moved a step since they were scored.

    Args:
        latest: the scores of all forget samples when they were last in a step, [samples] or [samples, m]; NaN where
            they are not known.
        ages: the steps done since then [samples]; -1 for those that were scored before the first step.
        scores: of the samples of the step, [n] or [n, m].
        numbers: of these samples in the forget dataset [n].

    Examples:
        >>> latest, ages = torch.tensor([0.0, 0.0, 0.5]), torch.tensor([3.0, 1.0, 0.0])  # one, two and four steps ago
        >>> others_by_now(latest, ages, torch.tensor([4.0]), torch.tensor([0]))
        tensor([2.0000, 1.5000])
    """
    is_known = ~latest.view(len(latest), -1).isnan().any(1)
    known = is_known[numbers]
    moved = (scores.to(latest) - latest[numbers])[known]
    pace = moved.sum(0) / (ages[numbers][known] + 1).sum().clamp_min(1) if len(moved) else torch.zeros_like(latest[0])
    is_known[numbers] = False
    steps = (ages[is_known] + 1).clamp_max(MIN_WINDOW)  # what moved for a while has come to rest since
    return latest[is_known] + steps.view(-1, *[1] * pace.ndim) * pace


class LossStep:
    """The optimizer steps of a method that descends a loss.

    `Trainer` calls, for every step: `prepare_step` with all batches of the step; `loss` for each of them, which it
    descends; `on_pre_optimizer_step` and `on_optimizer_step` on either side of the optimizer's step.

    Args:
        method: says how forget and retain samples are weighed.
        head: scores samples.
        accelerator: gathers over processes.
        objective: what is descended on the forget dataset; replaced when the target is measured again.
        cost: counts the samples that go through the model.

    Attributes:
        retain_losses: of the retain samples of the step so far, on this process, a tensor a batch.
        forget_samples: of the forget samples of the step so far, likewise: their scores, losses and numbers.
        latest_scores: of all forget samples, [samples] or [samples, m], those that a target matches to its losses;
            NaN where they are not known.
        score_ages: of all forget samples [samples], the steps done since they were scored.
    """

    def __init__(
        self,
        method: Method,
        head: Head,
        accelerator: Accelerator,
        objective: Objective,
        cost: CostCounter | None = None,
    ):
        self.method, self.head, self.accelerator = method, head, accelerator
        self.cost = CostCounter() if cost is None else cost
        self.objective, self.retain_objective = objective, method.retain_objective()
        self.num_batches = 1
        self.retain_losses: list[Tensor] = []
        self.forget_samples: list[tuple[Tensor, Tensor, Tensor]] = []
        self.latest_scores, self.score_ages = torch.empty(0), torch.empty(0)
        self._weights: list[Tensor] = []
        self._value = torch.zeros(())
        self._log: dict[str, list[Any]] = {}

    @torch.no_grad()
    def prepare_step(self, model: nn.Module, batches: Sequence[Batch], retain_weight: float) -> None:
        """Before the first batch of a step: when the objective is no plain mean, score all forget samples of the step.

        This is one forward pass more over the forget samples, and only under gradient accumulation: with one batch a
        step the scores are those of the batch.
        """
        self.num_batches = len(batches)
        self.retain_losses, self.forget_samples = [], []
        if retain_weight < 1:
            self._weigh_step(model, batches)

    @torch.no_grad()
    def _weigh_step(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        """The weights of the step's forget samples, where its batches do not have them by themselves."""
        self._weights = []
        if self.num_batches > 1 and self.objective.whole_step:
            scores = [self._scores(self.objective, model, b["forget"], b["index"])[0] for b in batches]
            self._weigh(scores, [b["index"] for b in batches])

    def loss(self, model: nn.Module, inputs: Batch, retain_weight: float, is_last: bool) -> Tensor:
        """The loss of one batch, such that the mean over batches and processes is the loss of the step.

        Args:
            model: runs the batch; wrapped.
            inputs: a batch of pairs: `"forget"`, `"retain"`, `"index"`.
            retain_weight: in [0, 1].
            is_last: whether it is the last batch of the step.

        Returns:
            The loss. On a single process the gradient of the forget samples is in `p.grad` by then, and what is
            returned has that of the retain samples alone.
        """
        total = torch.zeros((), device=self.accelerator.device)
        if retain_weight < 1:
            share = self.forget_share(model, inputs["forget"], inputs["index"])
            total = total + (1 - retain_weight) * share * self.num_batches * self.accelerator.num_processes
            if retain_weight > 0 and self._halves_graph:
                # The activations of the forget samples are freed before those of the retain samples are made.
                self.accelerator.backward(total / self.num_batches)
                total = total.detach()
        if retain_weight > 0:
            scores, losses = self._scores(self.retain_objective, model, inputs["retain"], NO_INDEX)
            self.retain_losses.append(losses.detach())
            self.record(retain_loss=losses.mean())
            total = total + retain_weight * self.retain_objective.combine(scores)
        self.record(retain_weight=retain_weight)
        return total

    @property
    def _halves_graph(self) -> bool:
        """Whether the forget samples may have a backward pass of their own: not where processes or LOMO count them."""
        accelerator = self.accelerator
        is_alone = accelerator.distributed_type == DistributedType.NO and not accelerator.has_lomo_optimizer
        return is_alone and torch.is_grad_enabled()

    def forget_share(self, model: nn.Module, batch: Batch, index: Tensor) -> Tensor:
        """One batch's share of the step's forgetting objective: shares add up over batches and processes.

        The value adds up to the objective, and the gradient to its gradient: a whole-step objective F(s_1, ..., s_n)
        has the gradient `sum_i dF/ds_i ds_i`, so its share is the sum over the batch's samples with fixed weights
        dF/ds_i.
        """
        scores, losses = self._scores(self.objective, model, batch, index)
        self.forget_samples.append((scores.detach(), losses, index.to(scores.device)))
        self.record(forget_loss=losses.mean())
        return self._share(scores, index)

    def _share(self, scores: Tensor, index: Tensor) -> Tensor:
        """The share of the forgetting objective that a batch's scores have."""
        num_shares = self.num_batches * self.accelerator.num_processes
        if not self.objective.whole_step:
            return self.objective.combine(scores) / num_shares
        if not self._weights:
            self._weigh([scores.detach()], [index])
        share = (self._weights.pop(0) * scores).sum()
        return share + (self._value / num_shares - share).detach()

    def planned_passes(self, retain_weights: Iterable[float], forget: int, retain: int, batches: int) -> float:
        """The sample passes of steps that are still to come, over all processes; see `CostCounter`.

        Args:
            retain_weights: one a step.
            forget: forget samples of a step.
            retain: retain samples of a step.
            batches: batches of a step on a process.
        """
        scored_before = batches > 1 and self.objective.whole_step
        of_forget = forget * (PASSES_WITH_GRADIENT + self.objective.teacher_passes + scored_before)
        of_retain = retain * (PASSES_WITH_GRADIENT + self.retain_objective.teacher_passes)
        return sum((weight < 1) * of_forget + (weight > 0) * of_retain for weight in retain_weights)

    def observation(self) -> Observation:
        """The losses of the step over all its batches and processes, on the CPU; all processes have to call it."""
        parts = list(zip(*self.forget_samples, strict=True))  # empty where only retain samples count
        scores, losses, numbers = (self._gathered(part) for part in parts) if parts else (torch.empty(0),) * 3
        return Observation(scores, losses, numbers, self._gathered(self.retain_losses))

    def remember(self, observation: Observation) -> None:
        """Keep the scores of the step's forget samples, for the ranks of others."""
        self.score_ages += 1
        if isinstance(self.objective, DistributionTarget) and len(observation.scores):
            scores, numbers = self.objective.matched(observation.scores), observation.numbers.long()
            self.latest_scores[numbers] = scores.to(self.latest_scores)
            self.score_ages[numbers] = 0

    def _gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        return self.accelerator.gather(torch.cat(list(tensors))).cpu() if tensors else torch.empty(0)

    def on_pre_optimizer_step(self, is_logged: bool) -> None:
        """Before the optimizer's step; `is_logged`: whether the log is written after it."""

    def on_optimizer_step(self) -> None:
        """After the optimizer's step."""

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied with before their gradients are taken: the loss scaler's factor in float16."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def record(self, **values: Any) -> None:
        """Keep metrics for the log; those of several batches and steps are averaged."""
        for name, value in values.items():
            self._log.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)

    def pop_log(self) -> dict[str, float]:
        """The metrics since the last call, averaged, over processes too."""
        names = list(self._log)
        means = torch.tensor(
            [float(torch.stack([torch.as_tensor(v).float().cpu() for v in self._log[n]]).mean()) for n in names],
            device=self.accelerator.device,
        )
        self._log = {}
        means = self.accelerator.gather(means).view(-1, len(names)).mean(0) if names else means
        return dict(zip(names, means.tolist(), strict=True))

    def predict_memory(self, model: Any, inputs: Batch, optimizer: Any, copies: int) -> MemoryPrediction:
        """The peak memory of the step of which `inputs` is a batch; see `hf_unlearn.trainer.memory.predict`."""
        forget = self._footprint(self.objective, model, inputs["forget"], inputs["index"])
        retain = self._footprint(self.retain_objective, model, inputs["retain"], NO_INDEX)
        return predict(model, optimizer, forget, retain, copies=copies)

    def _footprint(
        self, objective: Objective, model: nn.Module, batch: Batch, index: Tensor, samples: int | None = None
    ) -> Footprint:
        def run(part: Batch) -> tuple[Any, Tensor]:
            outputs = self._run(objective, model, part)
            if len(index) not in (0, batch_size(batch)):  # other answers follow the forget samples
                return outputs, self.head.losses(outputs, part)
            return outputs, objective.scores(outputs, part, self.head, index[: batch_size(part)])[0]

        return footprint(model, run, batch, batch_size(batch) if samples is None else samples)

    def _run(self, objective: Objective, model: nn.Module, batch: Batch) -> Any:
        extra = {"output_hidden_states": True} if objective.hidden_states else {}
        return self.head.run(model, batch, logits=objective.logits, **extra)

    def _scores(self, objective: Objective, model: nn.Module, batch: Batch, index: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._run(objective, model, batch)
        scores, losses = objective.scores(outputs, batch, self.head, index)
        self.cost.add("steps", batch_size(batch), gradient=torch.is_grad_enabled())
        self.cost.add("steps", batch_size(batch) * objective.teacher_passes)
        return scores, losses

    @torch.enable_grad()
    def _weigh(self, scores: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
        """dF/ds_i of every forget sample of the step, from the detached scores of this process's batches."""
        local = torch.cat(list(scores))
        gathered = self.accelerator.gather(local).requires_grad_()
        if isinstance(self.objective, DistributionTarget):
            matched = self.objective.matched(gathered.detach()).cpu()
            numbers_of_step = self._gathered(numbers).long()
            others = others_by_now(self.latest_scores, self.score_ages, matched, numbers_of_step)
            value = self.objective.combine(gathered, others)
        else:
            value = self.objective.combine(gathered)
        (gradient,) = torch.autograd.grad(value, gathered)
        local_gradient = gradient.view(self.accelerator.num_processes, *local.shape)[self.accelerator.process_index]
        self._value, self._weights = value.detach(), list(local_gradient.split([len(s) for s in scores]))
