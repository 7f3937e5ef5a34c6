"""Maps times the weight of a class or of a pixel, on every backend."""

from __future__ import annotations

import pytest
import torch
from samples import scene

import rwkernels as rw
from rwkernels.backends import reference

# --- scaling ---------------------------------------------------------------------------------------------------

WEIGHT = [0.5, 3.0, 1.0, 2.0]


def _compact_maps():
    labels = scene("blobs", (5, 34), num_classes=4)
    return labels, {
        "number-background": rw.rectified_map(labels, 4),
        "pixel-background": rw.rectify(rw.boundary_map(labels, 4), labels, background="mean"),
    }


@pytest.mark.parametrize("kind", ["number-background", "pixel-background"])
def test_scaling_classes_by_channel_multiplies_every_channel(backend, kind):
    _, maps = _compact_maps()
    weight = torch.tensor(WEIGHT)
    expected = maps[kind].dense() * weight.view(1, 4, 1, 1)
    torch.testing.assert_close(rw.scale_classes(maps[kind], weight).dense(backend=backend), expected)
    torch.testing.assert_close(rw.scale_classes(maps[kind].dense(), WEIGHT), expected)


@pytest.mark.parametrize("kind", ["number-background", "pixel-background"])
def test_scaling_classes_by_label_multiplies_every_pixel_by_the_weight_of_its_class(backend, kind):
    labels, maps = _compact_maps()
    expected = maps[kind].dense() * torch.tensor(WEIGHT)[labels].unsqueeze(1)
    scaled = rw.scale_classes(maps[kind], WEIGHT, by="label")
    assert scaled.class_scale is None
    torch.testing.assert_close(scaled.dense(backend=backend), expected)
    torch.testing.assert_close(rw.scale_classes(maps[kind].dense(), WEIGHT, by="label", labels=labels), expected)


def test_scaling_classes_twice_multiplies_the_weights():
    _, maps = _compact_maps()
    twice = rw.scale_classes(rw.scale_classes(maps["number-background"], WEIGHT), [2.0, 1.0, 4.0, 0.0])
    assert twice.class_scale.tolist() == [1.0, 3.0, 4.0, 0.0]


def test_scaling_by_label_stays_rectified_and_scaling_by_channel_does_not():
    _, maps = _compact_maps()
    logits = torch.randn(2, 4, 5, 34, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def most_negative_entries(scaled):
        return (reference.pixel_gradient(logits, scaled.dense(torch.float64)) < -1e-12).sum(1).max().item()

    assert most_negative_entries(rw.scale_classes(maps["number-background"], WEIGHT, by="label")) == 1
    assert most_negative_entries(rw.scale_classes(maps["number-background"], WEIGHT, by="channel")) > 1


def test_scaling_by_label_leaves_ignored_pixels_zero_and_counts_the_same():
    labels = torch.tensor([[[0, 1, -1, 1]]])
    maps = rw.active_contour_map(labels, 2, ignore_index=-1)
    for by in ("label", "channel"):
        scaled = rw.scale_classes(maps, [2.0, 5.0], by=by)
        assert scaled.dense()[0, :, 0, 2].tolist() == [0, 0]
        assert scaled.count.item() == 3


def test_scaling_by_label_takes_as_many_classes_as_uint8_labels_and_more():
    labels = torch.tensor([[[0, 255]]], dtype=torch.uint8)
    scaled = rw.scale_classes(rw.active_contour_map(labels, 256), torch.arange(256.0) + 2, by="label")
    assert scaled.background.flatten().tolist() == [2, 257]


@pytest.mark.parametrize("kind", ["number-background", "pixel-background"])
def test_scaling_pixels_multiplies_the_whole_map_of_every_pixel(backend, kind):
    labels, maps = _compact_maps()
    weight = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4))
    weight[0, 2] = 0
    expected = maps[kind].dense() * weight.unsqueeze(1)
    for given in (weight, weight.unsqueeze(1), weight.double()):
        torch.testing.assert_close(rw.scale_pixels(maps[kind], given).dense(backend=backend), expected)
        torch.testing.assert_close(rw.scale_pixels(maps[kind].dense(), given), expected)


def test_scaling_pixels_by_one_number_multiplies_everything():
    _, maps = _compact_maps()
    dense = maps["number-background"].dense()
    scaled = rw.scale_pixels(maps["number-background"], 2.5)
    assert scaled.background == 2.5
    torch.testing.assert_close(scaled.dense(), 2.5 * dense)
    torch.testing.assert_close(rw.scale_pixels(dense, 2.5), 2.5 * dense)
