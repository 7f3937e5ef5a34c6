"""What every family says of itself is true: losses, loaders, stores and the service go by it."""

import inspect

import pytest
import torch
from loss_cases import random_labels

from rwkernels import RectifiedMap, plots
from rwkernels.maps.families import FAMILIES
from rwkernels.maps.quantised import decode, encode

EVERY = pytest.mark.parametrize("name", list(FAMILIES))


@EVERY
def test_a_family_takes_what_it_says(name):
    family = FAMILIES[name]
    takes = inspect.signature(family.build).parameters
    assert family.measured == ("spacing" in takes) == ("black_border" in takes)
    assert family.divided == ("class_max" in takes)
    common = {"labels", "num_classes", "spacing", "black_border", "class_max"}
    common |= {"ignore_index", "spatial_dims", "validate", "out", "backend"}
    assert set(family.options) == set(takes) - common


@EVERY
def test_a_family_gives_what_it_says(name):
    family, labels = FAMILIES[name], random_labels((2, 9, 7), 3)
    made = family.build(labels, 3)
    if family.dense:
        assert made.shape == (2, 3, 9, 7)
        assert not family.fits_codes({})
        return
    assert isinstance(made, RectifiedMap)
    assert isinstance(made.background, float)
    assert family.fits_codes({})
    values = decode(encode(made.foreground))  # which refuses a value outside [-1, 0]
    torch.testing.assert_close(values, made.foreground, rtol=0, atol=1e-5)


def test_a_constant_beyond_the_codes_has_none():
    constant = FAMILIES["constant"]
    assert constant.fits_codes({"beta": 0.5})
    assert not constant.fits_codes({"beta": 1.5})
    assert not constant.fits_codes({"beta": -0.5})


def test_every_family_is_drawn_under_its_title():
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    figure = plots.maps(random_labels((9, 7), 3), 3, families=list(FAMILIES))
    shown = {text.get_text() for axes in figure.axes for text in [axes.title, *axes.texts]}
    for family in FAMILIES.values():
        assert any(family.title in text for text in shown), family.title
