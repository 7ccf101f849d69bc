"""What is made in a folder that processes share: by one of them at a time, and nothing half made stays."""

import time

from forked import start

from hf_unlearn.data.files import claim, replacing


def make_once(number, folder):
    with claim(folder / "made.txt"):
        if not (folder / "made.txt").exists():
            time.sleep(0.2)
            with replacing(folder / "made.txt") as path, (folder / "log").open("a") as log:
                path.write_text(str(number))
                log.write("made\n")


def test_one_of_several_processes_makes_it(tmp_path):
    (tmp_path / ".made.4711.txt").write_text("hal")  # of processes that were killed
    (tmp_path / ".made.4712").mkdir()
    (tmp_path / ".lock-made.txt").touch()
    (tmp_path / ".maden.4711.txt").write_text("of another")
    start(make_once, 3, tmp_path)
    assert (tmp_path / "log").read_text() == "made\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".maden.4711.txt", "log", "made.txt"]


def test_an_error_leaves_it_to_others(tmp_path):
    for _ in range(2):
        try:
            with claim(tmp_path / "made"), replacing(tmp_path / "made") as path:
                path.mkdir()
                raise OSError
        except OSError:
            pass
    with claim(tmp_path / "made"), replacing(tmp_path / "made") as path:
        path.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
