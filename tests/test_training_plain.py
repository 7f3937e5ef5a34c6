"""docs/training.md, plain PyTorch: every example runs as it stands, and the numbers of the picture are true."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rwkernels as rw

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "training.md"
if not DOCUMENT.exists():
    pytest.skip("docs/ is not beside the tests", allow_module_level=True)
(PLAIN,) = re.findall(r"^## Plain PyTorch\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
SECTIONS = {text.split("\n")[0]: text for text in re.split(r"^### ", PLAIN, flags=re.MULTILINE)[1:]}
EXAMPLES = [
    pytest.param(example, id=f"{title}-{number}")
    for title, text in SECTIONS.items()
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]


def is_script(example):
    return "__main__" in example


def test_every_section_has_an_example():
    assert len(SECTIONS) >= 6
    assert [title for title, text in SECTIONS.items() if "```python" not in text] == ["What waiting for maps costs"]


@pytest.mark.parametrize("example", [e for e in EXAMPLES if not is_script(e.values[0])])
def test_an_example_gives_gradients(example):
    names: dict = {}
    exec(compile(example, "docs/training.md", "exec"), names)
    if "model" in names:
        tensors = list(names["model"].parameters())
    else:
        tensors = [x for x in [names["logits"]] if isinstance(x, torch.Tensor)] or names["logits"][:3]
    assert tensors
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in tensors)
    if "loss" in names:
        assert torch.isfinite(names["loss"])


@pytest.mark.parametrize("example", [e for e in EXAMPLES if is_script(e.values[0])])
def test_an_example_that_is_a_script_trains(example, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(example)
    command = [sys.executable, str(script)]
    if "init_process_group" in example:
        if not torch.distributed.is_available():
            pytest.skip("torch comes without torch.distributed")
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^loss .*-?\d\.\d{3}$", done.stdout, re.MULTILINE)


def test_the_picture_shows_what_the_document_says(tmp_path):
    pytest.importorskip("matplotlib", reason="draws the picture")
    largest = runpy.run_path(str(ROOT / "examples" / "patch_maps.py"))["main"](str(tmp_path / "picture.png"))
    found = re.search(r"up to (\d\.\d\d) away from that of the volume,\n.*`class_max` up to (\d\.\d\d),", PLAIN)
    assert found is not None
    assert [f"{largest['own']:.2f}", f"{largest['scaled']:.2f}"] == list(found.groups())
    assert 5_000 < (tmp_path / "picture.png").stat().st_size < 100_000
    assert (ROOT / "docs" / "patch_maps.png").stat().st_size < 100_000


# --- what wraps a step --------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1))


def trained(step, steps=3, seed=0):
    """Parameters of a network after some calls of `step(model, images, labels)`, which leaves gradients."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images = torch.randn(4, 1, 17, 22, generator=g)
        labels = torch.randint(-1, 3, (4, 17, 22), generator=g)
        optimizer.zero_grad()
        step(model, images, labels)
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def plain_step(model, images, labels):
    rw.RegionWiseLoss(ignore_index=-1)(model(images), labels).backward()


def test_a_whole_compiled_step_trains_as_an_eager_one():
    loss_fn = rw.RegionWiseLoss(ignore_index=-1)
    forward = torch.compile(lambda model, x, y: loss_fn(model(x), y), fullgraph=True)
    found = trained(lambda model, x, y: forward(model, x, y).backward())
    torch.testing.assert_close(found, trained(plain_step), rtol=1e-5, atol=1e-6)


def test_a_compiled_function_that_calls_backward_trains_as_an_eager_one():
    loss_fn = rw.RegionWiseLoss(ignore_index=-1)
    step = torch.compile(lambda model, x, y: loss_fn(model(x), y).backward(), backend="aot_eager")
    torch.testing.assert_close(trained(step), trained(plain_step), rtol=1e-5, atol=1e-6)


def test_gradients_accumulated_over_micro_batches_are_those_of_the_batch():
    loss_fn = rw.RegionWiseLoss(ignore_index=-1, reduction="sum")

    def step(model, images, labels):
        for image, label in zip(images, labels, strict=True):
            loss_fn(model(image[None]), label[None]).backward()
        for parameter in model.parameters():
            parameter.grad /= (labels != -1).sum() * 3

    torch.testing.assert_close(trained(step), trained(plain_step), rtol=1e-5, atol=1e-6)


def test_means_of_equal_micro_batches_accumulate_without_ignored_pixels():
    def step(model, images, labels):
        for image, label in zip(images, labels.clamp(min=0), strict=True):
            (rw.RegionWiseLoss()(model(image[None]), label[None]) / 4).backward()

    found = trained(step)
    expected = trained(lambda model, x, y: rw.RegionWiseLoss()(model(x), y.clamp(min=0)).backward())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_step_under_autocast_keeps_the_loss_in_float32_and_trains_nearly_as_without():
    def step(model, images, labels):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images)
            loss = rw.RegionWiseLoss(ignore_index=-1)(logits, labels)
        assert logits.dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())

    found, expected = trained(step), trained(plain_step)
    untrained = [parameter.detach() for parameter in network().parameters()]
    for a, b, start in zip(found, expected, untrained, strict=True):
        assert (a - b).norm() < 0.05 * (b - start).norm()
