"""`RectifiedMap`: a region-wise map with two values a pixel, kept as a label and one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

from rwkernels import arrays, checks
from rwkernels.backends.problem import CompactProblem, is_label


@dataclass(frozen=True, eq=False)
class RectifiedMap:
    """A rectified map in compact form: `z_ik = foreground_i` at the true class, `background_i` elsewhere.

    It holds what a dense map `[B, K, *S]` of this kind holds in a K-th of the memory, and the loss and its gradient
    come straight from it. `rectified_map`, `active_contour_map`, `constant_map` and `rectify` make one; the
    constructor itself checks no values. It is a pytree, so it goes through `torch.compile`, `torch.export`,
    `torch.vmap`, pickling and the collation of a `DataLoader`.

    Attributes:
        labels: True class of every pixel, integers `[B, *S]`.
        foreground: Value at the true class, floating `[B, *S]`.
        background: Value at every other class, a number or floating `[B, *S]`.
        num_classes: Number of classes K.
        class_scale: Factor of every channel, floating `[K]`, or None. `z_ik` above is multiplied by it.
        ignore_index: Label of the pixels that do not count, or None.
        image_count: Pixels of every image that count, int64 `[B]`; None where all do, or where it was not kept.

    Examples:
        >>> import torch, rwkernels as rw
        >>> m = rw.rectified_map(torch.tensor([[[0, 0, 1], [0, 0, 1]]]), num_classes=2)
        >>> m.foreground
        tensor([[[-1.0000, -0.5000, -1.0000],
                 [-1.0000, -0.5000, -1.0000]]])
        >>> m[:, :, 1:].dense().shape
        torch.Size([1, 2, 2, 2])
    """

    labels: Tensor
    foreground: Tensor
    background: Tensor | float = 1.0
    num_classes: int = 0
    class_scale: Tensor | None = None
    ignore_index: int | None = None
    image_count: Tensor | None = None

    @property
    def count(self) -> Any:
        """Number of pixels that count, N of Eq. 1: an int64 scalar on the device of the map."""
        labels, back = arrays.to_tensor(self.labels)
        if self.ignore_index is None:
            return back(torch.tensor(labels.numel(), dtype=torch.int64, device=labels.device))
        if self.image_count is not None:
            return back(arrays.to_tensor(self.image_count)[0].sum())
        return back((~is_label(labels, self.ignore_index)).sum())

    @property
    def shape(self) -> torch.Size:
        """Shape of labels and foreground, `[B, *S]`."""
        shape = self.labels.shape
        return shape if isinstance(self.labels, Tensor) else torch.Size(shape)

    @property
    def device(self) -> torch.device:
        """Where the map lives."""
        return self.labels.device

    def dense(self, dtype: torch.dtype | None = None, out: Any = None, backend: str | None = None) -> Any:
        """The map written out, `[B, K, *S]`.

        Args:
            dtype: float32 (the default), float64, bfloat16 or float16.
            out: A contiguous buffer to write into; its dtype is then the result's.
            backend: Name of the backend to use instead of the default one.

        Returns:
            The dense map: `foreground` at the true class, `background` elsewhere, both times `class_scale`; 0 in
            every channel of a pixel that is ignored.

        Raises:
            ValueError: `out` has another shape or device, or is not contiguous; or the parts of the map do not fit
                together.
        """
        tensors, back = self._tensors()
        labels, background = tensors._checked_parts()
        out = arrays.to_buffer(out)
        if dtype is None:
            dtype = out.dtype if isinstance(out, Tensor) else torch.float32
        if dtype not in checks.FLOAT_DTYPES:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
        problem = CompactProblem(
            labels=labels,
            foreground=tensors.foreground,
            background=background if isinstance(background, Tensor) else None,
            background_value=0.0 if isinstance(background, Tensor) else background,
            class_scale=tensors.class_scale,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            backend=checks.backend(backend),
        )
        if out is None:
            return back(torch.ops.rwkernels.dense(*problem, dtype))
        torch.ops.rwkernels.dense_out(*problem, checks.output(out, problem.shape, dtype, tensors.device))
        return back(out)

    def _checked_parts(self) -> tuple[Tensor, Tensor | float]:
        """Labels and background of a map over tensors whose shapes and devices fit together.

        The constructor checks nothing, and a kernel must not read past the end of a part.
        """
        labels = checks.label_dtype("labels", checks.tensor("labels", self.labels))
        background = self.background
        if isinstance(background, Tensor) and background.dim() == 0:
            background = background.expand(self.shape)
        parts = (("foreground", self.foreground, self.shape), ("background", background, self.shape))
        for name, part, shape in (*parts, ("class_scale", self.class_scale, (self.num_classes,))):
            if isinstance(part, Tensor):
                checks.floating(name, part)
                checks.shape(name, part, shape, "[K]" if name == "class_scale" else "that of the labels")
                checks.same_device(name, part, "labels", labels)
        return labels, background

    def to(self, *args: Any, **kwargs: Any) -> RectifiedMap:
        """The map on another device or in another floating dtype; arguments as of `torch.Tensor.to`.

        Labels keep their integer dtype. NumPy and CuPy arrays become tensors.
        """
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating dtype, got {dtype}")

        def move(tensor: Tensor) -> Tensor:
            wanted = dtype if tensor.is_floating_point() else None
            return tensor.to(device=device, dtype=wanted, non_blocking=non_blocking)

        return self._tensors()[0]._map(move)

    def pin_memory(self, device: Any = None) -> RectifiedMap:
        """The map in page-locked memory, from which copies to a GPU do not wait."""
        return self._tensors()[0]._map(lambda tensor: tensor.pin_memory())

    def __getitem__(self, index: Any) -> RectifiedMap:
        """The part of the map at `index`, which means what it means for `labels`: a crop, a choice of images."""
        labels = self.labels[index]
        background = self.background if isinstance(self.background, (int, float)) else self.background[index]
        foreground = self.foreground[index]
        return self._with(labels=labels, foreground=foreground, background=background, image_count=None)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[image] for image in range(len(self)))

    def _map(self, function: Callable[[Any], Any]) -> RectifiedMap:
        """The same map with `function` applied to every tensor."""
        values = {name: getattr(self, name) for name in _TENSORS}
        changed = {
            name: function(value)
            for name, value in values.items()
            if isinstance(value, Tensor) or arrays.is_array(value)
        }
        return self._with(**changed)

    def _with(self, **changes: Any) -> RectifiedMap:
        """The same map but for `changes`; unlike `dataclasses.replace`, every compiler of torch can trace it."""
        kept = {name: getattr(self, name) for name in (*_TENSORS, "num_classes", "ignore_index")}
        return RectifiedMap(**{**kept, **changes})

    def _tensors(self) -> tuple[RectifiedMap, arrays.Back]:
        """The map over tensors, and the way back to the kind of arrays that it holds."""
        if isinstance(self.labels, Tensor):
            return self, arrays.to_tensor(self.labels)[1]
        back = arrays.to_tensor(self.labels)[1]
        return self._map(lambda array: arrays.to_tensor(array)[0]), back


_TENSORS = ("labels", "foreground", "background", "class_scale", "image_count")


def _flatten(maps: RectifiedMap) -> tuple[list[Any], Any]:
    # Leaves may be anything inside a tree_map, so only what can be absent is looked at. A number as background is part
    # of the structure, but for an integer among integers: that is the placeholder that vmap puts into every leaf.
    present = [name for name in _TENSORS if getattr(maps, name) is not None]
    background = maps.background
    static = isinstance(background, float) or (isinstance(background, int) and not isinstance(maps.foreground, int))
    if static:
        present.remove("background")
    return [getattr(maps, name) for name in present], (
        tuple(present),
        float(background) if static else None,
        maps.num_classes,
        maps.ignore_index,
    )


def _flatten_with_keys(maps: RectifiedMap) -> tuple[list[Any], Any]:
    leaves, context = _flatten(maps)
    return [(pytree.GetAttrKey(name), leaf) for name, leaf in zip(context[0], leaves, strict=True)], context


def _unflatten(leaves: Any, context: Any) -> RectifiedMap:
    present, background, num_classes, ignore_index = context
    named = {"background": background, **dict(zip(present, leaves, strict=True))}
    return RectifiedMap(num_classes=num_classes, ignore_index=ignore_index, **named)


pytree.register_pytree_node(
    RectifiedMap,
    _flatten,
    _unflatten,
    serialized_type_name="rwkernels.RectifiedMap",
    to_dumpable_context=lambda context: [list(context[0]), *context[1:]],
    from_dumpable_context=lambda dumped: (tuple(dumped[0]), *dumped[1:]),
    flatten_with_keys_fn=_flatten_with_keys,
)
# What an exported module flattens its arguments with in older releases of torch.
fx_pytree.register_pytree_flatten_spec(RectifiedMap, lambda maps, spec: _flatten(maps)[0])


def _collate(batch: list[RectifiedMap], *, collate_fn_map: Any = None) -> RectifiedMap:
    """Stacks maps of samples `[*S]` into one `[B, *S]` over tensors, as the default collation stacks tensors."""
    batch = [maps._tensors()[0] for maps in batch]
    first = batch[0]
    settings = {(maps.num_classes, maps.ignore_index) for maps in batch}
    if len(settings) > 1:
        raise ValueError(f"maps: expected one num_classes and ignore_index in a batch, got {sorted(settings, key=str)}")
    scales = [maps.class_scale for maps in batch]
    if any((scale is None) != (scales[0] is None) for scale in scales) or any(
        scale is not None and scales[0] is not None and not torch.equal(scale, scales[0]) for scale in scales
    ):
        raise ValueError("maps: expected one class_scale in a batch, got several")

    background: Any = first.background
    if any(isinstance(maps.background, Tensor) or maps.background != background for maps in batch):
        background = torch.stack(
            [torch.as_tensor(m.background, dtype=m.foreground.dtype).expand(m.foreground.shape) for m in batch]
        )
    return first._with(
        # In a worker process these go straight into the memory it shares with its parent.
        labels=default_collate([maps.labels for maps in batch]),
        foreground=default_collate([maps.foreground for maps in batch]),
        background=background,
        image_count=None,
    )


def _register_collation() -> None:
    from torch.utils.data._utils.collate import default_collate_fn_map

    default_collate_fn_map[RectifiedMap] = _collate


_register_collation()
torch.serialization.add_safe_globals([RectifiedMap])  # torch.load and torch.export.load take it without being asked
