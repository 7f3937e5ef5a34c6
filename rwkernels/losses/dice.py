"""Soft Dice and its relatives, alone and with cross-entropy or focal loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rwkernels import checks
from rwkernels.backends.joint import VOLUMES, Overlap
from rwkernels.losses.joint import ClassWeight, DiceTerm, JointLoss, JointOptions, Terms, not_negative, smoothing

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _dice_overlap(jaccard: bool, smooth_nr: float, smooth_dr: float, complement: bool) -> Overlap:
    smooth = (checks.number("smooth_nr", smooth_nr), checks.number("smooth_dr", smooth_dr))
    offset = 1.0 if checks.flag("complement", complement) else 0.0
    if checks.flag("jaccard", jaccard):
        return Overlap(2.0, -2.0, 2.0, 2.0, *smooth, offset)
    return Overlap(2.0, 0.0, 1.0, 1.0, *smooth, offset)


def _dice_term(
    include_background: bool,
    squared_pred: bool,
    jaccard: bool,
    smooth_nr: float,
    smooth_dr: float,
    batch: bool,
    complement: bool,
) -> DiceTerm:
    return DiceTerm(
        _dice_overlap(jaccard, smooth_nr, smooth_dr, complement),
        checks.flag("include_background", include_background),
        checks.flag("squared_pred", squared_pred),
        checks.flag("batch", batch),
    )


class DiceLoss(JointLoss):
    """Soft Dice loss of the softmax: two reads of the logits and one write of the gradient.

    Per image and class `1 - (2 I + smooth_nr) / (P + T + smooth_dr)`, with I the sum of the class's probability over
    its pixels, P that over all pixels and T the number of its pixels; averaged over images and classes. It is MONAI's
    `DiceLoss(softmax=True, to_onehot_y=True)`. nnU-Net's `MemoryEfficientSoftDiceLoss` is
    `DiceLoss(batch=batch_dice, include_background=do_bg, smooth_nr=smooth, smooth_dr=smooth, complement=False)`.
    A denominator is at least 1e-8.

    Args:
        include_background: False leaves class 0 out (of the average; the softmax is over all classes).
        squared_pred: P sums squares.
        jaccard: Jaccard's index (IoU) in Dice's place.
        reduction: `"mean"` or `"sum"` over images and classes.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        batch: Sum I, P and T over the batch before dividing.
        weight: One number per class `[K]` (`[K - 1]` without the background), or one for all, that multiplies its
            loss. Part of the `state_dict`.
        complement: False gives minus Dice in the place of one minus Dice, as nnU-Net does.
        ignore_index: Label, possibly negative, of pixels that do not count; their logits are never read.
        process_group: A process group or `"world"`, with `batch=True`: sums over the batches of all processes, as
            nnU-Net's `ddp=True` does. Every process returns the loss of the joined batch, and the mean of their
            gradients, which DistributedDataParallel takes, is its gradient.
        validate: Check label values: by default on the CPU only. Bad labels that are not checked make the loss NaN.
        backend: Name of the backend to use instead of the default one.

    Shape:
        `forward(logits, labels)` with logits `[B, K, *S]` of one to three spatial axes and labels `[B, *S]` or
        `[B, 1, *S]`: integers, or floats that hold whole numbers. The loss is a scalar, float32 (float64 for float64
        logits).

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes, devices, class counts or label values are wrong.

    References:
        Milletari et al., "V-Net", 3DV 2016; Isensee et al., "nnU-Net", Nature Methods 2021.

    Examples:
        >>> import torch, rwkernels as rw
        >>> logits = torch.zeros(1, 2, 1, 4, requires_grad=True)
        >>> loss = rw.DiceLoss(smooth_nr=0, smooth_dr=0)(logits, torch.tensor([[[0, 0, 1, 1]]]))
        >>> loss.backward()  # of both classes I = 1, P = T = 2
        >>> loss.item(), logits.grad.shape
        (0.5, torch.Size([1, 2, 1, 4]))
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        squared_pred: bool = False,
        jaccard: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: ClassWeight = None,
        complement: bool = True,
        **options: Unpack[JointOptions],
    ) -> None:
        dice = _dice_term(include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch, complement)
        super().__init__(
            Terms(dice=dice, of_dice=1.0),
            dice_weight=weight,
            **options,
        )


