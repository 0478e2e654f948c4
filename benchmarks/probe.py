"""How long does a linear probe of 90 epochs take? Against encoding all images again in every epoch.

python -m benchmarks.probe [--device cpu]
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from benchmarks.contest import Contestant, chosen_device, contest, save
from benchmarks.peers import normalization, random_split
from memorization.data.augmentations import whole_images
from memorization.encoder import Encoder
from memorization.machine.threads import encode_in_parts
from memorization.measuring.linear_classifier import train_layers
from memorization.measuring.probing import ProbeSettings
from memorization.measuring.representations import stored_examples
from models.encoders import encoder_settings, make_encoder

IMAGES, SIZE, EPOCHS = 2_000, 32, 90
SETTINGS = ProbeSettings(epochs=EPOCHS)


def main():
    device = chosen_device(__doc__)
    split = random_split(IMAGES, 3, SIZE, device)
    network = make_encoder(encoder_settings(name="resnet18"), 3, SIZE).eval()
    encoder = Encoder("encoder", network, 3, SIZE, normalization(3)).to(device)
    once, again = "this project: encoded once", "encoded in every epoch (one epoch timed)"
    contestants = [
        Contestant(once, lambda: train_probe(encoder, split, device), EPOCHS),
        Contestant(again, lambda: one_epoch(network, split, device), 1),
    ]
    question = f"a linear probe of {EPOCHS} epochs, {IMAGES} images, ResNet-18"
    save("probe", contest(question, "epochs", contestants, device, rounds=3), device)


def train_probe(encoder, split, device):
    """Encode all images once, then train a linear layer."""
    examples = stored_examples(encoder, split, torch.arange(IMAGES), None, device)
    train_layers(examples, 10, SETTINGS, [(1.6, 0.0)], seed=0)


def one_epoch(network, split, device):
    """Train a linear layer for one epoch, on images that are encoded meanwhile."""
    layer = nn.Linear(network.dim, 10).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for batch in torch.arange(IMAGES).split(256):
        with torch.no_grad():
            view = whole_images(split, batch, SIZE, normalization(3))
            (values,) = encode_in_parts(network, [view])
        loss = F.cross_entropy(layer(values), split.labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
