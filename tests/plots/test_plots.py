"""The figures: what they draw is what was given, they touch no global state, and vectors keep their text."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is missing")

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

import rwkernels as rw
from rwkernels import plots
from rwkernels.plots import pictures


def labels_of_three_classes():
    rows, columns = np.mgrid[:40, :50]
    labels = np.zeros((40, 50), np.int64)
    radius = np.hypot(rows - 20, columns - 28)
    labels[radius < 15] = 1
    labels[radius < 7] = 2
    return labels


def images(axes):
    return [child for child in axes.get_children() if isinstance(child, AxesImage)]


def panels(figure):
    return [axes for axes in figure.axes if images(axes)]


def test_maps_draws_the_maps_of_the_package():
    labels = labels_of_three_classes()
    figure = plots.maps(labels, 4, spacing=(2.0, 1.0), families=["boundary", "rectified", "constant"], classes=[2, 1])
    batch = torch.from_numpy(labels)[None]
    expected = [
        rw.boundary_map(batch, 4, spacing=(2.0, 1.0)),
        rw.rectified_map(batch, 4, spacing=(2.0, 1.0)).dense(),
        rw.constant_map(batch, 4).dense(),
    ]
    shown = panels(figure)
    assert len(shown) == 2 * 4
    bars = figure.axes[8:]
    for row, k in enumerate((2, 1)):
        assert shown[4 * row].get_ylabel() == f"class {k}"
        for column, dense in enumerate(expected, start=1):
            (image,) = images(shown[4 * row + column])
            np.testing.assert_allclose(image.get_array(), dense[0, k].numpy(), rtol=1e-6)
            assert image.norm.vmin < 0 < image.norm.vmax
            assert image.norm(0.0) == 0.5  # white
            if column > 1:
                assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
                assert bars[column].get_xlim() == (-1, 1)
            assert image.axes.get_aspect() == 2.0
    titles = [axes.get_title() for axes in shown[:4]]
    assert titles == ["(a) Labels", "(b) RW-Boundary", "(c) RRW", "(d) Constant"]


def test_maps_of_a_volume_are_those_of_the_volume_cut_through():
    volume = torch.zeros(6, 10, 12, dtype=torch.uint8)
    volume[2:5, 3:7, 4:9] = 1
    volume[4, 4, 5] = 2
    whole = rw.boundary_map(volume[None], 3, spacing=(3.0, 1.0, 0.5))[0]
    for plane, cut in ((None, whole[:, 4]), ((1, 5), whole[:, :, 5]), ((2, None), whole[..., 5])):
        figure = plots.maps(volume, 3, spacing=(3.0, 1.0, 0.5), families=["boundary"], classes=[0, 1], plane=plane)
        shown = [images(axes)[0].get_array() for axes in panels(figure)]
        np.testing.assert_allclose(shown[1], cut[0].numpy())
        np.testing.assert_allclose(shown[3], cut[1].numpy())


def test_without_a_choice_the_classes_are_those_present_but_for_the_most_frequent():
    labels = labels_of_three_classes()
    rows = [axes.get_ylabel() for axes in panels(plots.maps(labels, 9, families=["rectified"]))[::2]]
    assert rows == ["class 1", "class 2"]
    many = np.arange(40 * 50).reshape(40, 50) % 7
    assert len(panels(plots.maps(many, 7, families=["constant"]))) == 2 * pictures.MOST_ROWS
    one = panels(plots.maps(np.zeros((4, 5), np.uint8), 3))
    assert one[0].get_ylabel() == "class 0"


def test_the_fullest_slice_has_the_most_classes_and_then_the_most_pixels_that_are_rare():
    volume = torch.zeros(5, 4, 4, dtype=torch.long)
    volume[1, 0, 0] = 1
    volume[2, 0, :2] = torch.tensor([1, 2])
    volume[3, 0, :3] = torch.tensor([1, 2, 2])
    assert pictures.fullest_slice(volume, 0) == 3
    assert pictures.class_counts(volume, 0).tolist() == [1, 2, 3, 3, 1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": np.zeros((4, 5))}, TypeError, "labels: expected integer labels"),
        ({"labels": np.zeros(4, np.uint8)}, ValueError, r"labels: expected one image \[H, W\]"),
        ({"labels": np.full((4, 5), 3)}, ValueError, r"labels: expected integers in \[0, 3\), got 3 at \(0, 0\)"),
        ({"classes": [3]}, ValueError, r"classes: expected integers in \[0, 3\), got 3"),
        ({"classes": []}, ValueError, "classes: expected at least one class"),
        ({"families": ["rrw"]}, ValueError, "families: expected one of"),
        ({"plane": (0, 1)}, ValueError, "plane: expected None for an image"),
        ({"class_names": ["a"]}, ValueError, "class_names: expected 3"),
        ({"axes": Figure().subplots(1, 3)}, ValueError, "axes: expected 4"),
        ({"axes": 3}, TypeError, "axes: expected matplotlib axes"),
    ],
)
def test_maps_refuses_what_it_cannot_draw_and_names_the_argument(change, error, message):
    labels = np.zeros((4, 5), np.uint8)
    labels[1, 2] = 2
    with pytest.raises(error, match=message):
        plots.maps(**{"labels": labels, "num_classes": 3, **change})


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_simplex_gradient_shows_every_entry_and_the_exact_shares():
    figure = plots.simplex_gradient([12, 4, -3])
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["class 1", "class 2", "class 3 (true)", "negative entries"]
    told = [text.get_text() for text in figure.axes[3].texts]
    assert "1\non 7/15" in told
    assert "2\non 8/15" in told
    rectified = plots.simplex_gradient([-1, 1, 1], against="cross_entropy", class_names=["a", "b", "c"])
    assert len([axes for axes in rectified.axes if axes.get_title()]) == 8
    assert [text.get_text() for text in rectified.axes[3].texts][-1] == "1\neverywhere"
    assert [text.get_text() for text in rectified.axes[7].texts][-1] == "1\neverywhere"


def test_the_coloured_part_of_the_triangle_has_the_share_that_is_written_into_it():
    from rwkernels.plots import triangles

    for z in ([12, 4, -3], [1.0, 0.9, -4], [3, -1, 2]):
        area, centre = triangles._gravity(triangles._above(z, sorted(z)[1]) @ triangles._CORNERS)
        from rwkernels.diagnostics import negative_shares

        assert area == pytest.approx(float(negative_shares([Fraction(str(v)) for v in z])[2]))
        assert (centre > 0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([[1, 2]], {}, "z: expected 3 numbers, got 2"),
        ([[1, 2, 3]], {"true_class": 3}, "true_class: expected 0, 1 or 2"),
        ([[1, 2, 3]], {"against": "dice"}, "against: expected one of"),
        ([[1, 2, float("inf")]], {}, "z: expected finite numbers"),
    ],
)
def test_simplex_gradient_refuses_what_it_cannot_draw(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plots.simplex_gradient(*arguments, **options)


def test_negative_counts_draws_means_as_lines_and_histograms_as_stacked_shares():
    figure = plots.negative_counts({"RW-Boundary": [1.6, 1.5, 1.4], "RRW": torch.ones(3)}, epochs=[2, 4, 6])
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[2, 1.6], [4, 1.5], [6, 1.4]])
    assert legend(axes) == ["RW-Boundary", "RRW"]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in axes.lines}) == 2

    stacked = plots.negative_counts({"RW-Boundary": [[0, 3, 1], [0, 2, 2]], "RRW": [[0, 4], [0, 4]]})
    first, second = stacked.axes
    assert [first.get_title(), second.get_title()] == ["(a) RW-Boundary", "(b) RRW"]
    tops = [max(path[:, 1]) for path in (area.get_paths()[0].vertices for area in first.collections)]
    assert tops == [0, 0.75, 1.0]
    assert legend(second) == ["2", "1"]


def test_convergence_cdf_is_a_step_function_of_the_share_of_models():
    figure = plots.convergence_cdf({"RRW": [0.8, 0.9, 0.9, 0.7]})
    (axes,) = figure.axes
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-post"
    points = dict(map(tuple, line.get_xydata()[1:-1]))
    assert points == {0.7: 0.25, 0.8: 0.5, 0.9: 1.0}
    assert legend(axes) == ["RRW (n = 4)"]
    assert axes.get_ylim()[0] == 0


def test_dice_curves_draws_the_mean_and_the_spread_of_the_runs():
    runs = np.array([[0.1, 0.5], [0.3, 0.7], [0.2, 0.9]])
    for band, low, high in (
        ("std", runs.mean(0) - runs.std(0, ddof=1), runs.mean(0) + runs.std(0, ddof=1)),
        ("range", runs.min(0), runs.max(0)),
    ):
        (axes,) = plots.dice_curves({"RRW": runs, "one": [0.2, 0.4]}, band=band).axes
        np.testing.assert_allclose(axes.lines[0].get_ydata(), runs.mean(0))
        np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.2, 0.4])
        (area,) = axes.collections
        heights = area.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [low.min(), high.max()])


@pytest.mark.parametrize("draw", [plots.negative_counts, plots.convergence_cdf, plots.dice_curves])
def test_series_that_cannot_be_drawn_are_named(draw):
    name = {"negative_counts": "counts", "convergence_cdf": "values", "dice_curves": "curves"}[draw.__name__]
    with pytest.raises(TypeError, match=f"{name}: expected a mapping from names"):
        draw([1, 2])
    with pytest.raises(ValueError, match=rf"{name}\['a'\]: expected finite numbers, got nan"):
        draw({"a": [0.5, float("nan")]})
    with pytest.raises(ValueError, match=rf"{name}\['a'\]: expected .* got an array of shape \[0\]"):
        draw({"a": []})


def every_figure():
    yield plots.maps(labels_of_three_classes(), 3)
    yield plots.simplex_gradient([12, 4, -3])
    yield plots.negative_counts({"a": [1, 2], "b": [2, 1]})
    yield plots.negative_counts({"a": [[1, 2], [1, 3]]})
    yield plots.convergence_cdf({"a": [1, 2]})
    yield plots.dice_curves({"a": [[1, 2], [1, 3]]})


def test_saved_vectors_keep_their_text_and_the_global_state_stays_as_it_was(tmp_path):
    before = dict(rcParams)
    for k, (figure, same) in enumerate(zip(every_figure(), every_figure(), strict=True)):
        assert type(figure) is Figure
        path = plots.save(figure, tmp_path / f"{k}.svg")
        text = path.read_text()
        assert "<text" in text
        assert "Date" not in text
        assert plots.save(same, tmp_path / "again.svg").read_text() == text
    assert b"/Type0" in plots.save(figure, tmp_path / "last.pdf").read_bytes()
    assert plots.save(figure, tmp_path / "last.png", dpi=40).read_bytes().startswith(b"\x89PNG")
    assert dict(rcParams) == before
    assert not list(tmp_path.glob(".*"))


def test_figures_can_be_drawn_into_axes_that_exist(tmp_path):
    figure = Figure()
    grid = figure.subplots(2, 4)
    assert plots.simplex_gradient([0, 1, 1], axes=grid[0]) is figure
    assert plots.maps(labels_of_three_classes(), 3, classes=[1], axes=grid[1]) is figure
    assert plots.dice_curves({"a": [1, 2]}, axes=Figure().subplots()) is not figure
    plots.save(figure, tmp_path / "both.svg")


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    figure = plots.convergence_cdf({"a": [1, 2]})
    with pytest.raises(ValueError, match=r"path: expected a name that ends in .svg"):
        plots.save(figure, tmp_path / "a.docx")
    with pytest.raises(FileNotFoundError):
        plots.save(figure, tmp_path / "missing" / "a.svg")
    assert not list(tmp_path.iterdir())


def test_drawing_imports_no_pyplot_and_importing_plots_no_matplotlib():
    code = (
        "import sys; from rwkernels import plots; assert 'matplotlib' not in sys.modules; "
        "plots.convergence_cdf({'a': [1, 2]}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"rwkernels\[plot\]"):
        plots.convergence_cdf({"a": [1, 2]})
