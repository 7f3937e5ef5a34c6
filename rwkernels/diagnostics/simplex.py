"""Gradients over the softmax simplex: what one pixel's gradient can be for a given `z` (Fig. 2 and 4)."""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import Any

import torch
from torch import Tensor

from rwkernels import checks


def _values(z: Sequence[float] | Tensor, least: int = 2) -> Tensor:
    found = (
        torch.as_tensor(z, dtype=torch.float64) if not isinstance(z, Tensor) else z.detach().to("cpu", torch.float64)
    )
    if found.dim() != 1 or len(found) < least:
        raise ValueError(f"z: expected at least {least} numbers, one per class, got {checks.describe(found)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"z: expected finite numbers, got {found.tolist()}")
    return found


def _probabilities(y: Sequence[Any] | Tensor) -> Tensor:
    """`y` in float64 on the CPU, with an axis of classes."""
    try:
        found = torch.as_tensor(y).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"y: expected probabilities [..., K], got {checks.describe(y)}") from None
    if found.dim() == 0:
        raise ValueError(f"y: expected probabilities [..., K], got {checks.describe(found)}")
    return found


def _class(name: str, k: int, num_classes: int) -> int:
    if not 0 <= checks.integer(name, k) < num_classes:
        raise ValueError(f"{name}: expected an integer in [0, {num_classes}), got {k}")
    return k


def simplex_grid(steps: int) -> Tensor:
    """All probabilities of three classes in steps of `1 / steps`, float64 `[(steps+1)(steps+2)/2, 3]`.

    Args:
        steps: How many steps an edge of the simplex is divided into.

    Examples:
        >>> simplex_grid(1).tolist()
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    checks.integer("steps", steps, lowest=1)
    first, second = torch.meshgrid(torch.arange(steps + 1), torch.arange(steps + 1), indexing="ij")
    inside = first + second <= steps
    first, second = first[inside], second[inside]
    return torch.stack([first, second, steps - first - second], 1).double() / steps


def simplex_gradient(z: Sequence[float] | Tensor, y: Sequence[Any] | Tensor) -> Tensor:
    """Gradient of the region-wise loss of a pixel with map values `z`, at the probabilities `y` (Eq. 2, Fig. 2).

    Args:
        z: Map values of the pixel, K numbers.
        y: Probabilities `[..., K]`, a tensor or nested sequences.

    Returns:
        `y_k (z_k - sum_l y_l z_l)`, float64 `[..., K]`: not divided by anything.

    Raises:
        ValueError: `z` does not have as many numbers as `y` has classes.

    Examples:
        >>> import torch
        >>> simplex_gradient([0, 1, 1], torch.tensor([0.5, 0.25, 0.25]))
        tensor([-0.2500,  0.1250,  0.1250], dtype=torch.float64)
    """
    values, y = _values(z), _probabilities(y)
    checks.shape("y", y, (*y.shape[:-1], len(values)), "[..., K] of z")
    return y * (values - (y * values).sum(-1, keepdim=True))


def cross_entropy_gradient(true_class: int, y: Sequence[Any] | Tensor) -> Tensor:
    """Gradient of the cross-entropy of a pixel, `y_k - [k = true_class]`, at the probabilities `y` (Fig. 4).

    Args:
        true_class: The pixel's class.
        y: Probabilities `[..., K]`, a tensor or nested sequences.

    Returns:
        float64 `[..., K]`.
    """
    gradient = _probabilities(y).clone()
    gradient[..., _class("true_class", true_class, gradient.shape[-1])] -= 1
    return gradient


def gradient_curvature(z: Sequence[float] | Tensor, y: Sequence[float] | Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Slope and curvature of one gradient entry, as a function on the simplex, at `y`.

    They tell what a stationary point of Fig. 2 is. For `z = [0, 1, 1]` the first entry is `-y_0 (1 - y_0)`: its least
    value, -1/4, is taken on the whole line `y_0 = 1/2`, where the slope is 0 and the curvatures along the simplex are
    positive across the line and 0 along it. No direction leads down, so the line is the floor of a valley, a set of
    minima that are not isolated, and no saddle: a saddle needs a negative curvature.

    Args:
        z: Map values of the pixel, K numbers.
        y: A point of the simplex, K probabilities.
        k: Which entry of the gradient.

    Returns:
        The projection of the slope on the simplex, float64 `[K]`, and the K - 1 curvatures (eigenvalues of the second
        derivative within the simplex), ascending, float64 `[K-1]`.

    Examples:
        >>> slope, curvature = gradient_curvature([0, 1, 1], [0.5, 0.1, 0.4], 0)
        >>> slope.abs().max().item() < 1e-15, [round(abs(value), 6) for value in curvature.tolist()]
        (True, [0.0, 1.333333])
    """
    values, point = _values(z), _values(y)
    checks.shape("y", point, values.shape, "[K] of z")
    k = _class("k", k, len(values))
    own = torch.zeros_like(values)
    own[k] = 1
    # Of y_k (z_k - y.z): slope (z_k - y.z) e_k - y_k z, second derivative -(e_k z' + z e_k').
    slope = (values[k] - point @ values) * own - point[k] * values
    second = -(torch.outer(own, values) + torch.outer(values, own))
    # The columns of `along` are an orthonormal basis of the directions that keep the sum of y.
    along = torch.linalg.qr(torch.cat([torch.ones(len(values), 1), torch.eye(len(values))], 1).double())[0][:, 1:]
    return along @ (along.T @ slope), torch.linalg.eigvalsh(along.T @ second @ along)


