"""What region-wise losses do to gradients: signs, the principle of rectified maps, and the simplex (Fig. 2 to 5)."""

from rwkernels.diagnostics.distribution import empirical_cdf
from rwkernels.diagnostics.negatives import negative_gradients, sign_histogram, wrong_sign_fraction, wrong_signs
from rwkernels.diagnostics.rectification import Rectification, rectification
from rwkernels.diagnostics.simplex import (
    cross_entropy_gradient,
    gradient_curvature,
    negative_shares,
    simplex_gradient,
    simplex_grid,
)

__all__ = [
    "Rectification",
    "cross_entropy_gradient",
    "empirical_cdf",
    "gradient_curvature",
    "negative_gradients",
    "negative_shares",
    "rectification",
    "sign_histogram",
    "simplex_gradient",
    "simplex_grid",
    "wrong_sign_fraction",
    "wrong_signs",
]
