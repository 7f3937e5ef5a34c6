"""Cross-entropy: weighted by pixels (what section 3.2 of the paper contrasts a region-wise loss with), and focal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from rwkernels import checks
from rwkernels.backends.problem import is_label, is_no_class
from rwkernels.losses.joint import ClassWeight, JointLoss, JointOptions, Terms, not_negative, smoothing
from rwkernels.maps.distance import map_problem

if TYPE_CHECKING:
    from typing_extensions import Unpack


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    validate: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Pixel-wise weighted cross-entropy: the sum over pixels of `-w_i log y_im`, m being the class of pixel i.

    It is what a weight map does to cross-entropy, and the contrast to a region-wise loss, which multiplies `y_ik` by a
    number for every class. Here the wrong classes' numbers would be multiplied by 0: one weight a pixel is all that it
    can take. Its gradient `w_i (y_ik - [k = m])` is largest where the true class has no probability left, and its signs
    are right for every positive weight; that of a region-wise loss fades there with `y_im`.

    Args:
        logits: float32, float64, bfloat16 or float16 `[B, K, *S]` with one to three spatial axes.
        labels: Integers (or floats that hold whole numbers) `[B, *S]` or `[B, 1, *S]` in `[0, K)`.
        weight: A number for every pixel, floating `[B, *S]` or `[B, 1, *S]`.
        ignore_index: Label, possibly negative, of pixels that do not count.
        reduction: `"mean"` divides by the number of pixels that count; unlike PyTorch's mean with class weights, not by
            the sum of the weights. `"sum"`; `"none"`.
        validate: Check label values: by default on the CPU only.
        backend: Name of the backend of that check.

    Returns:
        float32 (float64 for float64 logits): a scalar, or `[B, *S]` for `"none"`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices or label values are wrong.

    References:
        Ronneberger et al., "U-Net", MICCAI 2015, Eq. 1 there; Valverde & Tohka, section 3.2.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.weighted_cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]), torch.tensor([[[1.0, 3.0]]]))
        tensor(1.3863)
    """
    logits = checks.logits(logits)
    checks.choice("reduction", reduction, checks.REDUCTIONS)
    checked = checks.validate(validate, logits.device)
    checks.same_device("labels", checks.tensor("labels", labels), "logits", logits)
    labels = checks.labels_like("labels", checks.whole_labels(checks.tensor("labels", labels), checked), logits.shape)
    weight = checks.tensor("weight", weight)
    checks.floating("weight", weight)
    weight = weight.squeeze(1) if weight.dim() == logits.dim() and weight.shape[1] == 1 else weight
    checks.shape("weight", weight, labels.shape, "[B, *S] of the labels")
    checks.same_device("weight", weight, "logits", logits)
    problem, _ = map_problem(
        labels,
        logits.shape[1],
        ignore_index=ignore_index,
        spatial_dims=labels.dim() - 1,
        validate=checked,
        backend=backend,
    )
    ignored = problem.ignore_index
    # Ones from an operator that checks the labels, so that the check is in compiled graphs too.
    weight = weight * torch.ops.rwkernels.constant(*problem, 1.0)
    wide = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    bad = is_no_class(labels, logits.shape[1])  # of ignored pixels too, unless a class is ignored
    skipped = None if ignored is None else is_label(labels, ignored)
    if skipped is not None:
        wide = wide.masked_fill(skipped.unsqueeze(1), 0.0)
        weight = weight.masked_fill(skipped, 0.0)
    target = labels.long().masked_fill(bad, 0)  # never an index
    values = F.cross_entropy(wide, target, reduction="none") * weight.to(wide.dtype)
    values = values.masked_fill(bad if skipped is None else bad & ~skipped, torch.nan)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (max(labels.numel(), 1) if skipped is None else (~skipped).sum().clamp(min=1))


class CrossEntropyLoss(JointLoss):
    """Cross-entropy, as PyTorch's of the same name: one pass gives loss and gradient.

    Args:
        weight: One number per class `[K]`; the mean then divides by the sum of the weights of the pixels that count.
            Part of the `state_dict`.
        label_smoothing: In [0, 1]: how much of the target is spread evenly over all classes.
        reduction: `"mean"` or `"sum"`.
        **options: `ignore_index` (default: none), `process_group`, `validate` and `backend`, as of `DiceLoss`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> rw.CrossEntropyLoss()(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
        tensor(0.6931)
    """

    def __init__(
        self,
        weight: ClassWeight = None,
        *,
        label_smoothing: float = 0.0,
        **options: Unpack[JointOptions],
    ) -> None:
        super().__init__(
            Terms(of_entropy=1.0, label_smoothing=smoothing(label_smoothing)),
            entropy_weight=weight,
            **options,
        )


class FocalLoss(JointLoss):
    """Focal loss of the softmax: cross-entropy times `(1 - p)^gamma`, p being the probability of the true class.

    MONAI's `FocalLoss(use_softmax=True, to_onehot_y=True)`: the mean is over pixels and classes, so divides by N * K.

    Args:
        gamma: How much pixels that are right already are held back; 0 is cross-entropy.
        alpha: One number per class `[K]`; or one in [0, 1], which the others count and class 0 counts one minus it.
        weight: One number per class `[K]` beside `alpha`, or one for all.
        reduction: `"mean"`, or `"sum"` over all pixels (MONAI's averages over the pixels of an image first).
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss = rw.FocalLoss(gamma=2)(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, 1]]]))
        >>> round(loss.item(), 4)  # log(2) / 4 over two classes
        0.0866
    """

    def __init__(
        self,
        gamma: float = 2.0,
        *,
        alpha: ClassWeight = None,
        weight: ClassWeight = None,
        **options: Unpack[JointOptions],
    ) -> None:
        super().__init__(
            Terms(of_focal=1.0, gamma=not_negative("gamma", gamma)),
            focal_weight=weight,
            alpha=alpha,
            **options,
        )
