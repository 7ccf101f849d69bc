"""The first commands of README.md, run by the wheel alone in an empty environment, and how large the installation is.

    python benchmarks/wheel_test.py --out benchmarks/results/wheel-test.txt [--constraint constraints.txt]

builds the wheel, makes an environment in a temporary folder, installs the wheel without extras, and runs there, from
an empty folder: README's first two blocks of Python, `hf-unlearn demo`, and its commands for images on a small
folder of images. Nothing else of the checkout is used. It ends with 1 where one of them fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A model and images on disk, as a user has them.
IMAGES = """
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as Pillow
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_unlearn.data.preprocessing import prepare
from hf_unlearn.training import train_from_scratch

rng = np.random.default_rng(0)
features = Features({"image": Image(), "label": ClassLabel(names=list("0123"))})

def images(count):
    labels = [i % 4 for i in range(count)]
    pixels = [rng.integers(0, 128, (16, 16, 3), dtype=np.uint8) + np.uint8(30 * label) for label in labels]
    return Dataset.from_dict({"image": [Pillow.fromarray(p) for p in pixels], "label": labels}, features)

data = DatasetDict(train=images(120), validation=images(60), test=images(60))
data.save_to_disk("me/images")
names = dict(enumerate("0123"))
config = ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=32, id2label=names, label2id={name: i for i, name in names.items()})
model, processor = ViTForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16})
train_from_scratch(model, prepare(data["train"], model, processor), output_dir="training", num_train_epochs=30,
                   learning_rate=3e-3)
model.save_pretrained("me/vit")
processor.save_pretrained("me/vit")
"""


def commands() -> dict[str, list[str]]:
    """Title to command: the first two blocks of Python in README.md, and its commands that need no Hub."""
    python = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:2]
    lines = [line.split() for line in re.findall(r"^hf-unlearn (?:run|audit|verify) .*$", README, re.MULTILINE)]
    return {
        "python: the quickstart and the audit of README.md": ["python", "-c", "\n".join(python)],
        "hf-unlearn demo": ["hf-unlearn", "demo"],
        "python: a model and images in me/": ["python", "-c", IMAGES],
    } | {" ".join(words): [word.strip("'") for word in words] for words in lines}


def installed_megabytes(site: Path) -> dict[str, int]:
    """Size of the installed packages: all of them, torch, and the libraries of CUDA (which torch of PyPI brings)."""
    sizes: dict[str, int] = {}
    for path in site.rglob("*"):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(site).parts[0]
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    cuda = sum(size for name, size in sizes.items() if name.startswith(("nvidia", "cuda", "triton")))
    total = {"all": sum(sizes.values()), "torch": sizes.get("torch", 0), "CUDA": cuda}
    return {name: round(size / 1e6) for name, size in total.items()}


def run(title: str, words: list[str], folder: Path, environment: dict[str, str]) -> tuple[bool, list[str]]:
    """Run a command in `folder`; whether it succeeded, and lines that say so, with its last line of output."""
    started = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    output = (done.stdout if done.returncode in (0, 3) else done.stderr).replace(str(folder), ".").strip().splitlines()
    last = (output or [""])[-1][:150]
    # `run` ends with 3 where the model is not called forgotten: it has run.
    succeeded = done.returncode == 0 or (done.returncode == 3 and words[:2] == ["hf-unlearn", "run"])
    return succeeded, [f"$ {title}", f"  exit code {done.returncode}, {seconds:.0f} s", f"  {last}"]


def main() -> int:
    """Build, install, run, and write what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--constraint", type=Path, help="pins of versions; default: the newest of every dependency")
    args = parser.parse_args()
    pins = [] if args.constraint is None else ["-c", str(args.constraint.resolve())]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        venv.create(folder / "environment", with_pip=True)
        bin_folder = folder / "environment" / "bin"
        pip = [str(bin_folder / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([*pip, "install", *pins, str(wheel)], check=True)
        (site,) = (folder / "environment").glob("lib/python*/site-packages")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
        environment = kept | {
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "cache"),
            "PATH": f"{bin_folder}:/usr/bin:/bin",
        }
        versions = "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in "
        versions += "('hf-unlearn', 'torch', 'transformers', 'datasets', 'peft', 'pillow')), sep=', ')"
        found = subprocess.run([bin_folder / "python", "-c", versions], capture_output=True, text=True, check=True)
        sizes = ", ".join(f"{name} {size:,}" for name, size in installed_megabytes(site).items())
        report = [
            f"{wheel.name}, Python {sys.version_info.major}.{sys.version_info.minor}: {found.stdout.strip()}",
            f"installed, in MB: {sizes}",
        ]
        empty, good = folder / "empty", True
        empty.mkdir()
        for title, words in commands().items():
            succeeded, lines = run(title, words, empty, environment)
            good, report = good and succeeded, [*report, "", *lines]
            print("\n".join(lines), flush=True)
    args.out.write_text("\n".join([*report, "", "all of them run" if good else "SOME FAIL", ""]), encoding="utf-8")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
