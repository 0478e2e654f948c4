"""DP-SGD, training with differential privacy (Abadi et al. 2016, arXiv 1607.00133), by the package
Opacus, around any method whose loss is a mean over images.
"""

import torch
import torch.nn as nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.foreign import INSTALL

KEY = "training.privacy"
MOST_BYTES = 2**28  # of the gradients of images that are held at a time


class PrivateLoss:
    """A method's loss, whose gradient is (sum of the images' clipped gradients + noise) /
    batch_size (algorithm 1 of the paper, with the expected size of a batch as its size).

    The gradient of each image's own loss is scaled down to a norm of at most `clip`, over all
    weights together. Noise is normal, its standard deviation is noise_multiplier x clip. Opacus
    clips, and draws the noise. torch.func computes the gradients of images: Opacus' own hooks see
    no weight that is used outside of its module's forward pass.

    method, optimizer: of the weights; settings: has noise_multiplier and clip; batch_size: the
    expected one; noise_seed: () -> int, of the current step. Raises ValueError if Opacus is
    missing.
    """

    def __init__(self, method, optimizer, settings, batch_size, noise_seed):
        self.method, self.batch_size, self.noise_seed = method, batch_size, noise_seed
        named = method.named_parameters()
        self.weights = {name: weight for name, weight in named if weight.requires_grad}
        self.generator = torch.Generator(next(iter(self.weights.values())).device)
        self.private = import_opacus().optimizers.DPOptimizer(
            optimizer,
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.clip,
            expected_batch_size=batch_size,
            generator=self.generator,
        )

    def __call__(self, *views):
        """Views of the same B images; B may be 0. Returns the sum of the losses over batch_size, a
        scalar. Its gradient is the private one.
        """
        total = torch.zeros((), device=views[0].pixels.device)
        for part in _split_views(views, self._images_at_a_time()):
            gradients, losses = self._differentiate(part)
            total = total + losses.sum()
            with torch.autocast(total.device.type, enabled=False):
                self._add_clipped(gradients)
        self.generator.manual_seed(self.noise_seed())
        self.private.add_noise()
        self.private.scale_grad()
        # linear in the weights, with the value of the loss: its gradient is the private one
        loss = total / self.batch_size
        for weight in self.weights.values():
            loss = loss + ((weight - weight.detach()) * weight.grad).sum()
            weight.grad = weight.summed_grad = weight.grad_sample = None
        return loss

    def _images_at_a_time(self):
        return max(1, MOST_BYTES // sum(weight.nbytes for weight in self.weights.values()))

    def _differentiate(self, views):
        """The gradient of each image's loss, {name: (B, *shape)}, and its loss, (B,)."""
        if len(views[0].pixels) == 0:
            named = self.weights.items()
            gradients = {name: weight.new_zeros(0, *weight.shape) for name, weight in named}
            return gradients, views[0].pixels.new_zeros(0)

        def loss_of_image(weights, views):
            batch = [_map_view(view, lambda part: part[None]) for view in views]
            return functional_call(self.method, weights, tuple(batch))

        weights = {name: weight.detach() for name, weight in self.weights.items()}
        dims = [_map_view(view, lambda part: 0) for view in views]
        # vmap takes the other kernels of attention image by image
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(grad_and_value(loss_of_image), in_dims=(None, dims))(weights, views)

    def _add_clipped(self, gradients):
        """Add the clipped gradients of images, {name: (B, *shape)}, to the sum."""
        for name, weight in self.weights.items():
            weight.grad_sample = gradients[name]
        self.private.clip_and_accumulate()


def check_private(method, name):
    """Raise ValueError if there is no private training of a method, or if Opacus is missing.

    name: of the method.
    """
    if not getattr(method, "is_mean_over_images", False):
        others = f"{name} compares the images of a batch, or keeps statistics of them"
        raise ValueError(f"{KEY}: not allowed: {others}, so no image has a gradient of its own")
    for part, module in method.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            norm = f"the method has a batch norm ({part}), so no image has a gradient of its own"
            raise ValueError(f"{KEY}: not allowed: {norm}")
    import_opacus()


def import_opacus():
    """The package. Raises ValueError if it is missing."""
    try:
        import opacus
        import opacus.accountants
        import opacus.optimizers
    except ModuleNotFoundError as error:
        if error.name != "opacus":
            raise
        raise ValueError(f"{KEY}: the package opacus is missing; {INSTALL}") from None
    return opacus


def _split_views(views, n_images):
    """The views of at most so many images at a time, a list of lists, which is never empty."""

    def take(start):
        return [_map_view(view, lambda part: part[start : start + n_images]) for view in views]

    return [take(start) for start in range(0, max(1, len(views[0].pixels)), n_images)]


def _map_view(view, function):
    """A view whose tensors went through a function."""
    return view._replace(
        pixels=function(view.pixels),
        visible=None if view.visible is None else function(view.visible),
    )
