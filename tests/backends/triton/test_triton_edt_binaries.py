"""The kernels of distances and maps, compiled ahead of time: registers, spills, the DPX instruction, and how many."""

import re
from collections import Counter

import ptx
import pytest
import torch
from choices import pairwise

import rwkernels as rw
from rwkernels.backends import triton

pytestmark = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))

TARGETS = [("cuda", 80), ("cuda", 90), ("cuda", 100), ("cuda", 120), ("hip", "gfx942")]
# Registers of a thread: as many as leave room for 16 warps (128) or 20 (102) on a multiprocessor of CUDA.
CEILING = {"row_pass": 128, "block_minima": 64, "column_pass": 128, "rectify": 64, "write_dense": 64}
# Instructions of a block that is entered, for each result and row: in 16 bits, and in 32.
PER_CANDIDATE = {"uint16": 1.8, "int32": 3.6, "float32": 3.6}
MAKERS = {
    "rectified": lambda labels, spacing: rw.rectified_map(labels, 4, spacing=spacing, backend="triton"),
    "boundary": lambda labels, spacing: rw.boundary_map(labels, 4, spacing=spacing, backend="triton"),
}


def _launches(target, labels, make, spacing=None):
    from ptx.driver import emulated_device

    with pytest.MonkeyPatch.context() as patch, emulated_device(*target, run=False) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        make(labels, spacing)
        return device.launches


def _instructions(sass):
    """(address, operation, target of a branch or None) of every instruction."""
    found = []
    for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.MULTILINE):
        text = re.sub(r"^@!?U?P\w+\s+", "", text)
        target = re.search(r"^BRA\S* (?:U?P\w+, )?`?\(?0x([0-9a-f]+)", text)
        found.append((int(address, 16), text.split()[0], int(target[1], 16) if target else None))
    return found


def count(sass):
    """Instructions, without what fills up the end."""
    return sum(name != "NOP" for _, name, _ in _instructions(sass))


def pieces(sass):
    """Instructions of the parts of a column pass: for each of its searches, and after them.

    A search has three loops: the sweep over groups that bounds, and that over groups which has one over blocks inside.
    Two stretches of the innermost can be jumped over: where a block above or below is entered.
    """
    found = [(address, target) for address, name, target in _instructions(sass) if name != "NOP"]

    def size(start, end):
        return sum(start <= address < end for address, _ in found)

    loops = {}
    for address, target in found:
        if target is not None and target < address:
            loops[target] = max(address + 16, loops.get(target, 0))
    jumps = [(address + 16, target) for address, target in found if target is not None and target > address]
    loops, searches, start = sorted(loops.items()), [], 0
    for bound, group, look in zip(loops[0::3], loops[1::3], loops[2::3], strict=False):
        entered = [size(*jump) for jump in jumps if look[0] <= jump[0] and jump[1] <= look[1] and size(*jump) > 100]
        above, below = entered
        sizes = [size(*loop) for loop in (bound, group, look)]
        parts = {"start": size(start, group[0]) - sizes[0], "bound": sizes[0], "group": sizes[1] - sizes[2]}
        searches.append({**parts, "look": sizes[2] - above - below, "above": above, "below": below})
        start = group[1]
    return searches, size(start, 1 << 40)


@pairwise(target=TARGETS, shape=[(2, 16, 256), (1, 16, 16, 64)], spacing=[None, 1.5])
def test_no_kernel_of_the_rectified_map_spills(target, spacing, shape):
    steps = None if spacing is None else (spacing, *[1.0] * (len(shape) - 2))
    for launch in _launches(target, torch.zeros(shape, dtype=torch.uint8), MAKERS["rectified"], steps):
        used = launch.resources
        assert used.spills == 0, launch.name
        if target[0] == "cuda":
            assert used.registers <= CEILING[launch.name], (launch.name, used)
        print(target[1], launch.name, launch.arguments.get("GIVES", ""), used.registers, launch.shared)


