"""What contenders are called, in tables, files and charts: every name once, so that nobody is looked for by another."""

from __future__ import annotations

# rwkernels: distances, boundary maps and labels to gradient, then rectified maps and the loss.
OURS, REUSED = "rwkernels", "rwkernels, reused buffer"
COMPACT, COMPACT_REUSED = "rwkernels compact", "rwkernels compact, reused buffer"
DENSE, DENSE_REUSED = "rwkernels dense", "rwkernels dense, reused buffer"
RECOMPUTE = "rwkernels compact, recompute"
REFERENCE, CUCIM_BACKEND = "rwkernels, reference backend", "rwkernels, cucim backend"
CPU_AND_COPIES = "rwkernels on the CPU, and copies"
# The loss kernel alone, by whether the map is compact and the gradient's buffer is reused.
KERNELS = {
    (compact, reused): f"{COMPACT if compact else DENSE}, {'reused' if reused else 'fresh'} gradient"
    for compact in (False, True)
    for reused in (True, False)
}

# Binary transforms, called for every image and class.
SCIPY, MONAI = "SciPy per class", "MONAI distance_transform_edt"
OPENCV, SIMPLEITK, DIPLIB = "OpenCV per class", "SimpleITK per class", "DIPlib per class"
EDT_PER_CLASS = "edt per class"
CUPY, CUCIM, SAM3 = "CuPy per class", "cuCIM per class", "SAM3 per class"

# The same twice, outside and inside, for boundary maps: the name of each, and of the transform that it calls.
TWICE = {f"{name.removesuffix(' per class')} twice per class": name
         for name in (SCIPY, OPENCV, DIPLIB, SIMPLEITK, CUCIM, CUPY)}  # fmt: skip
SCIPY_TWICE = "SciPy twice per class"

# The multi-label transform of `edt`, and maps made of what it gives.
EDT, EDT_FINISH, EDT_TWICE = "edt", "edt + torch", "edt twice per class"
MONAI_BOUNDARY = "MONAI BoundaryLoss map"

EAGER, COMPILED, CROSS_ENTROPY, DICE = "eager PyTorch", "torch.compile", "F.cross_entropy", "MONAI DiceLoss"

# Each of these right after an operator of torch that took all threads, as in a training loop.
IN_A_LOOP = {name: f"{name}, in a loop" for name in (COMPACT, COMPACT_REUSED, CROSS_ENTROPY)}

# Losses that are trained together: in one operator, or each by itself as other libraries have them.
FUSED = "rwkernels fused"
WITH_MONAI, WITH_NNUNET, WITH_PYTORCH = "MONAI's losses", "nnU-Net's losses", "PyTorch's losses"

# From labels to the gradient of the logits.
PAPER, PAPER_EDT, MONAI_LOSS = "SciPy per class + eager", "edt per class + eager", "MONAI BoundaryLoss"
