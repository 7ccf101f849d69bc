"""What identifies a run: a checkpoint is resumed with the same data, method and settings, or not at all."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from hf_unlearn.data.collator import columns_read
from hf_unlearn.data.hashing import dataset_hash
from hf_unlearn.data.types import AnyDataset
from hf_unlearn.models.types import Model, inner_model
from hf_unlearn.trainer.arguments import UnlearningArguments

# Arguments that change no weight of the run. A list of what may differ, so that arguments to come are compared.
MAY_DIFFER = frozenset({
    # paths and names
    "output_dir", "resume_from_checkpoint", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
    "hub_always_push", "hub_revision",
    # logging
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node",
    "training_passes", "log_level", "log_level_replica", "disable_tqdm", "report_to", "include_num_input_tokens_seen",
    "skip_memory_metrics", "debug",
    # evaluation
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps", "per_device_eval_batch_size", "prediction_loss_only", "include_for_metrics",
    "batch_eval_metrics", "predict_with_generate", "generation_max_length", "generation_num_beams",
    "generation_config", "do_train", "do_eval", "do_predict",
    # saving
    "save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node",
    "enable_jit_checkpoint", "restore_callback_states_from_checkpoint",
    # how samples and processes come to the device
    "use_cpu", "local_rank", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout",
    "torch_empty_cache_steps",
})  # fmt: skip
# They decide which checkpoint is the best, where the best one is loaded at the end.
CHOOSES_BEST = frozenset({"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"})
# Of an adapter's configuration: where it came from, and how it is stored.
ADAPTER_MAY_DIFFER = frozenset({"base_model_name_or_path", "revision", "inference_mode", "peft_version"})


def run_identity(
    args: UnlearningArguments,
    model: Model,
    datasets: Mapping[str, AnyDataset | None],
    **facts: Any,
) -> dict[str, Any]:
    """The settings and samples of a run, as plain values by name.

    Datasets are hashed as a whole, with a progress bar; random augmentation is not part of a sample.

    Args:
        args: the trainer's.
        model: as it trains, with its adapter.
        datasets: the datasets by the name of their argument.
        **facts: further values that identify the run.
    """
    ignored = MAY_DIFFER - CHOOSES_BEST if args.load_best_model_at_end else MAY_DIFFER
    settings = {name: value for name, value in args.to_dict().items() if name not in ignored}
    base = inner_model(model)
    settings |= {
        "retain_batch_size": args.effective_retain_batch_size, "processes": args.world_size,
        "model": f"{type(base).__name__} in {base.dtype}", "peft_config": _adapters(model), **facts,
    }  # fmt: skip
    for name, dataset in datasets.items():
        content = None if dataset is None else dataset_hash(dataset, columns_read(model), f"Hashing {name}")
        settings[name] = None if dataset is None else {"samples": len(dataset), "hash": content}
    return json.loads(json.dumps(settings, sort_keys=True, default=_plain))


def name_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The settings in which two runs differ, as text; None if they are the same run."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    texts = [_difference(name, before.get(name), now.get(name)) for name in names]
    return "; ".join(texts) or None


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.keys() == now.keys() == {"samples", "hash"}:
            same_size = before["samples"] == now["samples"]
            what = "other samples, or another order" if same_size else f"{now['samples']} samples"
            return f"{name}: had {before['samples']} samples in the checkpoint, has {what}"
        names = [key for key in sorted({**before, **now}) if before.get(key) != now.get(key)]
        before, now = ({key: values.get(key) for key in names} for values in (before, now))
    return f"{name}: was {_short(before)} in the checkpoint, is {_short(now)}"


def _short(value: Any) -> str:
    short = reprlib.Repr()
    short.maxlist = short.maxdict = 4
    return short.repr(value)


def _adapters(model: Model) -> dict[str, Any] | None:
    if not isinstance(model, PeftModel):
        return None
    return {
        name: {key: value for key, value in config.to_dict().items() if key not in ADAPTER_MAY_DIFFER}
        for name, config in model.peft_config.items()
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