@pytest.mark.parametrize(
    "target",
    [pytest.param(target, marks=() if target[1] == 90 else pytest.mark.thorough) for target in TARGETS],
    ids=lambda target: str(target[1]),
)
def test_no_kernel_of_several_levels_spills(target):
    """What picks a level takes few registers: more than one level alone in places, never too many."""
    rocm = pytest.MonkeyPatch.context()
    with rocm as patch:
        if target[0] == "hip":
            patch.setattr(torch.version, "hip", "7.0")
        logits = [torch.zeros(2, 4, 16 >> n, 256 >> n, requires_grad=True) for n in range(3)]
        loss = rw.RegionWiseLoss(ignore_index=255, validate=False, backend="triton")
        supervised = rw.DeepSupervisionLoss(loss, [0.5, 0.25, 0.125])
        labels = torch.zeros(2, 16, 256, dtype=torch.uint8)
        launches = _launches(target, labels, lambda labels, _: supervised(logits, labels).backward())
    ceiling = {"row_pass": 128, "column_pass": 152, "rectify": 72, "region_wise": 64, "scale_gradient": 64}
    ceiling["finish_loss"] = 96
    assert {launch.name for launch in launches} == {f"{name}_levels" for name in ceiling}
    for launch in launches:
        used = launch.resources
        assert used.spills == 0, launch.name
        if target[0] == "cuda":
            assert used.registers <= ceiling[launch.name.removesuffix("_levels")], (launch.name, used)


@pytest.mark.parametrize("target", TARGETS[1:2] + TARGETS[4:], ids=lambda target: str(target[1]))
def test_no_kernel_of_a_boundary_map_of_long_lines_spills(target):
    labels = torch.zeros((1, 1024, 40), dtype=torch.int64)
    for launch in _launches(target, labels, MAKERS["boundary"]):
        assert launch.resources.spills == 0, launch.name


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0)], ids=["isotropic", "anisotropic"])
def test_a_candidate_costs_few_instructions(spacing):
    launches = _launches(("cuda", 90), torch.zeros(2, 16, 256, dtype=torch.uint8), MAKERS["rectified"], spacing)
    (column,) = [launch for launch in launches if launch.name == "column_pass"]
    candidates = column.arguments["ROWS"] ** 2 * column.arguments["LANES"] // 32
    kinds = ["uint16", "int32"] if spacing is None else ["float32"]
    searches, _ = pieces(column.sass)
    for kind, search in zip(kinds, searches, strict=True):
        print(kind, search, [f"{search[side] / candidates:.2f} a candidate" for side in ("above", "below")])
        assert max(search["above"], search["below"]) <= PER_CANDIDATE[kind] * candidates


def test_one_instruction_adds_to_two_results_and_takes_their_minima():
    launches = _launches(("cuda", 90), torch.zeros(2, 16, 256, dtype=torch.uint8), MAKERS["rectified"])
    (column,) = [launch for launch in launches if launch.name == "column_pass"]
    names = Counter(name for _, name, _ in _instructions(column.sass))
    print({name: count for name, count in names.items() if name.startswith("VIADDMNMX")})
    packed = column.arguments["ROWS"] ** 2 * column.arguments["LANES"] // 64
    assert names["VIADDMNMX.U16x2"] >= packed  # of the three places where candidates are looked at, a third
    assert names["VIADDMNMX"] > 0


@pytest.mark.parametrize("width", [128, 256, 512, 1024, 2048, 4096])
def test_wide_rows_spill_next_to_nothing(width):
    launch = _launches(("cuda", 90), torch.zeros(1, 16, width, dtype=torch.uint8), MAKERS["rectified"])[0]
    assert launch.name == "row_pass"
    print(width, launch.resources.registers, launch.resources.spills)
    assert launch.resources.spills <= (8 if width in (512, 2048) else 0)  # a word or two of predicates


def test_few_binaries_serve_all_sizes():
    """One for each width of a row, rounded up to a power of two, and one for the others; each also for odd sizes."""
    from ptx.driver import emulated_device

    sizes = [(1, 16, 16), (2, 16, 16), (1, 16, 1), (1, 1, 16), (3, 17, 16), (16, 48, 32), (2, 130, 31), (1, 512, 64)]
    with pytest.MonkeyPatch.context() as patch, emulated_device("cuda", 90, run=False) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        for size in sizes:
            rw.rectified_map(torch.zeros(size, dtype=torch.uint8), 4, backend="triton")
        found = {(launch.name, id(launch.compiled)) for launch in device.launches}
    assert Counter(name for name, _ in found) == {"row_pass": 5, "column_pass": 2, "rectify": 2}
    integers = {kind for launch in device.launches for kind in launch.signature.values() if kind[0] == "i"}
    assert integers == {"i32"}
    assert not any(name in launch.constants for launch in device.launches for name in ("n", "units", "blocks", "batch"))


# --- what a step launches ----------------------------------------------------------------------------------------


def _names(labels, classes, step):
    from ptx.driver import emulated_device

    with pytest.MonkeyPatch.context() as patch, emulated_device("cuda", 90, run=False) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        step(labels, classes)
    return [launch.name for launch in device.launches]


def _training_step(labels, classes):
    logits = torch.zeros(labels.shape[0], classes, *labels.shape[1:], requires_grad=True)
    rw.RegionWiseLoss("rectified", validate=False, backend="triton")(logits, labels).backward()


