"""The benchmark of the service runs, and checks answers before it times anything."""

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra `service`")
service = pytest.importorskip("benchmarks.service", reason="benchmarks/ is not beside the tests")


def test_throughput_latency_and_memory_are_shown(capsys, restore_threads):
    service.main(["--tiny", "--threads", "1"])
    shown = capsys.readouterr().out
    for name in ("in this process", "served, float32", "served, 16 bits", "served, 8 bits", "8 bits, all in messages"):
        assert f"| {name} " in shown
    rows = [line.split("|")[1:-1] for line in shown.splitlines() if line.startswith(("| 1 x 16", "| 2 x 32"))]
    assert [row[1].strip() for row in rows] == ["1", "2"] * 2  # clients
    for *_, rate, median, slow in rows:
        assert float(rate) > 0
        assert 0 < float(median) <= float(slow)
    assert "growth over 40 requests: " in shown


@pytest.mark.parametrize("wrong", ["of_batch", "maps_of"])
def test_a_wrong_map_is_found_before_anything_is_timed(monkeypatch, wrong):
    class Local(service.MapBuilder):
        def __init__(self, url, num_classes, bits):
            super().__init__(num_classes)

        def of_batch(self, batch, labels):
            return super().of_batch(batch, torch.zeros_like(labels) if wrong == "of_batch" else labels)

        def maps_of(self, batches):
            for labels in batches:
                yield super().of_batch({}, torch.zeros_like(labels))

    monkeypatch.setattr(service, "RemoteMapBuilder", Local)
    with pytest.raises(AssertionError, match="another map"):
        service.check("", service.labels((1, 16, 16)))
