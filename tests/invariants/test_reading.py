"""How many files one step runs through: CONTRIBUTING.md names them, this traces them."""

import re
import sys
from pathlib import Path

import pytest
from transformers import TrainerCallback

import hf_unlearn

PACKAGE = Path(hf_unlearn.__file__).parent
TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("### Files that a reader opens")[2].partition("\n## ")[0]


def named(part):
    """The files that a part of the section names; `per_sample/` stands before a list of its own."""
    before, _, inside = part.partition("`per_sample/`:")
    files = {f"per_sample/{name}" for name in re.findall(r"`(\w+\.py)`", inside)}
    return files | set(re.findall(r"`([\w/]+\.py)`", before))


class Trace(TrainerCallback):
    """The files of the package in which a function runs during the second step."""

    def __init__(self):
        self.files = set()

    def on_step_end(self, args, state, control, **kwargs):
        sys.setprofile(self.note if state.global_step == 1 else None)

    def note(self, frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            self.files.add(path.relative_to(PACKAGE).as_posix())


@pytest.mark.parametrize(
    ("method", "marker", "most"), [("nabla_tau", "- for ∇τ", 6), ("orthograd", "- for OrthoGrad", 12)]
)
def test_the_files_of_a_step(unlearn, method, marker, most):
    trace = Trace()
    unlearn(method=method, max_steps=3, retain=14, logging_steps=100, callbacks=[trace]).train()
    opened = named(SECTION.partition(marker)[2].partition("\n- for")[0].partition("\n\n")[0])
    beside = named(SECTION.partition("These run as well")[2])
    assert len(opened) <= most and opened <= trace.files
    of_forgetting = named(SECTION.partition("- for ∇τ")[2].partition("\n- for")[0])
    assert trace.files <= opened | beside | of_forgetting
    total = int(
        re.search(rf"{'∇τ' if method == 'nabla_tau' else 'OrthoGrad'} step (?:runs )?through (\d+)", SECTION)[1]
    )
    assert len(trace.files) == total
