"""Bad inputs of the Python functions: what is called, and the start of the message, with what was found and to do."""

import numpy as np
import torch
from peft import LoraConfig
from tiny import make

from hf_unlearn import split_forget_retain, train_shadows
from hf_unlearn.auditing import attacks, metrics
from hf_unlearn.auditing.recovery import quantised
from hf_unlearn.auditing.relearning import relearn, relearn_time
from hf_unlearn.comparing import Comparison
from hf_unlearn.data.loading import load_samples, parse_forget
from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.hub.record import verify
from hf_unlearn.hub.record_schema import read_record
from hf_unlearn.hub.upload import check_revision, create_repo, push_folder
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.loading import load_model, load_processor


def changed(samples, index, **values):
    """The samples with other values in one of them."""
    return [{**sample, **values} if i == index else sample for i, sample in enumerate(samples)]


def frozen():
    return make("vit")[0].requires_grad_(False)


def with_nan():
    model = make("vit")[0]
    with torch.no_grad():
        model.classifier.weight[0] = float("nan")
    return model


def as_type(error, rows):
    return [(error, *row) for row in rows]


# ---- UnlearningArguments: settings, message -----------------------------------------------------------------------

ARGUMENTS = [
    ({"method": "nabla_tua"}, r"method: unknown value 'nabla_tua', use one of .*\(did you mean 'nabla_tau'\?\)"),
    ({"method": 3}, "method: unknown value 3, use one of"),
    ({"request": "clas"}, r"request: unknown value 'clas', use one of .*\(did you mean 'class'\?\)"),
    ({"hinge": "sqared"}, r"hinge: unknown value 'sqared', use one of .*\(did you mean 'squared'\?\)"),
    ({"forget_target": "distributon"}, r"forget_target: unknown value .*\(did you mean 'distribution'\?\)"),
    ({"forget_target": float("inf")}, "forget_target: must be a finite number, got inf"),
    ({"forget_target": "nan"}, "forget_target: must be a finite number, got nan"),
    ({"forget_target": [1.0, float("nan")]}, "forget_target: holds nan or infinity; give finite losses"),
    ({"forget_target": {"a": 1}}, "forget_target: expected a name, a number, losses"),
    ({"gram_cache": "kept"}, r"gram_cache: unknown value 'kept', use one of .*\(did you mean 'keep'\?\)"),
    ({"per_sample_engine": "hook"}, r"per_sample_engine: unknown value .*\(did you mean 'hooks'\?\)"),
    ({"projection": "grad"}, "projection: unknown value 'grad', use one of"),
    ({"projection_scope": "globl"}, r"projection_scope: unknown value .*\(did you mean 'global'\?\)"),
    ({"forgetting_loss": "grad_dif"}, r"forgetting_loss: unknown value .*\(did you mean 'grad_diff'\?\)"),
    ({"retain_weight": -0.1}, r"retain_weight: must lie in \[0, 1\], got -0.1"),
    ({"retain_weight": float("nan")}, "retain_weight: must be a finite number, got nan"),
    ({"retain_batch_size": -2}, "retain_batch_size: must be at least 1, got -2"),
    ({"learning_rate": -1e-4}, "learning_rate: must be at least 0, got -0.0001"),
    ({"learning_rate": float("inf")}, "learning_rate: must be a finite number, got inf"),
    ({"weight_decay": -1.0}, "weight_decay: must be at least 0, got -1.0"),
    ({"max_steps": -5}, "max_steps: must be at least -1, got -5"),
    ({"num_train_epochs": -1.0}, "num_train_epochs: must be at least 0, got -1.0"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: must be at least 1, got 0"),
    ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size: must be at least 1, got -1"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: must be at least 1, got 0"),
    ({"seed": -1}, "seed: must be at least 0, got -1"),
    ({"method": "npo", "method_kwargs": {"betta": 1}}, r"method_kwargs: npo has no 'betta'; .*\(did you mean 'beta'"),
    ({"method": "npo", "method_kwargs": {"beta": -1}}, "method_kwargs: beta of npo must be greater than 0, got -1"),
    ({"label_smoothing_factor": 0.2}, "label_smoothing_factor: must be 0 while unlearning, got 0.2"),
    ({"push_to_hub": True, "hub_strategy": "every_save"}, "hub_strategy: must be \"end\", got 'every_save'"),
]
ARGUMENT_TYPES = [
    ({"retain_weight": "much"}, "retain_weight: must be a number, got 'much'"),
    ({"retain_batch_size": 1.5}, "retain_batch_size: must be a whole number, got 1.5"),
    ({"retain_batch_size": True}, "retain_batch_size: must be a whole number, got True"),
    ({"learning_rate": "1e-4"}, "learning_rate: must be a number, got '1e-4'; give it without quotes"),
    ({"max_steps": "ten"}, "max_steps: must be a whole number, got 'ten'"),
    ({"per_device_train_batch_size": "4"}, "per_device_train_batch_size: must be a whole number, got '4'"),
    ({"stop_at_target": "yes"}, "stop_at_target: must be True, False or None, got 'yes'"),
    ({"method": "npo", "method_kwargs": {"beta": "big"}}, "method_kwargs: beta of npo must be a number, got 'big'"),
    ({"method": "npo", "method_kwargs": 3}, "method_kwargs: expected names and values, got 3"),
]