class TverskyLoss(JointLoss):
    """Tversky loss of the softmax: Dice whose false positives and false negatives count differently.

    Per image and class `1 - (I + smooth_nr) / (I + alpha (P - I) + beta (T - I) + smooth_dr)`; MONAI's
    `TverskyLoss(softmax=True, to_onehot_y=True)`.

    Args:
        include_background: False leaves class 0 out.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
        reduction: `"mean"` or `"sum"` over images and classes.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        batch: Sum over the batch before dividing.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    References:
        Salehi et al., "Tversky loss function for image segmentation", MLMI 2017.

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> rw.TverskyLoss(smooth_nr=0, smooth_dr=0)(torch.zeros(1, 2, 1, 4), labels)
        tensor(0.5000)
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        **options: Unpack[JointOptions],
    ) -> None:
        alpha, beta = checks.number("alpha", alpha), checks.number("beta", beta)
        smooth = (checks.number("smooth_nr", smooth_nr), checks.number("smooth_dr", smooth_dr))
        dice = DiceTerm(
            Overlap(1.0, 1 - alpha - beta, alpha, beta, *smooth, 1.0),
            include_background=checks.flag("include_background", include_background),
            batch=checks.flag("batch", batch),
        )
        super().__init__(
            Terms(dice=dice, of_dice=1.0),
            **options,
        )


class GeneralizedDiceLoss(JointLoss):
    """Generalised Dice loss of the softmax: one quotient of all classes, each weighed by its volume.

    MONAI's `GeneralizedDiceLoss(softmax=True, to_onehot_y=True)`; a class that an image lacks has the largest weight of
    the others.

    Args:
        include_background: False leaves class 0 out.
        w_type: `"square"` (weights `1 / T^2`), `"simple"` (`1 / T`) or `"uniform"`.
        reduction: `"mean"` or `"sum"` over images.
        smooth_nr: Added to the numerator.
        smooth_dr: Added to the denominator.
        batch: Sum over the batch before dividing.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    References:
        Sudre et al., "Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations",
        DLMIA 2017.

    Examples:
        >>> import torch, rwkernels as rw
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> rw.GeneralizedDiceLoss(smooth_nr=0, smooth_dr=0)(torch.zeros(1, 2, 1, 4), labels)
        tensor(0.5000)
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        w_type: str = "square",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        **options: Unpack[JointOptions],
    ) -> None:
        dice = DiceTerm(
            _dice_overlap(False, smooth_nr, smooth_dr, True),
            include_background=checks.flag("include_background", include_background),
            batch=checks.flag("batch", batch),
            volumes=checks.choice("w_type", w_type, VOLUMES[1:]),
        )
        super().__init__(
            Terms(dice=dice, of_dice=1.0),
            **options,
        )


class DiceCELoss(JointLoss):
    """Dice and cross-entropy together: two reads of the logits and one write of the gradient for both.

    MONAI's `DiceCELoss(softmax=True, to_onehot_y=True)`. nnU-Net's default, `DC_and_CE_loss` with
    `MemoryEfficientSoftDiceLoss`, is `DiceCELoss(include_background=do_bg, batch=batch_dice, smooth_nr=smooth,
    smooth_dr=smooth, complement=False)`.

    Args:
        include_background: False leaves class 0 out of Dice.
        squared_pred: As of `DiceLoss`.
        jaccard: As of `DiceLoss`.
        reduction: `"mean"` or `"sum"`, of both.
        smooth_nr: Added to the numerator of Dice.
        smooth_dr: Added to its denominator.
        batch: Sum over the batch before dividing.
        weight: One number per class `[K]`, for both. Part of the `state_dict`.
        lambda_dice: How much Dice counts.
        lambda_ce: How much cross-entropy counts.
        label_smoothing: Of cross-entropy, in [0, 1].
        complement: False gives minus Dice in the place of one minus Dice, as nnU-Net does.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> loss_fn = rw.DiceCELoss(include_background=False, batch=True)
        >>> logits = torch.randn(2, 3, 16, 16, requires_grad=True)
        >>> loss_fn(logits, torch.randint(3, (2, 16, 16))).backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        squared_pred: bool = False,
        jaccard: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: ClassWeight = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        complement: bool = True,
        **options: Unpack[JointOptions],
    ) -> None:
        dice = _dice_term(include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch, complement)
        super().__init__(
            Terms(
                dice=dice,
                of_dice=not_negative("lambda_dice", lambda_dice),
                of_entropy=not_negative("lambda_ce", lambda_ce),
                label_smoothing=smoothing(label_smoothing),
            ),
            entropy_weight=weight,
            dice_weight=weight,
            **options,
        )


class DiceFocalLoss(JointLoss):
    """Dice and focal loss together: two reads of the logits and one write of the gradient for both.

    It is the sum of `DiceLoss` and `FocalLoss`. MONAI's `DiceFocalLoss(softmax=True)` is not: its focal loss takes the
    sigmoid of every class.

    Args:
        include_background: False leaves class 0 out of Dice; the focal loss has all classes.
        squared_pred: As of `DiceLoss`.
        jaccard: As of `DiceLoss`.
        reduction: `"mean"` or `"sum"`, of both.
        smooth_nr: Added to the numerator of Dice.
        smooth_dr: Added to its denominator.
        batch: Sum over the batch before dividing.
        gamma: As of `FocalLoss`.
        alpha: As of `FocalLoss`.
        weight: One number per class `[K]`, for both. Part of the `state_dict`.
        lambda_dice: How much Dice counts.
        lambda_focal: How much the focal loss counts.
        complement: As of `DiceLoss`.
        **options: `ignore_index`, `process_group`, `validate` and `backend`, as of `DiceLoss`.

    Examples:
        >>> import torch, rwkernels as rw
        >>> logits = torch.randn(2, 3, 16, 16, requires_grad=True)
        >>> rw.DiceFocalLoss(gamma=1.5)(logits, torch.randint(3, (2, 16, 16))).backward()
        >>> logits.grad.shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        include_background: bool = True,
        *,
        squared_pred: bool = False,
        jaccard: bool = False,
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        alpha: ClassWeight = None,
        weight: ClassWeight = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        complement: bool = True,
        **options: Unpack[JointOptions],
    ) -> None:
        dice = _dice_term(include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch, complement)
        super().__init__(
            Terms(
                dice=dice,
                of_dice=not_negative("lambda_dice", lambda_dice),
                of_focal=not_negative("lambda_focal", lambda_focal),
                gamma=not_negative("gamma", gamma),
            ),
            focal_weight=weight,
            alpha=alpha,
            dice_weight=weight,
            **options,
        )
