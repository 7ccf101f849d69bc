"""The unlearning record: hashes and metrics that show later, without the data, what was forgotten and how."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from hf_unlearn._version import __version__
from hf_unlearn.data.hashing import sample_hashes, weights_hash
from hf_unlearn.data.types import AnyDataset, RequestKind
from hf_unlearn.hub.chain import find_break, find_missing, in_records, links, records_of, salted
from hf_unlearn.hub.record_schema import SCHEMA_VERSION, check_record, read_record
from hf_unlearn.hub.release_files import RECORD_FILE as RECORD_FILE
from hf_unlearn.hub.release_files import hash_files
from hf_unlearn.models.adapters import merged
from hf_unlearn.models.loading import load_model
from hf_unlearn.report.audit_report import AuditReport

HALF = (torch.bfloat16, torch.float16)


def base_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model without its adapter, under the names of the plain model."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    base = model.get_base_model()
    prefixes = {
        name: "base_layer." if isinstance(module, BaseTunerLayer) else "original_module."
        for name, module in base.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    state = {}
    for key, tensor in base.state_dict().items():
        parts = key.split(".")
        end = next((end for end in range(len(parts)) if ".".join(parts[:end]) in prefixes), None)
        if end is None:
            state[key] = tensor
            continue
        layer, rest = ".".join(parts[:end]), ".".join(parts[end:])
        if rest.startswith(prefixes[layer]):
            state[f"{layer}.{rest.removeprefix(prefixes[layer])}"] = tensor
    return state


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The state dict of the active adapter, as PEFT saves it."""
    return get_peft_model_state_dict(model, adapter_name=model.active_adapter)


