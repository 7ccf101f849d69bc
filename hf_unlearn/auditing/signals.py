"""What a model says about every row of a dataset, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_unlearn.collate import Collator
from hf_unlearn.losses import Head, label_problem


@dataclass(frozen=True)
class Signals:
    """Per-row signals of one set, in the order of the set, on the CPU.

    Attributes:
        losses: [n] float32 or better.
        correct: [n] in [0, 1], share of right predictions; NaN where the head has none.
        labels: [n] class labels, single-label heads only.
        log_probs: [n, classes], single-label heads only.
    """

    losses: torch.Tensor
    correct: torch.Tensor
    labels: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None

    def __len__(self) -> int:
        """Rows."""
        return len(self.losses)

    def scores(self) -> dict[str, torch.Tensor]:
        """Scores [n] that are higher where a row is remembered better, by the name of the signal.

        `loss`: minus the loss. Single-label heads also: `confidence`, the probability of the label; `margin`, its
        logarithm minus that of the likeliest other class; `entropy`, minus the entropy of the prediction, which needs
        no label.
        """
        found = {"loss": -self.losses.double()}
        if self.log_probs is not None and self.labels is not None:
            log_probs = self.log_probs.double()
            own = log_probs.gather(1, self.labels[:, None]).squeeze(1)
            others = log_probs.scatter(1, self.labels[:, None], -torch.inf).max(1).values
            found["confidence"], found["margin"] = own.exp(), own - others
            found["entropy"] = torch.special.xlogy(log_probs.exp(), log_probs.exp()).sum(1)
        return found

    def select(self, mask: torch.Tensor) -> Signals:
        """The rows where `mask` [n] is true."""
        kept = {name: None if value is None else value[mask] for name, value in vars(self).items()}
        return Signals(**kept)  # type: ignore[arg-type]


@torch.no_grad()
def collect(
    model: Any,
    dataset: Any,
    *,
    head: Head,
    collator: Collator,
    accelerator: Accelerator,
    batch_size: int,
    description: str = "Measuring",
) -> Signals:
    """One pass over `dataset` in eval mode, spread over the processes; every process gets every row's signals.

    Args:
        model: the model; it is in eval mode afterwards.
        dataset: map-style dataset of rows that `collator` takes.
        head: scores the rows.
        collator: rows to batch.
        accelerator: places and gathers.
        batch_size: rows a process in a batch.
        description: text of the progress bar, shown when the pass takes more than a second.

    Raises:
        ValueError: a label is missing or out of range.
    """
    loader = accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=collator))
    parts: list[tuple[torch.Tensor, ...]] = []
    model.eval()
    quiet = not accelerator.is_main_process
    for batch in tqdm(loader, desc=description, delay=1.0, leave=False, disable=quiet):
        if problem := label_problem(head, batch):
            raise ValueError(problem)
        outputs = model(**head.inputs(batch))
        part = [head.losses(outputs, batch), head.correct(outputs, batch)]
        if head.kind_for(batch) == "single_label":
            part += [batch["labels"].flatten(), outputs["logits"].float().log_softmax(-1)]
        parts.append(tuple(t.cpu() for t in accelerator.gather_for_metrics(tuple(part))))
    return Signals(*(torch.cat(column) for column in zip(*parts, strict=True)))
