"""Two and four real processes (gloo) get the gradient that one gets with the same global batch."""

import pytest
import run_sharded
import run_step
import torch
from forked import together

# Model, method, target, which weights; batch of a process and accumulation, which make 8 samples a step.
CASES = [
    ("vit", "nabla_tau", "auto", "default"), ("vit", "nabla_tau", "mean", "default"),
    ("vit", "orthograd", "auto", "default"), ("vit", "orthograd", "auto", "all"),
    ("vit", "kl", "auto", "default"), ("vit", "salun", "auto", "default"), ("gpt2", "nabla_tau", "auto", "default"),
    ("vit", "orthograd_adam", "auto", "default"), ("vit", "nabla_tau", "auto", "smoothed"),
]  # fmt: skip
SPLIT = {
    1: [(8, 1)] * 9,
    2: [(4, 1), (2, 2), (2, 2), (1, 4), (2, 2), (4, 1), (2, 2), (2, 2), (4, 1)],
    4: [(1, 2), (2, 1), (2, 1), (2, 1), (1, 2), (2, 1), (1, 2), (1, 2), (2, 1)],
}


def cases(processes):
    return [(*case, *split) for case, split in zip(CASES, SPLIT[processes], strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("alone"))
    return [run_step.run(folder, *case) for case in cases(1)]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_change_nothing(tmp_path, alone, processes):
    together(run_step.save, processes, str(tmp_path), cases(processes))
    ranks = [torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(processes)]
    for (*case, batch, accumulation), one, many in zip(cases(processes), alone, zip(*ranks, strict=True), strict=True):
        for step, expected in enumerate(one["gradients"]):
            scale = max(float(g.norm()) for g in expected.values())
            for rank in many:
                gradients = rank["gradients"][step]
                assert gradients.keys() == expected.keys()
                error = max(float((gradients[n] - g).norm()) for n, g in expected.items())
                assert error < 1e-10 * scale, (case, step)
        assert many[0]["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert not any(rank["looks_for_unused"] for rank in many)  # DDP would warn that there are none
        assert many[0]["metrics"] == pytest.approx(one["metrics"])
        # Scores of a step of several batches are computed before it: 8 forget samples in each of two steps.
        extra = 16 * (accumulation > 1 and case[1] in ("nabla_tau", "orthograd"))
        expected_passes = one["passes"] | {"steps": one["passes"]["steps"] + extra}
        # A process runs a sample alone where gradients are checked: every batch of two steps at most.
        expected_passes = pytest.approx(expected_passes, abs=2 * accumulation * processes)
        assert all(rank["passes"] == expected_passes for rank in many), case
        # In every step the processes see, taken together, the samples of the one.
        share = batch * accumulation
        for step in range(len(one["gradients"])):
            samples = sorted(i for rank in many for i in rank["seen"][step * share : (step + 1) * share])
            assert samples == sorted(one["seen"][step * 8 : (step + 1) * 8])
        assert all(torch.equal(many[0]["weights"][n], rank["weights"][n]) for rank in many for n in rank["weights"])


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    together(run_sharded.save, 2, str(folder))
    return folder


@pytest.mark.parametrize("name", run_sharded.LAYERS)
def test_fsdp2_gives_the_gradient_of_the_whole_model(sharded, name):
    """torch's `fully_shard` on gloo; accelerate's own FSDP is in test_launch.py."""
    gradients = torch.load(sharded / f"{name}.pt", weights_only=True)
    scale = max(float(g.norm()) for g in gradients["whole"].values())
    assert scale > 0 and gradients["sharded"].keys() == gradients["whole"].keys()
    for name, g in gradients["whole"].items():
        assert float((gradients["sharded"][name] - g).norm()) < 1e-10 * scale, name
