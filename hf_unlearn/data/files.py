"""Files and folders that are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to in place of `path`, which it becomes by a rename when the block ends without an error.

    Whoever reads `path` sees what was there before or all that is new, also after a process was killed in between,
    and also while several processes write it. The parent folder is made.

    Args:
        path: a file; or a folder that is not there yet.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "out.txt") as aside:
        ...         _ = aside.write_text("all of it")
        ...     (Path(folder) / "out.txt").read_text(), len(list(Path(folder).iterdir()))
        ('all of it', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: numpy adds one to a name that lacks its own.
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)
