"""`RemoteMapBuilder`: the map builder of loaders and transforms, with a service that does the work."""

from __future__ import annotations

import itertools
import os
import random
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rwkernels import checks
from rwkernels.backends import default
from rwkernels.backends.threads import limited_to
from rwkernels.data.batches import Key
from rwkernels.data.building import Map, MapBuilder
from rwkernels.maps import quantised
from rwkernels.maps.compact import RectifiedMap
from rwkernels.maps.families import FAMILIES
from rwkernels.service.client.connection import (
    ClosingError,
    Connection,
    Target,
    UnavailableError,
    Watch,
)
from rwkernels.service.client.pipeline import Asked, Pipeline
from rwkernels.service.wire import messages
from rwkernels.service.wire.labels import travelling
from rwkernels.service.wire.memory import Bytes, OutOfReachError
from rwkernels.service.wire.messages import CLOSING, Answer, MalformedError, Request
from rwkernels.service.wire.security import checked_token

_ANSWERS = {None: "float32", 16: "uint16", 8: "uint8"}
_ERRORS: dict[str, type[Exception]] = {"TypeError": TypeError, "ValueError": ValueError, "RuntimeError": RuntimeError}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_BLOCK = 1 << 16


class RemoteMapBuilder(MapBuilder):
    """Builds maps in a service (`rwkernels serve`) instead of in this process.

    It takes the place of the local builder: `MapLoader(loader, builder=...)`, `MapCollate(builder=...)`,
    `AddMap(builder=...)`. Labels travel in as few bits as their classes take; of the map, only what labels do not
    tell comes back. It can be pickled and sent to worker processes; every process opens its connection when it first
    needs it.

    Args:
        url: `grpc://HOST:PORT`, or `grpc+tls://HOST:PORT` for a service on another machine.
        num_classes: Number of classes K.
        bits: None for float32, the local builder's values; 16 or 8 for maps that take that many bits a pixel on the
            way (see `rwkernels.maps.quantised`; boundary maps take 16, as float16).
        token: What the service asks for; better a file, or the environment variable RWKERNELS_TOKEN, which are read
            where the connection is opened.
        token_file: File with the token.
        root_certificates: PEM file that the service's certificate is to be signed by; else the system's.
        client_certificate: PEM file of the client's own certificate, where the service asks for one.
        client_key: PEM file of its key.
        insecure: Allow `grpc://` to other machines, without encryption.
        timeout: Seconds that one attempt may take.
        retries: Further attempts while the service is not there or busy, after pauses that double.
        fallback: Build here, with a warning, once the attempts are used up; the service is asked again after
            `fallback_time`.
        fallback_time: Seconds.
        **options: `label_key`, `map_key`, `maps` (by name), `spacing`, `spacing_key`, `class_max_key`, `ignore_index`,
            `black_border`, `spatial_dims`, `map_options` and `threads` (of the fallback) as of `MapLoader`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument has a wrong value; while building, labels are wrong, or too large for the service.
        ConnectionError: The service cannot be reached, or answers something else.
        TimeoutError: It did not answer in time.
        PermissionError: It does not know the token.

    Examples:
        >>> from rwkernels.service import RemoteMapBuilder
        >>> RemoteMapBuilder("grpc://127.0.0.1:8815", num_classes=4, bits=16)
        RemoteMapBuilder('grpc://127.0.0.1:8815', num_classes=4)
    """

    remote = True

    def __init__(
        self,
        url: str,
        num_classes: int,
        *,
        bits: int | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        root_certificates: str | os.PathLike[str] | None = None,
        client_certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
        insecure: bool = False,
        timeout: float = 30.0,
        retries: int = 5,
        fallback: bool = False,
        fallback_time: float = 30.0,
        label_key: Key | None = None,
        map_key: str = "map",
        maps: str = "rectified",
        spacing: float | Sequence[float] | None = None,
        spacing_key: Key | None = None,
        class_max_key: Key | None = None,
        ignore_index: int | None = None,
        black_border: bool = False,
        spatial_dims: int | None = None,
        map_options: Mapping[str, Any] | None = None,
        threads: int | None = 1,
    ) -> None:
        if not isinstance(maps, str):
            raise TypeError(f"maps: expected the name of a family, got {checks.describe(maps)}")
        super().__init__(
            num_classes,
            label_key=label_key,
            map_key=map_key,
            maps=maps,
            spacing=spacing,
            spacing_key=spacing_key,
            class_max_key=class_max_key,
            ignore_index=ignore_index,
            black_border=black_border,
            spatial_dims=spatial_dims,
            map_options=map_options,
            threads=threads,
        )
        self.family, self.ignore_index, self.black_border = maps, ignore_index, black_border
        self._options = {
            name: checks.number(f"map_options[{name!r}]", value) for name, value in (map_options or {}).items()
        }
        dense = FAMILIES[maps].dense
        if bits not in _ANSWERS or (dense and bits == 8):
            raise ValueError(f"bits: expected None, 16 or 8 (boundary maps: None or 16), got {bits!r}")
        self._answer = "float16" if dense and bits == 16 else _ANSWERS[bits]
        if token is not None and token_file is not None:
            raise ValueError("token_file: expected None beside token")
        self.timeout = _positive("timeout", timeout)
        self._target = Target(
            url,
            None if token is None else checked_token(token, "token"),
            token_file,
            root_certificates,
            client_certificate,
            client_key,
            connect_time=min(self.timeout, 20.0),
        ).checked(checks.flag("insecure", insecure))
        self.retries = checks.integer("retries", retries, lowest=0)
        self.fallback = checks.flag("fallback", fallback)
        self.fallback_time = _positive("fallback_time", fallback_time)
        self._start()

    def _start(self) -> None:
        self._connection = Connection(self._target)
        self._numbers = itertools.count()
        self._local_until = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: all but the connection."""
        own = ("_connection", "_numbers", "_local_until")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"RemoteMapBuilder({self._target.url!r}, num_classes={self.num_classes})"

    def close(self) -> None:
        """Closes the connection of this process; building another map opens it again."""
        self._connection.close()

    def maps_of(self, labels: Iterable[Tensor], window: int = 8) -> Iterator[Map]:
        """The maps of many batches of labels `[B, *S]`, in order, over one stream.

        Up to `window` batches are under way at a time, so that sending, building and receiving overlap.

        Args:
            labels: Batches of labels, asked for in a thread beside this one.
            window: How many; at most the service's own window (8), to be of use.

        Raises:
            As building one map does.
        """
        window = checks.integer("window", window, lowest=1)
        return self._streamed((self._plain(checks.tensor("labels", batch)) for batch in labels), window)

    def _build(
        self, labels: Tensor, spacing: list[Any] | None, class_max: Tensor | None, out: Tensor | None = None
    ) -> Map:
        if time.monotonic() < self._local_until:
            return super()._build(labels, spacing, class_max, out)
        asked = self._asked(labels, spacing, class_max)
        try:
            return self._map(asked, *self._answered(asked), out)
        except (ConnectionError, TimeoutError) as error:
            return self._built_here(error, labels, spacing, class_max, out)

    def _built_here(
        self,
        error: Exception,
        labels: Tensor,
        spacing: list[Any] | None = None,
        class_max: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Map:
        """The map from the local builder, if that is to take over; raises `error` else."""
        if not self.fallback:
            raise error
        if time.monotonic() >= self._local_until:
            warnings.warn(
                f"maps are built here for the next {self.fallback_time:g} seconds: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        self._local_until = time.monotonic() + self.fallback_time
        return super()._build(labels, spacing, class_max, out)

    def _asked(self, labels: Tensor, spacing: list[Any] | None, class_max: Tensor | None) -> Asked:
        """The request for a map, ready to be sent."""
        found = checks.labels(labels, self.spatial_dims).cpu()
        axes = found.dim() - 1
        rows: tuple[tuple[float, ...], ...] | None = None
        if FAMILIES[self.family].measured:
            given = spacing or (None if self.spacing is None else [self.spacing])
            rows = None if given is None else tuple(tuple(checks.spacing(row, axes)) for row in given)
            if rows is not None and all(row == rows[0] for row in rows):
                rows = rows[:1]
        dtype, sent, ignored = travelling(found, self.num_classes, self.ignore_index)
        payload = [sent]
        if class_max is not None:
            checks.floating("class_max", class_max)
            checks.shape("class_max", class_max, (len(found), self.num_classes), "[B, K]")
            largest = class_max.cpu().to(torch.float32).contiguous().numpy()
            payload.append(largest.astype("<f4", copy=False).reshape(-1).view(np.uint8))
        request = Request(
            id=next(self._numbers),
            family=self.family,
            shape=tuple(found.shape),
            dtype=dtype,
            num_classes=self.num_classes,
            answer=self._answer,
            spacing=rows,
            ignore_index=ignored,
            black_border=self.black_border and FAMILIES[self.family].measured,
            options=self._options,
            class_max=class_max is not None,
        )
        return Asked(labels, request, payload)

    def _answered(self, asked: Asked) -> tuple[Answer, memoryview]:
        """The answer to one request, over a stream of its own, after as many attempts as it takes."""
        message = asked.message()
        for attempt in itertools.count():
            try:
                return self._checked(asked.request, self._connection.ask(message, self.timeout))
            except UnavailableError:
                if attempt >= self.retries:
                    raise
                longest = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
                time.sleep(random.uniform(longest / 2, longest))  # apart from the other clients that wait
        raise AssertionError

    def _checked(self, request: Request, message: memoryview) -> tuple[Answer, memoryview]:
        """Answer and payload of a message, checked; an error is raised."""
        try:
            header, payload = messages.split(message)
            answer = messages.answer(header, payload, request)
        except MalformedError as error:
            raise ConnectionError(f"{self._target.url}: an answer that cannot be read ({error})") from None
        if answer.error is not None:
            kind, text = answer.error
            if kind == CLOSING:
                raise ClosingError(f"{self._target.url}: {text}")
            if kind == "Unavailable":
                raise UnavailableError(f"{self._target.url}: {text}")
            raise _ERRORS[kind](text if kind != "RuntimeError" else f"{self._target.url}: {text}")
        return answer, payload

    def _map(self, asked: Asked, answer: Answer, payload: memoryview | Bytes, out: Tensor | None = None) -> Map:
        """The map of labels from an answer."""
        labels = asked.labels
        with limited_to(self.threads or torch.get_num_threads()):
            values = _values(asked.request, payload, self._target.url).to(labels.device)
        if out is not None:
            values = checks.output(out, values.shape, torch.float32, labels.device).copy_(values)
        if answer.background is None:
            return values
        count = None
        if answer.image_count is not None:
            count = torch.tensor(answer.image_count, dtype=torch.int64, device=labels.device)
        return RectifiedMap(
            labels,
            values,
            answer.background,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            image_count=count,
        )

    def _streamed(self, batches: Iterator[Tensor], window: int) -> Iterator[Map]:
        """The maps of `batches` over one stream; what an interrupted stream leaves open is asked for one by one."""
        source = (self._asked(labels, None, None) for labels in batches)
        pipeline = Pipeline(source, self._connection.exchange, window, self._target.is_here)
        watch = Watch(self.timeout, pipeline.cancel)
        try:
            for asked in pipeline.asked():
                yield self._next_map(pipeline, watch, asked)
            with watch, suppress(ConnectionError, TimeoutError):
                pipeline.finish()
        finally:
            watch.close()
            pipeline.close()

    def _next_map(self, pipeline: Pipeline, watch: Watch, asked: Asked) -> Map:
        """The map of `asked`, which is the next one of the stream."""
        if pipeline.broken and time.monotonic() < self._local_until:
            return super()._build(asked.labels, None, None)
        try:
            return self._map(asked, *self._next_answer(pipeline, watch, asked))
        except (ConnectionError, TimeoutError) as error:
            return self._built_here(error, asked.labels)

    def _next_answer(self, pipeline: Pipeline, watch: Watch, asked: Asked) -> tuple[Answer, memoryview | Bytes]:
        """The answer to `asked`, which is the next one of the stream, or one to the same question asked again."""
        with suppress(UnavailableError):  # it may have ended, or be busy
            with watch:
                message = pipeline.receive()
            if message is not None:
                try:
                    answer, payload = self._checked(asked.request, message)
                except ClosingError:
                    pipeline.leave()
                    raise
                with suppress(OutOfReachError):
                    return answer, pipeline.payload(asked, answer, payload)
        return self._answered(asked.without_slot())


def _values(request: Request, payload: memoryview | Bytes, url: str) -> Tensor:
    """The values in a payload, float32.

    Those that came over the network are checked, for no map has values that are not finite. An array lies in memory
    that the service has written as this process would have; if it is float32, it is not even copied.
    """
    given = np.frombuffer(payload, np.dtype(request.answer).newbyteorder("<"))
    if request.answer == "float32" and isinstance(payload, np.ndarray):
        return torch.from_numpy(given).view(request.answer_shape)
    values = torch.empty(request.answer_shape, dtype=torch.float32, device="cpu")
    if request.answer in ("uint8", "uint16"):
        quantised.decode_array(given, values)
        return values
    default(values.device, "advise_huge_pages").advise_huge_pages(values)
    flat = values.view(-1).numpy()
    for start in range(0, len(given), _BLOCK):
        part = flat[start : start + _BLOCK]
        part[:] = given[start : start + _BLOCK]
        # What is not finite shows in the sum; the part is still in the cache.
        if not np.isfinite(np.add.reduce(part)) and not np.isfinite(part).all():
            raise ConnectionError(f"{url}: expected finite values, got others")
    return values


def _positive(name: str, value: float) -> float:
    found = checks.number(name, value)
    if found <= 0:
        raise ValueError(f"{name}: expected a positive number of seconds, got {found}")
    return found
