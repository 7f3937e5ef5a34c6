"""`python -m benchmarks.traffic`: bytes of GPU memory that a forward and backward of the loss move, per pixel.

It runs without a GPU: nothing is timed, bytes are counted. Eager PyTorch is counted operator by operator
(`eager_traffic`), our loss launch by launch (`launch_traffic`); under `torch.compile`, the kernels in the code that
Inductor generates for a CUDA device are (`inductor`, `kernel_traffic`). All are lower bounds, in favour of what is
counted: within one kernel the caches are perfect. Maps are float32 whatever the logits are, labels uint8.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import rwkernels as rw
from benchmarks import eager_traffic, inductor, kernel_traffic, launch_traffic
from benchmarks.moved import Moved, Traffic
from rwkernels.bench.losses import plain_loss
from rwkernels.pages import Table, markdown

# Takes the number of classes, the type of the logits and the side of the BATCH square images, and gives bytes.
Contender = Callable[[int, torch.dtype, int], Moved]

BATCH, SIDE = 2, 512
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

EAGER = "eager"
COMPILED = "torch.compile"
SCALED = "rwkernels compact, scaled loss"
NOTE = f"""\
The loss is `(softmax(logits) * maps).mean()`; eager and torch.compile take it as written. In the eager backward of
rwkernels the incoming gradient is 1, as after `loss.backward()`: known on the device only, so this is counted by hand,
as a read of that one number. With another (a GradScaler), and with float16 logits, the kept gradient is read and
written once more: "{SCALED}"."""


def dense_inputs(num_classes: int, dtype: torch.dtype, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Logits that require grad, and a float32 map."""
    shape = (BATCH, num_classes, side, side)
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True), torch.empty(shape, device="meta")


def eager(num_classes: int, dtype: torch.dtype, side: int) -> Moved:
    return eager_traffic.moved(plain_loss, dense_inputs(num_classes, dtype, side))


def compiled(num_classes: int, dtype: torch.dtype, side: int) -> Moved:
    return compiled_moved(plain_loss, dense_inputs(num_classes, dtype, side))


def compiled_moved(fn: Callable[..., Any], inputs: tuple[Any, ...]) -> Moved:
    """What the kernels of `torch.compile(fn)(*inputs)` and of its backward move."""
    phases = {"forward": Traffic(), "backward": Traffic()}
    for graph in inductor.generated(fn, inputs):
        for _, traffic in kernel_traffic.traffic(graph.code):
            phases[graph.phase] += traffic
    return Moved(**phases)


def our_loss(logits: Tensor, maps: Tensor | rw.RectifiedMap, **options: Any) -> Tensor:
    """The loss of the package; under `torch.compile` tensors of a CUDA device lead to the same kernels."""
    return rw.region_wise_loss(logits, maps, **options)


def our_inputs(
    kind: str, num_classes: int, dtype: torch.dtype, side: int = SIDE
) -> tuple[Tensor, Tensor | rw.RectifiedMap]:
    """Logits that require grad, and a float32 map: "dense", or "compact" with uint8 labels. No memory is touched."""
    shape = (BATCH, num_classes, side, side)
    logits = torch.empty(shape, dtype=dtype, requires_grad=True)
    if kind == "dense":
        return logits, torch.empty(shape)
    pixels = (BATCH, side, side)
    return logits, rw.RectifiedMap(torch.empty(pixels, dtype=torch.uint8), torch.empty(pixels), 1.0, num_classes)


def ours(kind: str, scaled: bool = False, **options: Any) -> Contender:
    """Our loss and its backward without `torch.compile`."""

    def count(num_classes: int, dtype: torch.dtype, side: int) -> Moved:
        inputs = our_inputs(kind, num_classes, dtype, side)
        return launch_traffic.moved(lambda: our_loss(*inputs, backend="triton", validate=False, **options), scaled)

    return count


def ours_compiled(kind: str) -> Contender:
    """Our loss and its backward under `torch.compile`."""
    return lambda num_classes, dtype, side: compiled_moved(our_loss, our_inputs(kind, num_classes, dtype, side))


CONTENDERS: dict[str, Contender] = {
    EAGER: eager,
    COMPILED: compiled,
    "rwkernels dense": ours("dense"),
    "rwkernels compact": ours("compact"),
    SCALED: ours("compact", scaled=True),
    "rwkernels compact, recompute": ours("compact", recompute=True),
    "rwkernels dense, torch.compile": ours_compiled("dense"),
    "rwkernels compact, torch.compile": ours_compiled("compact"),
}


COLUMNS = (
    "contender", "logits", "classes", "forward read", "written", "backward read", "written", "total", "eager / this",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table, in bytes per pixel."""

    contender: str
    logits: str
    num_classes: int
    moved: Moved
    eager_over_this: float

    def record(self) -> dict[str, Any]:
        """What is printed with --json."""
        return {**asdict(self), "total": self.moved.total}


def rows(num_classes: list[int], side: int = SIDE) -> list[Row]:
    """All contenders that can be counted here, for all types and numbers of classes."""
    counted = [name for name in CONTENDERS if name == EAGER or not inductor.why_not()]
    found = []
    for (dtype_name, dtype), classes in itertools.product(DTYPES.items(), num_classes):
        moved = {name: CONTENDERS[name](classes, dtype, side) / (BATCH * side**2) for name in counted}
        base = moved[EAGER].total
        found += [Row(name, dtype_name, classes, bytes_, base / bytes_.total) for name, bytes_ in moved.items()]
    return found


def table(lines: list[Row]) -> str:
    """The rows in Markdown."""
    rows = []
    for row in lines:
        forward, backward = row.moved.forward, row.moved.backward
        numbers = [forward.read, forward.written, backward.read, backward.written, row.moved.total]
        cells = [row.contender, row.logits, str(row.num_classes), *(f"{number:.1f}" for number in numbers)]
        rows.append([*cells, f"{row.eager_over_this:.2f}"])
    return markdown([Table(COLUMNS, rows, right=range(2, len(COLUMNS)))])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 16], metavar="K")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of {BATCH} square images (default {SIDE})")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    lines = rows(options.classes, options.side)
    missing = inductor.why_not()
    if options.json:
        kept = {"torch": torch.__version__, "not_compiled_because": missing, "rows": [row.record() for row in lines]}
        print(json.dumps(kept, indent=1))
        return 0
    print(f"Bytes per pixel, {BATCH} images of {options.side} x {options.side}, torch {torch.__version__}\n")
    print(table(lines), end="\n\n")
    print(NOTE if missing is None else f"no rows but {EAGER}: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
