"""Whether a checkpoint is complete: a manifest of its files, with sizes and hashes, is written last."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from huggingface_hub.utils.sha import sha_fileobj
from tqdm.auto import tqdm
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_unlearn.data.files import replacing

MANIFEST = "manifest.json"
STATE_FILE = "unlearning_state.pt"
MODEL_ONLY = "holds the model only (save_only_model=True), from which a run cannot go on"


def write_manifest(folder: Path) -> None:
    """Write the size and the SHA-256 of every file in a folder to its manifest, which makes the folder complete."""
    files = {name: {"size": (folder / name).stat().st_size, "sha256": digest} for name, digest in _hashes(folder)}
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(files, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: which of its files is missing or has changed; None if it is complete.

    Args:
        folder: the checkpoint.
    """
    if not folder.is_dir():
        return "does not exist"
    if not is_finished(folder):
        return f"has no {MANIFEST}: it was not written to its end"
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: int(entry["size"]) for name, entry in files.items()}
        digests = {name: entry["sha256"] for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"has a {MANIFEST} that has changed"
    present = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
    if missing := sorted(sizes.keys() - present.keys()):
        return f"lacks {', '.join(missing)}"
    for name, size in present.items():
        if size != sizes[name]:
            return f"has {size} bytes of {name}, which had {sizes[name]}"
    if changed := [name for name, digest in _hashes(folder, sizes) if digest != digests[name]]:
        return f"has other contents in {', '.join(changed)} than were written"
    if not any(name.startswith("rng_state") for name in sizes):
        return MODEL_ONLY
    return None


def is_finished(folder: Path) -> bool:
    """Whether a checkpoint was written to its end; `find_damage` says whether it still is as it was written."""
    return (folder / MANIFEST).is_file()


def is_unlearning(folder: Path) -> bool:
    """Whether an unlearning run wrote a checkpoint, to its end or not: the state of the run is written first."""
    return is_finished(folder) or (folder / STATE_FILE).is_file()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first, complete or not."""
    steps = {
        path: int(match[1])
        for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    }
    return sorted(steps, key=lambda path: -steps[path])


def remove_older(folder: Path, limit: int, protected: Collection[Path]) -> None:
    """Keep the newest `limit` checkpoints; those that were not written to their end go first, other programs' stay.

    Args:
        folder: has the checkpoints.
        limit: how many stay, at least those that are protected.
        protected: checkpoints that stay: the last one, and the best.
    """
    found = [path for path in checkpoints(folder) if is_unlearning(path)]
    partial = [path for path in found if not is_finished(path)]
    older = [path for path in found if path not in partial and path not in protected]
    for path in [*partial, *older[max(0, limit - len(protected)) :]]:
        # First: what a killed process leaves of it is not taken for a checkpoint.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)


def _hashes(folder: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, str]]:
    """The hashes of the files with these names; default: of all but the manifest."""
    if names is None:
        paths = (path for path in folder.rglob("*") if path.is_file())
        names = sorted(path.relative_to(folder).as_posix() for path in paths)
        names = [name for name in names if name != MANIFEST]
    for name in tqdm(names, desc=f"Hashing {folder.name}", delay=1.0, leave=False):
        with open(folder / name, "rb") as file:
            yield name, sha_fileobj(file).hex()
