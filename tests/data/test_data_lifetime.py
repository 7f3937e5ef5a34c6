"""How passes of MapLoader end: errors, breaks, Ctrl-C; and what threads and memory they take."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator

import pytest
import torch
from data_cases import (
    CLASSES,
    DATA,
    IMAGE,
    LABELS,
    Images,
    assert_is_map_of,
    map_threads,
    wait_for_no_thread,
)
from torch.utils.data import DataLoader

import rwkernels as rw
from rwkernels.data import MapLoader

# --- errors, breaks and the end -----------------------------------------------------------------------------------


def failing_source() -> Iterator[tuple]:
    yield IMAGE, LABELS
    yield IMAGE, LABELS
    raise OSError("the disc is gone")


def test_an_error_of_the_loader_comes_after_the_batches_before_it_with_its_traceback():
    found = []
    with pytest.raises(OSError, match="the disc is gone") as caught:
        found.extend(MapLoader(failing_source(), CLASSES, depth=5))
    assert len(found) == 2
    assert "failing_source" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    del caught
    wait_for_no_thread()


def test_an_error_of_a_worker_names_the_worker_and_the_line():
    def broken(sample):
        if sample[0].max() >= 2:
            raise KeyError("no such image")
        return sample

    inner = DataLoader(Images(size=4, transform=broken), batch_size=2, num_workers=1, multiprocessing_context="fork")
    found = []
    with pytest.raises(KeyError, match="Caught KeyError in DataLoader worker process 0") as caught:
        found.extend(MapLoader(inner, CLASSES))
    assert "in broken" in str(caught.value).replace("\\n", "\n")


def test_an_error_of_a_map_keeps_its_traceback_and_the_next_batch_still_comes():
    def broken(labels):
        if labels.float().mean() == 1:
            raise ArithmeticError("no map")
        return rw.rectified_map(labels, CLASSES)

    ones = torch.ones_like(LABELS)
    iterator = iter(MapLoader([(IMAGE, LABELS), (IMAGE, ones), (IMAGE, LABELS)], CLASSES, maps=broken))
    assert_is_map_of(next(iterator)[2], LABELS)
    with pytest.raises(ArithmeticError, match="no map") as caught:
        next(iterator)
    assert "broken" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert_is_map_of(next(iterator)[2], LABELS)
    with pytest.raises(StopIteration):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_no_thread_is_left_after_the_end_a_break_or_a_forgotten_iterator():
    gc.collect()
    wait_for_no_thread()  # those of other tests
    loader = MapLoader(DataLoader(DATA, batch_size=2), CLASSES)
    list(loader)
    wait_for_no_thread()
    for _ in loader:
        assert len(map_threads()) == 1
        break
    gc.collect()
    wait_for_no_thread()
    iterator = iter(loader)
    next(iterator)
    assert len(map_threads()) == 1
    del iterator
    gc.collect()
    wait_for_no_thread()


def test_a_break_drops_maps_that_were_not_begun():
    built = []
    go = threading.Event()

    def slow(labels):
        go.wait(10)
        built.append(len(labels))
        return labels

    iterator = iter(MapLoader([(IMAGE, LABELS[:n]) for n in (1, 2, 3, 4)], CLASSES, maps=slow, depth=3))
    iterator._fetch()
    iterator._fetch()
    iterator._fetch()
    del iterator
    gc.collect()
    go.set()
    wait_for_no_thread()
    assert built == [1]


def run_script(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_ends_a_program_that_waits_for_a_map():
    child = run_script(
        """
        import signal, time, torch
        from rwkernels.data import MapLoader

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without

        def slow(labels):
            print("waiting", flush=True)
            while not stop:
                time.sleep(0.05)

        stop = []
        try:
            next(iter(MapLoader([(torch.zeros(1, 4, 4),)] * 9, 2, label_key=0, maps=slow)))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            stop.append(True)
            raise
        """
    )
    assert child.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=20)
    assert output.startswith("interrupted")
    assert "KeyboardInterrupt" in errors
    assert child.returncode != 0


def test_a_program_ends_that_leaves_a_pass_half_way():
    child = run_script(
        """
        import torch
        from rwkernels.data import MapLoader
        iterator = iter(MapLoader([(torch.zeros(2, 9, 9), torch.ones(2, 9, 9).long())] * 9, 2))
        print(len(next(iterator)))
        """
    )
    output, errors = child.communicate(timeout=60)
    assert (output, errors, child.returncode) == ("3\n", "", 0)


# --- cores and memory ---------------------------------------------------------------------------------------------


def test_a_map_takes_one_thread_and_leaves_the_number_of_threads_of_torch_alone(restore_threads, monkeypatch):
    from rwkernels.backends.threads import threads

    torch.set_num_threads(3)
    widths = []

    def maps(labels):
        widths.append((threads(), torch.get_num_threads()))
        return labels

    list(MapLoader([(IMAGE, LABELS)], CLASSES, maps=maps))
    list(MapLoader([(IMAGE, LABELS)], CLASSES, maps=maps, threads=None))
    list(MapLoader([(IMAGE, LABELS)], CLASSES, maps=maps, threads=2))
    assert widths == [(1, 3), (3, 3), (2, 3)]
    assert threads() == torch.get_num_threads() == 3


def test_memory_does_not_grow_over_two_thousand_batches():
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc to read the memory of the process")
    batch = {"image": torch.zeros(2, 1, 48, 48), "label": torch.randint(CLASSES, (2, 48, 48))}
    logits = torch.zeros(2, CLASSES, 48, 48, requires_grad=True)
    before = 0
    for step, found in enumerate(MapLoader([batch] * 2200, CLASSES)):
        rw.region_wise_loss(logits, found["map"]).backward()
        logits.grad = None
        if step == 199:
            gc.collect()
            before = resident()
    gc.collect()
    assert resident() < 1.01 * before
