"""The benchmark of loaders runs, and every contender has the map of SciPy."""

import pytest

pytest.importorskip("monai", reason="the benchmark trains MONAI's U-Net")
loader = pytest.importorskip("benchmarks.loader", reason="benchmarks/ is not beside the tests")


def test_every_contender_has_its_line_and_the_right_map(capsys, restore_threads):
    loader.main(["--tiny", "--threads", "1"])
    shown = capsys.readouterr().out
    for name in ("MapLoader", "map in the loss", "AddMap in workers", "the paper's way"):
        assert shown.count(f"| {name}") >= 2
    assert shown.count("%") == 2 * 6


def test_a_wrong_map_is_found_before_anything_is_timed():
    racing = loader.contenders(loader.Setting(2, 16, 4, workers=0))
    loader.check(racing)
    racing[3].map_of = lambda batch: loader.scipy_map(batch[1]) + 1
    with pytest.raises(AssertionError, match="map in the loss"):
        loader.check(racing)


def test_memory_is_watched(capsys, restore_threads):
    loader.main(["--tiny", "--memory", "--threads", "1"])
    assert "growth over 20 batches: " in capsys.readouterr().out
