"""Writing files and folders atomically."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path that is renamed to `path` when the block ends without an error.

    A reader of `path` sees the old content or all of the new content, also if the process is killed in between or
    several processes write it. The parent folder is created.

    Args:
        path: a file, or a folder that does not exist yet.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder) / "out.txt") as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     (Path(folder) / "out.txt").read_text(), len(list(Path(folder).iterdir()))
        ('all of it', 1)
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: numpy would add its own to a name without it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Makes `path` in this process alone: another one that claims it waits, and should look again whether it is there.

    What a process that was killed has left beside it (see `replacing`) is removed. The parent folder is created. The
    lock is that of the file system, which on a network has to know locks (NFS does), and ends with its process.

    Args:
        path: of the file or folder that the block makes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".lock-{path.name}")
    with FileLock(lock):
        for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield
        if path.exists():  # those who still wait for it will find it, so that nobody is kept out by another lock file
            lock.unlink()


def append_line(path: Path, line: str) -> None:
    """Append a line to a file: killed at any moment, it has the line or has not, and no part of it.

    When this returns, the line is on the disk.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "done.txt"
        ...     append_line(path, "one")
        ...     append_line(path, "two")
        ...     path.read_text()
        'one\\ntwo\\n'
    """
    content = path.read_bytes() if path.exists() else b""
    with replacing(path) as temporary:
        temporary.write_bytes(content + line.encode() + b"\n")
        flush(temporary)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or which files a folder has, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
