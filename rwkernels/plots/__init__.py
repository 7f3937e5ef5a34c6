"""The paper's figures for any labels, map values or training: `pip install "rwkernels[plot]"`.

Every function returns a matplotlib `Figure` that was made without pyplot, so nothing is opened and no global state
changes; `axes=` draws into axes of your own. `save` writes vectors whose text stays text.
"""

from rwkernels.plots.curves import convergence_cdf, dice_curves, negative_counts
from rwkernels.plots.pictures import maps
from rwkernels.plots.style import save
from rwkernels.plots.triangles import simplex_gradient

__all__ = ["convergence_cdf", "dice_curves", "maps", "negative_counts", "save", "simplex_gradient"]
