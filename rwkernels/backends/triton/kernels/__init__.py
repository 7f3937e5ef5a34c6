"""The Triton kernels, apart from what launches them."""
