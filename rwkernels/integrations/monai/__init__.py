"""Region-wise maps and losses for MONAI: transforms for its pipelines, losses with its conventions.

`RegionWiseMapd` adds the map of a label to a sample; `RegionWiseLoss` takes what MONAI's losses take. Both read the
spacing from the affine of a `MetaTensor`.
"""

from rwkernels.integrations.arrays import read_map
from rwkernels.integrations.monai.losses import RegionWiseLoss
from rwkernels.integrations.monai.transforms import (
    RegionWiseMap,
    RegionWiseMapD,
    RegionWiseMapd,
    RegionWiseMapDict,
)

__all__ = ["RegionWiseLoss", "RegionWiseMap", "RegionWiseMapD", "RegionWiseMapDict", "RegionWiseMapd", "read_map"]
