"""The paper's formulas as checks: the gradient and its derivation, the numbers of section 3.3, the simplex."""

from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import generator

import rwkernels as rw
from rwkernels import diagnostics

# --- the gradient, derived --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 3, 4])
def test_the_chain_rule_leads_from_the_loss_to_its_gradient_in_both_of_its_forms(num_classes):
    """Eq. 1 to Eq. 2, by computer algebra, for a pixel of any logits and any map."""
    phi = sympy.symbols(f"phi:{num_classes}", real=True)
    z = sympy.symbols(f"z:{num_classes}", real=True)
    total = sum(sympy.exp(p) for p in phi)
    y = [sympy.exp(p) / total for p in phi]
    loss = sum(a * b for a, b in zip(y, z, strict=True))
    for k in range(num_classes):
        for m in range(num_classes):  # of the softmax: y_m ([k = m] - y_k)
            jacobian = sympy.diff(y[m], phi[k]) - y[m] * (int(k == m) - y[k])
            assert sympy.simplify(jacobian) == 0
        derived = sympy.diff(loss, phi[k])
        assert sympy.simplify(derived - y[k] * (z[k] - loss)) == 0
        pairs = y[k] * sum(y[m] * (z[k] - z[m]) for m in range(num_classes) if m != k)
        assert sympy.simplify(derived - pairs) == 0


def test_a_rectified_map_leaves_one_term_of_the_gradient_whose_sign_is_that_of_its_difference():
    """With z = a at the true class m and b elsewhere: y_m (1 - y_m) (a - b) there, -y_k y_m (a - b) elsewhere."""
    phi = sympy.symbols("phi:4", real=True)
    a, b = sympy.symbols("a b", real=True)
    total = sum(sympy.exp(p) for p in phi)
    y = [sympy.exp(p) / total for p in phi]
    loss = a * y[0] + b * (y[1] + y[2] + y[3])
    assert sympy.simplify(sympy.diff(loss, phi[0]) - y[0] * (1 - y[0]) * (a - b)) == 0
    assert sympy.simplify(sympy.diff(loss, phi[2]) + y[2] * y[0] * (a - b)) == 0


def test_the_gradient_of_the_package_is_the_derived_one_and_its_entries_cancel():
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator(0), requires_grad=True)
    maps = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator(1))
    (found,) = torch.autograd.grad(rw.region_wise_loss(logits, maps, reduction="sum"), logits)
    y = torch.softmax(logits.detach(), 1)
    pairs = torch.einsum("bkhw,blhw,bklhw->bkhw", y, y, maps.unsqueeze(2) - maps.unsqueeze(1))
    torch.testing.assert_close(found, pairs)
    torch.testing.assert_close(found.sum(1), torch.zeros(2, 3, 4, dtype=torch.float64), atol=1e-15, rtol=0)


@pytest.mark.parametrize(
    ("z", "gradient", "loss"),
    [([0, 0, 0, -0.6], [0.0375, 0.0375, 0.0375, -0.1125], -0.0375), ([1, 1, 1, -0.6], [0.1, 0.1, 0.1, -0.3], 0.15)],
)
def test_the_worked_example_of_section_3_3(z, gradient, loss):
    y = torch.full((4,), 0.25, dtype=torch.float64)
    torch.testing.assert_close(diagnostics.simplex_gradient(z, y).tolist(), gradient)
    assert float(y @ torch.tensor(z, dtype=torch.float64)) / 4 == pytest.approx(loss)


# --- the simplex ------------------------------------------------------------------------------------------------


def clipped_area(z, threshold):
    """Part of the triangle of probabilities where sum y z > threshold, by clipping a polygon of fractions."""
    corners = [(Fraction(1), Fraction(0)), (Fraction(0), Fraction(1)), (Fraction(0), Fraction(0))]
    height = [Fraction(value) - threshold for value in z]
    kept = []
    for k in range(3):
        (a, p), (b, q) = (height[k], corners[k]), (height[(k + 1) % 3], corners[(k + 1) % 3])
        if a > 0:
            kept.append(p)
        if a * b < 0:
            t = a / (a - b)
            kept.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        elif b == 0 and a > 0:
            kept.append(q)
        elif a == 0 and b > 0:
            kept.append(p)
    twice = sum(
        kept[i][0] * kept[(i + 1) % len(kept)][1] - kept[(i + 1) % len(kept)][0] * kept[i][1] for i in range(len(kept))
    )
    return abs(twice)  # the whole triangle has 1


