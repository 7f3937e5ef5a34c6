"""The benchmark suite: every row against a named peer in the same run, and against the bytes that must move.

    python -m benchmarks            # one table
    pytest benchmarks/              # the same cases under pytest-benchmark

`rows.py` holds the rows and their goals, `contenders.py` what is timed, `truth.py` what every answer is checked
against before it is timed, `harness.py` the interleaved timing.
"""
