"""A stream of the service with a client that is played."""

from __future__ import annotations

import asyncio
import gc

import grpc
import service_attacks as attacks
import torch

from rwkernels.service.server.admission import Admission
from rwkernels.service.server.batching import Batcher
from rwkernels.service.server.launches import Launcher
from rwkernels.service.server.memory import Room
from rwkernels.service.server.metrics import Metrics
from rwkernels.service.server.stream import Ended, Shared, Stream
from rwkernels.service.wire import messages
from rwkernels.service.wire.limits import Limits


class Context:
    """A call: messages come when they are put, answers leave while it is open."""

    def __init__(self, address):
        self.address = address
        self.given, self.sent, self.open = asyncio.Queue(), [], asyncio.Event()
        self.open.set()

    def put(self, header=None, payload=bytes(12)):
        self.given.put_nowait(attacks.packed(attacks.header() if header is None else header, payload))

    def end(self):
        self.given.put_nowait(grpc.aio.EOF)

    async def read(self):
        return await self.given.get()

    async def write(self, message):
        await self.open.wait()
        self.sent.append(messages.split(memoryview(message))[0])

    def peer(self):
        return self.address

    @property
    def kinds(self):
        """Of every answer."""
        return [answer["error"][0] if answer["error"] else "map" for answer in self.sent]


class Played:
    """A stream with all that it shares."""

    def __init__(self, admission=None, peer="ipv4:127.0.0.1:5", **limits):
        found = Limits(**limits)
        self._others = asyncio.all_tasks()
        self.metrics, loop = Metrics(), asyncio.get_running_loop()
        self.launchers = [Launcher(torch.device("cpu"), 1) for _ in range(2)]
        self.batcher = Batcher(self.launchers, self.metrics, found.joined_bytes, loop)
        self.admission = admission or Admission(found.admitted_requests, found.admitted_bytes)
        self.room, self.draining, self.context = Room(1 << 20), asyncio.Event(), Context(peer)
        shared = Shared(found, self.metrics, self.batcher, self.admission, self.room, self.draining)
        self.stream = Stream(shared, self.context)
        self.task = asyncio.create_task(self.stream.run())

    async def has_sent(self, count):
        end = asyncio.get_running_loop().time() + 10
        while len(self.context.sent) < count:
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.002)

    async def reason(self):
        """Why the service ended the stream; None if the client did."""
        try:
            await asyncio.wait_for(self.task, 10)
        except Ended as ended:
            return ended.reason
        return None

    async def leaves_nothing(self):
        """Once the stream is over."""
        await asyncio.sleep(0.02)
        assert asyncio.all_tasks() - self._others == set()
        assert (self.admission.requests, self.admission.size, self.room.used) == (0, 0, 0)
        assert await asyncio.to_thread(self.batcher.close)


def played(story):
    """Plays a story; errors that nobody heard are errors."""
    lost = []

    async def told():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        await asyncio.wait_for(story(), 30)
        gc.collect()

    asyncio.run(told())
    assert lost == []
