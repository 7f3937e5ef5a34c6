"""`rwkernels show`: files of somebody's own, which slice is shown, and what is said where nothing can be."""

import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib (the extra `plot`) is missing")

from rwkernels import cli, plots, show

NIBABEL = pytest.importorskip("nibabel", reason="nibabel (the extra `plot`) is missing")


def volume():
    """[z, y, x], with three labels in slice 4 alone."""
    labels = np.zeros((6, 20, 30), np.int16)
    labels[1:, 4:12, 5:20] = 1
    labels[4, 6:9, 8:12] = 7
    return labels


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every call of `plots.maps`."""
    calls = []
    original = plots.maps
    monkeypatch.setattr(plots, "maps", lambda *a, **k: (calls.append((a, k)), original(*a, **k))[1])
    return calls


def run(*arguments):
    return cli.main(["show", *map(str, arguments)])


def test_a_nifti_volume_is_turned_upright_and_its_spacing_and_fullest_slice_are_taken(tmp_path, drawn, capsys):
    labels = volume()
    stored = labels.transpose(2, 1, 0)[:, ::-1]  # x to the right, y to the front, z up
    for name, affine, array in (
        ("a.nii.gz", np.diag([0.5, 2.0, 4.0, 1.0]), stored),
        ("b.nii", np.diag([-0.5, 2.0, 4.0, 1.0]), stored[::-1]),  # stored from right to left
    ):
        NIBABEL.save(NIBABEL.Nifti1Image(array, affine), tmp_path / name)
        assert run(tmp_path / name, "--save", tmp_path / "out.svg") == 0
        (given, num_classes), options = drawn.pop()
        assert np.array_equal(given, np.searchsorted([0, 1, 7], labels[::-1]))
        assert num_classes == 3
        assert options["spacing"] == (4.0, 2.0, 0.5)
        assert options["plane"] == (0, 1)
        assert options["class_names"] == ["label 0", "label 1", "label 7"]
        assert options["unit"] == "mm"
        assert "slice 4 of 6 along axis 2" in capsys.readouterr().out
    assert "<text" in (tmp_path / "out.svg").read_text()


def test_a_volume_whose_axes_are_permuted_and_turned_is_shown_alike_and_cut_along_the_files_axes(tmp_path, drawn):
    labels = volume()
    upright = labels.transpose(2, 1, 0)[:, ::-1]  # x to the right, y to the front, z up
    NIBABEL.save(NIBABEL.Nifti1Image(upright, np.diag([0.5, 2.0, 4.0, 1.0])), tmp_path / "a.nii")
    out = tmp_path / "o.png"
    assert run(tmp_path / "a.nii", "--save", out, "--dpi", 30) == 0
    (expected, _), _ = drawn.pop()
    # In the file: the first axis to the back, the second up, the third to the left.
    stored = upright.transpose(1, 2, 0)[::-1, :, ::-1]
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = -2.0, 4.0, -0.5, 1
    NIBABEL.save(NIBABEL.Nifti1Image(stored, affine), tmp_path / "b.nii")
    assert run(tmp_path / "b.nii", "--save", out, "--dpi", 30) == 0
    (given, _), options = drawn.pop()
    assert np.array_equal(given, expected)
    assert options["spacing"] == (4.0, 2.0, 0.5)
    assert options["plane"] == (0, 1)
    for axis in range(3):
        assert run(tmp_path / "b.nii", "--axis", axis, "--slice", 2, "--spacing", 3, 5, 7, "--save", out) == 0
        (given, _), options = drawn.pop()
        place, index = options["plane"]
        shown = np.take(given, index, place)
        cut = np.searchsorted([0, 1, 7], np.take(stored, 2, axis))
        turned = {0: cut[::-1, ::-1], 1: cut[:, ::-1], 2: cut.T[::-1]}[axis]
        assert np.array_equal(shown, turned)
        assert options["spacing"] == (5.0, 3.0, 7.0)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_scan_of_itk_is_shown_as_the_nifti_file_that_lies_alike(tmp_path, drawn, suffix):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK (the extra `precompute`) is missing")
    labels = volume()
    stored = labels.transpose(1, 0, 2)[:, ::-1]  # SimpleITK's (z, y, x) are here the front, the head, the left
    image = sitk.GetImageFromArray(stored)
    image.SetSpacing((0.5, 4.0, 2.0))
    image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))  # by columns: x to the left, y up, z to the front
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    found = []
    for name, *options in (
        (f"a{suffix}",),
        ("a.nii.gz",),
        (f"a{suffix}", "--axis", 2, "--slice", 7, "--spacing", 3, 5, 7),
    ):
        assert run(tmp_path / name, *options, "--save", tmp_path / "o.png", "--dpi", 30) == 0
        found.append(drawn.pop())
    upright = np.searchsorted([0, 1, 7], labels)[:, ::-1, ::-1]  # rows and slices as they go down, columns to the right
    for (given, _), _ in found:
        assert np.array_equal(given, upright)
    assert [options["unit"] for _, options in found] == ["mm", "mm", None]
    assert [options["plane"] for _, options in found] == [(0, 4), (0, 4), (1, 20 - 1 - 7)]
    for _, options in found[:2]:
        assert options["spacing"] == pytest.approx((4.0, 2.0, 0.5))
    assert found[2][1]["spacing"] == (5.0, 7.0, 3.0)


def test_the_array_of_a_file_that_holds_several_is_named_and_its_spacing_taken(tmp_path, drawn, capsys):
    zarr = pytest.importorskip("zarr", reason="zarr (the extra `precompute`) is missing")
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    for name in ("first", "second"):
        group.create_array(name, shape=volume().shape, dtype="int16", attributes={"spacing": [4, 2, 0.5]})
    group["second"][...] = volume()
    out = tmp_path / "o.png"
    assert run(tmp_path / "a.zarr", "--save", out) == 2
    assert "key: expected --key, as the file holds first, second" in capsys.readouterr().err
    assert run(tmp_path / "a.zarr", "--key", "second", "--save", out, "--dpi", 30) == 0
    (given, _), options = drawn.pop()
    assert np.array_equal(given, np.searchsorted([0, 1, 7], volume()))
    assert (options["spacing"], options["plane"], options["unit"]) == ((4.0, 2.0, 0.5), (0, 4), None)
    np.savez(tmp_path / "batch.npz", data=np.zeros((1, 1, 3)), seg=volume()[None])
    assert run(tmp_path / "batch.npz", "--save", out, "--dpi", 30) == 0
    (again, _), options = drawn.pop()
    assert np.array_equal(again, given)
    assert (options["spacing"], options["unit"]) == ((1.0, 1.0, 1.0), "pixels")


def test_an_image_in_a_file_of_volumes_and_a_volume_in_a_file_of_images_are_read(tmp_path, drawn):
    from PIL import Image

    labels = volume()
    out = tmp_path / "o.png"
    flat = labels[4].T
    for name, array in (("two.nii", flat), ("one.nii.gz", flat[..., None])):
        NIBABEL.save(NIBABEL.Nifti1Image(array, np.diag([0.5, 2.0, 4.0, 1.0])), tmp_path / name)
        assert run(tmp_path / name, "--save", out, "--dpi", 30) == 0
        (given, _), options = drawn.pop()
        assert np.array_equal(given, np.searchsorted([0, 1, 7], labels[4][::-1]))
        assert (options["spacing"], options["plane"]) == ((2.0, 0.5), None)
    pages = [Image.fromarray(page.astype(np.float32)) for page in labels]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert run(tmp_path / "stack.tif", "--save", out, "--dpi", 30) == 0
    (given, _), options = drawn.pop()
    assert np.array_equal(given, np.searchsorted([0, 1, 7], labels))
    assert options["plane"] == (0, 4)
    np.save(tmp_path / "batch.npy", np.zeros((2, 1, 8, 9), np.uint8))
    assert run(tmp_path / "batch.npy", "--save", out) == 2  # two images, no volume


def test_a_slice_is_chosen_in_the_files_own_axes(tmp_path, drawn):
    NIBABEL.save(NIBABEL.Nifti1Image(volume().transpose(2, 1, 0), np.eye(4)), tmp_path / "a.nii")
    np.save(tmp_path / "a.npy", volume())
    out = tmp_path / "o.png"
    for name, axis, index, plane in (
        ("a.nii", 2, 1, (0, 4)),
        ("a.nii", 1, 3, (1, 16)),
        ("a.nii", 0, 7, (2, 7)),
        ("a.npy", 0, 1, (0, 1)),
        ("a.npy", 2, 7, (2, 7)),
    ):
        assert run(tmp_path / name, "--axis", axis, "--slice", index, "--save", out, "--dpi", 30) == 0
        assert drawn.pop()[1]["plane"] == plane


def test_flat_measures_within_the_slice(tmp_path, drawn):
    np.save(tmp_path / "a.npy", volume())
    assert run(tmp_path / "a.npy", "--flat", "--spacing", 9, 2, 1, "--save", tmp_path / "o.png", "--dpi", 30) == 0
    (given, _), options = drawn.pop()
    assert np.array_equal(given, np.searchsorted([0, 1, 7], volume()[4]))
    assert options["spacing"] == (2.0, 1.0)
    assert options["plane"] is None


def test_pictures_and_arrays_with_any_labels_are_read(tmp_path, drawn):
    from PIL import Image

    labels = np.zeros((20, 30), np.uint8)
    labels[5:9, 6:20] = 255
    Image.fromarray(labels).save(tmp_path / "a.png")
    palette = Image.fromarray(labels // 255).convert("P")
    palette.save(tmp_path / "b.png")
    np.savez(tmp_path / "c.npz", labels=labels.astype(np.float32)[None])
    for name, value in (("a.png", 255), ("b.png", 1), ("c.npz", 255)):
        assert run(tmp_path / name, "--classes", value, "--families", "rectified", "--save", tmp_path / "o.pdf") == 0
        (given, num_classes), options = drawn.pop()
        assert np.array_equal(given, labels // 255)
        assert num_classes == 2
        assert options["classes"] == [1]
        assert options["class_names"][1] == f"label {value}"


def test_what_cannot_be_shown_is_said_and_nothing_is_written(tmp_path, capsys):
    from PIL import Image

    np.save(tmp_path / "a.npy", volume())
    np.save(tmp_path / "flat.npy", volume()[4])
    np.save(tmp_path / "image.npy", np.random.default_rng(0).normal(size=(9, 9)))
    np.save(tmp_path / "infinite.npy", np.full((3, 3), np.inf))
    (tmp_path / "text.npy").write_text("labels")
    Image.new("L", (4, 4)).save(tmp_path / "sizes.tif", save_all=True, append_images=[Image.new("L", (5, 4))])
    np.save(tmp_path / "many.npy", np.arange(2000).reshape(40, 50))
    np.save(tmp_path / "row.npy", np.arange(5))
    (tmp_path / "broken.nii.gz").write_bytes(b"no gzip")
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    out = tmp_path / "out.svg"
    for arguments, told in (
        (["none.nii"], "none.nii: no such file"),
        (["a.docx"], "expected a name that ends in .nii"),
        (["image.npy"], "expected labels, whole numbers, got float64"),
        (["many.npy"], "got 2000 different values"),
        (["infinite.npy"], "expected labels, whole numbers, got float64"),
        (["text.npy"], "expected an array of numbers as NumPy saves it"),
        (["sizes.tif"], "expected pages of one size, got 2 sizes"),
        (["a.npy", "--dpi", "0"], "dpi: expected a number > 0, got 0.0"),
        (["row.npy"], "expected an image or a volume"),
        (["rgb.png"], "expected one channel, got RGB with 3"),
        (["broken.nii.gz"], "broken.nii.gz: "),
        (["a.npy", "--slice", "6"], "--slice: expected a number in [0, 6), got 6"),
        (["a.npy", "--classes", "3"], "--classes: expected labels of the file (0, 1, 7), got 3"),
        (["a.npy", "--spacing", "1", "2"], "--spacing: expected 1 or 3 numbers, got 2"),
        (["flat.npy", "--slice", "0"], "--slice: expected none"),
    ):
        assert run(tmp_path / arguments[0], *arguments[1:], "--save", out) == 2
        assert told in capsys.readouterr().err
    assert run(tmp_path / "a.npy", "--save", tmp_path / "out.gif") == 2
    assert "--save: expected a name that ends in .svg" in capsys.readouterr().err
    assert run(tmp_path / "a.npy", "--save", tmp_path / "none" / "out.svg") == 2
    assert f"--save: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    assert not out.exists()


def test_without_a_display_it_asks_for_a_file(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", volume())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert run(tmp_path / "a.npy") == 2
    assert "there is no display: pass --save FILE" in capsys.readouterr().err


def test_with_a_display_but_no_window_toolkit_it_says_so(tmp_path, monkeypatch, capsys):
    import matplotlib

    np.save(tmp_path / "a.npy", volume())
    monkeypatch.setenv("DISPLAY", ":0")
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    try:
        assert run(tmp_path / "a.npy") == 2
    finally:
        matplotlib.use(before)
    assert "opens no window: pass --save FILE" in capsys.readouterr().err


def test_with_a_window_the_figure_is_put_into_it_and_shown(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    np.save(tmp_path / "a.npy", volume())
    shown = []
    monkeypatch.setattr(show, "_why_no_window", lambda: None)
    monkeypatch.setattr(plt, "show", lambda: shown.append([plt.figure(n).canvas.figure for n in plt.get_fignums()]))
    try:
        assert run(tmp_path / "a.npy") == 0
    finally:
        plt.close("all")
    assert len(shown) == 1
    assert len(shown[0]) == 1
    assert [axes.get_title() for axes in shown[0][0].axes[:2]] == ["(a) Labels", "(b) RW-AC"]


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("a.nii", "nibabel", "plot"), ("a.nrrd", "SimpleITK", "precompute"), ("a.tif", "tifffile", "precompute")],
)
def test_a_missing_reader_is_named_with_its_extra(tmp_path, monkeypatch, capsys, name, package, extra):
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    assert run(tmp_path / name, "--save", tmp_path / "o.svg") == 2
    assert (
        f'{name} needs {package}, which is not installed: pip install "rwkernels[{extra}]"' in capsys.readouterr().err
    )


def test_damaged_files_are_said_to_be_and_end_no_command(tmp_path, capsys):
    np.savez_compressed(tmp_path / "a.npz", volume())
    NIBABEL.save(NIBABEL.Nifti1Image(volume(), np.eye(4)), tmp_path / "a.nii.gz")
    for name, told in (("a.npz", "BadZipFile: "), ("a.nii.gz", "EOFError: ")):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) - 30])
        assert run(tmp_path / name, "--save", tmp_path / "o.svg") == 2
        assert f"{name}: {told}" in capsys.readouterr().err