def test_two_entries_are_negative_on_8_15_of_the_simplex_for_12_4_3_and_nowhere_for_10_10_3():
    assert diagnostics.negative_shares([12, 4, -3]) == [0, Fraction(7, 15), Fraction(8, 15)]
    assert diagnostics.negative_shares([10, 10, -3]) == [0, 1, 0]
    assert clipped_area([12, 4, -3], 4) == Fraction(8, 15)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fractions(-5, 5, max_denominator=6), min_size=3, max_size=3))
def test_shares_of_three_classes_are_areas_of_clipped_triangles(z):
    low, middle, _ = sorted(z)
    expected = [1 - clipped_area(z, low), clipped_area(z, low) - clipped_area(z, middle), clipped_area(z, middle)]
    assert diagnostics.negative_shares(z) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=6))
def test_shares_of_any_number_of_classes_agree_with_points_drawn_on_the_simplex(z):
    drawn = np.random.default_rng(0).dirichlet(np.ones(len(z)), 20_000)
    negative = (np.array(z) < drawn @ np.array(z)[:, None] - 1e-12).sum(1)
    shares = diagnostics.negative_shares(z)
    assert sum(shares) == 1
    for n, share in enumerate(shares):
        assert abs((negative == n).mean() - float(share)) < 0.02  # five standard deviations


def test_the_operator_counts_on_a_fine_grid_what_the_shares_say_to_within_the_grids_own_error():
    z, steps = [12.0, 4.0, -3.0], 150
    y = diagnostics.simplex_grid(steps).T.reshape(1, 3, 1, -1)
    maps = torch.tensor(z, dtype=torch.float64).view(1, 3, 1, 1).expand_as(y)
    counts = diagnostics.negative_gradients(y, maps, probabilities=True)
    inside = (y > 0).all(1)
    found = diagnostics.sign_histogram(counts[inside], 3).double() / inside.sum()
    # A line crosses at most steps + 1 of the grid's points along itself.
    bound = (2 * steps + 1) / int(inside.sum())
    for n, share in enumerate(diagnostics.negative_shares(z)):
        assert abs(found[n] - float(share)) <= bound
    assert (
        diagnostics.negative_gradients(
            y, torch.tensor([10.0, 10, -3]).double().view(1, 3, 1, 1).expand_as(y), probabilities=True
        )[inside]
        == 1
    ).all()


def test_shares_take_floats_for_what_they_are_and_refuse_what_is_no_number():
    assert diagnostics.negative_shares([0.5, 0.5, 0.5]) == [1, 0, 0]
    assert diagnostics.negative_shares(torch.tensor([12.0, 4.0, -3.0]))[2] == Fraction(8, 15)
    with pytest.raises(ValueError, match="z: expected finite numbers"):
        diagnostics.negative_shares([1, float("nan")])
    with pytest.raises(ValueError, match="z: expected at least 2 numbers"):
        diagnostics.negative_shares([1])
    with pytest.raises(TypeError, match="z: expected numbers"):
        diagnostics.negative_shares(["a", 1])


# --- the "saddle point" of Fig. 2 -------------------------------------------------------------------------------


def test_the_least_value_of_the_true_classes_entry_is_taken_on_a_whole_line():
    y = diagnostics.simplex_grid(200)
    entry = diagnostics.simplex_gradient([0, 1, 1], y)[:, 0]
    torch.testing.assert_close(entry, -y[:, 0] * (1 - y[:, 0]))
    assert entry.min() == -0.25
    on_line = y[:, 0] == 0.5
    assert torch.equal(entry == -0.25, on_line)
    assert on_line.sum() == 101


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.5])
def test_that_line_is_the_floor_of_a_valley_and_no_saddle(share):
    slope, curvature = diagnostics.gradient_curvature([0, 1, 1], [0.5, share, 0.5 - share], 0)
    assert slope.abs().max() < 1e-14
    torch.testing.assert_close(curvature, torch.tensor([0.0, 4 / 3], dtype=torch.float64), atol=1e-12, rtol=0)
    # No neighbour lies lower, near or far, and those along the line lie equally high.
    y = torch.tensor([0.5, share, 0.5 - share], dtype=torch.float64)
    near = y + 1e-3 * torch.randn(500, 3, dtype=torch.float64, generator=generator(1))
    near = near - (near.sum(1, keepdim=True) - 1) / 3
    values = diagnostics.simplex_gradient([0, 1, 1], near)[:, 0]
    assert (values >= -0.25).all()


