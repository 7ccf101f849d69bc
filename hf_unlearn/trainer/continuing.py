"""A further request on a model that has already forgotten: the same trainer again, without the data before."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from typing_extensions import Self

from hf_unlearn.data.types import AnyDataset
from hf_unlearn.hub.chain import records_of
from hf_unlearn.hub.release import write_claims, write_release_files
from hf_unlearn.models.types import Model
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.beginning import BeginningMixin
from hf_unlearn.trainer.hub import Release


class ForgottenRequest(NamedTuple):
    """One of several requests that a run has forgotten together.

    Attributes:
        forget_ds: its samples.
        folder: of its audit and record.
        id: the data controller's identifier of the request, published unchanged.
    """

    forget_ds: AnyDataset
    folder: Path
    id: str


class ContinuingMixin(BeginningMixin):
    """A `Trainer` that is followed by another one, for the next request."""

    _given: dict[str, Any]  # what a further request is trained with: the user's arguments, without data to forget

    def continue_with(
        self,
        forget_ds: AnyDataset,
        retain_ds: AnyDataset,
        args: UnlearningArguments | None = None,
        *,
        unseen_ds: AnyDataset | None = None,
        alternative_ds: AnyDataset | None = None,
    ) -> Self:
        """A trainer for a further request, on the model as this run has left it; `train()` it as this one.

        Nothing is kept of the samples that were forgotten before but their hashes, in the records that the new
        record carries with it. Target, learning rate and end of the run are found anew. An adapter that this trainer
        has added is merged first: the original model of the new run has forgotten the earlier samples. One that came
        with the model trains on. Train this trainer no further, the new one has its model.

            trainer = trainer.continue_with(forget_ds, retain_ds)
            trainer.train()

        Args:
            forget_ds: the samples to forget now.
            retain_ds: the samples to keep, without those that were forgotten before.
            args: default: those that this trainer was given; where they name an `output_dir`, the second request has
                `output_dir-2`, and so on.
            unseen_ds: default: that of this trainer.
            alternative_ds: for `idk_dpo`, of the new forget samples.

        Raises:
            ValueError: a sample was forgotten before, an argument is not valid, or the weights are spread over
                processes; one line.
            RuntimeError: before `train()`.
        """
        if self.outcome is None:
            raise RuntimeError("continue_with: no run has ended; call train() first")
        if self._is_sharded:
            raise ValueError(
                "continue_with: the weights are spread over processes; save_release() them, and give a new trainer "
                "the folder and, as after=, its record"
            )
        given = dict(self._given)
        if any(part is not None for part in given["optimizers"]):
            raise ValueError("optimizers: are those of the last run; give optimizer_cls_and_kwargs, or a new trainer")
        if unseen_ds is not None:
            given["unseen_ds"] = unseen_ds
        model: Model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if isinstance(model, PeftModel) and self.added_adapter:
            model = self._merged(model)
        record = self._record_of(model)
        given["args"] = args or _numbered(given["args"], len(records_of(record)) + 1)
        further = type(self)(
            model=model, forget_ds=forget_ds, retain_ds=retain_ds, alternative_ds=alternative_ds, after=record, **given
        )
        if args is None:
            further._given["args"] = self._given["args"]  # with the first folder's name
        return further

    def save_requests(self, requests: Sequence[ForgottenRequest]) -> list[Mapping[str, Any]]:
        """Save the model, and an audit and a record for each of some requests that this run has forgotten together.

        The weights go to the folder of the last request, which is a release as of `save_release`; the records follow
        each other, and all have the weights before and after this run. On one process.

        Args:
            requests: whose samples are, together, the forget dataset.

        Returns:
            The records, as they were written.
        """
        folder, whole, after = requests[-1].folder, self.forget_ds, self.after
        self.save_model(str(folder), _internal_call=True)
        weights, written = self._saved_weights(folder), []
        try:
            for request in requests:
                self.forget_ds, self.audit_report = request.forget_ds, None
                release = Release(report=self._published_report(None), request_id=request.id)
                facts = self._card_facts(release)
                if len(requests) > 1:
                    facts = replace(facts, settings={**facts.settings, "requests_together": len(requests)})
                record = self._record(weights, release, facts, after)
                if request.folder == folder:
                    after = write_release_files(folder, facts, record, self._saved_names)
                else:
                    request.folder.mkdir(parents=True, exist_ok=True)
                    after = write_claims(request.folder, release.report, record)
                assert after is not None
                written.append(after)
        finally:
            self.forget_ds = whole
        self._latest_record = after
        return written


def _numbered(args: UnlearningArguments, number: int) -> UnlearningArguments:
    """The arguments with a folder of their own, by the number of the request; one that is not named is found later."""
    args = copy.copy(args)
    if not args.has_default_output_dir:
        args.output_dir = f"{args.output_dir}-{number}"
    return args
