"""What `UnlearningTrainer` sends to the Hub, or leaves in a folder that can be sent."""

from __future__ import annotations

import logging
import os
import tempfile
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import CommitInfo, run_as_future
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel

from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.hashing import compared_columns, weights_hash
from hf_unlearn.hub.model_card import CardFacts
from hf_unlearn.hub.record import adapter_state, base_state, make_record
from hf_unlearn.hub.upload import anonymise_groups, check_revision, create_repo, upload, write_release_files, writing
from hf_unlearn.methods import Method
from hf_unlearn.report.audit_report import AuditReport
from hf_unlearn.trainer.arguments import UnlearningArguments
from hf_unlearn.trainer.checkpointing import CheckpointingMixin

logger = logging.getLogger(__name__)
# Words that Trainer.push_to_hub passes on to its card, under the names of huggingface_hub's card.
CARD_WORDS = {
    "language": "language", "license": "license", "tags": "tags", "tasks": "pipeline_tag", "dataset_tags": "datasets",
    "model_name": "model_name", "finetuned_from": "finetuned_from",
}  # fmt: skip

# Named one by one, so that no path and no token can get in.
SETTINGS = (
    "method", "forgetting_loss", "retain_weight", "projection", "projection_scope", "forget_target", "hinge",
    "stop_at_target", "learning_rate", "lr_scheduler_type", "optim", "weight_decay", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "max_steps", "seed", "bf16", "fp16",
)  # fmt: skip


def _check_words(asked: str, card: dict[str, Any]) -> None:
    if unknown := card.keys() - CARD_WORDS:
        raise ValueError(f"{asked}: unknown argument {min(unknown)!r}; the card takes {', '.join(CARD_WORDS)}")