def test_as_a_function_of_the_logits_that_line_is_a_valley_too():
    def entry(phi):
        return -torch.softmax(phi, 0)[0] * (1 - torch.softmax(phi, 0)[0])

    phi = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).log()
    torch.testing.assert_close(torch.func.grad(entry)(phi), torch.zeros(3, dtype=torch.float64))
    curvature = torch.linalg.eigvalsh(torch.func.hessian(entry)(phi))
    assert curvature[0] > -1e-14
    assert curvature[1].abs() < 1e-14
    assert curvature[2] > 0.1


def test_slope_and_curvature_are_those_of_automatic_differentiation_within_the_simplex():
    z, y = torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    basis = torch.linalg.qr(torch.cat([torch.ones(4, 1), torch.eye(4)[:, :3]], 1).double())[0][:, 1:]
    for k in range(4):

        def along(t, k=k):
            point = y + basis @ t
            return point[k] * (z[k] - point @ z)

        zero = torch.zeros(3, dtype=torch.float64)
        slope, curvature = diagnostics.gradient_curvature(z, y, k)
        torch.testing.assert_close(slope, basis @ torch.func.grad(along)(zero))
        torch.testing.assert_close(curvature, torch.linalg.eigvalsh(torch.func.hessian(along)(zero)))


def test_the_gradient_of_cross_entropy_grows_where_that_of_a_rectified_map_fades():
    """Fig. 4: both have one negative entry, at the true class; without probability there, one is 1 and the other 0."""
    y = diagnostics.simplex_grid(50)
    own, cross = diagnostics.simplex_gradient([-1, 1, 1], y), diagnostics.cross_entropy_gradient(0, y)
    logits = torch.randn(7, 3, dtype=torch.float64, generator=generator(2), requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(7, dtype=torch.long), reduction="sum")
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(diagnostics.cross_entropy_gradient(0, torch.softmax(logits.detach(), 1)), expected)
    inside = (y > 0).all(1)
    for gradient in (own, cross):
        assert ((gradient[inside] < 0).sum(1) == 1).all()
        assert (gradient[inside][:, 0] < 0).all()
    none_left = y[:, 0] == 0
    assert (own[none_left] == 0).all()
    assert (cross[none_left][:, 0] == -1).all()


def test_probabilities_are_tensors_or_sequences_and_anything_else_is_named():
    expected = torch.tensor([-0.25, 0.125, 0.125], dtype=torch.float64)
    assert torch.equal(diagnostics.simplex_gradient([0, 1, 1], [0.5, 0.25, 0.25]), expected)
    assert diagnostics.cross_entropy_gradient(0, [[0.5, 0.5]]).tolist() == [[-0.5, 0.5]]
    for call in (lambda y: diagnostics.simplex_gradient([0, 1], y), lambda y: diagnostics.cross_entropy_gradient(0, y)):
        with pytest.raises(TypeError, match="y: expected probabilities"):
            call("ab")
        with pytest.raises(ValueError, match="y: expected probabilities"):
            call(torch.tensor(1.0))


def test_the_empirical_distribution_is_the_share_of_values_up_to_each():
    values = [0.3, 0.1, 0.3, 0.9]
    at, share = diagnostics.empirical_cdf(values)
    assert at.tolist() == [0.1, 0.3, 0.9]
    assert share.tolist() == [sum(v <= x for v in values) / 4 for x in at]
    for bad in ([], [0.1, float("nan")], [[0.1]]):
        with pytest.raises(ValueError, match="values: expected finite numbers"):
            diagnostics.empirical_cdf(bad)