# ---- UnlearningTrainer: arguments (a function of what is given), settings, message ----------------------------------

TRAINER = [
    (lambda g: {"forget_ds": None}, {}, "forget_ds: is missing; split_forget_retain makes"),
    (lambda g: {"retain_ds": None}, {}, "retain_ds: is missing; split_forget_retain makes"),
    (lambda g: {"model": None}, {}, "model: is missing; give a model"),
    (lambda g: {"model": "nowhere/model"}, {}, r"model: 'nowhere/model' does not load \(.*\); give the folder"),
    (lambda g: {"model": str(g.folder / "empty")}, {}, "model: '.*empty' does not load"),
    (lambda g: {"model": frozen()}, {}, "model: all parameters are frozen, nothing can be unlearned; unfreeze"),
    (lambda g: {"model": with_nan()}, {}, "model: 1 of its .* hold nan or infinity, 'classifier.weight' first; load"),
    (
        lambda g: {"compute_loss_func": len},
        {},
        "compute_loss_func: unlearning needs a loss for every .*; pass per_sam",
    ),
    (lambda g: {"forget_ds": []}, {}, "forget_ds: is empty; give at least one sample"),
    (lambda g: {"retain_ds": []}, {}, "retain_ds: is empty; give at least one sample"),
    (lambda g: {"unseen_ds": []}, {}, "unseen_ds: is empty; give at least one sample"),
    (lambda g: {"forget_ds": "me/images"}, {}, "forget_ds: got a str, whose samples have no number; load it whole"),
    (lambda g: {"retain_ds": {"train": g.retain}}, {}, r"retain_ds: got a dict of \['train'\]; give one of them"),
    (lambda g: {"unseen_ds": iter(g.unseen)}, {}, "unseen_ds: got a list_iterator, whose samples have no number"),
    (
        lambda g: {"retain_ds": [{"labels": s["labels"]} for s in g.retain]},
        {},
        r"retain_ds: its columns \['labels'\] are not those of forget_ds .*; prepare",
    ),
    (lambda g: {"retain_ds": [*g.retain, g.forget[2]]}, {}, "forget_ds and retain_ds share 1 samples .*: "),
    (
        lambda g: {"unseen_ds": [*g.unseen, g.forget[2]]},
        {},
        "(unseen_ds and forget_ds|forget_ds and unseen_ds) share 1",
    ),
    (
        lambda g: {"forget_ds": changed(g.forget, 1, pixel_values=torch.full((3, 32, 32), torch.nan))},
        {},
        "forget_ds: sample 1",
    ),
    (lambda g: {}, {"method": "idk_dpo"}, "(alternative_ds|method): "),
    (lambda g: {"alternative_ds": g.forget}, {}, "alternative_ds: nabla_tau does not use it; leave it out"),
    (lambda g: {"unseen_ds": None}, {"forget_target": "mean"}, "forget_target: 'mean' needs unseen_ds, .*; give them"),
    (
        lambda g: {"unseen_ds": None},
        {"forget_target": "distribution"},
        "forget_target: 'distribution' needs unseen_ds",
    ),
    (lambda g: {}, {"forget_target": "masked_class"}, 'forget_target: "masked_class" needs a request="class"'),
    (lambda g: {}, {"forget_target": [[1.0] * 8] * 3}, "forget_target: holds loss profiles, but a .* give one loss"),
    (lambda g: {}, {"request": "class"}, r'request: "class", but retain_ds still holds samples .*; take them out, or'),
    (lambda g: {}, {"method": "npo"}, "method: npo works on heads of kind .*, got single_label; use nabla_tau"),
    (
        lambda g: {"peft_config": LoraConfig(target_modules=["nothing"])},
        {},
        r"peft_config: PEFT cannot apply target_modules=\{'nothing'\} to ViTFor.*give some of its layers, which are named",
    ),
    (
        lambda g: {"peft_config": LoraConfig(target_modules=["q_proj"], bias="all")},
        {},
        "peft_config: bias='all' trains biases of the model itself, .*; use bias='none'",
    ),
    (
        lambda g: {"model": g.adapted, "peft_config": LoraConfig(target_modules=["q_proj"])},
        {},
        "peft_config: the model already has an adapter; merge it first",
    ),
    (
        lambda g: {"peft_config": LoraConfig(target_modules=["q_proj"])},
        {"method": "salun"},
        "peft_config: salun works on the weights themselves, .*; leave peft_config out",
    ),
    (
        lambda g: {"optimizer_cls_and_kwargs": (torch.optim.SGD, {}), "optimizers": (object(), None)},
        {},
        "optimizer_cls_and_kwargs: optimizers is given as well; give one of them",
    ),
]

