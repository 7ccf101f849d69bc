"""Per-sample statistics of a model on a dataset, collected in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_unlearn.auditing.sample_scores import sample_scores
from hf_unlearn.data.collator import Collator
from hf_unlearn.data.columns import is_transformed
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.losses import Head, label_problem
from hf_unlearn.losses.head import LANGUAGE_KINDS, Batch

# Samples that are measured together where nobody says how many; bytes of their logits; samples that these are seen by.
MEASURED_TOGETHER, LOGITS_BYTES, PROBED = 64, 2**28, 4


@dataclass(frozen=True)
class SampleStatistics:
    """Per-sample statistics of a model on one dataset, in the order of the dataset, on the CPU.

    Attributes:
        losses: [n] float32 or better; infinity where a sample cannot have its labels, see
            `hf_unlearn.losses.Head.is_possible`.
        correct: [n] in [0, 1], share of right predictions; NaN where the head has none.
        labels: [n] class labels, single-label heads only.
        scores: name to [n], when requested: `loss`, minus the loss, and those of
            `hf_unlearn.auditing.sample_scores.sample_scores`.
        log_probs: [n, classes], when requested, single-label heads only.
        label_logits: [n, labels], when requested, multi-label heads only.
        token_loss_profiles: [n, 8], heads that score a sample on several tokens only; see
            `hf_unlearn.losses.Head.token_loss_profiles`.
        word_errors: [n, 2], word errors and labelled words, of recognisers that were asked to transcribe; NaN for
            samples that were not.
        extraction: metric to [n] in [0, 1], of models that were asked for their answers; NaN for samples that were
            not. See `hf_unlearn.auditing.extraction`.
    """

    losses: Tensor
    correct: Tensor
    labels: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    log_probs: Tensor | None = None
    token_loss_profiles: Tensor | None = None
    word_errors: Tensor | None = None
    extraction: Mapping[str, Tensor] | None = None
    label_logits: Tensor | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.losses)

    def select(self, mask: Tensor) -> SampleStatistics:
        """The samples where `mask` [n] is true."""
        return SampleStatistics(
            self.losses[mask],
            self.correct[mask],
            None if self.labels is None else self.labels[mask],
            {name: values[mask] for name, values in self.scores.items()},
            None if self.log_probs is None else self.log_probs[mask],
            None if self.token_loss_profiles is None else self.token_loss_profiles[mask],
            None if self.word_errors is None else self.word_errors[mask],
            None if self.extraction is None else {name: values[mask] for name, values in self.extraction.items()},
            None if self.label_logits is None else self.label_logits[mask],
        )


def spread(values: Tensor, numbers: Sequence[int], size: int) -> Tensor:
    """The values [k] or [k, m] of the samples with these numbers among `size` of them, float32; NaN for the others.

    Examples:
        >>> spread(torch.tensor([0.5, 2.0]), [2, 0], 3)
        tensor([2.0000,    nan, 0.5000])
    """
    among_all = torch.full((size, *values.shape[1:]), torch.nan)
    among_all[torch.as_tensor(numbers, dtype=torch.long)] = values.float()
    return among_all


@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    dataset: AnyDataset,
    *,
    head: Head,
    collator: Collator,
    accelerator: Accelerator,
    batch_size: int | None,
    description: str = "Measuring",
    scores: bool = False,
    log_probs: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> SampleStatistics:
    """One pass of the model over `dataset`, spread over the processes; every process gets all statistics.

    Args:
        model: the model; it is in eval mode afterwards.
        dataset: map-style dataset of samples that `collator` takes.
        head: scores the samples.
        collator: samples to batch.
        accelerator: places the batches, and gathers the statistics.
        batch_size: samples a batch and process; None: see `measuring_batch_size`.
        description: text of the progress bar, shown when the pass takes more than a second.
        scores: whether to compute the scores of membership attacks as well.
        tokenizer: for the scores of language models that need the text.
        log_probs: whether to keep the predictions of classifiers, which takes memory for the whole dataset.

    Raises:
        ValueError: a label is missing or out of range.
    """
    # Samples of a random transform have other lengths every time: one process decides.
    shared: list[Any] = [None, batch_size]
    if accelerator.is_main_process:
        shared[0] = _longest_first(dataset)
        if batch_size is None:
            shared[1] = _measuring_batch_size(head, dataset, shared[0], collator)
    broadcast_object_list(shared)
    order, batch_size = shared
    ordered: Subset = Subset(dataset, order)  # type: ignore[arg-type]
    loader = accelerator.prepare(DataLoader(ordered, batch_size=batch_size, collate_fn=collator))
    parts: list[dict[str, Tensor]] = []
    model.eval()
    quiet = not accelerator.is_main_process
    for batch in tqdm(loader, desc=description, delay=1.0, leave=False, disable=quiet):
        if problem := label_problem(head, batch):
            raise ValueError(problem)
        outputs = head.run(model, batch, logits=scores)
        part = _batch_statistics(head, outputs, batch, log_probs)
        if scores:
            scores_by_name = {"loss": -part["losses"], **sample_scores(head, outputs, batch, tokenizer)}
            part |= {f"score {name}": values for name, values in scores_by_name.items()}
        parts.append({name: t.cpu() for name, t in accelerator.gather_for_metrics(part).items()})
    positions = torch.tensor(order).argsort()
    columns: dict[str, Any] = {name: torch.cat([part[name] for part in parts])[positions] for name in parts[0]}
    score_names = [name for name in columns if name.startswith("score ")]
    score_columns = {name.removeprefix("score "): columns.pop(name) for name in score_names}
    return SampleStatistics(**columns, scores=score_columns)


def measuring_batch_size(head: Head, batch: Batch) -> int:
    """How many samples of a language model are measured together: as many as have logits of 256 MiB, 64 at most.

    Args:
        head: of a language model.
        batch: some samples of the dataset, its longest ones, where it is known which these are.

    Examples:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from hf_unlearn.losses import head_of
        >>> config = LlamaConfig(
        ...     vocab_size=32_768, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        ... )
        >>> head = head_of(LlamaForCausalLM(config))
        >>> [measuring_batch_size(head, {"labels": torch.ones(1, tokens)}) for tokens in (3, 257, 9000)]
        [64, 8, 1]
    """
    positions = int(head.label_counts(batch).max())
    vocabulary = head.model.config.get_text_config(decoder=True).vocab_size
    return max(1, min(MEASURED_TOGETHER, LOGITS_BYTES // (4 * max(1, positions) * vocabulary)))


def _measuring_batch_size(head: Head, dataset: AnyDataset, order: list[int], collator: Collator) -> int:
    if head.kind not in LANGUAGE_KINDS:
        return MEASURED_TOGETHER
    batch = collator([dataset[i] for i in order[:PROBED]])
    return measuring_batch_size(head, batch) if "labels" in batch else MEASURED_TOGETHER  # refused when it is measured


def _batch_statistics(head: Head, outputs: Any, batch: Batch, log_probs: bool) -> dict[str, Tensor]:
    # A loss over a large vocabulary should not be computed twice.
    profiles = head.token_loss_profiles(outputs, batch)
    losses = head.losses(outputs, batch) if profiles is None else profiles.mean(dim=1)
    losses = losses.masked_fill(~head.is_possible(batch), torch.inf)  # 0 would be perfectly remembered
    statistics = {"losses": losses, "correct": head.correct(outputs, batch)}
    if profiles is not None:
        statistics["token_loss_profiles"] = profiles
    kind = head.kind_for(batch)
    if kind == "multi_label" and log_probs:
        statistics["label_logits"] = outputs["logits"].float()
    if kind == "single_label":
        statistics["labels"] = batch["labels"].flatten()
        if log_probs:
            statistics["log_probs"] = outputs["logits"].float().log_softmax(-1)
    return statistics


def _longest_first(dataset: AnyDataset) -> list[int]:
    """The indices of the samples, those with most tokens first: samples of one length in a batch need no padding."""
    lengths: list[int] = []
    if isinstance(dataset, datasets.Dataset):
        # With a transform, the stored tokens are not those that the model gets.
        if "input_ids" in dataset.column_names and not is_transformed(dataset):
            lengths = [len(ids) for ids in dataset.with_format(None).select_columns("input_ids")["input_ids"]]
    elif isinstance(dataset[0], Mapping) and "input_ids" in dataset[0]:
        lengths = [len(dataset[i]["input_ids"]) for i in range(len(dataset))]
    return sorted(range(len(dataset)), key=lambda i: -lengths[i] if lengths else 0)