def _exact(value: object) -> Fraction:
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"z: expected numbers, got {checks.describe(value)}")
    if isinstance(value, numbers.Rational):
        return Fraction(int(value.numerator), int(value.denominator))
    try:
        return Fraction(float(value))  # a float is a fraction of a power of two
    except (ValueError, OverflowError):
        raise ValueError(f"z: expected finite numbers, got {value}") from None


def _share_above(values: Sequence[Fraction], threshold: Fraction) -> Fraction:
    """The part of the simplex where `sum y z > threshold`: the divided difference of `max(x - threshold, 0)^(K-1)`.

    Curry & Schoenberg 1966: the mean of a function's (K-1)-th derivative over the simplex, at `sum y z`, is its divided
    difference at the knots `z`, times (K-1)!. A knot that comes r times takes derivatives up to order r - 1.
    """
    knots, order = sorted(values), len(values) - 1
    if knots[0] == knots[-1]:
        return Fraction(int(knots[0] > threshold))

    def derivative(at: Fraction, times: int) -> Fraction:
        """The derivative over the factorial of its order."""
        return comb(order, times) * (at - threshold) ** (order - times) if at > threshold else Fraction(0)

    column = [derivative(knot, 0) for knot in knots]
    for width in range(1, len(knots)):
        column = [
            derivative(knots[i], width)
            if knots[i] == knots[i + width]
            else (column[i + 1] - column[i]) / (knots[i + width] - knots[i])
            for i in range(len(knots) - width)
        ]
    return column[0]


def negative_shares(z: Sequence[float] | Tensor) -> list[Fraction]:
    """The exact part of the softmax simplex on which the gradient has 0, 1, 2, ... negative entries.

    Entry k is negative where `z_k < sum_l y_l z_l`, a half of the simplex cut off by a plane. Volumes are measured
    uniformly on the probabilities (all K-tuples that sum to 1 are alike), by rational arithmetic.

    Args:
        z: Map values of a pixel, K numbers; a float counts as the binary fraction that it is.

    Returns:
        K fractions that sum to 1: the share with 0, 1, ..., K - 1 negative entries.

    Raises:
        ValueError: Fewer than two numbers, or one that is not finite.

    References:
        Valverde & Tohka, section 3.3: two negative entries on 8/15 of the simplex for `z = [12, 4, -3]`.

    Examples:
        >>> negative_shares([12, 4, -3])
        [Fraction(0, 1), Fraction(7, 15), Fraction(8, 15)]
        >>> negative_shares([10, 10, -3])
        [Fraction(0, 1), Fraction(1, 1), Fraction(0, 1)]
    """
    values = sorted(_exact(value) for value in z)
    if len(values) < 2:
        raise ValueError(f"z: expected at least 2 numbers, one per class, got {len(values)}")
    # At least n entries are negative where the sum exceeds the n-th smallest value.
    at_least = [Fraction(1), *(_share_above(values, value) for value in values)]
    return [more - less for more, less in itertools.pairwise(at_least)]
