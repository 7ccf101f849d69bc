"""Did a refactoring change a number? Every weight and metric of tiny runs, to compare between two source trees.

    OMP_NUM_THREADS=1 python benchmarks/equivalence.py run OUT.json     # of the hf_unlearn that is imported
    python benchmarks/equivalence.py diff BEFORE.json OUT.json          # exit code 1 where anything differs

`run` trains every method on a tiny ViT, GPT-2, BERT and Whisper, audits models, and runs command lines. It writes the
hash of all weights, every metric to its last bit, the kind of every refusal and every exit code, in the vocabulary of
the new tree. Another tree is measured with `PYTHONPATH=TREE`, from a folder that holds no `hf_unlearn`. Two files are
comparable when one machine with the same libraries made them: `diff` says where it was not so.
"""

import argparse
import contextlib
import gc
import hashlib
import inspect
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import datasets
import numpy as np
import torch
import transformers as tf
from equivalence_data import (
    BATCH,
    HEADS,
    MODELS,
    RATE,
    SEED,
    STEPS,
    Data,
    as_dataset,
    as_datasets,
    few,
    one_class,
    one_speaker,
    original,
    other_answers,
    retrained,
    samples,
    seed_all,
    vit,
    word_tokenizer,
)
from peft import LoraConfig, get_peft_model
from PIL import Image

import hf_unlearn
from hf_unlearn import AuditCallback, UnlearningArguments, UnlearningTrainer, audit, split_forget_retain, train_shadows
from hf_unlearn.cli import main as command_line
from hf_unlearn.cli.audit import AuditSettings
from hf_unlearn.methods import METHODS

# ---- old and new names: all that knows of two trees; the old branches go with the baseline -------------------------

try:
    from hf_unlearn.data.types import REQUESTS
except ImportError:
    from hf_unlearn.data import REQUESTS
try:
    from hf_unlearn.auditing.measuring import average_gap, measure
except ImportError:
    from hf_unlearn.auditing.runner import gap as average_gap
    from hf_unlearn.auditing.runner import measure

# Keys of reports and records, old to new. A key that is in none of the two vocabularies stays as it is.
RENAMED_KEYS = {
    "reference": "retrained",  # the model; the attack of that name stays
    "figures": "metrics_by_model",
    "rows": "samples",
    "set": "dataset",
    "forget_rows": "forget_samples",
    "retain_rows": "retain_samples",
    "unseen_rows": "unseen_samples",
}
RENAMED_KEYWORDS = {"forget_ds": "forget", "retain_ds": "retain", "unseen_ds": "unseen", "retrained": "reference"}
SAMPLES = REQUESTS[0]  # "samples", in the old tree "rows": as a request and in `--forget samples=0..3`
RETRAINED_FLAG = "--retrained" if hasattr(AuditSettings, "retrained") else "--reference"


def keywords(**named: Any) -> dict[str, Any]:
    """Keywords of `audit` and its like, under the names that they have in this tree."""
    old = "forget" in inspect.signature(audit).parameters
    return {RENAMED_KEYWORDS.get(name, name) if old else name: value for name, value in named.items()}


def shadows_of(build: Callable, data: "Data", folder: Path, args: Any, **settings: Any) -> Any:
    """`train_shadows`: three datasets, in the old tree one mapping."""
    if "sets" in inspect.signature(train_shadows).parameters:
        return train_shadows(build, data.three(""), folder, args, **settings)
    return train_shadows(build, data.forget, data.retain, data.unseen, folder, args, **settings)


def measured(model: Any, data: "Data") -> dict[str, float]:
    """`measure`: three keywords, in the old tree one mapping."""
    if "sets" in inspect.signature(measure).parameters:
        return measure(model, data.three(""))
    return measure(model, **data.three())


def metrics_before(trainer: Any) -> dict[str, float]:
    """The metrics of the original model, as the trainer has them."""
    if hasattr(trainer, "figures_before"):
        return trainer.figures_before
    return trainer.unlearning_state.metrics_before