# ---- audit: arguments, message ------------------------------------------------------------------------------------

AUDIT = [
    (lambda g: {"unseen_ds": None}, "unseen_ds: is missing; forgotten samples are compared"),
    (lambda g: {"forget_ds": []}, "forget_ds: is empty; give at least one sample"),
    (lambda g: {"retain_ds": []}, "retain_ds: is empty; give at least one sample"),
    (lambda g: {"unseen_ds": []}, "unseen_ds: is empty; give at least one sample"),
    (lambda g: {"forget_ds": "me/images"}, "forget_ds: got a str, whose samples have no number; load it whole"),
    (lambda g: {"forget_ds": {"train": g.forget}}, r"forget_ds: got a dict of \['train'\]; give one of them"),
    (lambda g: {"unseen_ds": [*g.unseen, g.forget[0]]}, "(unseen_ds and forget_ds|forget_ds and unseen_ds) share 1"),
    (lambda g: {"original": g.gpt2}, "original: is a GPT2LMHeadModel, the model a ViTFor.*; use one class"),
    (lambda g: {"retrained": g.gpt2}, "retrained: is a GPT2LMHeadModel, the model a ViTFor.*; use one class"),
    (lambda g: {"retrained": [g.model, g.gpt2]}, "retrained 2: is a GPT2LMHeadModel, the model a ViTFor.*; use one"),
    (lambda g: {"request": "clas"}, r"request: must be one of .*, got 'clas' \(did you mean 'class'\?\)"),
    (lambda g: {"group_column": "speker"}, "group_column: 'speker' is not in the dataset; it has"),
    (lambda g: {"original": {"forget": []}}, "original: holds statistics of 0 forget samples, the audit measures 5"),
]

# ---- split_forget_retain: keywords, message ------------------------------------------------------------------------

SPLIT = [
    ({}, "split_forget_retain: give exactly one of column, fraction, indices and where, got none"),
    ({"fraction": 0.1, "indices": [1]}, r"split_forget_retain: give exactly one of .*, got \['fraction', 'indices'\]"),
    (
        {"column": "lable", "values": [1]},
        r"column: 'lable' is not in the dataset; it has .*\(did you mean 'label'\?\)",
    ),
    ({"column": "label"}, "values: say which values of column 'label' to forget"),
    ({"column": "label", "values": 1}, r"values: expected a list, got 1; write values=\[1\]"),
    ({"column": "label", "values": [7]}, r"values: column 'label' has no \[7\]; it has 0, 1, 2"),
    ({"column": "says", "values": ["b"]}, r"values: column 'says' has no \['b'\]; it has"),
    ({"column": "label", "values": [0, 1, 2]}, r"split_forget_retain: the retain dataset would be empty \(12 of 12"),
    ({"fraction": 0.0}, "fraction: must lie strictly between 0 and 1, got 0.0"),
    ({"fraction": 1.0}, "fraction: must lie strictly between 0 and 1, got 1.0"),
    ({"fraction": -0.5}, "fraction: must lie strictly between 0 and 1, got -0.5"),
    ({"fraction": 0.5, "request": "grop"}, r"request: must be one of .*, got 'grop' \(did you mean 'group'\?\)"),
    ({"fraction": 0.5, "stratify_by": "lable"}, "stratify_by: 'lable' is not in the dataset; it has"),
    ({"indices": []}, "split_forget_retain: the forget dataset would be empty"),
    ({"indices": [-1]}, r"indices: must lie in \[0, 12\), got -1 to -1"),
    ({"indices": [99]}, r"indices: must lie in \[0, 12\), got 99 to 99"),
    ({"indices": [0.5]}, r"indices: expected a list of whole numbers, got \[0.5\]"),
    ({"indices": [True, False]}, "indices: got a boolean mask; give the numbers"),
    ({"where": lambda sample: False}, "split_forget_retain: the forget dataset would be empty"),
]

