"""Names as people write them."""

from memorization.reporting.blocks import clean

TITLES = {
    "simclr": "SimCLR",
    "byol": "BYOL",
    "dino": "DINO",
    "mae": "MAE",
    "mocov3": "MoCo v3",
    "simsiam": "SimSiam",
    "barlowtwins": "Barlow Twins",
    "vicreg": "VICReg",
    "import": "imported encoders",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "stl10": "STL-10",
    "gtsrb": "GTSRB",
    "image_folder": "images of a folder",
    "manifest": "images of a manifest",
    "fake": "made-up images",
}


def title_of(name):
    """The title of a method or a data set; others are called as they are in the config."""
    return TITLES.get(name, clean(name))
