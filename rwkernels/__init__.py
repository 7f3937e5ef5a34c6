"""Region-wise loss at memory speed: labels in, loss and gradient out.

The loss, its maps and the exact distance transforms under them, after Valverde & Tohka, "Region-wise Loss for
Biomedical Image Segmentation" (Pattern Recognition 2022, doi 10.1016/j.patcog.2022.109208).
"""

from rwkernels.backends import statuses as backends
from rwkernels.losses.combined import CombinedLoss
from rwkernels.losses.contour import ActiveContourLoss, contour_length
from rwkernels.losses.cross_entropy import CrossEntropyLoss, FocalLoss, weighted_cross_entropy
from rwkernels.losses.dice import DiceCELoss, DiceFocalLoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from rwkernels.losses.functional import region_wise_loss
from rwkernels.losses.hausdorff import HausdorffLoss, hausdorff_loss
from rwkernels.losses.modules import BoundaryLoss, RegionWiseLoss
from rwkernels.losses.supervision import DeepSupervisionLoss
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.distance import class_distance_transform, distance_transform
from rwkernels.maps.families import active_contour_map, boundary_map, constant_map, rectified_map, rectify
from rwkernels.maps.scaling import scale_classes, scale_pixels

__version__ = "0.1.0"

__all__ = [
    "ActiveContourLoss",
    "BoundaryLoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "GeneralizedDiceLoss",
    "HausdorffLoss",
    "RectifiedMap",
    "RegionWiseLoss",
    "TverskyLoss",
    "active_contour_map",
    "backends",
    "boundary_map",
    "class_distance_transform",
    "constant_map",
    "contour_length",
    "distance_transform",
    "hausdorff_loss",
    "rectified_map",
    "rectify",
    "region_wise_loss",
    "scale_classes",
    "scale_pixels",
    "weighted_cross_entropy",
]
