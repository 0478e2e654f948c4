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
from memorization.measuring.probing import ProbeSettings, train_layers
from memorization.measuring.representations import stored_examples
from models.encoders import encoder_settings, make_encoder

IMAGES, SIZE, EPOCHS = 2_000, 32, 90
SETTINGS = ProbeSettings(epochs=EPOCHS)


def main():
    device = chosen_device(__doc__)
    split = random_split(IMAGES, 3, SIZE, device)
    encoder = (
        make_encoder(encoder_settings(name="resnet18"), 3, SIZE)
        .eval()
        .to(device, memory_format=torch.channels_last)
    )
    source = Encoder("encoder", encoder, 3, SIZE, normalization(3))
    contestants = [
        Contestant("this project: encoded once", lambda: probed(source, split, device), EPOCHS),
        Contestant(
            "encoded in every epoch (one epoch timed)", lambda: one_epoch(encoder, split, device), 1
        ),
    ]
    results = contest(
        f"a linear probe of {EPOCHS} epochs, {IMAGES} images, ResNet-18",
        "epochs",
        contestants,
        device,
        rounds=3,
    )
    save("probe", results, device)


def probed(source, split, device):
    examples = stored_examples(source, split, torch.arange(IMAGES), None, device)
    train_layers(examples, 10, SETTINGS, [(1.6, 0.0)], seed=0)


def one_epoch(encoder, split, device):
    layer = nn.Linear(encoder.dim, 10).to(device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for batch in torch.arange(IMAGES).split(256):
        with torch.no_grad():
            values = encode_in_parts(encoder, [whole_images(split, batch, SIZE, normalization(3))])[
                0
            ]
        loss = F.cross_entropy(layer(values), split.labels[batch].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main()
