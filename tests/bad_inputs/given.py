"""What the tables spoil: one tiny model, its samples, and the same in files; made once."""

import copy
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import tiny_data
import torch
from datasets import ClassLabel, Dataset
from tiny import make, samples

from hf_unlearn import UnlearningArguments, UnlearningTrainer, audit
from hf_unlearn.data.hashing import weights_hash
from hf_unlearn.hub.record import make_record

COMPARISON = {
    "task": f"{Path(__file__).parents[1] / 'comparing_task.py'}:Small",
    "requests": {"tenth": {"forget": "10%"}},
    "methods": ["nabla_tau"],
    "seeds": [0, 1],
}


class Given:
    """A model and datasets in order, and a folder with `vit`, `train.parquet`, `unseen.parquet` and `record.json`."""

    def __init__(self, folder):
        self.folder = folder
        self.model, batch = make("vit")
        data = [{k: torch.as_tensor(v) for k, v in sample.items()} for sample in samples(batch(18, seed=1))]
        self.forget, self.retain, self.unseen = data[:5], data[5:12], data[12:]
        table = {"label": [0, 1, 2] * 4, "speaker": list(range(12)), "many": [[1, 2]] * 12, "says": ["a"] * 12}
        self.table = Dataset.from_dict(table).cast_column("label", ClassLabel(names=["ant", "bird", "cat"]))
        model, processor = tiny_data.vit()
        model.save_pretrained(folder / "vit")
        processor.save_pretrained(folder / "vit")
        model.save_pretrained(folder / "bare")
        for name, count in (("train", 12), ("unseen", 9)):
            rows = tiny_data.vit_samples(count, np.random.default_rng(count))
            rows.add_column("speaker", list(range(count))).to_parquet(folder / f"{name}.parquet")
        self.record = make_record(
            forget_ds=self.forget, columns=["labels"], request="samples", request_id=None, method={}, settings={},
            weights={"kind": "model", "before": None, "after": weights_hash(model.state_dict())}, report=None,
        )  # fmt: skip
        self.write("record.json", json.dumps({**self.record, "files": {}}))
        self.write("list.yaml", "- 1\n")
        self.write("broken.yaml", "a: b: c\n")
        self.write("typo.yaml", "learning_rat: 1\n")
        self.write("token.yaml", "hub_token: secret\n")
        self.write("ten.yaml", "max_steps: ten\n")
        self.write("bad.yaml", "method: nabla_tua\n")
        self.write("words.txt", "one two")
        self.write("far.txt", "3 99")
        self.write("broken.json", "{")
        self.write("config_only/config.json", (folder / "vit/config.json").read_text())
        config = json.loads((folder / "vit/config.json").read_text())
        self.write("classless/config.json", json.dumps({**config, "architectures": None}))
        self.write("strange/config.json", json.dumps({**config, "architectures": ["ViTForMagic"]}))
        self.write("function/config.json", json.dumps({**config, "architectures": ["set_seed"]}))
        self.write("empty/readme.txt", "nothing")
        self.write("checkpoints/checkpoint-5/trainer_state.json", "{}")

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)

    @cached_property
    def gpt2(self):
        return make("gpt2")[0]

    @cached_property
    def adapted(self):
        from hf_unlearn.models.adapters import add_adapter

        return add_adapter(copy.deepcopy(self.model))

    # ---- what the tables call ----

    def arguments(self, **settings):
        """`UnlearningArguments` with these settings."""
        return UnlearningArguments(**{"output_dir": "out", "use_cpu": True, "report_to": "none", **settings})

    def trainer(self, *, settings=None, **changes):
        """`UnlearningTrainer` with these arguments instead of good ones."""
        good = {"model": self.model, "forget_ds": self.forget, "retain_ds": self.retain, "unseen_ds": self.unseen}
        args = self.arguments(per_device_train_batch_size=4, max_steps=2, disable_tqdm=True, **(settings or {}))
        return UnlearningTrainer(**{**good, "args": args, **changes})

    def audit(self, **changes):
        """`audit` with these arguments instead of good ones."""
        good = {"model": self.model, "forget_ds": self.forget, "retain_ds": self.retain, "unseen_ds": self.unseen}
        return audit(**{**good, **changes})

    def changed_record(self, field, value):
        """The record with another value of a field (`weights.after`)."""
        record = copy.deepcopy(dict(self.record)) | {"files": {}}
        *parents, name = field.split(".")
        inner = record
        for parent in parents:
            inner = inner[parent]
        inner[name] = value
        return record

    def comparison(self, **changes):
        """A configuration of `compare` with these values instead of good ones."""
        return {**COMPARISON, **changes}