class HubMixin(CheckpointingMixin):
    """A `Trainer` that pushes a model that has forgotten, what is known about that, and nothing else.

    Attributes:
        audit_report: the report of the last `audit`; None once the weights may have changed.
        weights_before: hash of the weights that training began with; kept in checkpoints.
    """

    method: Method
    audit_report: AuditReport | None = None
    hub_model_id: str | None  # type: ignore[assignment]

    def audit(self, unseen_ds: Any = None, **kwargs: Any) -> AuditReport:
        """See `EvaluationMixin.audit`; the report goes along at the next push."""
        self.audit_report = super().audit(unseen_ds, **kwargs)
        return self.audit_report

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `Trainer.train`; audits from before and during it are forgotten, for the weights have moved."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.audit_report = None

    def _hash_original_weights(self) -> None:
        """Take the hash of the weights before; again only for a model made anew.

        Weights that DeepSpeed or FSDP have spread over processes get none.
        """
        if self.weights_before is not None and self.model_init is None:
            return
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            held = adapter_state(self.model) if self._owns_adapter else base_state(self.model)
            self.weights_before = weights_hash(held)

    @property
    def _owns_adapter(self) -> bool:
        """Whether the model came with an adapter of the user's: that adapter held the data, and is what is saved."""
        return isinstance(self.model, PeftModel) and not self.added_adapter

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository `args.hub_model_id`, private unless `private` or `args.hub_private_repo` is False."""
        if self.is_world_process_zero():
            self.hub_model_id = self._make_repo(self._repo_name, token, private, None)

    @property
    def _repo_name(self) -> str:
        return self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name

    def _make_repo(self, name: str, token: str | None, private: bool | None, revision: str | None) -> str:
        wanted = next((each for each in (private, self.args.hub_private_repo) if each is not None), True)
        return create_repo(name, token or self.args.hub_token, wanted, revision)

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
        **card: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """Push the merged model, its processor, a model card, the audit and the unlearning record, in one commit.

        Nothing else leaves the machine: no checkpoint, optimizer state or training arguments, no original weights, no
        sample of any set. An adapter that you trained yourself on a clean base held the data: it is pushed as an adapter.
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
            ValueError: an argument cannot be; one line.
            hf_unlearn.hub.upload.PushError: the files could not be written, or the Hub has not confirmed the commit.
        """
        _check_words("push_to_hub", card)
        check_revision(revision, create_pr)
        if push_adapter and not isinstance(self.model, PeftModel):
            raise ValueError("push_adapter: all weights were trained, there is no adapter; leave push_adapter out")
        alone = push_adapter and not self._owns_adapter
        report = self._report(alone, {"audit": audit, "forget_request": forget_request, "request_id": request_id})
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token, revision = token or self.args.hub_token, revision or self.args.hub_revision
        if self.is_world_process_zero():
            name = repo_id or self.hub_model_id or self._repo_name
            self.hub_model_id = self._make_repo(name, token, private, None if create_pr else revision)
        folder = tempfile.TemporaryDirectory(prefix="hf_unlearn-")
        try:
            with writing(folder.name):
                if alone:
                    self.save_adapter(folder.name)
                else:
                    self.save_model(folder.name, _internal_call=True)
                if self.is_world_process_zero():
                    self._complete(Path(folder.name), alone, report, forget_request, request_id, card)
        except BaseException:
            folder.cleanup()
            raise
        if not self.is_world_process_zero():
            folder.cleanup()
            return None
        work = partial(
            upload, folder, str(self.hub_model_id), token=token, commit_message=commit_message,
            revision=None if create_pr else revision, create_pr=create_pr,
        )  # fmt: skip
        return work() if blocking else run_as_future(work)

    def save_release(
        self,
        output_dir: str | None = None,
        *,
        audit: AuditReport | None = None,
        forget_request: str | None = None,
        request_id: str | None = None,
        **card: Any,
    ) -> None:
        """Save the files that `push_to_hub` sends; `hf-unlearn push` sends them later. All processes have to call it.

        Args:
            output_dir: a folder; default: `args.output_dir`. Its checkpoints stay where they are.
            audit: as in `push_to_hub`, as are the others.
            forget_request: the request in your own words.
            request_id: your own number for the request.
            **card: words for the card.

        Raises:
            ValueError: an argument cannot be; one line.
        """
        _check_words("save_release", card)
        folder = output_dir or str(self.args.output_dir)
        self.save_model(folder, _internal_call=True)  # first: an audit that fails loses no run
        report = self._report(False, {"audit": audit})
        if self.is_world_process_zero():
            self._complete(Path(folder), False, report, forget_request, request_id, card)

    def _report(self, alone: bool, claims: dict[str, Any]) -> AuditReport | None:
        """The audit that goes along."""
        if alone:
            if claimed := [name for name, value in claims.items() if value is not None]:
                raise ValueError(
                    f"push_adapter: cannot go with {claimed[0]}: the base model still holds the data, so nothing is "
                    f"forgotten; leave out {claimed[0]}, or push the merged model"
                )
            return None
        report = claims["audit"] or self.audit_report
        if report is None and self.unseen_ds is None:
            logger.warning("No audit goes along: there is no unseen_ds; call trainer.audit(unseen_ds=...) before")
            return None
        report = report or self.audit()
        if report.about["forget_samples"] != len(self.forget_ds):
            raise ValueError(
                f"audit: is about {report.about['forget_samples']} forget samples, the trainer has {len(self.forget_ds)}; "
                "audit this model"
            )
        return anonymise_groups(report, getattr(self._base.config, "id2label", None) or {})

    @property
    def _base(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _complete(
        self,
        folder: Path,
        alone: bool,
        report: AuditReport | None,
        words: str | None,
        request_id: str | None,
        card: dict,
    ) -> None:
        """Card, audit and record, beside the weights; and the processor, which an adapter is saved without."""
        kind: Literal["merged", "adapter", "adapter_alone"] = "merged"
        if alone or self._owns_adapter:
            kind = "adapter_alone" if alone else "adapter"
        method = {"name": self.method.name, "title": self.method.title, "paper": self.method.paper}
        settings = settings_of(self.args, self.state.global_step, self.model)
        sets = {"forget": self.forget_ds, "retain": self.retain_ds, "unseen": self.unseen_ds}
        metadata = {CARD_WORDS[name]: value for name, value in card.items() if value is not None}
        name = metadata.pop("model_name", None) or (self.hub_model_id or self._repo_name).rpartition("/")[2]
        base, base_revision = self._origin()
        facts = CardFacts(
            name=name, kind=kind, architecture=type(self._base).__name__,
            base=metadata.pop("finetuned_from", None) or base, base_revision=base_revision, method=method,
            settings=settings, request=self.request,
            counts={key: len(samples) for key, samples in sets.items() if samples is not None},
            forget_request=words, report=report, metadata=metadata,
        )  # fmt: skip
        record = None
        if not alone:
            record = make_record(
                forget_ds=self.forget_ds, columns=compared_columns(self.forget_ds, columns_read(self.model)),
                request=self.request, request_id=request_id, method=method, settings=settings, report=report,
                weights={
                    "kind": "model" if kind == "merged" else kind, "before": self.weights_before,
                    "after": weights_hash(self._as_shipped(folder)),
                },
            )  # fmt: skip
        write_release_files(folder, facts, record)

    def _as_shipped(self, folder: Path) -> dict[str, torch.Tensor]:
        """The weights that a user will load: read back from the folder, which shows that they can be."""
        if self._owns_adapter:
            return adapter_state(self.model)
        return type(self._base).from_pretrained(folder, dtype=self._base.dtype).state_dict()

    def _origin(self) -> tuple[str | None, str | None]:
        """Hub name and commit of the model that came in; a path of this machine is nobody's business."""
        config = self._base.config
        name = getattr(config, "_name_or_path", "")
        try:
            validate_repo_id(name)
        except HFValidationError:
            return None, None
        return (None, None) if not name or os.path.exists(name) else (name, getattr(config, "_commit_hash", None))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # `Trainer` pickles its arguments beside the model, and the token with them.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token


def settings_of(args: UnlearningArguments, steps: int, model: Any) -> dict[str, Any]:
    """The settings of a run, as plain values: no path, no token, no data.

    Args:
        args: the trainer's.
        steps: optimizer steps done.
        model: for its adapter, where it has one.
    """
    given = {name: _plain(getattr(args, name)) for name in SETTINGS}
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(args.forget_target, list):
        found["forget_target"] = f"losses of {len(args.forget_target)} samples"
    found |= {"retain_batch_size": args.retain_samples, "steps": steps, "processes": args.world_size}
    if isinstance(model, PeftModel):
        config = model.active_peft_config
        found["adapter"] = f"{_plain(config.peft_type)}, rank {getattr(config, 'r', '-')}"
    return found


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)
