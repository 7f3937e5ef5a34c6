"""A service that owns a GPU answers with the maps that the GPU makes in this process."""

import pytest
import torch

pytest.importorskip("grpc", reason="needs the extra `service`")
from service_cases import served, some_labels

import rwkernels as rw
from rwkernels.maps.quantised import decode, encode
from rwkernels.service import RemoteMapBuilder

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def server():
    with served("--device", "cuda") as found:
        yield found


@pytest.mark.parametrize("bits", [None, 16, 8])
@pytest.mark.parametrize("streamed", [True, False])
def test_rectified_maps_of_a_gpu_arrive_on_the_device_of_the_labels(server, bits, streamed):
    builder = RemoteMapBuilder(server.url, 3, bits=bits, ignore_index=2)
    batches = [some_labels(2, 160, 128, seed=seed).to("cuda" if seed % 2 else "cpu") for seed in range(12)]
    found = list(builder.maps_of(batches)) if streamed else [builder.of_batch({}, batch) for batch in batches]
    for maps, batch in zip(found, batches, strict=True):
        expected = rw.rectified_map(batch.cuda(), 3, ignore_index=2)
        values = expected.foreground.cpu()
        if bits is not None:
            values = decode(encode(values, bits))
        assert maps.foreground.device == batch.device
        assert torch.equal(maps.foreground.cpu(), values)
        assert torch.equal(maps.image_count.cpu(), expected.image_count.cpu())


def test_boundary_maps_and_wrong_labels(server):
    labels = some_labels(2, 96, 96)
    found = RemoteMapBuilder(server.url, 3, maps="boundary").of_batch({}, labels)
    assert torch.equal(found, rw.boundary_map(labels.cuda(), 3).cpu())
    with pytest.raises(ValueError, match="labels: expected"):
        RemoteMapBuilder(server.url, 2).of_batch({}, labels)
    assert server.metric('rwkernels_requests_total{outcome="answered"}') > 0
