"""What `UnlearningTrainer` pushes to the Hub, or leaves in a folder that can be pushed."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from huggingface_hub import CommitInfo, run_as_future
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from torch import Tensor, nn
from typing_extensions import TypedDict, Unpack, override

from hf_unlearn.auditing.audit import AuditOptions
from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.hashing import compared_columns, weights_hash
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.hub.errors import writing
from hf_unlearn.hub.model_card import CardFacts
from hf_unlearn.hub.record import adapter_state, make_record
from hf_unlearn.hub.release import anonymise_groups, write_release_files
from hf_unlearn.hub.upload import check_revision, create_repo, upload
from hf_unlearn.methods import METHODS
from hf_unlearn.models.types import Model
from hf_unlearn.per_sample.layers import plain_class
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.outcome import Outcome
from hf_unlearn.trainer.weights import WeightsMixin

logger = logging.getLogger(__name__)
# Keywords that Trainer.push_to_hub passes on to its card, under the names of huggingface_hub's card.
CARD_KEYWORDS = {
    "language": "language", "license": "license", "tags": "tags", "tasks": "pipeline_tag", "dataset_tags": "datasets",
    "model_name": "model_name", "finetuned_from": "finetuned_from",
}  # fmt: skip


class CardKeywords(TypedDict, total=False):
    """Keywords of the model card, as `Trainer.push_to_hub` has them."""

    language: str | list[str] | None
    license: str | None
    tags: str | list[str] | None
    tasks: str | list[str] | None
    dataset_tags: str | list[str] | None
    model_name: str | None
    finetuned_from: str | None


# Settings that are published, named one by one, so that no path and no token can get in.
PUBLISHED_SETTINGS = (
    "method", "forgetting_loss", "retain_weight", "projection", "projection_scope", "forget_target",
    "hinge", "stop_at_target", "training_passes", "learning_rate", "lr_scheduler_type", "optim", "weight_decay",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "max_steps", "seed", "bf16", "fp16",
)  # fmt: skip


@dataclass(frozen=True)
class Release:
    """What is published beside the weights: the user's own words, and the audit."""

    adapter_alone: bool = False
    report: AuditReport | None = None
    forget_request: str | None = None
    request_id: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)


