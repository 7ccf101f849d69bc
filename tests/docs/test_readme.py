"""README.md, as a new user would use it: its code is run, its commands are parsed, its tables are up to date."""

import importlib.util
import re
import shlex
from pathlib import Path

import datasets
import pytest
import tiny
import torch
import transformers as tf
from hub_server import TOKEN

from hf_unlearn import UnlearningArguments, UnlearningTrainer
from hf_unlearn.cli import COMMANDS, pages
from hf_unlearn.cli.audit import AuditSettings
from hf_unlearn.cli.compare import CompareSettings
from hf_unlearn.cli.demo import DemoSettings
from hf_unlearn.cli.push import PushSettings
from hf_unlearn.cli.run import RunSettings
from hf_unlearn.cli.settings import parse
from hf_unlearn.cli.verify import VerifySettings
from hf_unlearn.comparing import Comparison
from hf_unlearn.hub.record import verify
from hf_unlearn.methods import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
PYTHON = [block for language, block in BLOCKS if language == "python"]
COMMANDS_SHOWN = [
    line.partition(" #")[0].strip() for language, block in BLOCKS if language == "" for line in block.splitlines()
]
SETTINGS = {
    "run": [RunSettings, UnlearningArguments], "audit": [AuditSettings], "compare": [CompareSettings],
    "demo": [DemoSettings], "verify": [VerifySettings], "push": [PushSettings],
}  # fmt: skip


def vit(seed):
    torch.manual_seed(seed)
    return tf.ViTForImageClassification(
        tf.ViTConfig(**tiny.BLOCKS, image_size=8, patch_size=4, num_channels=1, num_labels=4)
    )


def noise(count, seed):
    """Rows of the tiny ViT, of classes 0 to 3 by turns."""
    pixels = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    columns = {"pixel_values": pixels.numpy(), "label": [i % 4 for i in range(count)]}
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.Value("int64")}
    )
    return datasets.Dataset.from_dict(columns, features).with_format("torch")


# huggingface_hub streams files in a way that its own HTTP client has deprecated; Trainer asks for pinned memory.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_the_code_runs(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("hf_unlearn.trainer.defaults.default_steps", lambda *sizes: 2)
    monkeypatch.setitem(METHODS, "my_grad_diff", None)  # so that the block's own entry is gone afterwards
    models = {"model": vit(seed=0), "original": vit(seed=0), "retrained": vit(seed=1)}
    names = {**models, "train_ds": noise(48, 0), "unseen_ds": noise(16, 1), "test_ds": noise(40, 2)}
    assert len(PYTHON) == 4
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), names)
    saved = type(models["model"]).from_pretrained("model-that-forgot").state_dict()
    assert any(not torch.equal(saved[key], value) for key, value in models["original"].state_dict().items())
    assert set(map(int, names["forget_ds"]["label"])) == {3} and (tmp_path / "audit.html").stat().st_size > 1000
    record = tmp_path / "unlearning.json"
    record.write_bytes(hub.repos["me/model-that-forgot"].files()["unlearning.json"])
    assert verify(record, names["trainer"].model, names["forget_ds"]).matches

    args = {"max_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    states = []
    for method in ("my_grad_diff", "grad_diff"):
        trainer = UnlearningTrainer(
            vit(seed=0), names["forget_ds"], names["retain_ds"],
            UnlearningArguments(method, method=method, **args), unseen_ds=names["unseen_ds"],
        )  # fmt: skip
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_command_is_one(tmp_path, monkeypatch):
    for name in ("run.yaml", "unlearning.json"):
        (tmp_path / name).write_text("method: grad_diff\n")
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    monkeypatch.chdir(tmp_path)
    seen = set()
    for words in map(shlex.split, filter(None, COMMANDS_SHOWN)):
        seen.add(words[0])
        if words[:2] == ["accelerate", "launch"]:
            assert words[2:4] == ["-m", "hf_unlearn.cli"]
            words = ["hf-unlearn", *words[4:]]
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
        else:
            assert words[0] == "hf-unlearn", words
            command, *flags = words[1:]
            places = {"compare": 1, "verify": 1, "push": 2}.get(command, 0)  # words before the flags
            if command == "compare":
                assert Comparison.from_yaml(ROOT / flags[0]).task_class
            flags = flags[places:]
            assert parse(command, SETTINGS[command], flags) is not None
            seen.add(command)
    assert seen == {"make", "python", "hf-unlearn", "accelerate", *COMMANDS}


def test_every_example_is_shown_and_every_file_is_there():
    for path in (ROOT / "examples").glob("*.py"):
        assert path.stem == "common" or f"python examples/{path.name} " in README
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
    for name in re.findall(r"`((?:benchmarks|examples|hf_unlearn)/[\w/.]+)`", README):
        assert (ROOT / name).exists(), name
    for command in COMMANDS:
        assert f"hf-unlearn {command}" in README and command in pages.PAGES


def test_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("table", ROOT / "benchmarks" / "table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    for name, content in table.tables().items():
        assert f"<!-- {name}:begin -->\n{content}\n<!-- {name}:end -->" in README, "python benchmarks/table.py"
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    for method in METHODS:
        assert sum(f"`{method}`" in row for row in rows) >= 2, method  # what it does, and where it works
