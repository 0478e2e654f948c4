"""What the contestants are given: made-up images, and the pipeline that others use, torchvision on
PIL images in two workers.
"""

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from memorization.data.images import Split
from memorization.data.recipes import ViewRecipe
from memorization.encoder import Encoder
from models.encoders import make_encoder

WORKERS = 2
MEAN, STD = 0.5, 0.25
# SimCLR's
RECIPE = {
    "crop_scale": [0.2, 1.0],
    "flip": 0.5,
    "jitter": 0.8,
    "jitter_strength": [0.4, 0.4, 0.4, 0.1],
    "grayscale": 0.2,
}


def simclr_recipe(size, count=2):
    return ViewRecipe(count=count, size=size, **RECIPE)


def random_encoder(settings, size, device):
    """An Encoder of images of three channels with random weights. settings: EncoderSettings."""
    network = make_encoder(settings, 3, size).eval()
    patch = getattr(network, "patch", None)
    return Encoder(settings.name, network, 3, size, normalization(3), patch).to(device)


def random_split(count, channels, size, device):
    """A Split of noise, with labels of ten classes."""
    pixels = torch.randint(
        0,
        256,
        (count, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    return Split("train", pixels, torch.arange(count) % 10).to(device)


def normalization(channels):
    return (MEAN,) * channels, (STD,) * channels


def torchvision_transform(channels, size):
    """SimCLR's recipe by torchvision, from a PIL image to a normalized tensor."""
    jitter = transforms.ColorJitter(*RECIPE["jitter_strength"])
    return transforms.Compose([
        transforms.RandomResizedCrop(size, scale=RECIPE["crop_scale"]),
        transforms.RandomHorizontalFlip(RECIPE["flip"]),
        transforms.RandomApply([jitter], RECIPE["jitter"]),
        transforms.RandomGrayscale(RECIPE["grayscale"]),
        transforms.ToTensor(),
        transforms.Normalize(*normalization(channels)),
    ])  # fmt: skip


class PilViews(Dataset):
    """Views of PIL images, drawn one image at a time."""

    def __init__(self, split, transform, views):
        C = split.pixels.shape[1]
        arrays = split.pixels.cpu().permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(array if C == 3 else array[:, :, 0]) for array in arrays]
        self.transform, self.views = transform, views

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return [self.transform(self.images[i]) for _ in range(self.views)]


def worker_pipeline(split, transform, views, batch_size):
    """A DataLoader of whole batches; each pass over it draws all images, and leaves nothing to do
    in the background.
    """
    images = PilViews(split, transform, views)
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
        pin_memory=False,
    )