class HubMixin(WeightsMixin):
    """A `Trainer` that pushes a model that has forgotten, what is known about that, and nothing else.

    Attributes:
        audit_report: the report of the last `audit`; None once the weights may have changed.
        outcome: how the last run ended; None before the first one has.
        after: the record of the request before, on whose model the run goes on; None where there was none.
    """

    after: Mapping[str, Any] | None
    hub_model_id: str | None  # type: ignore[assignment]  # `Trainer` names no type

    def __init__(self, **kwargs: Any):
        self.audit_report: AuditReport | None = None
        self.outcome: Outcome | None = None
        self._latest_record: Mapping[str, Any] | None = None  # of the weights as they are now
        super().__init__(**kwargs)

    @override
    def audit(self, unseen_ds: AnyDataset | None = None, **options: Unpack[AuditOptions]) -> AuditReport:
        """See `EvaluationMixin.audit`; the next push carries the report.

        On the trainer's own datasets the original model is compared with, from the copy of its weights.
        """
        if unseen_ds is None and self._unlearning_state is not None and not {"original", "seed"} & options.keys():
            options["original"] = self._original_statistics()
        report = super().audit(unseen_ds, **options)
        cost = {} if self._cost_sentence is None else {"cost": self._cost_sentence}
        self.audit_report = replace(report, about={**report.about, **cost})
        return self.audit_report

    @property
    def _cost_sentence(self) -> str | None:
        """What the last run has cost, in words; None before the first one has ended."""
        return None if self.outcome is None or self.outcome.cost is None else self.outcome.cost.sentence

    @override
    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; audits from before and during it no longer count, as the weights have moved."""
        self.outcome = self._latest_record = None
        try:
            return super().train(*args, **kwargs)
        finally:
            self.audit_report = None

    @override
    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository `args.hub_model_id`, private unless `private` or `args.hub_private_repo` is False."""
        if self.is_world_process_zero():
            self.hub_model_id = self._make_repo(self._repo_name, token, private, None)

    @override
    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str | None = None,
        commit_message: str = "End of unlearning",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        create_pr: bool = False,
        push_adapter: bool = False,
        audit: AuditReport | None = None,
        forget_request: str | None = None,
        request_id: str | None = None,
        **card: Unpack[CardKeywords],
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Push the merged model, its processor, a model card, the audit and the unlearning record, in one commit.

        Nothing else is uploaded: no checkpoint, optimizer state or training arguments, no original weights, no
        sample of any dataset. An adapter that you trained yourself on a clean base held the data: it is pushed as an
        adapter.
        Other weights, audits and records that the repository has at this revision are deleted by the same commit.

        The keywords are those of `Trainer.push_to_hub`; by position the name of the repository comes first, where
        `Trainer` has the message. All processes have to call it.

        Args:
            repo_id: `"owner/name"`; default: `args.hub_model_id`, else the name of `output_dir`.
            commit_message: first line of the commit.
            blocking: whether to wait; else a `Future` of the `CommitInfo` is returned once the files are written here.
            token: default: `args.hub_token`, else the one that is stored.
            revision: a branch, made where there is none; default: `args.hub_revision`, else main.
            private: of a new repository; default: `args.hub_private_repo`, else True.
            create_pr: whether to open a pull request instead of committing to the branch.
            push_adapter: push the adapter that the trainer added, and nothing but it and a card which says that the
                base model still holds the data. Refused together with a claim of forgetting.
            audit: a report on the model as it is now; default: that of the last `trainer.audit()` since `train()`,
                else one is made where there is an `unseen_ds`. Names of groups are numbered, labels stay.
            forget_request: the request in your own words, published in the card as given.
            request_id: your own number for the request, published in the record as given.
            **card: `language`, `license`, `tags`, `tasks`, `dataset_tags`, `model_name`, `finetuned_from`.

        Returns:
            The commit; None on all processes but the first.

        Raises:
            ValueError: an argument is not valid; one line.
            hf_unlearn.hub.errors.PushError: the files could not be written, or the Hub has not confirmed the commit.
        """
        _check_card_keywords("push_to_hub", card)
        check_revision(revision, create_pr)
        if push_adapter and not isinstance(self.model, PeftModel):
            raise ValueError("push_adapter: all weights were trained, there is no adapter; leave push_adapter out")
        adapter_alone = push_adapter and not self._trains_users_adapter
        if adapter_alone:
            _refuse_claims(audit=audit, forget_request=forget_request, request_id=request_id)
        report = None if adapter_alone else self._published_report(audit)
        release = Release(adapter_alone, report, forget_request, request_id, card)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        branch = None if create_pr else revision
        if self.is_world_process_zero():
            self.hub_model_id = self._make_repo(
                repo_id or self.hub_model_id or self._repo_name, token, private, branch
            )
        folder = self._write_release(release)
        if not self.is_world_process_zero():
            folder.cleanup()
            return None
        send = partial(
            upload, folder, str(self.hub_model_id), token=token, commit_message=commit_message, revision=branch,
            create_pr=create_pr,
        )  # fmt: skip
        return send() if blocking else run_as_future(send)

    def save_release(
        self,
        output_dir: str | None = None,
        *,
        audit: AuditReport | None = None,
        forget_request: str | None = None,
        request_id: str | None = None,
        **card: Unpack[CardKeywords],
    ) -> None:
        """Save the files that `push_to_hub` sends; `hf-unlearn push` sends them later. All processes have to call it.

        Args:
            output_dir: a folder; default: `args.output_dir`. Its checkpoints stay where they are.
            audit: as in `push_to_hub`, as are the others.
            forget_request: the request in your own words.
            request_id: your own number for the request.
            **card: as in `push_to_hub`.

        Raises:
            ValueError: an argument is not valid; one line.
        """
        _check_card_keywords("save_release", card)
        folder = output_dir or str(self.args.output_dir)
        self.save_model(folder, _internal_call=True)  # first: an audit that fails loses no run
        report = self._published_report(audit)
        if self.is_world_process_zero():
            self._complete(Path(folder), Release(False, report, forget_request, request_id, card))

    # ---- the files of a release ----

    def _write_release(self, release: Release) -> tempfile.TemporaryDirectory:
        folder = tempfile.TemporaryDirectory(prefix="hf_unlearn-")
        try:
            with writing(folder.name):
                if release.adapter_alone:
                    self.save_adapter(folder.name)
                else:
                    self.save_model(folder.name, _internal_call=True)
                if self.is_world_process_zero():
                    self._complete(Path(folder.name), release)
        except BaseException:
            folder.cleanup()
            raise
        return folder

    def _complete(self, folder: Path, release: Release) -> None:
        """Card, audit and record, beside the weights; and the processor, which an adapter is saved without."""
        facts = self._card_facts(release)
        record = None if release.adapter_alone else self._record(self._saved_weights(folder), release, facts)
        names = os.listdir(folder) if release.adapter_alone else self._saved_names
        written = write_release_files(folder, facts, record, names)
        self._latest_record = written or self._latest_record

    def _card_facts(self, release: Release) -> CardFacts:
        method = METHODS[self.args.method]
        # Of a stream only the head is here.
        retain_ds = self.retain_ds if self.retain_stream is None else None
        named = {"forget": self.forget_ds, "retain": retain_ds, "unseen": self.unseen_ds}
        metadata = {CARD_KEYWORDS[name]: value for name, value in release.card.items() if value is not None}
        name = metadata.pop("model_name", None) or (self.hub_model_id or self._repo_name).rpartition("/")[2]
        base, base_revision = self._hub_origin()
        return CardFacts(
            name=name, kind="adapter_alone" if release.adapter_alone else self._weights_kind,
            architecture=plain_class(self._inner_model).__name__, base=metadata.pop("finetuned_from", None) or base,
            base_revision=base_revision, method={"name": method.name, "title": method.title, "paper": method.paper},
            settings=settings_of(self.args, self.state.global_step, self.model, self._hyperparameters),
            request=self.request,
            counts={key: len(dataset) for key, dataset in named.items() if dataset is not None},
            forget_request=release.forget_request, report=release.report, cost=self._cost_sentence, metadata=metadata,
        )  # fmt: skip

    @property
    def _hyperparameters(self) -> Mapping[str, Any]:
        return {} if self._unlearning_state is None else self._unlearning_state.hyperparameters

    def _record(
        self,
        saved_weights: Mapping[str, Tensor],
        release: Release,
        facts: CardFacts,
        after: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The record of the forget dataset, which follows `after`: by default the one of the request before."""
        before = None if self._unlearning_state is None else self._unlearning_state.original_hash
        if self.after is not None:  # in another dtype the same weights have another hash
            before = self.after["weights"]["after"]
        return make_record(
            forget_ds=self.forget_ds, columns=compared_columns(self.forget_ds, columns_read(self.model)),
            request=self.request, request_id=release.request_id, method=facts.method, settings=facts.settings,
            report=release.report, outcome=None if self.outcome is None else self.outcome.to_dict(),
            weights={
                "kind": "model" if facts.kind == "merged" else facts.kind,
                "before": before,
                "after": weights_hash(saved_weights),
            },
            after=self.after if after is None else after,
        )  # fmt: skip

    def _record_of(self, model: Model) -> Mapping[str, Any]:
        """The record of the last run: the one that was saved or pushed, or one made of the model; all call it."""
        if self._latest_record is None and self.is_world_process_zero():
            release = Release(report=self.audit_report)
            weights = adapter_state(model) if isinstance(model, PeftModel) else model.state_dict()
            self._latest_record = self._record(weights, release, self._card_facts(release))
        return broadcast_object_list([self._latest_record])[0]

    def _published_report(self, report: AuditReport | None) -> AuditReport | None:
        """The audit that a release carries: the one given, the last one, or one made where there is unseen data."""
        report = report or self.audit_report
        if report is None and self.unseen_ds is None:
            logger.warning("The release has no audit: there is no unseen_ds; call trainer.audit(unseen_ds=...) before")
            return None
        report = report or self.audit()
        audited, trained = report.about["forget_samples"], len(self.forget_ds)
        if audited != trained:
            raise ValueError(f"audit: is about {audited} forget samples, the trainer has {trained}; audit this model")
        return anonymise_groups(report, getattr(self._inner_model.config, "id2label", None) or {})

    # ---- names ----

    @property
    def _repo_name(self) -> str:
        return self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name

    def _make_repo(self, name: str, token: str | None, private: bool | None, revision: str | None) -> str:
        is_private = next((value for value in (private, self.args.hub_private_repo) if value is not None), True)
        return create_repo(name, token or self.args.hub_token, is_private, revision)

    def _hub_origin(self) -> tuple[str | None, str | None]:
        """Hub name and commit of the model that came in; a path of this machine is not published."""
        config = self._inner_model.config
        name = getattr(config, "_name_or_path", "")
        try:
            validate_repo_id(name)
        except HFValidationError:
            return None, None
        return (None, None) if not name or os.path.exists(name) else (name, getattr(config, "_commit_hash", None))


