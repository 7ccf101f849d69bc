"""The unlearning record: what was forgotten and how, in hashes and metrics, to be shown later without the data."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

import hf_unlearn
from hf_unlearn.data.hashing import sample_hashes, weights_hash
from hf_unlearn.models.adapters import merged
from hf_unlearn.models.loading import load_model

if TYPE_CHECKING:
    from hf_unlearn.report.audit_report import AuditReport
    from hf_unlearn.trainer.arguments import UnlearningArguments

SCHEMA_VERSION = 1
RECORD_FILE = "unlearning.json"
# Named one by one, so that no path and no token can get in.
SETTINGS = (
    "method", "forgetting_loss", "retain_weight", "projection", "projection_scope", "forget_target", "hinge",
    "stop_at_target", "learning_rate", "lr_scheduler_type", "optim", "weight_decay", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_grad_norm", "max_steps", "seed", "bf16", "fp16",
)  # fmt: skip


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


def base_state(model: Any) -> dict[str, torch.Tensor]:
    """The state dict of a model as it is without its adapter, under the names that it has without one."""
    if not isinstance(model, PeftModel):
        return model.state_dict()
    base = model.get_base_model()
    wrapped = {
        name: "base_layer." if isinstance(module, BaseTunerLayer) else "original_module."
        for name, module in base.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }
    found = {}
    for key, tensor in base.state_dict().items():
        parts = key.split(".")
        place = next((end for end in range(len(parts)) if ".".join(parts[:end]) in wrapped), None)
        if place is None:
            found[key] = tensor
            continue
        layer, rest = ".".join(parts[:place]), ".".join(parts[place:])
        if rest.startswith(wrapped[layer]):
            found[f"{layer}.{rest.removeprefix(wrapped[layer])}"] = tensor
    return found


def adapter_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """The state dict of the active adapter, as PEFT saves it."""
    return get_peft_model_state_dict(model, adapter_name=model.active_adapter)


def make_record(
    *,
    forget_ds: Any,
    columns: Sequence[str],
    request: str,
    request_id: str | None,
    method: Mapping[str, str],
    settings: Mapping[str, Any],
    weights: Mapping[str, str | None],
    report: AuditReport | None,
) -> dict[str, Any]:
    """The record of one run, ready for JSON.

    Every sample is there as a keyed hash under a random salt, sorted, so that two records of the same samples have nothing
    in common and their order says nothing. Whoever has a sample can find out whether it was forgotten; whoever has not
    learns how many there were. Samples that can be guessed (a label alone) can be guessed here too.

    Args:
        forget_ds: the forget dataset.
        columns: the columns that are hashed.
        request: kind of request: `"samples"`, `"class"` or `"group"`.
        request_id: the controller's own number for the request, published as given.
        method: `name`, `title` and `paper`.
        settings: from `settings_of`.
        weights: `kind` ("model" or "adapter"), and the hashes `before` and `after`; None where it could not be taken.
        report: the audit, if there was one.
    """
    salt = secrets.token_bytes(16)
    hashes = sorted(_salted(sample, salt) for sample in sample_hashes(forget_ds, columns))
    return {
        "schema_version": SCHEMA_VERSION,
        "library": f"hf_unlearn {hf_unlearn.__version__}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "request": {"id": request_id, "kind": request, "samples": len(hashes), "columns": list(columns)},
        "method": dict(method),
        "settings": dict(settings),
        "weights": {"algorithm": "sha256", **weights},
        "audit": None if report is None else {**report.verdict, "metrics": report.metrics},
        "salt": salt.hex(),
        "sample_hashes": hashes,
    }


def _salted(sample: bytes, salt: bytes) -> str:
    return hashlib.blake2b(sample, digest_size=16, key=salt).hexdigest()


@dataclass(frozen=True)
class Verification:
    """Whether everything that was given matches the record, and one line that says what does and what does not."""

    matches: bool
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def verify(record: Mapping[str, Any] | str | Path, model: Any = None, samples: Any = None) -> Verification:
    """Check a record against a model, against samples, or both.

    Args:
        record: the content of `unlearning.json`, or its path.
        model: a model, or the folder or Hub name of one; an adapter where the record is of an adapter.
        samples: samples that are said to have been forgotten, prepared as the forget dataset was (a `datasets.Dataset` or any
            map-style dataset). They need not be all of them.

    Raises:
        ValueError: nothing to check is given, the record has another schema, or the samples lack a column of it.
    """
    if isinstance(record, (str, Path)):
        record = json.loads(Path(record).read_text(encoding="utf-8"))
    assert isinstance(record, Mapping)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"record: schema version {record.get('schema_version')!r} is not {SCHEMA_VERSION}")
    checks = []
    if model is not None:
        checks.append(_verify_weights(record["weights"], model))
    if samples is not None:
        checks.append(_verify_samples(record, samples))
    if not checks:
        raise ValueError("verify: nothing to check the record against; give a model, samples, or both")
    return Verification(all(found for found, _ in checks), "; ".join(said for _, said in checks))


def _verify_weights(weights: Mapping[str, str | None], model: Any) -> tuple[bool, str]:
    adapter = weights["kind"] == "adapter"
    if isinstance(model, (str, Path)):
        state = load_peft_weights(str(model), device="cpu") if adapter else load_model(str(model)).state_dict()
    elif adapter and not isinstance(model, PeftModel):
        raise ValueError(f"model: the record is of an adapter, got a {type(model).__name__} without one")
    elif adapter:
        state = adapter_state(model)
    else:
        state = (merged(model) if isinstance(model, PeftModel) else model).state_dict()
    found = weights_hash(state)
    if found == weights["after"]:
        return True, "weights: those that the record says were left after unlearning"
    if found == weights["before"]:
        return False, "weights: those from BEFORE unlearning"
    return False, "weights: neither those from before nor those from after unlearning"


def _verify_samples(record: Mapping[str, Any], samples: Any) -> tuple[bool, str]:
    names, columns = (
        list(samples.column_names if hasattr(samples, "column_names") else samples[0]),
        record["request"]["columns"],
    )
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"samples: have no column {missing[0]!r} of the record, only {names}; prepare them as before")
    known = Counter(record["sample_hashes"])
    given = Counter(_salted(sample, bytes.fromhex(record["salt"])) for sample in sample_hashes(samples, columns))
    found, asked = (known & given).total(), given.total()
    every = "all" if found == asked else f"{found} of"
    total = record["request"]["samples"]
    return found == asked, f"samples: {every} {asked} given are among the {total} that the record says were forgotten"