# ---- anything else: a function of what is given, message ------------------------------------------------------------

FORGET = [
    ("", "forget: '' is no forget request; use COLUMN=VALUE"),
    ("label", "forget: 'label' is no forget request; use COLUMN=VALUE"),
    ("lable=3", r"forget: there is no column 'lable', only .*\(did you mean 'label'\?\)"),
    ("label=brid", r"forget: there is no class 'brid'; the classes are .*\(did you mean 'bird'\?\)"),
    ("label=9", "forget: there is no class '9'; the classes are ant, bird, cat"),
    ("speaker=ann", "forget: column 'speaker' holds values of type int64, not 'ann'"),
    ("speaker=9..1", "forget: the range '9..1' is empty; give FIRST..LAST"),
    ("speaker=0..999", "forget: the range '0..999' has 1000 values for 12 samples; shorten it"),
    ("many=1", "forget: column 'many' holds no plain values to choose by; use"),
    ("0%", "forget: '0%' is not between nothing and everything; use 10%"),
    ("100%", "forget: '100%' is not between nothing and everything; use 10%"),
    ("fraction=2", "forget: 'fraction=2' is not between nothing and everything; use 10%"),
    ("fraction=half", "forget: 'fraction=half' names no share; use 10%"),
    ("indices=nowhere.txt", "forget: 'nowhere.txt' does not open .*; give a file of sample numbers"),
]
RECORDS = [
    ("schema_version", 9, "record: schema_version is 9, expected 3; give the file"),
    ("request", [], r"record: request is \[\], expected an object; give"),
    ("request.id", 7, "record: request.id is 7, expected a text or null; give"),
    ("request.kind", "people", "record: request.kind is 'people', expected one of samples, class, group; give"),
    ("request.samples", -1, "record: request.samples is -1, expected a number of samples; give"),
    ("request.samples", 99, "record: has 5 sample_hashes for 99 samples; give"),
    ("request.columns", "labels", "record: request.columns is 'labels', expected a list of names; give"),
    ("weights.kind", "lora", "record: weights.kind is 'lora', expected model or adapter; give"),
    ("weights.after", "00", "record: weights.after is '00', expected 64 hexadecimal digits or null; give"),
    ("salt", "pepper", "record: salt is 'pepper', expected 32 hexadecimal digits; give"),
    ("sample_hashes", ["x"], r"record: sample_hashes is \['x'\], expected a list of hashes"),
    ("audit", "good", "record: audit is 'good', expected an object or null; give"),
    ("files", {"../up": "0" * 64}, "record: files is .*, expected SHA-256 hashes by names of files of a release"),
]
CONFIGS = [
    ({"metods": ["npo"]}, r"config: unknown key metods; use .*\(did you mean 'methods'\?\)"),
    ({"methods": []}, "config: methods is missing; write it"),
    ({"methods": ["nabla_tua"]}, r"config: method 'nabla_tua' is none of .*\(did you mean 'nabla_tau'\?\)"),
    ({"methods": {"a": {"method": "b"}}}, "config: method 'b' is none of .*; or write `method: NAME`"),
    ({"methods": {"nabla_tau": 3}}, "config: methods: nabla_tau must be a mapping, got int; write"),
    (
        {"methods": {"nabla_tau": {"learning_rat": 1}}},
        r"config: method 'nabla_tau' has 'learning_rat', which is no setting; .*\(did you mean 'learning_rate'\?\)",
    ),
    ({"requests": {}}, "config: requests is missing; write it"),
    ({"requests": ["10%"]}, "config: requests must be a mapping, got list; write"),
    ({"requests": {"a": "10%"}}, "config: requests: a must be a mapping, got str; write"),
    ({"requests": {"a": {"samples": 1}}}, "config: request 'a' needs forget, and may have .*; got"),
    ({"requests": {"a": {"forget": "label"}}}, "config: request 'a': forget: 'label' is no forget request; use"),
    (
        {"requests": {"a": {"forget": ["1%"]}}},
        "config: request 'a' has 1 forget expressions for 2 seeds; give one each",
    ),
    (
        {"requests": {"a": {"forget": "1%", "retain_samples": -3}}},
        "config: request 'a': retain_samples must be a number",
    ),
    (
        {"requests": {"a": {"forget": "1%", "retrained": 3}}},
        "config: request 'a': retrained names 3; give a checkpoint",
    ),
    ({"seeds": 3}, "config: seeds must be different whole numbers from 0, got 3; write"),
    ({"seeds": []}, r"config: seeds must be different whole numbers from 0, got \[\]; write"),
    ({"seeds": [0, 0]}, r"config: seeds must be different whole numbers from 0, got \[0, 0\]; write"),
    ({"seeds": ["a"]}, r"config: seeds must be different whole numbers from 0, got \['a'\]; write"),
    ({"budget": 5}, "config: budget must be a mapping, got int; write"),
    ({"budget": {"epochs": 5}}, r"config: budget must be one of max_steps or seconds, got \{'epochs': 5\}"),
    ({"budget": {"max_steps": -1}}, "config: budget: max_steps must be a number above 0, got -1"),
    ({"budget": {"seconds": "long"}}, "config: budget: seconds must be a number above 0, got 'long'"),
    ({"retrained": "two"}, "config: retrained must be a number of models, got 'two'"),
    ({"relearning": "maybe"}, "config: relearning must be true or false, got 'maybe'"),
    ({"task": 3}, "config: task must be FILE.py:Class, got 3"),
    ({"options": ["a"]}, "config: options must be a mapping, got list; write"),
    ({"original": 3}, "config: original names 3; give a checkpoint"),
]
OTHERS = [
    (lambda g: load_model("nowhere/model"), r"model: 'nowhere/model' does not load \(.*\); give the folder"),
    (lambda g: load_model("a name!"), r"model: 'a name!' does not load \(.*\); give the folder"),
    (lambda g: load_model(str(g.folder / "empty")), r"model: '.*empty' does not load \(.*\); give the folder"),
    (
        lambda g: load_model(str(g.folder / "classless")),
        r"model: .* does not load \(its configuration names no class\)",
    ),
    (lambda g: load_model(str(g.folder / "strange")), r"model: .* \(transformers has no model 'ViTForMagic'\); give"),
    (lambda g: load_model(str(g.folder / "function")), r"model: .* \(transformers has no model 'set_seed'\); give"),
    (lambda g: load_model(str(g.folder / "config_only")), r"model: '.*config_only' does not load \(.*\); give"),
    (lambda g: load_processor(str(g.folder / "bare"), g.model), r"model: '.*bare' has no processor \(.*\); save"),
    (lambda g: load_samples("nowhere.parquet"), "dataset: 'nowhere.parquet' is no file or folder here"),
    (lambda g: load_samples(str(g.folder / "words.txt")), "dataset: '.*words.txt' is no data file; use one of"),
    (
        lambda g: load_samples(str(g.folder / "train.parquet"), "test"),
        "split: test is not in .*; one file has the split",
    ),
    (lambda g: prepare(g.table.select([]), g.model, object()), "samples: the dataset is empty; give at least one"),
    (lambda g: prepare(g.table, g.model, None), "processor: is missing, and the samples hold no pixel_values; give"),
    (
        lambda g: prepare(g.table, g.model, load_processor(str(g.folder / "vit"), g.model), columns={"imag": "says"}),
        r"columns: 'imag' is no role of a column; use one of .*\(did you mean 'image'\?\)",
    ),
    (
        lambda g: prepare(g.table, g.model, load_processor(str(g.folder / "vit"), g.model), columns={"image": "sys"}),
        r"columns: there is no column 'sys' for image, only .*\(did you mean 'says'\?\)",
    ),
    (
        lambda g: prepare(g.table, g.model, load_processor(str(g.folder / "vit"), g.model)),
        "columns: none of .* is known as image; say which, as image=its name",
    ),
    (
        lambda g: split_forget_retain("me/images", fraction=0.1),
        "dataset: got a str, whose samples have no number; load",
    ),
    (lambda g: split_forget_retain({"train": g.table}, fraction=0.1), r"dataset: got a dict of \['train'\]; give one"),
    (
        lambda g: verify(g.folder / "broken.json", g.model),
        "record: '.*broken.json' is not valid JSON .*; give the file",
    ),
    (lambda g: read_record(g.folder / "words.txt"), "record: '.*words.txt' is not valid JSON .*; give the file"),
    (lambda g: verify(g.folder / "record.json"), "verify: nothing to check the record against; give a model"),
    (
        lambda g: verify(g.folder / "record.json", samples=[{"text": "a"}]),
        "samples: have no column 'labels' of the record, only .*; preprocess",
    ),
    (
        lambda g: push_folder(g.folder / "empty", "me/model"),
        "folder: '.*empty' has no unlearning.json; give the folder",
    ),
    (
        lambda g: push_folder(g.folder / "checkpoints", "me/model"),
        "folder: '.*checkpoints' has only checkpoints, .*; let",
    ),
    (lambda g: check_revision("branch", True), "create_pr: a pull request goes to main, got revision='branch'; leave"),
    (lambda g: create_repo("a name!", None, True), "repo_id: 'a name!' is no name of a repository, give 'owner/name'"),
    (lambda g: add_adapter(g.adapted), "model: this PeftModel has an adapter already; unlearn that one, or merge"),
    (
        lambda g: train_shadows(make, g.forget, g.retain, g.unseen, "shadows", g.arguments(), count=3),
        "count: expected an even",
    ),
    (lambda g: relearn(g.model, g.forget[:1], samples=1), "forget_ds: has 1 samples; give two or more"),
    (lambda g: relearn(g.model, g.forget, samples=9), "samples: found 9 of 5 forget samples; give 1 to 4"),
    (
        lambda g: relearn_time({"steps": [0], "forget_accuracy": [0.5]}, 7.0),
        "threshold: found 7.0 for a curve of .*; give",
    ),
    (lambda g: quantised(g.model, 3), "bits: found 3; use one of"),
    (lambda g: metrics.accuracy([], []), "predictions: no samples; pass at least one"),
    (lambda g: metrics.accuracy([1], [1, 2]), "predictions: 1 samples, but references has 2; pass one each"),
    (lambda g: metrics.check_numbers("losses", [np.nan], 0, 1), r"losses: must be in \[0, 1\], got nan to nan"),
    (lambda g: metrics.check_losses("losses", []), "losses: needs 1 dimensions and at least one number, got shape"),
    (lambda g: attacks.roc(np.ones(1), np.ones(2)), r"\w+: needs two samples on either side, got 1 and 2"),
    (lambda g: Comparison.from_yaml("none.yaml"), "config: there is no file none.yaml; give the YAML file"),
    (
        lambda g: Comparison.from_yaml(g.folder / "broken.yaml"),
        r"config: .*broken.yaml is not valid YAML \(.*\); mend",
    ),
    (lambda g: Comparison.from_yaml(g.folder / "list.yaml"), "config: the file must be a mapping, got list; write"),
]
OTHER_TYPES = [
    (lambda g: g.trainer(args=object()), "args: expected UnlearningArguments, got object; it takes"),
    (lambda g: verify([1], g.model), r"record: expected the content of an unlearning.json, got list"),
]