LOSS = ["region_wise", "finish_loss", "scale_gradient"]
PASSES = {2: ["row_pass", "column_pass"], 3: ["row_pass", "column_pass", "block_minima", "column_pass"]}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (16, 2), (1, 13), (5, 13)])
def test_a_training_step_launches_as_many_kernels_whatever_the_batch_and_the_classes(batch, classes, axes):
    names = _names(torch.zeros(batch, *[16] * axes, dtype=torch.uint8), classes, _training_step)
    assert names == [*PASSES[axes], "rectify", *LOSS]
    assert len(names) == {2: 6, 3: 8}[axes]


class _DeviceWork(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes every operator of PyTorch that would be work on a device, and refuses to read a value on the host."""

    FREE = ("empty", "view", "reshape", "detach", "unsqueeze", "squeeze", "alias", "expand", "select", "slice")

    def __init__(self):
        super().__init__()
        self.work, self.allocated = [], []

    def inside(self, patch):
        """Sees what the backend does inside the operators too, where a mode is not active by itself."""

        def seen(function):
            def call(*arguments, **keywords):
                before = len(self.allocated)
                with self:
                    result = function(*arguments, **keywords)
                self.scratch = sum(self.allocated[before:])
                return result

            return call

        for name in ("fill_distance", "fill_class_distance", "fill_rectified", "fill_boundary", "fill_dense"):
            patch.setattr(triton, name, seen(getattr(triton, name)))
        for name in ("loss", "scale_gradient"):
            patch.setattr(triton, name, seen(getattr(triton, name)))
        return self

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().partition("::")[2].partition(".")[0]
        assert name not in ("_local_scalar_dense", "equal", "nonzero", "item", "is_nonzero"), f"{name} waits"
        result = function(*arguments, **(keywords or {}))
        if "empty" in name or "new_empty" in name:
            self.allocated.append(result.numel() * result.element_size())
        elif "rwkernels" not in function.name() and not any(part in name for part in self.FREE):
            self.work.append(name)
        return result


@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("axes", [2, 3])
def test_a_training_step_waits_for_nothing_and_does_no_other_work(axes, ignore_index):
    from ptx.driver import emulated_device

    labels = torch.zeros(2, *[16] * axes, dtype=torch.uint8)
    logits = torch.zeros(2, 4, *[16] * axes, requires_grad=True)
    loss = rw.RegionWiseLoss("rectified", ignore_index=ignore_index, validate=False, backend="triton")
    with pytest.MonkeyPatch.context() as patch, emulated_device("cuda", 90, run=False) as device:
        patch.setattr(triton, "can_run", lambda device: None)
        with _DeviceWork().inside(patch) as seen:
            torch.autograd.grad(loss(logits, labels), logits)
    assert len(device.launches) == {2: 6, 3: 8}[axes]
    # The one incoming 1 of `backward`, which PyTorch makes.
    assert seen.work == ["ones_like"]


@pytest.mark.parametrize("make", ["distance", "class_distance", "boundary", "dense"])
def test_other_maps_wait_for_nothing(make):
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    calls = {
        "distance": lambda: rw.distance_transform(labels, backend="triton"),
        "class_distance": lambda: rw.class_distance_transform(labels, 3, validate=False, backend="triton"),
        "boundary": lambda: rw.boundary_map(labels, 3, validate=False, backend="triton"),
        "dense": lambda: rw.rectified_map(labels, 3, validate=False, backend="triton").dense(backend="triton"),
    }

    def step(labels, classes):
        with pytest.MonkeyPatch.context() as patch, _DeviceWork().inside(patch) as seen:
            calls[make]()
        assert seen.work == []

    counts = {"distance": 2, "class_distance": 2, "boundary": 4, "dense": 4}
    assert len(_names(labels, 3, step)) == counts[make]


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scratch_memory_is_a_field_and_the_least_values_of_its_blocks(axes):
    """At most 8 bytes a pixel beyond the map, and a little for each class."""
    labels = torch.zeros(2, *[64] * axes, dtype=torch.uint8)

    def step(labels, classes):
        with pytest.MonkeyPatch.context() as patch, _DeviceWork().inside(patch) as seen:
            rw.rectified_map(labels, classes, spatial_dims=axes, validate=False, backend="triton")
        print(axes, "axes:", seen.scratch / labels.numel(), "bytes a pixel")
        assert 4 * labels.numel() < seen.scratch <= 8 * labels.numel() + 8 * classes * len(labels)

    _names(labels, 4, step)
