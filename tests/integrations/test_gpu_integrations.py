"""MONAI's and Lightning's batches on a GPU: the maps are built there, and the losses are those of the CPU."""

import lightning as L
import pytest
import torch
from loss_cases import loss_and_gradient, random_labels, random_logits
from monai.data import MetaTensor
from torch.utils.data import DataLoader, TensorDataset

import rwkernels as rw
from rwkernels.integrations.lightning import BatchMaps, RegionWiseMaps
from rwkernels.integrations.monai import RegionWiseLoss, RegionWiseMap

pytestmark = pytest.mark.gpu

CLASSES = 3


@pytest.mark.parametrize("softmax", [True, False], ids=["logits", "probabilities"])
@pytest.mark.parametrize("maps", ["rectified", "boundary"])
def test_monais_loss_on_a_gpu_is_that_on_the_cpu(maps, softmax):
    affine = torch.diag(torch.tensor([0.5, 2.0, 1.0, 1.0], dtype=torch.float64)).repeat(2, 1, 1)
    target = MetaTensor(random_labels((2, 1, 24, 36), CLASSES), affine=affine)
    target.is_batch = True
    loss_fn = RegionWiseLoss(to_onehot_y=True, softmax=softmax, maps=maps)
    logits = random_logits((2, CLASSES, 24, 36))

    def loss(x, device):
        return loss_fn(x if softmax else x.softmax(1), target.to(device))

    found, gradient = loss_and_gradient(lambda x: loss(x, "cuda"), logits.cuda())
    expected, true_gradient = loss_and_gradient(lambda x: loss(x, "cpu"), logits)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.cpu(), true_gradient, rtol=1e-4, atol=1e-6)


def test_monais_transform_leaves_the_map_where_the_label_is():
    label = MetaTensor(random_labels((1, 24, 36), CLASSES), affine=torch.eye(4))
    found = RegionWiseMap(CLASSES)(label.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu().as_tensor(), RegionWiseMap(CLASSES)(label).as_tensor())


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_lightning_builds_the_map_of_a_batch_on_its_device():
    class Model(RegionWiseMaps, L.LightningModule):
        region_wise_maps = BatchMaps(CLASSES)

        def __init__(self):
            super().__init__()
            self.network = torch.nn.Conv2d(1, CLASSES, 3, padding=1)

        def training_step(self, batch, batch_idx):
            images, labels, maps = batch
            assert images.is_cuda
            assert maps.foreground.is_cuda
            expected = rw.rectified_map(labels.cpu(), CLASSES)
            torch.testing.assert_close(maps.foreground.cpu(), expected.foreground, rtol=1e-5, atol=1e-6)
            return rw.region_wise_loss(self.network(images), maps)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = TensorDataset(torch.randn(4, 1, 24, 36), random_labels((4, 24, 36), CLASSES))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(accelerator="gpu", devices=1, fast_dev_run=2, **quiet).fit(Model(), DataLoader(data, batch_size=2))