def runs_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs in the `results.json` of a comparison, with their metrics under `metrics`."""
    runs = results["runs"] if "runs" in results else results["cells"]
    return [{**run, "metrics": run.get("metrics", run.get("figures", {}))} for run in runs]


# ---- what is recorded ----------------------------------------------------------------------------------------------

Entries = dict[str, Any]
# Clocks and speeds of `Trainer`'s output and log.
CLOCKS = re.compile("runtime|per_second|total_flos")
ABOUT = ("model", "request", "method", "forget_samples", "retain_samples", "unseen_samples", "shadow_models", "seed")


def exact(value: Any) -> Any:
    """A number to its last bit, as text; a list of them likewise."""
    if isinstance(value, list | tuple):
        return [exact(each) for each in value]
    return repr(float(value)) if isinstance(value, float) else value


def flat(prefix: str, found: Mapping[str, Any]) -> Entries:
    """Nested mappings as one, with paths for keys; clocks are left out."""
    entries: Entries = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            entries |= flat(f"{prefix}/{key}", value)
        elif not CLOCKS.search(key):
            entries[f"{prefix}/{key}"] = exact(value)
    return entries


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def renamed(found: Any) -> Any:
    """Mappings and lists of them with the new names of all keys."""
    if isinstance(found, Mapping):
        return {RENAMED_KEYS.get(k, k): v if k == "roc" else renamed(v) for k, v in found.items()}
    return [renamed(each) for each in found] if isinstance(found, list) else found


def report_entries(report: Mapping[str, Any]) -> Entries:
    """Everything that an audit measured, from `AuditReport.to_dict` or its JSON; no text of it."""
    found = renamed(report)
    about = {key: value for key, value in found["about"].items() if key in ABOUT}
    about["request"] = RENAMED_KEYS.get(about["request"], about["request"])
    entries = flat("about", about) | {"verdict": found["verdict"]["level"], "notes": len(found["notes"])}
    for part in ("metrics", "metrics_by_model", "roc", "histograms", "relearning"):
        entries |= flat(part, found[part])
    for entry in found["breakdown"]:
        entries |= flat(f"breakdown/{entry.pop('dataset')}/{entry.pop('group')}", entry)
    return entries | flat("training", by_key(found["training"]))


def by_key(history: list[Mapping[str, Any]]) -> dict[str, list]:
    """A log, as the values of each of its keys in order."""
    found: dict[str, list] = {}
    for entry in history:
        for key, value in entry.items():
            found.setdefault(key, []).append(value)
    return found


def trainer_entries(trainer: Any, output: Any) -> Entries:
    """What a run left: weights, metrics before and after, steps, and its log."""
    return {
        "weights": weights_hash(trainer.model.state_dict()),
        "steps": trainer.state.global_step,
        **flat("before", metrics_before(trainer)),
        **flat("metrics", output.metrics),
        **flat("log", by_key(trainer.state.log_history)),
    }


# ---- cases: training -----------------------------------------------------------------------------------------------

Case = Callable[[Path], Entries]
SURGERY = ("orthograd", "conegrad", "pcgrad", "gdr_gma", "ngdiff")
# Extra arguments of the trainer; all others are settings.
OF_TRAINER = ("peft_config", "callbacks", "processing_class", "eval_dataset", "per_sample_loss")


def make_trainer(folder: Path, name: str, data: Data | None = None, model: Any = None, **settings: Any) -> Any:
    """A trainer on a tiny model: a few small steps on one thread, without any report but the log."""
    data = samples(name) if data is None else data
    extra = {key: settings.pop(key) for key in OF_TRAINER if key in settings}
    if settings.get("method") == "idk_dpo":
        # A classifier has no other answers, and is refused before they are looked at.
        extra["alternative_ds"] = other_answers(data.forget) if name in ("gpt2", "whisper") else data.forget
    defaults = {
        "output_dir": str(folder / "out"), "max_steps": STEPS, "per_device_train_batch_size": BATCH,
        "logging_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    given = {key: value for key, value in (defaults | settings).items() if value is not None}
    model = original(name) if model is None else model
    args = UnlearningArguments(**given)
    trainer = UnlearningTrainer(model, data.forget, data.retain, args, unseen_ds=data.unseen, **extra)
    trainer.pop_callback(tf.PrinterCallback)
    return trainer


def train(folder: Path, name: str, data: Callable[[str], Data] | None = None, **settings: Any) -> Entries:
    """A run, or the kind of its refusal: the exception, and the argument that its message begins with."""
    try:
        trainer = make_trainer(folder, name, None if data is None else data(name), **settings)
        return trainer_entries(trainer, trainer.train())
    except ValueError as error:
        if not re.match(r"\w+:", str(error)):
            raise
        return refusal(error)


def refusal(error: Exception) -> Entries:
    """The kind of an error, and the argument that its message begins with, under its new name."""
    first = re.match(r"\w*", str(error))
    argument = first.group() if first else ""
    new_names = {old: new for new, old in RENAMED_KEYWORDS.items()}
    return {"refused": f"{type(error).__name__}: {new_names.get(argument, argument)}"}


class Interrupt(tf.TrainerCallback):
    """Ends a run after two steps, as Ctrl-C would."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 2


