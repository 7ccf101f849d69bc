"""The samples of a benchmark, from the Hub or from a folder of the same layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset

from hf_unlearn.data.loading import FILES, load_samples
from hf_unlearn.names import did_you_mean


@dataclass(frozen=True)
class Part:
    """Samples of a benchmark.

    Attributes:
        config: configuration of the dataset on the Hub.
        split: split of that configuration.
        columns: columns that are read.
        is_needed: whether the benchmark is nothing without it; what is not needed is left out where it is missing.
        source: the dataset on the Hub, where it is not the benchmark's own.
    """

    config: str
    split: str
    columns: tuple[str, ...]
    is_needed: bool = True
    source: str | None = None

    @property
    def name(self) -> str:
        """Where it is: configuration and split."""
        return f"{self.config}/{self.split}"


def load_part(part: Part, source: str, folder: str | Path | None) -> Dataset:
    """The samples of one part.

    Args:
        part: what to load.
        source: the benchmark's dataset on the Hub.
        folder: a folder in place of the Hub: `CONFIG/SPLIT*.parquet` (or .json, .jsonl, .csv) or, of a split `train`,
            `CONFIG.json`, as the files of the dataset lie on the Hub; of another dataset (MMLU) in a folder of its
            name.

    Raises:
        ValueError: it is not there, is empty, or lacks a column; one line.
    """
    if folder is None:
        samples = load_samples(part.source or source, f"{part.config}:{part.split}")
    else:
        samples = _load_local(part, Path(folder))
    for column in part.columns:
        if column not in samples.column_names:
            names = samples.column_names
            raise ValueError(f"data: {part.name} has no column {column!r}, only {names}{did_you_mean(column, names)}")
    if not len(samples):
        raise ValueError(f"data: {part.name} is empty; give at least one sample")
    return samples


def is_there(part: Part, folder: str | Path | None) -> bool:
    """Whether a folder has the files of a part; on the Hub all parts are."""
    return folder is None or bool(_files(part, Path(folder)))


def _files(part: Part, folder: Path) -> list[str]:
    if part.source is not None:
        folder = folder / part.source.rpartition("/")[2]
    candidates = sorted((folder / part.config).glob(f"{part.split}*"))
    # `forget_qa` and `forget_qa_icl` are two splits: what follows the name of one is a number of a file.
    files = [path for path in candidates if path.suffix in FILES and path.name[len(part.split)] in ".-"]
    if not files and part.split == "train":
        files = [path for suffix in FILES if (path := folder / f"{part.config}{suffix}").is_file()]
    return [str(path) for path in files if path.suffix == files[0].suffix]


def _load_local(part: Part, folder: Path) -> Dataset:
    files = _files(part, folder)
    if not files:
        raise ValueError(
            f"data: {str(folder)!r} has no {part.name}; give a folder with the files of the dataset on the Hub, as "
            f"{part.config}/{part.split}.parquet"
        )
    return load_dataset(FILES[Path(files[0]).suffix], data_files={part.split: files}, split=part.split)
