"""The threads of the C++ core: torch's own where they can be had, its own pool elsewhere, the same bits on all of them.

Every state of a process gets a process of its own, which must end in time.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from loss_cases import needs_native

pytestmark = [
    needs_native,
    pytest.mark.skipif(sys.platform != "linux", reason="torch's threads are taken on Linux only"),
    pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="this torch computes without OpenMP"),
]

COMMON = """
import hashlib, os, signal, sys, threading, time
import torch
import rwkernels as rw
from rwkernels.backends.native import core

torch.set_num_threads(3)
labels = torch.randint(4, (4, 200, 200), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
values = torch.randn(4, 4, 200, 200, generator=torch.Generator().manual_seed(1))

def tasks():
    return len(os.listdir("/proc/self/task"))

zeros, codes = torch.zeros(1 << 20), torch.zeros(1 << 20, dtype=torch.uint8)

def one_job():
    core().encode_values(values=zeros.data_ptr(), count=1 << 20, bytes=1, codes=codes.data_ptr(), threads=3)

def bits():
    x = values.detach().requires_grad_()  # a copy would be made by torch in several threads, which hangs in a child
    loss = rw.RegionWiseLoss()(x, labels)
    loss.backward()
    found = rw.distance_transform(labels), loss.detach(), x.grad
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in found)).hexdigest()

def alone():
    torch.set_num_threads(1)
    found = bits()
    torch.set_num_threads(3)
    return found

def in_threads(count, rounds=1):
    found = []
    threads = [threading.Thread(target=lambda: [found.append(bits()) for _ in range(rounds)]) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

def in_child():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # one that hangs ends with its test
        os.write(write, f"{bits()} {core().shares_threads()}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        text = answer.read()
    assert os.waitpid(child, 0)[1] == 0
    return text.split()
"""


def run(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_work_goes_to_torchs_own_threads_while_they_are_awake_and_to_others_while_they_sleep():
    run(
        """
torch.randn(400_000).exp()
before = tasks()
assert core().shares_threads()
one_job()  # the first one: whether they are awake is known from then on
assert tasks() == before, (before, tasks())
time.sleep(0.1)
one_job()
assert tasks() == before + 2, (before, tasks())
""",
        OMP_WAIT_POLICY="passive",
    )


def test_a_number_of_threads_that_changes_gives_the_same_bits_with_teams_of_torch_and_without():
    run("""
expected = alone()
most = 0
for count in (3, 2, 5, 1, 3):
    torch.set_num_threads(count)
    torch.randn(400_000).exp()
    assert [bits() for _ in range(3)] == [expected] * 3
    most = max(most, tasks())
for _ in range(5):
    assert bits() == expected
    assert tasks() <= most, (most, tasks())
""")


def test_other_threads_get_the_same_bits_and_leave_no_more_threads_the_more_there_were():
    run("""
expected = alone()
assert set(in_threads(4, 5)) == {expected}
before = tasks()
for _ in range(5):
    assert set(in_threads(4, 2)) == {expected}
until = time.monotonic() + 20
while tasks() > before and time.monotonic() < until:  # workers of a caller that ended take a moment to end too
    time.sleep(0.01)
assert tasks() <= before, (before, tasks())
""")


def test_a_call_inside_a_parallel_region_stays_on_its_thread():
    run("""
import ctypes
expected = alone()
openmp = ctypes.CDLL("libtorch_cpu.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)  # symbols of what it is linked with
found = []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def body(_):
    found.append(bits())
def region(of):
    openmp.GOMP_parallel(of, None, ctypes.c_uint(2), ctypes.c_uint(0))
region(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None))
before = tasks()
region(body)
assert found == [expected] * 2
assert tasks() == before, (before, tasks())
""")


def test_a_child_that_is_forked_in_any_state_takes_threads_of_its_own():
    run("""
def fork():
    found, shared = in_child()
    assert shared == "False"
    return found
expected = fork()  # nothing has several threads yet
torch.randn(400_000).exp()
assert fork() == expected
assert core().shares_threads()
assert bits() == expected
assert fork() == expected
stop = []
busy = threading.Thread(target=lambda: [bits() for _ in iter(lambda: bool(stop), True)])
busy.start()
assert [fork() for _ in range(5)] == [expected] * 5
stop.append(1)
busy.join()
assert bits() == alone() == expected
""")


@pytest.mark.parametrize(
    "environment",
    [{"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true", "OMP_WAIT_POLICY": "passive"}],
    ids=lambda found: "+".join(found),
)
def test_a_runtime_that_gives_fewer_threads_does_all_the_work(environment):
    run("assert bits() == alone()", **environment)


def test_memory_that_cannot_be_had_is_an_error_in_the_caller_and_the_next_call_works():
    said = run("""
import resource
classes = 60_000  # of which a thread holds several tiles: some 60 MB
x = torch.randn(1, classes, 100)
maps = rw.RectifiedMap(torch.zeros(1, 100, dtype=torch.uint8), torch.full((1, 100), -1.0), 1.0, classes)
bits()  # the threads are there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), resource.RLIM_INFINITY))
try:
    rw.region_wise_loss(x, maps)
except MemoryError:
    print("refused")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert torch.isfinite(rw.region_wise_loss(x, maps))
assert bits() == alone()
""")
    assert said == ["refused"]