def resume(folder: Path, name: str, **settings: Any) -> Entries:
    """A run that ends at a checkpoint and goes on in a new trainer."""
    settings |= {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "stop_at_target": False}
    make_trainer(folder, name, callbacks=[Interrupt()], **settings).train()
    trainer = make_trainer(folder, name, **settings)
    return trainer_entries(trainer, trainer.train(resume_from_checkpoint=True))


def save_release(folder: Path) -> Entries:
    """An adapter merged into the weights, with everything that is saved beside them."""
    trainer = make_trainer(folder, "vit", method="orthograd")
    trainer.train()
    trainer.save_release()
    saved = tf.ViTForImageClassification.from_pretrained(folder / "out").state_dict()
    files = sorted(path.name for path in (folder / "out").iterdir())
    return {"weights": weights_hash(saved), "files": files}


def own_adapter(folder: Path) -> Entries:
    """A `PeftModel` of the user's own is unlearned as it is."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = original("vit")
    seed_all(SEED)  # for the adapter's weights
    return train(folder, "vit", model=get_peft_model(model, config))


def evaluated(folder: Path) -> Entries:
    """Evaluations with audits during a run, which keeps the best checkpoint."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "gap"}
    trainer = make_trainer(folder, "vit", method="nabla_tau", eval_dataset=samples("vit").test, **settings)
    named = keywords(unseen_ds=samples("vit").test, retrained=retrained("vit"))
    callback = AuditCallback(trainer, resamples=50, **named)
    trainer.add_callback(callback)
    entries = trainer_entries(trainer, trainer.train())
    entries |= {"best": trainer.state.best_global_step, **flat("evaluate", trainer.evaluate())}
    return entries | {f"report/{key}": value for key, value in report_entries(callback.reports[1].to_dict()).items()}


