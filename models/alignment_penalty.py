"""The alignment penalty: a regularizer that keeps an encoder from aligning its training images well
(SSLMem, arXiv 2401.12233, eq. 3), around any method.
"""

import itertools

import torch
import torch.nn as nn
import torch.nn.functional as F

from models.precision import in_full_precision

KEY = "training.alignment_penalty"


def penalize_alignment(method, weight):
    """The method under an AlignmentPenalty of this weight; a weight of 0 leaves it as it is."""
    return AlignmentPenalty(method, weight) if weight else method


class AlignmentPenalty(nn.Module):
    """A method whose loss is (1 - weight) loss - weight E d(f(x'), f(x'')) (eq. 3 of SSLMem).

    d: the distance between the l2-normalized representations of two views of full size, the largest
    among the method's views; E: the mean over their pairs and over images. f: the encoder that
    gradients train. Its representations are those that the method computes anyway: a second pass
    would update batch norms twice. All else is that of the method (see models/__init__.py).

    weight: in (0, 1). Raises ValueError if gradients train no encoder of the method.
    """

    def __init__(self, method, weight):
        super().__init__()
        self.method = method
        self.weight = weight
        encoder = getattr(method, "online_encoder", method.encoder)
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            untrained = f"{weight}, but gradients do not train the encoder of the method"
            raise ValueError(f"{KEY}: {untrained}")
        self.calls = Calls()
        encoder.register_forward_hook(self.calls.note)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("method"), name)

    def forward(self, *views):
        """Views of the same B images. Returns the loss, a scalar.

        Raises ValueError if fewer than two of them have full size, or if the method does not encode
        each of these once.
        """
        size = max(view.pixels.shape[-1] for view in views)
        V = sum(view.pixels.shape[-1] == size for view in views)
        if V < 2:
            drawn = f"{V} of the largest size, {size} pixels, is drawn (augmentation.views)"
            raise ValueError(f"{KEY}: {self.weight} needs two large views or more, but {drawn}")
        self.calls.start(size)
        try:
            loss = self.method(*views)
        finally:
            representations = self.calls.end()
        B = len(views[0].pixels)
        if sum(map(len, representations)) != V * B:
            once = "needs a method that encodes every view once, as models/__init__.py tells"
            raise ValueError(f"{KEY}: {self.weight} {once}")
        distance = mean_distance(torch.cat(representations).unflatten(0, (V, B)))
        return (1 - self.weight) * loss - self.weight * distance


class Calls:
    """What an encoder puts out for views of one size, from `start` to `end`."""

    def __init__(self):
        self.size, self.outputs = None, []

    def start(self, size):
        """Keep outputs from now on. size: of the views, pixels."""
        self.size, self.outputs = size, []

    def end(self):
        """The outputs since the start, a list of (V B, D), view by view."""
        outputs = self.outputs
        self.size, self.outputs = None, []
        return outputs

    def note(self, encoder, arguments, output):
        """A forward hook of the encoder. Tokens (B, T, D) are pooled as the encoder does."""
        if arguments[0].shape[-1] == self.size:
            self.outputs.append(output if output.ndim == 2 else encoder.pool(output))


def mean_distance(representations):
    """The mean over all pairs of views and over images of the distance between l2-normalized
    representations, a scalar, computed in at least float32.

    representations: (V, B, D), of V >= 2 views of the same B images. The gradient of a distance of
    0 is 0.
    """
    z = F.normalize(in_full_precision(representations), dim=2)
    pairs = itertools.combinations(z, 2)
    return torch.stack([(one - other).norm(dim=1) for one, other in pairs]).mean()
