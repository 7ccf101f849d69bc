"""The geometry: hand-computed cases, QR as the oracle, degenerate bases."""

import pytest
import torch

from hf_unlearn.per_sample.projection import norm, project, span_coefficients

SHAPES = {"a": (2, 3), "b": (4,)}


def split(vector):
    parts, start = {}, 0
    for name, shape in SHAPES.items():
        size = int(torch.tensor(shape).prod())
        part = vector[..., start : start + size]
        parts[name] = part.reshape(*vector.shape[:-1], size) if vector.dim() == 2 else part.reshape(shape)
        start += size
    return parts


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient.values()])


def test_by_hand_in_two_dimensions():
    # g = (3, 4); retain gradients along x: what is left is (0, 4), 4/5 of the norm.
    found = project({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([[2.0, 0.0], [-1.0, 0.0]])})
    assert torch.allclose(found.gradient["w"], torch.tensor([0.0, 4.0]))
    assert (found.rank, found.surviving) == (1, pytest.approx(0.8))
    # One retain gradient along the diagonal: (3, 4) - 3.5 (1, 1) = (-0.5, 0.5).
    found = project({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([[5.0, 5.0]])})
    assert torch.allclose(found.gradient["w"], torch.tensor([-0.5, 0.5]))


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_against_qr(scope):
    torch.manual_seed(0)
    rows, g = split(torch.randn(3, 10, dtype=torch.float64)), split(torch.randn(10, dtype=torch.float64))
    found = project(g, rows, scope)
    groups = [list(g)] if scope == "global" else [[name] for name in g]
    for names in groups:
        matrix = torch.cat([rows[n] for n in names], dim=1).T
        q, _ = torch.linalg.qr(matrix)
        vector = flat({n: g[n] for n in names})
        assert torch.allclose(flat({n: found.gradient[n] for n in names}), vector - q @ (q.T @ vector), atol=1e-12)


def test_orthogonal_to_every_row_in_float32():
    torch.manual_seed(1)
    scales = 10.0 ** torch.linspace(-6, 2, 24)[:, None]  # well-learned samples have small gradients
    rows, g = {"w": torch.randn(24, 500) * scales}, {"w": torch.randn(500)}
    found = project(g, rows)
    cosines = (rows["w"] @ found.gradient["w"]) / (rows["w"].norm(dim=1) * found.gradient["w"].norm())
    assert found.rank == 24 and cosines.abs().max() < 1e-5


def test_duplicates_zeros_and_more_rows_than_dimensions():
    torch.manual_seed(2)
    base = torch.randn(3, 6)
    found = project({"w": torch.randn(6)}, {"w": torch.cat([base, base, 2 * base, torch.zeros(2, 6)])})
    assert found.rank == 3 and 0 < found.surviving < 1
    found = project({"w": torch.randn(4)}, {"w": torch.randn(9, 4)})
    assert found.rank == 4 and found.surviving < 1e-5
    found = project({"w": torch.tensor([1.0, 2.0])}, {"w": torch.zeros(3, 2)})
    assert found.rank == 0 and found.surviving == 1
    assert project({"w": torch.zeros(2)}, {"w": torch.ones(1, 2)}).surviving == 0


def test_coefficients_weigh_the_rows():
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([3.0, 8.0, 5.0], dtype=torch.float64)
    coefficients, rank = span_coefficients(rows @ rows.T, rows @ g)
    assert rank == 2 and torch.allclose(coefficients, torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}) == pytest.approx(5.0)
