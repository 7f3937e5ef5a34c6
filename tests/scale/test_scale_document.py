"""The examples of docs/scale.md run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

import rwkernels as rw

pytest.importorskip("dask", reason="dask is not installed (the extra `scale`)")
pytest.importorskip("zarr", minversion="3.1.3", reason="no Zarr 3.1.3 (the extra `scale`)")
DOCUMENT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def run(number):
    names: dict = {}
    example = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)[number]
    exec(compile(example, "docs/scale.md", "exec"), names)
    return names


def test_the_example_from_zarr_to_zarr(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(0)
    expected = rw.distance_transform(names["labels"][None], spacing=(2.0, 1.0, 1.0))[0]
    np.testing.assert_array_equal(names["distances"][:], expected)
    whole = rw.rectified_map(names["labels"][None], 2, spacing=(2.0, 1.0, 1.0)).foreground
    np.testing.assert_array_equal(names["patch"].foreground, whole[:, 16:48, 24:56, 8:40])
    np.testing.assert_array_equal(names["maps"].foreground[:], whole[0])


def test_the_example_of_dask_arrays():
    names = run(1)
    labels = names["labels"].compute()
    np.testing.assert_array_equal(
        names["distances"].compute(), rw.distance_transform(labels[None], spacing=(2.0, 1.0, 1.0))[0]
    )
