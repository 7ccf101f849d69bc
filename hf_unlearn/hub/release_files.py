"""The files that a release may have: a fixed list of names, whatever a record or a folder says."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

CARD = "README.md"
AUDIT_FILES = ("audit.json", "audit.html")
RECORD_FILE = "unlearning.json"
CLAIMS = (*AUDIT_FILES, RECORD_FILE)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, ADAPTER_WEIGHTS)
# What models and processors of transformers write; the names of vocabularies are those of its tokenizers.
_CONFIGURATION = (
    ADAPTER_CONFIG, "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "chat_template.jinja", "chat_template.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "spm.model",
    "sentencepiece.model", "sentencepiece.bpe.model", "spm_char.model", "normalizer.json", "bpe.codes", "dict.txt",
    "source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "entity_vocab.json",
    "emoji.json", "byte_maps.json", "prophetnet.tokenizer", "word_shape.json", "word_pronunciation.json",
)  # fmt: skip
_NAMES = {CARD, *AUDIT_FILES, *_WEIGHTS, *_CONFIGURATION, *_VOCABULARIES}
CHUNK = 2**20


def is_release_file(name: str) -> bool:
    """Whether a file of this name, in no folder, may be part of a release beside its record.

    Examples:
        >>> [is_release_file(name) for name in ("model-00001-of-00002.safetensors", "../config.json", "notes.txt")]
        [True, False, False]
    """
    return name in _NAMES or _SHARD.fullmatch(name) is not None


def is_weight_file(name: str) -> bool:
    """Whether a file of this name holds weights of a release, or says which files do."""
    return name in _WEIGHTS or _SHARD.fullmatch(name) is not None


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files in a folder, by their names, sorted."""
    return {name: _hash(folder / name) for name in sorted(names)}


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_plain_file(folder: Path, name: str) -> None:
    """Refuse a link, or what is no file: it may lead out of the folder.

    Raises:
        ValueError: one line that names the file.
    """
    status = (folder / name).lstat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "no file"
    elif status.st_nlink > 1:
        kind = "a file that another name leads to as well (a hard link)"
    else:
        return
    raise ValueError(f"folder: {name} in {str(folder)!r} is {kind}; put a copy of the file in its place")


def remaining_names(folder: Path, names: Iterable[str]) -> list[str]:
    """What is in a folder besides these files, sorted; folders with a slash at their end."""
    with os.scandir(folder) as entries:
        present = {entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "") for entry in entries}
    return sorted(present - set(names))
