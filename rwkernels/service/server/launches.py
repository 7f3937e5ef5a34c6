"""One launch of the map builder for the labels of several requests, on the device that the service owns."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from rwkernels.backends.threads import limited_to
from rwkernels.data.building import Map, MapBuilder
from rwkernels.maps import quantised
from rwkernels.maps.compact import RectifiedMap
from rwkernels.service.server import logs
from rwkernels.service.server.memory import Slot
from rwkernels.service.wire import labels
from rwkernels.service.wire.messages import LONGEST_TEXT, Answer, Request

_BITS = {"uint8": 8, "uint16": 16}


@dataclass(frozen=True)
class Asked:
    """A request, its payload, and where its answer is to be written, if not into a message."""

    request: Request
    payload: memoryview
    slot: Slot | None = None

    def codes(self) -> Tensor | None:
        """The memory of its slot as the answer's tensor. For codes, which are only written there.

        Fields of distances are read again while they are computed, and the client can write to the slot meanwhile.
        """
        if self.slot is None:
            return None
        memory = torch.from_numpy(self.slot.bytes[: self.request.answer_bytes])
        return memory.view(getattr(torch, self.request.answer)).view(self.request.answer_shape)


Parts = tuple[Tensor, float | None, list[int] | None]
"""Of a map: values or codes, background, pixels of every image that count."""
Built = tuple[Answer, Any]
"""An answer and its payload, a flat array of bytes (empty for an error)."""
_NOTHING = np.empty(0, np.uint8)


@lru_cache(maxsize=256)
def _builder(settings: bytes, threads: int) -> MapBuilder:
    """The map builder for requests with these settings, packed."""
    request = msgspec.msgpack.decode(settings, type=Request)
    return MapBuilder(
        request.num_classes,
        maps=request.family,
        spacing=request.common_spacing,
        spacing_key="spacing" if request.has_rows_of_spacing else None,
        class_max_key="class_max" if request.class_max else None,
        ignore_index=request.ignore_index,
        black_border=request.black_border,
        spatial_dims=len(request.shape) - 1,
        validate=True,
        map_options=request.options,
        threads=threads,
    )


class Launcher:
    """Builds maps on one device. Not for several threads at a time: its buffers are used again and again."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device, self.threads = device, threads
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._work = torch.empty(0, device=device)

    def run(self, asked: Sequence[Asked]) -> list[Built]:
        """The answers to requests that agree in their settings.

        Where a joined launch fails, every request is built alone: each client hears of its own mistakes, in its own
        coordinates, and the others get their maps.
        """
        try:
            return self._answers(asked)
        except Exception as error:
            if len(asked) > 1:
                return [built for one in asked for built in self.run([one])]
            return [(Answer(asked[0].request.id, error=_told(error)), _NOTHING)]

    def _answers(self, asked: Sequence[Asked]) -> list[Built]:
        first = asked[0].request
        sizes = [one.request.shape[0] for one in asked]
        whole = self._labels(asked, sum(sizes))
        class_max = torch.cat([_class_max(one) for one in asked]).to(self.device) if first.class_max else None
        with limited_to(self.threads):
            if first.family == "rectified" and first.answer in _BITS and not first.has_rows_of_spacing:
                out = asked[0].codes() if len(asked) == 1 and self.device.type == "cpu" else None
                host, background, counts = self._codes(first, whole, class_max, out)
            else:
                sent = first.answer == "float32" and any(one.slot is None for one in asked)
                host, background, counts = self._values(first, whole, class_max, sent)
        answers: list[Built] = []
        start = 0
        for one, size in zip(asked, sizes, strict=True):
            payload = host[start : start + size].numpy().reshape(-1).view(np.uint8)
            place = None
            if one.slot is not None:
                if not np.may_share_memory(payload, one.slot.bytes):  # codes may be there already
                    one.slot.bytes[: len(payload)] = payload
                payload, place = _NOTHING, one.slot.place
            count = None if counts is None else tuple(counts[start : start + size])
            request = one.request
            answer = Answer(request.id, request.answer_shape, request.answer, background, count, place)
            answers.append((answer, payload))
            start += size
        return answers

    def _codes(self, first: Request, labels: Tensor, class_max: Tensor | None, out: Tensor | None) -> Parts:
        """Codes of rectified maps, straight from labels."""
        found = quantised.rectified_codes(
            labels,
            first.num_classes,
            _BITS[first.answer],
            spacing=first.common_spacing,
            class_max=class_max,
            ignore_index=first.ignore_index,
            black_border=first.black_border,
            spatial_dims=len(first.shape) - 1,
            out=out,
            work=self._memory(labels.numel()),
        )
        return _on_host(found.codes), 1.0, None if found.image_count is None else found.image_count.tolist()

    def _values(self, first: Request, labels: Tensor, class_max: Tensor | None, sent: bool) -> Parts:
        """What the local builder makes, in the dtype that was asked for; in fresh memory if it is `sent` from there."""
        batch = {"class_max": class_max, "spacing": torch.tensor(first.spacing or (), dtype=torch.float64)}
        shape = (len(labels), *first.answer_shape[1:])
        out = None if sent else self._memory(math.prod(shape)).view(shape)
        found = _builder(msgspec.msgpack.encode(first.settings), self.threads).of_batch(batch, labels, out)
        values, background, counts = _parts(found)
        return _on_host(_encoded(values, first.answer)), background, counts

    def _memory(self, size: int) -> Tensor:
        """Float32 memory of the launcher, for what is encoded or copied before the next launch."""
        if self._work.numel() < size:
            self._work = torch.empty(size, device=self.device)
        return self._work[:size]

    def _labels(self, asked: Sequence[Asked], images: int) -> Tensor:
        """The labels of all requests, joined, on the device."""
        first = asked[0].request
        size = sum(one.request.label_bytes for one in asked)
        if len(self._staging) < size:
            self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        staging = self._staging[:size].numpy()
        start = 0
        for one in asked:
            sent = np.frombuffer(one.payload, np.uint8, one.request.sent_label_bytes)
            part = staging[start : start + one.request.label_bytes]
            if len(sent) < len(part):
                labels.unpack(sent, labels.BITS[one.request.dtype], part)
            else:
                part[:] = sent
            start += len(part)
        dtype = getattr(torch, labels.unpacked_dtype(first.dtype))
        whole = self._staging[:size].view(dtype).view(images, *first.shape[1:])
        return whole.to(self.device)  # waits: the buffer is written over for the next launch