def make_record(
    *,
    forget_ds: AnyDataset,
    columns: Sequence[str],
    request: RequestKind,
    request_id: str | None,
    method: Mapping[str, str],
    settings: Mapping[str, Any],
    weights: Mapping[str, str | None],
    report: AuditReport | None,
    outcome: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of one run, ready for JSON.

    It holds a keyed hash of every sample under a random salt, sorted: two records of the same samples share no hash,
    and the order carries no information. Anyone who has a sample can find out whether it was forgotten; anyone else
    learns only how many samples there were. Samples that can be guessed (a label alone) can be found by guessing.

    Args:
        forget_ds: the forget dataset.
        columns: the columns that are hashed.
        request: kind of request: `"samples"`, `"class"` or `"group"`.
        request_id: the data controller's identifier of the request, published unchanged.
        method: `name`, `title` and `paper`.
        settings: as plain values: no path, no token.
        weights: `kind` ("model" or "adapter"), and the hashes `before` and `after`; None where it was not available.
        report: the audit, if there is one.
        outcome: how the run ended, as plain values; None where nothing was run.
        after: the record of the request before, on whose model the run went on; see `hf_unlearn.hub.chain`.
    """
    salt = secrets.token_bytes(16).hex()
    hashes = sorted(salted(content, salt) for content in sample_hashes(forget_ds, columns))
    return {
        "schema_version": SCHEMA_VERSION,
        "library": f"hf_unlearn {__version__}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "request": {"id": request_id, "kind": request, "samples": len(hashes), "columns": list(columns)},
        "method": dict(method),
        "settings": dict(settings),
        "weights": {"algorithm": "sha256", **weights},
        "outcome": None if outcome is None else dict(outcome),
        "audit": None if report is None else {**report.verdict, "metrics": report.metrics},
        "salt": salt,
        "sample_hashes": hashes,
        "files": {},  # their hashes, once they are written
        **links(after),
    }


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        matches: whether everything that was checked matches the record.
        sentence: one line that says what matches and what does not.
    """

    matches: bool
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verify(
    record: Mapping[str, Any] | str | Path,
    model: PreTrainedModel | PeftModel | str | Path | None = None,
    samples: AnyDataset | None = None,
    earlier: Sequence[Mapping[str, Any] | str | Path] = (),
) -> Verification:
    """Check a record against a model, against samples, or both; and the records before it, where it has some.

    Args:
        record: the content of `unlearning.json`, or its path.
        model: a model, or its folder or Hub name; an adapter if the record is of an adapter. In a folder whose weights
            are those after unlearning, the files of the record that are there are compared, too.
        samples: samples that should have been forgotten, preprocessed like the forget dataset; not necessarily all.
            They may be those of an earlier request, too.
        earlier: records that were published before, or their paths, the oldest first: they have to be in the chain.

    Raises:
        ValueError: neither is given, the record is none of this version, or the samples lack a column of it.
    """
    record = given_record(record)
    checks = []
    if model is not None:
        checks.append(_verify_weights(record["weights"], model))
        if checks[0][0] and record["files"] and isinstance(model, (str, Path)) and Path(model).is_dir():
            checks.append(_verify_files(record, Path(model)))
    if samples is not None:
        checks.append(_verify_samples(record, samples))
    if len(records_of(record)) > 1 or "previous" in record or earlier:
        checks.append(_verify_chain(record, [given_record(each) for each in earlier]))
    if not checks:
        raise ValueError("verify: nothing to check the record against; give a model, samples, or both")
    return Verification(all(matches for matches, _ in checks), "; ".join(sentence for _, sentence in checks))


def given_record(record: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A record, or the one in a file; checked.

    Raises:
        ValueError: it is none of this version; one line.
    """
    return read_record(record) if isinstance(record, (str, Path)) else check_record(record)


def check_goes_on(record: Mapping[str, Any], model: PreTrainedModel | PeftModel) -> None:
    """Refuse a model that is not the one of a record, as its run ended.

    Raises:
        ValueError: it has other weights; one line.
    """
    matches, sentence = _verify_weights(record["weights"], model)
    # Saved in half precision, and loaded to train in float32.
    if not matches and not isinstance(model, PeftModel):
        state = model.state_dict()
        halves = ({name: _rounded(tensor, dtype) for name, tensor in state.items()} for dtype in HALF)
        matches = any(weights_hash(half) == record["weights"]["after"] for half in halves)
    if not matches:
        raise ValueError(f"after: is not the record of this model ({sentence}); give the model that was saved with it")


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _verify_chain(record: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> tuple[bool, str]:
    problem = find_break(record) or find_missing(record, earlier)
    if problem is not None:
        return False, f"chain: {problem}"
    return True, f"chain: {len(records_of(record))} requests, each record follows the one before"


def _verify_weights(weights: Mapping[str, str | None], model: Any) -> tuple[bool, str]:
    is_adapter = weights["kind"] == "adapter"
    if isinstance(model, (str, Path)):
        state = load_peft_weights(str(model), device="cpu") if is_adapter else load_model(str(model)).state_dict()
    elif is_adapter and not isinstance(model, PeftModel):
        raise ValueError(f"model: the record is of an adapter, got a {type(model).__name__} without one")
    elif is_adapter:
        state = adapter_state(model)
    else:
        state = (merged(model) if isinstance(model, PeftModel) else model).state_dict()
    digest = weights_hash(state)
    if digest == weights["after"]:
        return True, "weights: those of the record after unlearning"
    # A checkpoint in half precision trains in float32, see `hf_unlearn.models.precision`.
    whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if weights["before"] in (digest, weights_hash(whole)):
        return False, "weights: those from BEFORE unlearning"
    return False, "weights: neither those from before nor those from after unlearning"


def changed_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """The files of a record that a folder has with another content, sorted; those that it lacks have not changed."""
    hashes = hash_files(folder, (name for name in record["files"] if (folder / name).is_file()))
    return [name for name, digest in hashes.items() if digest != record["files"][name]]


def _verify_files(record: Mapping[str, Any], folder: Path) -> tuple[bool, str]:
    if changed := changed_files(folder, record):
        return False, f"files: {', '.join(changed)} not as the run wrote them"
    count = sum((folder / name).is_file() for name in record["files"])
    return True, f"files: {count} of {len(record['files'])} are there, as the run wrote them"


def _verify_samples(record: Mapping[str, Any], samples: Any) -> tuple[bool, str]:
    records = records_of(record)
    matching, count = sum(number is not None for number in in_records(records[::-1], samples)), len(samples)
    share = "all" if matching == count else f"{matching} of"
    total = sum(each["request"]["samples"] for each in records)
    whose = "the record" if len(records) == 1 else f"{len(records)} requests"
    return matching == count, f"samples: {share} {count} given are among the {total} forgotten samples of {whose}"