def half_of_the_loss(outputs: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """A loss of the user's own."""
    return torch.nn.functional.cross_entropy(outputs["logits"], batch["labels"], reduction="none") / 2


def training_cases() -> Iterator[tuple[str, Case]]:
    for method in METHODS:
        for name in MODELS:
            data = few if method == "ssd" else None
            yield f"train/{method}/{name}", partial(train, name=name, method=method, data=data)
    for method in SURGERY:
        accumulated = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
        yield f"accumulated/{method}/vit", partial(train, name="vit", method=method, **accumulated)
    for name in ("vit", "gpt2"):
        update = {"peft_config": None, "projection": "update", "projection_scope": "tensor"}
        yield f"orthograd-update/{name}", partial(train, name=name, method="orthograd", **update)
    for name in HEADS:
        for method in ("nabla_tau", "orthograd", "rmu"):
            yield f"heads/{name}/{method}", partial(train, name=name, method=method)
    yield from nabla_tau_cases()
    yield from other_cases()
    yield from resumed_cases()
    for name, setup in REFUSED.items():
        yield f"refused/{name}", partial(refused, setup=setup)


def nabla_tau_cases() -> Iterator[tuple[str, Case]]:
    """Its targets, requests and datasets."""
    run = partial(train, method="nabla_tau")
    yield "nabla_tau/mean", partial(run, name="vit", forget_target="mean")
    yield "nabla_tau/mean-gpt2", partial(run, name="gpt2", forget_target="mean", hinge="linear")
    yield "nabla_tau/number", partial(run, name="bert", forget_target=9.0, hinge="linear")
    yield "nabla_tau/losses", partial(run, name="vit", forget_target=[0.1, 0.2, 0.3])
    yield "nabla_tau/refreshed", partial(run, name="vit", max_steps=36)
    yield "nabla_tau/request", partial(run, name="bert", request=SAMPLES)
    yield "nabla_tau/class", partial(run, name="vit", data=one_class)
    yield "nabla_tau/class-bert", partial(run, name="bert", data=one_class, max_steps=10)
    yield "nabla_tau/group", partial(run, name="gpt2", data=one_speaker)
    yield "nabla_tau/datasets", partial(run, name="whisper", data=lambda name: as_datasets(samples(name)))
    yield "nabla_tau/no-unseen", partial(run, name="vit", data=lambda name: samples(name)._replace(unseen=None))
    yield "nabla_tau/adapter", partial(run, name="gpt2", peft_config=LoraConfig(r=2, target_modules=["c_attn"]))
    yield "nabla_tau/own-adapter", own_adapter
    yield "nabla_tau/own-loss", partial(run, name="vit", per_sample_loss=half_of_the_loss)
    defaults = {"max_steps": None, "per_device_train_batch_size": None, "logging_steps": None}
    for name in MODELS:
        yield f"nabla_tau/defaults-{name}", partial(run, name=name, **defaults)


def other_cases() -> Iterator[tuple[str, Case]]:
    yield "orthograd/loop", partial(train, name="vit", method="orthograd", per_sample_engine="loop")
    yield "orthograd/recompute", partial(train, name="gpt2", method="orthograd", gram_cache="recompute")
    yield "orthograd/chunks", partial(train, name="vit", method="orthograd", retain_batch_size=70)
    yield "orthograd/ascent", partial(train, name="vit", method="orthograd", forgetting_loss="grad_ascent")
    yield (
        "pcgrad/grad-diff",
        partial(train, name="bert", method="pcgrad", forgetting_loss="grad_diff", peft_config=None),
    )
    yield "orthograd/class", partial(train, name="vit", method="orthograd", data=one_class)
    yield "orthograd/defaults", partial(train, name="vit", method="orthograd", max_steps=None)
    ascent = partial(train, method="grad_ascent", max_steps=40, learning_rate=1e-3)
    yield "stopped/at-target", partial(ascent, name="gpt2")
    yield "stopped/at-class-accuracy", partial(ascent, name="vit", data=one_class)
    yield "stopped/by-guard", partial(ascent, name="vit", forget_target="none")
    yield "grad_diff/weight", partial(train, name="gpt2", method="grad_diff", retain_weight=0.3, retain_batch_size=7)
    yield "salun/decay", partial(train, name="vit", method="salun", weight_decay=0.1, gradient_accumulation_steps=2)
    yield (
        "whisper/word-errors",
        partial(
            train, name="whisper", method="nabla_tau", processing_class=word_tokenizer(), predict_with_generate=True
        ),
    )
    yield "evaluated", evaluated
    yield "save_release", save_release


def resumed_cases() -> Iterator[tuple[str, Case]]:
    for name, method in (("vit", "nabla_tau"), ("vit", "orthograd"), ("vit", "salun"), ("gpt2", "idk_dpo")):
        yield f"resumed/{name}/{method}", partial(resume, name=name, method=method)


# ---- cases: refusals -----------------------------------------------------------------------------------------------


def refused(folder: Path, setup: Callable[[Path], Any]) -> Entries:
    """The kind of error that a wrong setup ends with; that there is none is an error of this script."""
    try:
        setup(folder)
    except ValueError as error:
        return refusal(error)
    raise AssertionError("was not refused")


def with_data(folder: Path, **changed: Any) -> Any:
    """A trainer on a ViT's data, of which something is changed."""
    return make_trainer(folder, "vit", samples("vit")._replace(**changed))


def wrong_audit(folder: Path, **changed: Any) -> Any:
    return audit(original("vit"), **keywords(**samples("vit").three() | changed))


REFUSED: dict[str, Callable[[Path], Any]] = {
    "unknown method": lambda folder: make_trainer(folder, "vit", method="magic"),
    "unknown hinge": lambda folder: make_trainer(folder, "vit", hinge="cubic"),
    "retain weight": lambda folder: make_trainer(folder, "vit", retain_weight=2.0),
    "kept class": lambda folder: make_trainer(folder, "vit", request="class"),
    "masked class of text": lambda folder: make_trainer(folder, "gpt2", forget_target="masked_class"),
    "adapter of a mask": lambda folder: make_trainer(folder, "vit", method="salun", peft_config=LoraConfig()),
    "ssd on many samples": lambda folder: make_trainer(folder, "vit", method="ssd"),
    "empty forget": lambda folder: with_data(folder, forget=[]),
    "shared samples": lambda folder: with_data(folder, retain=samples("vit").forget),
    "unseen that was trained on": lambda folder: with_data(folder, unseen=samples("vit").retain),
    "other columns": lambda folder: with_data(folder, retain=samples("gpt2").retain),
    "mean without unseen": lambda folder: make_trainer(
        folder, "vit", samples("vit")._replace(unseen=None), forget_target="mean"
    ),
    "audit without unseen": lambda folder: wrong_audit(folder, unseen_ds=None),
    "audit of two classes of models": lambda folder: wrong_audit(folder, retrained=retrained("bert")),
    "audit of an unknown request": lambda folder: wrong_audit(folder, request="everything"),
    "odd shadows": lambda folder: shadows_of(vit, samples("vit"), folder, None, count=3),
    "split by nothing": lambda folder: split_forget_retain(samples("vit").forget),
    "split by a value that is not there": lambda folder: split_forget_retain(
        samples("vit").forget, column="labels", values=[9]
    ),
}


# ---- cases: auditing -----------------------------------------------------------------------------------------------


def unlearned(folder: Path, name: str, method: str, data: Data | None = None) -> Any:
    """A model that a few steps of a method have changed."""
    trainer = make_trainer(folder, name, data, method=method)
    trainer.train()
    return trainer.model


def audited(
    folder: Path, name: str, method: str = "nabla_tau", data: Callable[[str], Data] = samples, **settings: Any
) -> Entries:
    """A report on an unlearned model, with the original and a retrained one; unseen are the test samples."""
    chosen = data(name)
    model = unlearned(folder, name, method, chosen)
    named = {"forget_ds": chosen.forget, "retain_ds": chosen.retain, "unseen_ds": chosen.test}
    named = {"original": original(name), "retrained": retrained(name), **named, **settings}
    return report_entries(audit(model, **keywords(**named)).to_dict())


def audited_alone(folder: Path) -> Entries:
    """Without any other model, by groups, from the cache the second time."""
    data = one_speaker("gpt2")
    settings = {"group_column": "speaker", "cache_dir": folder / "cache", "resamples": 100}
    named = keywords(**data.three(), **settings)
    model = original("gpt2")
    first, second = (report_entries(audit(model, **named).to_dict()) for _ in range(2))
    return first | {"same from the cache": first == second}


def audited_with_shadows(folder: Path) -> Entries:
    """Shadow models, their plan, and the attacks that need them."""
    args = tf.TrainingArguments(
        str(folder / "runs"), num_train_epochs=2, per_device_train_batch_size=8, learning_rate=RATE, use_cpu=True,
        disable_tqdm=True, report_to="none", logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip

    def build(seed: int) -> Any:
        torch.manual_seed(seed)
        return vit()

    shadows = shadows_of(build, samples("vit"), folder / "shadows", args, count=4)
    named = keywords(**samples("vit").three(), original=original("vit"), retrained=retrained("vit"))
    entries = report_entries(audit(original("vit"), shadows=shadows, **named).to_dict())
    for name, hashes in shadows.hashes.items():
        entries[f"shadow/hashes/{name}"] = hashlib.sha256(b"".join(hashes)).hexdigest()
    for i, model in enumerate(shadows.models()):
        members = {name: np.flatnonzero(mask[i]).tolist() for name, mask in shadows.members.items()}
        entries |= {f"shadow/{i}/weights": weights_hash(model.state_dict()), **flat(f"shadow/{i}/members", members)}
    return entries


def measured_models(folder: Path) -> Entries:
    """`measure` and the gap of two models."""
    entries: Entries = {}
    for name in MODELS:
        metrics = [measured(model(name), samples(name)) for model in (original, retrained)]
        entries |= flat(f"{name}/original", metrics[0]) | flat(f"{name}/retrained", metrics[1])
        entries[f"{name}/gap"] = exact(average_gap(*metrics))
    return entries | flat("class", measured(original("vit"), one_class("vit")))


def trainer_audits(folder: Path) -> Entries:
    """The trainer's own audit, with and without unseen samples beside those of the target."""
    entries: Entries = {}
    for name, data in (("vit", as_datasets(samples("vit"))), ("bert", samples("bert"))):
        trainer = make_trainer(folder, name, data, method="nabla_tau")
        trainer.train()
        named = keywords(unseen_ds=data.test, retrained=retrained(name), original=original(name))
        reports = {"unseen": trainer.audit(**named), "target": trainer.audit(resamples=50)}
        for kind, report in reports.items():
            entries |= {f"{name}/{kind}/{key}": value for key, value in report_entries(report.to_dict()).items()}
    return entries


def audit_cases() -> Iterator[tuple[str, Case]]:
    yield "audit/vit", partial(audited, name="vit", relearning=True)
    yield "audit/vit-class", partial(audited, name="vit", data=one_class, request="class", relearning=True)
    yield "audit/vit-adapter", partial(audited, name="vit", method="orthograd", relearning=True)
    yield "audit/bert", partial(audited, name="bert", request=SAMPLES)
    yield "audit/gpt2", partial(audited, name="gpt2", processing_class=word_tokenizer(), relearning=True)
    yield "audit/whisper", partial(audited, name="whisper", processing_class=word_tokenizer())
    yield "audit/alone", audited_alone
    yield "audit/shadows", audited_with_shadows
    yield "measure", measured_models
    yield "trainer-audit", trainer_audits


# ---- cases: the command line ---------------------------------------------------------------------------------------

TASK = """
import torch
from datasets import Dataset
from transformers import ViTConfig, ViTForImageClassification

from hf_unlearn.comparing import Task


class Tiny(Task):
    training = {"num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": 16}

    def load(self):
        generator = torch.Generator().manual_seed(self.seed)

        def drawn(count):
            images = torch.randn(count, 1, 8, 8, generator=generator)
            labels = (images.mean((1, 2, 3)) > 0).long()
            return Dataset.from_dict({"pixel_values": images.tolist(), "labels": labels.tolist()})

        return {"train": drawn(60), "unseen": drawn(20), "test": drawn(20)}

    def build(self, seed):
        torch.manual_seed(seed)
        config = ViTConfig(
            image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, num_labels=2,
        )
        return ViTForImageClassification(config)
"""
COMPARISON = {
    "task": "task.py:Tiny",
    "requests": {"random": {"forget": "20%"}},
    "methods": {"nabla_tau": {}, "orthograd": {}, "npo": {}},
    "seeds": [0],
    "retrained": 1,
    "budget": {"max_steps": 2},
}
CLASSES = ["ant", "bird", "cat"]
QUICK = "--max_steps=2 --use_cpu --disable_tqdm=true --per_device_train_batch_size=4"
DATA = "--model=vit --dataset=train.parquet --unseen_dataset=unseen.parquet"
# Name to command line, run one after the other in one folder. Only exit codes are compared: texts may change.
COMMANDS = {
    "nothing": "",
    "help": "--help",
    "version": "--version",
    **{f"{name} help": f"{name} --help" for name in ("run", "audit", "compare", "demo", "verify", "push")},
    "run all settings": "run --help-all",
    "audit all settings": "audit --help-all",
    "unknown command": "fly",
    "run without settings": "run",
    "run without forget": "run --model=m --dataset=d",
    "run with an unknown setting": "run --modle=m",
    "run with a word for a number": "run --max_steps=ten",
    "run with an unknown method": "run --method=magic",
    "run with a file that is not there": "run --config=none.yaml",
    "run with a file of other settings": "run --config=other.yaml",
    "run with a column that names nothing": f"run {DATA} --forget=10% --columns image {QUICK}",
    "run with an unknown class": f"run {DATA} --forget=label=dog {QUICK}",
    "run with a method that refuses": f"run {DATA} --forget=label=cat --method=npo {QUICK}",
    "run without a checkpoint to resume": f"run {DATA} --forget=label=cat --resume --output_dir=none {QUICK}",
    "run": f"run {DATA} --forget=label=cat --output_dir=out {QUICK}",
    "run on samples": f"run {DATA} --forget={SAMPLES}=0..3 --method=orthograd --output_dir=out-samples {QUICK}",
    "run on a saved dataset": f"run --model=vit --dataset=ready --forget=25% --output_dir=out-ready {QUICK}",
    "run with checkpoints": f"run {DATA} --forget=25% --save_strategy=steps --save_steps=1 --output_dir=kept {QUICK}",
    "run resumed": f"run {DATA} --forget=25% --output_dir=kept --resume {QUICK}",
    "audit": f"audit {DATA.replace('=vit', '=out')} --forget=label=cat --original=vit {RETRAINED_FLAG}=vit",
    "audit without unseen": "audit --model=out --dataset=train.parquet --forget=label=cat",
    "audit into a file of another kind": f"audit {DATA} --forget=label=cat --out=a.txt",
    "verify": "verify out/unlearning.json --model=out",
    "verify the original": "verify out/unlearning.json --model=vit",
    "verify samples": "verify out/unlearning.json --model=out --dataset=train.parquet --forget=label=cat",
    "verify other samples": "verify out/unlearning.json --model=out --dataset=train.parquet --forget=label=cat,ant",
    "verify without a record": "verify none.json --model=out",
    "push nothing": "push",
    "push with a token": "push out me/model --token=secret",
    "push a folder without a record": "push vit me/model",
    "push a folder that has changed": "push changed me/model",
    "compare nothing": "compare",
    "compare a file that is not there": "compare none.yaml",
    "compare by a bad file": "compare bad.yaml",
    "compare": "compare tiny.yaml --output_dir=comparison",
}


def image_files(folder: Path, name: str, count: int, seed: int) -> None:
    """Images and named classes, as they stand on the Hub."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        pixels = generator.integers(0, 256, size=(20, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file := io.BytesIO(), format="PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    labels = [i % len(CLASSES) for i in range(count)]
    datasets.Dataset.from_dict({"image": files, "label": labels}, features).to_parquet(folder / f"{name}.parquet")


def prepare_folder(folder: Path) -> None:
    """A model with its processor, data, and files of settings, good and bad."""
    model = original("vit")
    model.config.id2label, model.config.label2id = dict(enumerate(CLASSES)), {n: i for i, n in enumerate(CLASSES)}
    model.save_pretrained(folder / "vit")
    tf.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    image_files(folder, "train", 24, 0)
    image_files(folder, "unseen", 24, 1)
    as_dataset([*samples("vit").forget, *samples("vit").retain]).save_to_disk(folder / "ready")
    (folder / "task.py").write_text(TASK)
    (folder / "tiny.yaml").write_text(json.dumps(COMPARISON))
    (folder / "bad.yaml").write_text(json.dumps(COMPARISON | {"methods": ["magic"]}))
    (folder / "other.yaml").write_text("lr: 1\n")


def exit_code(command: str) -> int:
    """Of a command line; what it prints is not looked at."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return command_line(command.split())
        except SystemExit as stop:
            return int(stop.code or 0)


def command_lines(folder: Path) -> Entries:
    """Every exit code; and the weights and metrics that the commands left."""
    prepare_folder(folder)
    entries: Entries = {}
    with inside(folder):
        for name, command in COMMANDS.items():
            if name == "push a folder that has changed":
                shutil.copytree("out", "changed")
                shutil.copy("vit/model.safetensors", "changed")
            entries[f"exit code/{name}"] = exit_code(command)
        return entries | left_by_commands()


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 lacks."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def left_by_commands() -> Entries:
    """Weights of the runs, reports, a record, and the comparison's metrics, from the files in this folder."""
    entries: Entries = {}
    for name in ("out", "out-samples", "out-ready", "kept"):
        model = tf.ViTForImageClassification.from_pretrained(name)
        entries[f"{name}/weights"] = weights_hash(model.state_dict())
    for path in ("audit.json", "out/audit.json"):
        report = report_entries(json.loads(Path(path).read_text()))
        entries |= {f"{path}/{key}": value for key, value in report.items()}
    record = renamed(json.loads(Path("out/unlearning.json").read_text()))
    for part in ("request", "settings", "weights"):
        entries |= flat(f"out/unlearning.json/{part}", record[part])
    for run in runs_of(json.loads(Path("comparison/results.json").read_text())):
        found = {key: run.get(key) for key in ("status", "steps", "weights", "metrics")}
        entries |= flat(f"comparison/{run['request']}/{run['seed']}/{run['model']}", found)
    return entries


# ---- run and diff --------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """What two files must share to be comparable, and where they come from."""
    package = Path(hf_unlearn.__file__).parent
    describe = ["git", "-C", str(package), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True)
    return {
        "seed": str(SEED),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": tf.__version__,
        "datasets": datasets.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "package": str(package),
        "commit": commit.stdout.strip() or "unknown",
        "command": " ".join(sys.argv),
    }


def run_case(name: str, case: Case) -> Entries:
    """A case's entries, named by it; what goes wrong is its one entry, and stops no other."""
    seed_all(SEED)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = case(Path(folder))
    except Exception as error:
        found = {"error": f"error: {type(error).__name__}: {error}"}
    return {f"{name}/{key}": value for key, value in found.items()}


def run(out: Path, only: str = "") -> int:
    """Run every case (whose name begins with `only`), and write what it left."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tf.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    tf.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for attributes by their old names
    entries: Entries = {}
    started = time.perf_counter()
    cases = [*training_cases(), *audit_cases(), ("cli", command_lines)]
    # Every run of a trainer collects garbage: half of its time, if all that was imported is searched each time.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as cache_folder:
        datasets.config.HF_DATASETS_CACHE = Path(cache_folder)
        for name, case in cases:
            if name.startswith(only):
                since = time.perf_counter()
                entries |= (found := run_case(name, case))
                problem = found.get(f"{name}/error", found.get(f"{name}/refused", ""))
                print(f"{time.perf_counter() - since:6.2f} s  {name}  {problem}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": environment(), "entries": entries}, indent=0) + "\n")
    errors = [key for key in entries if key.endswith("/error")]
    print(
        f"{len(entries)} entries of {hf_unlearn.__file__} in {time.perf_counter() - started:.0f} s; errors: {errors}"
    )
    return int(bool(errors))


def diff(before: Path, after: Path) -> int:
    """Print every entry that differs, with both values; 1 where there is one."""
    one, other = (json.loads(path.read_text()) for path in (before, after))
    for key in ("seed", "python", "torch", "transformers", "datasets", "numpy", "platform", "processor"):
        if one["environment"].get(key) != other["environment"].get(key):
            print(f"warning: {key}: {one['environment'].get(key)} and {other['environment'].get(key)}")
    first, second = one["entries"], other["entries"]
    different = [key for key in {**first, **second} if first.get(key, "missing") != second.get(key, "missing")]
    for key in different:
        print(f"{key}\n  {first.get(key, 'missing')}\n  {second.get(key, 'missing')}")
    if different:
        print(f"different: {len(different)} of {len({**first, **second})} entries")
        return 1
    print(f"equal: {len(first)} entries")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="write what this tree computes")
    running.add_argument("out", type=Path)
    running.add_argument("--only", default="", help="cases whose names begin so")
    running.set_defaults(do=lambda args: run(args.out, args.only))
    comparing = commands.add_parser("diff", help="compare two files")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.set_defaults(do=lambda args: diff(args.before, args.after))
    args = parser.parse_args()
    return args.do(args)


if __name__ == "__main__":
    sys.exit(main())
