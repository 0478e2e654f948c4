"""Train a pair of DINO encoders: f on S_S + S_C, g on S_S + S_I.

    python train_dino.py --config configs/dino_cifar10.yaml
    python train_dino.py --config configs/dino_cifar10.yaml \\
        --role candidate --subsets.file memorized_500_draw0.npz

Reads the config and the data set. Writes the run folder: config.yaml, subsets.npz,
environment.json, and for each seed and role (candidate, independent) encoder.pt, last.pt and
log.jsonl. The same command goes on where an interrupted run stopped; when all is finished it says
so and does nothing. Next: memorization_scores.py with the same config.
"""

from memorization.config import read_config
from memorization.machine.command import one_line_errors
from memorization.training import ROLE_ACTION, open_training_images, train_pair
from models.dino import DINO, DINOSettings
from models.encoders import make_encoder


@one_line_errors
def main(argv=None):
    config = read_config(__doc__, argv, method=DINOSettings, actions=ROLE_ACTION)
    images = open_training_images(config.data, config.device, config.threads)

    def make_method():
        encoder = make_encoder(config.encoder, images.channels, config.augmentation.size)
        return DINO(encoder, **config.method.arguments(config.training))

    train_pair(make_method, images, config)


if __name__ == "__main__":
    main()