def settings_of(
    args: UnlearningArguments, steps: int, model: nn.Module, hyperparameters: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a run, as plain values: no path, no token, no data.

    Args:
        args: the trainer's.
        steps: optimizer steps done.
        model: for its adapter, where it has one.
        hyperparameters: the method's, by name.
    """
    values = {name: _plain(getattr(args, name)) for name in PUBLISHED_SETTINGS}
    settings: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if hyperparameters:
        settings["method_kwargs"] = dict(hyperparameters)
    if isinstance(args.forget_target, list):
        settings["forget_target"] = f"losses of {len(args.forget_target)} samples"
    settings |= {
        "retain_batch_size": args.effective_retain_batch_size, "steps": steps, "processes": args.world_size,
    }  # fmt: skip
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        settings["adapter"] = f"{_plain(config.peft_type)}, rank {getattr(config, 'r', '-')}"
    return settings


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _check_card_keywords(function: str, card: Mapping[str, Any]) -> None:
    if unknown := card.keys() - CARD_KEYWORDS:
        raise ValueError(f"{function}: unknown argument {min(unknown)!r}; the card takes {', '.join(CARD_KEYWORDS)}")


def _refuse_claims(**claims: Any) -> None:
    """Refuse whatever would claim that an adapter beside its old base has forgotten."""
    if given := [name for name, value in claims.items() if value is not None]:
        raise ValueError(
            f"push_adapter: cannot go with {given[0]}: the base model still holds the data, so nothing is "
            f"forgotten; leave out {given[0]}, or push the merged model"
        )