CALLS = {
    "arguments": [
        *((ValueError, lambda g, s=settings: g.arguments(**s), message) for settings, message in ARGUMENTS),
        *((TypeError, lambda g, s=settings: g.arguments(**s), message) for settings, message in ARGUMENT_TYPES),
    ],
    "trainer": [
        (ValueError, lambda g, c=changes, s=settings: g.trainer(settings=s, **c(g)), message)
        for changes, settings, message in TRAINER
    ],
    "audit": [(ValueError, lambda g, c=changes: g.audit(**c(g)), message) for changes, message in AUDIT],
    "split": [
        (ValueError, lambda g, k=kwargs: split_forget_retain(g.table, **k), message) for kwargs, message in SPLIT
    ],
    "forget": [(ValueError, lambda g, t=text: parse_forget(t, g.table), message) for text, message in FORGET],
    "records": [
        (ValueError, lambda g, f=field, v=value: verify(g.changed_record(f, v), g.model), message)
        for field, value, message in RECORDS
    ],
    "configs": [
        (ValueError, lambda g, c=changes: Comparison.from_dict({"name": "n", **g.comparison(**c)}), message)
        for changes, message in CONFIGS
    ],
    "others": [
        *((ValueError, call, message) for call, message in OTHERS),
        *((TypeError, call, message) for call, message in OTHER_TYPES),
    ],
}
