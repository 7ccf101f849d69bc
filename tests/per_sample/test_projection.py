"""The geometry: hand-computed cases, QR as the oracle, degenerate bases, cones; and its Gram matrices."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from hf_unlearn.per_sample import gram as gram_module
from hf_unlearn.per_sample.factors import Dense, Outer, Recording
from hf_unlearn.per_sample.gram import combine, cross, gram
from hf_unlearn.per_sample.projection import cone_coefficients, far_from_dependent, span_coefficients

SHAPES = {"a": (2, 3), "b": (4,)}


def recording(samples):
    return Recording(torch.zeros(len(samples)), {"w": [Dense(samples)]})


def project(vector, samples):
    """`g - Q Q^T g`, and the rank of Q."""
    inner, slopes = gram([recording(samples)], {"w": vector}, per_tensor=False)[""]
    coefficients, rank = span_coefficients(inner, slopes)
    return vector - combine([recording(samples)], {"w": coefficients}, {"w": vector})["w"], rank


def test_by_hand_in_two_dimensions():
    # g = (3, 4); retain gradients along x: what is left is (0, 4).
    left, rank = project(torch.tensor([3.0, 4.0]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
    torch.testing.assert_close(left, torch.tensor([0.0, 4.0]), rtol=1e-5, atol=1e-8)
    assert rank == 1
    # One retain gradient along the diagonal: (3, 4) - 3.5 (1, 1) = (-0.5, 0.5).
    left, _ = project(torch.tensor([3.0, 4.0]), torch.tensor([[5.0, 5.0]]))
    torch.testing.assert_close(left, torch.tensor([-0.5, 0.5]), rtol=1e-5, atol=1e-8)


def test_against_qr():
    torch.manual_seed(0)
    samples, g = torch.randn(3, 10, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    q, _ = torch.linalg.qr(samples.T)
    left, rank = project(g, samples)
    torch.testing.assert_close(left, g - q @ (q.T @ g), rtol=1e-5, atol=1e-12)
    assert rank == 3


def test_orthogonal_to_every_sample_in_float32():
    torch.manual_seed(1)
    scales = 10.0 ** torch.linspace(-6, 2, 24)[:, None]  # well-learned samples have small gradients
    samples, g = torch.randn(24, 500) * scales, torch.randn(500)
    left, rank = project(g, samples)
    cosines = (samples @ left) / (samples.norm(dim=1) * left.norm())
    assert rank == 24 and cosines.abs().max() < 1e-5


def test_duplicates_zeros_and_more_samples_than_dimensions():
    torch.manual_seed(2)
    base = torch.randn(3, 6)
    left, rank = project(g := torch.randn(6), torch.cat([base, base, 2 * base, torch.zeros(2, 6)]))
    assert rank == 3 and 0 < left.norm() < g.norm()
    left, rank = project(g := torch.randn(4), torch.randn(9, 4))
    assert rank == 4 and left.norm() < 1e-5 * g.norm()
    left, rank = project(g := torch.tensor([1.0, 2.0]), torch.zeros(3, 2))
    assert rank == 0 and torch.equal(left, g)


def test_coefficients_weigh_the_samples():
    samples = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([3.0, 8.0, 5.0], dtype=torch.float64)
    coefficients, rank = span_coefficients(samples @ samples.T, samples @ g)
    assert rank == 2
    torch.testing.assert_close(coefficients, torch.tensor([3.0, 4.0], dtype=torch.float64), rtol=1e-5, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 8))
def test_cone_is_the_nearest_step_that_climbs_along_nothing(seed, k, d):
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(k, d, generator=generator, dtype=torch.float64)
    step = torch.randn(d, generator=generator, dtype=torch.float64)
    coefficients = cone_coefficients(samples @ samples.T, samples @ step)
    corrected = step - coefficients @ samples
    assert (coefficients >= 0).all() and (samples @ corrected <= 1e-7).all()
    # An independent solver of the same problem cannot come nearer.
    constraint = {"type": "ineq", "fun": lambda x: -(samples.numpy() @ x), "jac": lambda x: -samples.numpy()}
    best = minimize(
        lambda x: ((x - step.numpy()) ** 2).sum(), corrected.numpy() * 0, jac=lambda x: 2 * (x - step.numpy()),
        constraints=[constraint], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert float((corrected - step).square().sum()) <= best.fun + 1e-6


def test_cone_leaves_a_harmless_step_alone():
    samples = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    assert cone_coefficients(samples @ samples.T, samples @ torch.tensor([-1.0, 5.0]).double()).tolist() == [0.0, 0.0]
    nothing = torch.zeros(2, 2).double()
    assert cone_coefficients(nothing, nothing[0]).tolist() == [0.0, 0.0]


def test_far_from_dependent():
    near = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0]]).double()
    assert not far_from_dependent(near @ near.T) and far_from_dependent(near[1:] @ near[1:].T)
    assert far_from_dependent(torch.zeros(2, 2).double())


def test_float32_products_in_pieces_are_good_to_1e7(monkeypatch):
    torch.manual_seed(5)
    monkeypatch.setattr(gram_module, "COLUMNS", 64)
    batch = Recording(
        torch.zeros(6), {"w": [Outer(torch.randn(6, 1, 50, 40), torch.randn(6, 1, 50, 30), torch.float32)]}
    )
    gradient = {"w": torch.randn(40, 30)}
    (exact, slopes), (rounded, along) = (gram([batch], gradient, False, precise)[""] for precise in (True, False))
    norms = exact.diagonal().sqrt()
    assert ((rounded - exact) / norms[:, None] / norms[None]).abs().max() < 2e-7 and not torch.equal(rounded, exact)
    assert ((along - slopes) / norms / gradient["w"].norm()).abs().max() < 2e-7


def test_gram_by_blocks_by_factors_and_by_gradients_agree(monkeypatch):
    torch.manual_seed(3)
    left, right = torch.randn(5, 1, 2, 30), torch.randn(5, 1, 2, 40)
    short, other = Outer(left, right, torch.float32), Dense(torch.randn(5, 7))
    assert (
        short.favours_factors
        and not Outer(left.repeat(1, 1, 40, 1), right.repeat(1, 1, 40, 1), torch.float32).favours_factors
    )
    batch = Recording(torch.zeros(5), {"w": [short], "b": [other], "unused": []})
    gradient = {"w": torch.randn(30, 40), "b": torch.randn(7), "unused": torch.randn(3)}
    matrix = torch.cat([torch.einsum("kgto,kgti->koi", left, right).flatten(1), other.values], 1).double()
    vector = torch.cat([gradient["w"].flatten(), gradient["b"]]).double()
    expected = {"": (matrix @ matrix.T, matrix @ vector)}
    expected["w"] = (matrix[:, :1200] @ matrix[:, :1200].T, matrix[:, :1200] @ vector[:1200])
    for block, batches in ((2**23, [batch]), (2**23, [batch, batch]), (100, [batch]), (100, [batch, batch])):
        monkeypatch.setattr(gram_module, "BLOCK", block)
        for per_tensor, key in ((False, ""), (True, "w")):
            inner, slopes = gram(batches, gradient, per_tensor)[key]
            n = len(batches)
            torch.testing.assert_close(inner, expected[key][0].repeat(n, n), rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(slopes, expected[key][1].repeat(n), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(cross(batches, gradient), expected[""][1].repeat(n), rtol=1e-5, atol=1e-3)
        weights = {name: torch.arange(5.0 * n) for name in gradient}
        sums = combine(batches, weights, gradient)
        total = weights["w"].double() @ matrix.repeat(n, 1)
        torch.testing.assert_close(torch.cat([sums["w"].flatten(), sums["b"]]).double(), total, rtol=1e-4, atol=1e-3)
        assert torch.equal(sums["unused"], torch.zeros(3))