def _class_max(asked: Asked) -> Tensor:
    request = asked.request
    values = np.frombuffer(asked.payload, np.uint8)[request.sent_label_bytes :].copy().view("<f4")
    return torch.from_numpy(values).view(request.shape[0], request.num_classes)


def _parts(found: Map) -> Parts:
    if not isinstance(found, RectifiedMap):
        return found, None, None
    assert not isinstance(found.background, Tensor)  # of no family that is named
    counts = None if found.image_count is None else found.image_count.tolist()
    return found.foreground, float(found.background), counts


def _encoded(values: Tensor, answer: str) -> Tensor:
    if answer in _BITS:
        codes: Tensor = quantised.encode(values, _BITS[answer])
        return codes
    if answer == "float16":
        halves = values.to(torch.float16)
        if not bool(torch.isfinite(halves).all()):
            raise ValueError("answer: expected float32 for distances that float16 cannot hold (65504 and more)")
        return halves
    return values


def _on_host(values: Tensor) -> Tensor:
    if values.device.type == "cpu":
        return values.contiguous()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values)  # waits: the copy is to be sent at once
    return host


def _told(error: Exception) -> tuple[str, str]:
    """What a client hears of an error. Ours say what was wrong with the request; others could tell of this machine."""
    for kind in (ValueError, TypeError):
        if type(error) is kind:
            return kind.__name__, str(error)[:LONGEST_TEXT]
    logs.event(logging.ERROR, "launch failed", exc_info=error)
    return "RuntimeError", "the map could not be built"
