"""The benchmark suite: every row against a named peer in the same run, and against the bytes that must move.

    python -m benchmarks            # one table
    pytest benchmarks/              # the same cases under pytest-benchmark
    python -m benchmarks.traffic    # bytes of GPU memory that the loss moves, counted without a GPU

`rows.py` holds the rows and their goals, `contenders.py` what is timed, `truth.py` what every answer is checked
against before it is timed, `harness.py` the interleaved timing. `traffic.py` counts bytes: those of eager PyTorch from
its operators (`eager_traffic.py`), those of `torch.compile` from the kernels it generates (`inductor.py`,
`kernel_traffic.py`).
"""
