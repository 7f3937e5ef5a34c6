"""The benchmarks as tests, and what is counted instead of timed.

    rwkernels bench                 # the suite itself is part of the package: rwkernels/bench
    pytest benchmarks/              # the same cases under pytest-benchmark
    python -m benchmarks.publish    # README's and docs' tables from the kept run; --measure runs it anew
    python -m benchmarks.guard      # instruction counts of seven key rows: `rwkernels bench guard`
    python -m benchmarks.traffic    # bytes of GPU memory that the loss moves, counted without a GPU
    python -m benchmarks.work       # predicted work of a map on a GPU
    python -m benchmarks.loader     # maps beside a network, in a data loader of rwkernels.data

`traffic.py` counts bytes: those of eager PyTorch from its operators (`eager_traffic.py`), those of `torch.compile` from
the kernels it generates (`inductor.py`, `kernel_traffic.py`). `work.py` and `sweeps.py` count what the kernels of the
maps do. `results/` holds the run that the documents show, `guard.json` the instruction counts of the regression guard.
"""
