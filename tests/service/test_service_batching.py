"""Which requests share a launch of the map builder, and that sharing one changes no answer."""

import asyncio
import threading

import pytest
import torch

pytest.importorskip("prometheus_client", reason="needs the extra `service`")
from service_cases import some_labels

import rwkernels as rw
from rwkernels.service.server.batching import Batcher, Job
from rwkernels.service.server.launches import Asked, Launcher
from rwkernels.service.server.metrics import Metrics
from rwkernels.service.wire.messages import Request


def asked(number, labels, **changes):
    request = Request(number, "rectified", tuple(labels.shape), "uint8", 3, "float32", **changes)
    return request, memoryview(labels.to(torch.uint8).numpy().tobytes())


def values(built):
    answer, payload = built
    assert answer.error is None
    return torch.frombuffer(bytearray(payload.tobytes()), dtype=torch.float32).view(answer.shape)


class Gate(Launcher):
    """Notes which requests come together, and waits with the first until it is opened."""

    def __init__(self):
        super().__init__(torch.device("cpu"), 1)
        self.launches, self.entered, self.opened = [], threading.Event(), threading.Event()

    def run(self, asked):
        self.launches.append([one.request.id for one in asked])
        self.entered.set()
        assert self.opened.wait(20)
        return super().run(asked)


async def answers(requests, joined_bytes=10_000):
    """What comes of requests that wait while another one is built, and which were built together."""
    gate = Gate()
    loop = asyncio.get_running_loop()
    batcher = Batcher([gate], Metrics(), joined_bytes, loop)
    jobs = [Job(request, payload, loop.create_future(), 0) for request, payload in requests]
    batcher.submit(jobs[0])
    assert await asyncio.to_thread(gate.entered.wait, 20)
    for job in jobs[1:]:
        batcher.submit(job)
    gate.opened.set()
    found = await asyncio.wait_for(asyncio.gather(*(job.future for job in jobs)), 20)
    assert await asyncio.to_thread(batcher.close)
    return found, gate.launches


def test_small_requests_that_wait_and_agree_share_a_launch_and_get_their_own_maps():
    labels = [some_labels(1 + seed % 3, 13, 22, seed=seed) for seed in range(8)]
    labels[5] = some_labels(2, 22, 13)
    requests = [asked(number, found) for number, found in enumerate(labels)]
    requests[3] = asked(3, labels[3], spacing=((2.0, 1.0),))
    found, launches = asyncio.run(answers(requests))
    assert launches == [[0], [1, 2, 4, 6, 7], [3], [5]]
    for number, (built, own) in enumerate(zip(found, labels, strict=True)):
        spacing = (2.0, 1.0) if number == 3 else None
        assert built[0].id == number
        assert torch.equal(values(built), rw.rectified_map(own, 3, spacing=spacing).foreground)


def test_pixels_that_count_are_those_of_ones_own_images():
    labels = [some_labels(1 + number % 2, 9, 9, seed=number) for number in range(5)]
    found, launches = asyncio.run(answers([asked(n, own, ignore_index=2) for n, own in enumerate(labels)]))
    assert launches[1] == [1, 2, 3, 4]
    for (answer, _), own in zip(found, labels, strict=True):
        assert answer.image_count == tuple((own != 2).flatten(1).sum(1).tolist())


def test_a_launch_takes_no_more_than_its_bytes_and_a_large_request_goes_alone():
    labels = [some_labels(1, 10, 10, seed=seed) for seed in range(7)]
    requests = [asked(number, found) for number, found in enumerate(labels)]
    assert asyncio.run(answers(requests, joined_bytes=300))[1] == [[0], [1, 2, 3], [4, 5, 6]]
    assert asyncio.run(answers(requests, joined_bytes=100))[1] == [[number] for number in range(7)]


def test_a_bad_label_in_a_shared_launch_is_its_owners_alone_in_its_own_coordinates():
    labels = [some_labels(2, 13, 22, seed=seed) for seed in range(5)]
    labels[2][1, 4, 5] = 9
    found, launches = asyncio.run(answers([asked(number, own) for number, own in enumerate(labels)]))
    assert launches[1] == [1, 2, 3, 4]
    assert found[2][0].error == ("ValueError", "labels: expected integers in [0, 3), got 9 at (1, 4, 5)")
    for number in (0, 1, 3, 4):
        assert torch.equal(values(found[number]), rw.rectified_map(labels[number], 3).foreground)


def test_a_request_whose_client_is_gone_is_not_built_and_keeps_no_labels():
    async def left():
        gate, loop = Gate(), asyncio.get_running_loop()
        batcher = Batcher([gate], Metrics(), 10_000, loop)
        jobs = [Job(*asked(number, some_labels(1, 9, 9)), loop.create_future(), 0) for number in range(4)]
        batcher.submit(jobs[0])
        assert await asyncio.to_thread(gate.entered.wait, 20)
        for job in jobs[1:]:
            batcher.submit(job)
        jobs[2].future.cancel()
        jobs[2].payload = None  # as a stream that ends does
        gate.opened.set()
        found = await asyncio.wait_for(asyncio.gather(*(job.future for job in jobs if job is not jobs[2])), 20)
        assert await asyncio.to_thread(batcher.close)
        assert [built[0].id for built in found] == [0, 1, 3]
        return gate.launches

    assert asyncio.run(left()) == [[0], [1, 3]]


def test_an_error_of_the_machine_is_not_told():
    class Broken(Launcher):
        def _answers(self, asked):
            raise OSError("/secret/path is full")

    ((answer, payload),) = Broken(torch.device("cpu"), 1).run([Asked(*asked(0, some_labels(1, 4, 4)))])
    assert answer.error == ("RuntimeError", "the map could not be built")
    assert len(payload) == 0
