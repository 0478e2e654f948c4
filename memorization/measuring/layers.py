"""Layers: how much better f aligns the views of an image than g does, at every layer.

    LayerMem(l) = mean over images x of (L_g^l(x) - L_f^l(x)) / (L_g^l(x) + L_f^l(x))

L^l is the alignment loss of what comes out of layer l: the mean L2 distance between its flattened,
l2-normalized outputs for two views of x, over all pairs of views (Localizing Memorization in SSL
Vision Encoders, NeurIPS 2024, arXiv 2409.19069). At the last layer it is score_ratio of the
representation `tokens`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from memorization.alignment import distances_by_products, mean_over_pairs, view_products
from memorization.data.augmentations import View
from memorization.errors import WrongUse
from memorization.fields import Distinct
from memorization.machine import processes, threads
from memorization.measuring.scores import check_encoders, draw_views
from memorization.results import MeasurementSettings
from models.layers import choose_layers, watching

FEWEST = 10  # images: a mean over fewer says nothing


class LayerSettings(MeasurementSettings):
    """How memorization is measured layer by layer. Views are those of scores."""

    images: int = Field(
        1000,
        ge=FEWEST,
        le=10**6,
        description="so many images of each subset, the first by hash; at most so many of the most "
        "and of the least memorized tenth of the candidates",
    )
    representation: Literal["tokens", "pooled"] = Field(
        "tokens",
        description="all positions of a layer, or what the encoder's pooling makes of them",
    )
    names: Annotated[list[str], Field(min_length=1), Distinct] | None = Field(
        None, description="layers to measure; null for all"
    )
    batch_size: int = Field(
        64,
        ge=1,
        le=10**6,
        description="images worked on together; numbers do not depend on it, but for rounding",
    )

    SCRIPT = "layer_memorization.py"
    PLAIN = {"representation": "tokens"}
    WITHOUT_G = "unit_memorization.py measures the units of f alone"
    BUILT_ON = DETERMINED_BY = ("scores",)  # their views, and the most and least memorized images

    def determining(self):
        """The names of the settings that determine the numbers of a result."""
        return ["representation", "images", "names"]


@dataclass(frozen=True, eq=False)
class WatchedEncoder:
    """An Encoder on its device, and some of its layers. layers: Layers of its network, in order;
    depths: the place of each among all layers of the network, from 1. representation: "tokens" or
    "pooled".
    """

    encoder: object
    layers: list
    depths: list
    representation: str

    @property
    def names(self):
        """The names of the layers, a list."""
        return [layer.name for layer in self.layers]


def watch_pair(pair, settings, images, recipes, scoring):
    """The WatchedEncoders of f and of g, a list. settings: LayerSettings; images, recipes, scoring:
    see `align_layers`.

    Raises WrongUse if they take other images, if they have no layers, or if no layer has a name
    that is asked for.
    """
    check_encoders(pair.f, pair.g, images)
    view = draw_views(pair.f, images, torch.tensor([0]), recipes, scoring)[0][0]
    return [_watch(encoder.to(images.device), settings, view) for encoder in pair]


def _watch(encoder, settings, view):
    find = getattr(encoder.network, "find_layers", None)
    layers = find(*view) if find else []
    if not layers:
        raise WrongUse(f"layers: {encoder.place}: its network has no layers that can be watched")
    chosen = layers
    if settings.names is not None:
        try:
            chosen = choose_layers(layers, settings.names, "layers.names")
        except ValueError as error:
            raise WrongUse(str(error)) from None
    depths = [1 + layers.index(layer) for layer in chosen]
    return WatchedEncoder(encoder, chosen, depths, settings.representation)


def align_layers(watched, images, indices, recipes, scoring):
    """The alignment losses of images at every layer of f and of g, (2, N, L) float64.

    watched: of `watch_pair`; images: a Split on the device of the encoders; indices: (N,) integers,
    which of its images; recipes: a list of ViewRecipe; scoring: a Scoring, for its views,
    precision, batch_size and seed. The views are those of `score_images`. All layers come from one
    pass through each encoder. Raises WrongUse if a layer is not finite.
    """
    f, g = watched
    with (
        watching(f.encoder.network, f.layers) as watch_f,
        watching(g.encoder.network, g.layers) as watch_g,
    ):

        @torch.inference_mode()
        def align(batch):
            views, autocast = draw_views(f.encoder, images, batch, recipes, scoring)
            with autocast:
                both = [_align_batch(f, watch_f, views), _align_batch(g, watch_g, views)]
            losses = torch.stack(both).cpu()
            for one, of_one in zip(watched, losses):
                _check_finite(one, of_one)
            return losses

        batches = torch.as_tensor(indices).split(scoring.batch_size)
        parts = processes.map_in_processes(align, batches, f"layers of seed {scoring.seed}")
    return torch.cat(parts, dim=1).numpy()


def _align_batch(watched, watch, views):
    """The alignment losses of a batch at every layer, (B, L) float64. watch: of `watching`."""
    B, _, height, width = views[0].pixels.shape
    device = views[0].pixels.device

    def align(images):
        return _align_part(watched, watch, [_rows(view, images) for view in views])

    parts = threads.divide_images(B, len(views), height * width, device)
    return torch.cat(threads.map_in_threads(align, parts, device))


def _align_part(watched, watch, views):
    """The same of a few images: all their views go through the network together, but those whose
    masks show other numbers of patches. Of what comes out of a layer only products of views are
    kept.
    """
    groups = {}
    for view in views:
        groups.setdefault(None if view.visible is None else view.visible.shape[1], []).append(view)
    products = _Products(watched, list(groups.values()))
    for group in groups.values():
        pixels, visible = _join([view.pixels for view in group]), None
        if group[0].visible is not None:
            visible = _join([view.visible for view in group])
        watch(pixels, visible, products.visit)
    return products.losses()


class _Products:
    """Products of V views of B images at every layer; see `view_products`.

    groups: lists of View, each of one pass; what comes out of a layer waits until all are through.
    """

    def __init__(self, watched, groups):
        self.watched, self.groups, self.B = watched, groups, len(groups[0][0].pixels)
        self._waiting, self._products, self._squares, self._canvases = {}, {}, {}, {}
        self._is_visible, views = None, sum(groups, [])
        if watched.representation == "tokens" and any(view.visible is not None for view in views):
            n_patches = views[0].pixels[0, 0].numel() // watched.encoder.patch**2
            # (B, V, 1 + T)
            self._is_visible = torch.stack([_see(view, n_patches) for view in views], dim=1)
            self._places = self._find_places()

    def visit(self, layer, output):
        """Take what comes out of a layer for the next group, (B V, T, D)."""
        if self.watched.representation == "pooled":
            output = self.watched.encoder.network.pool(output)[:, None]
        waiting = self._waiting.setdefault(layer, [])
        # the next layer may overwrite it
        waiting.append(output if len(self.groups) == 1 else output.clone())
        if len(waiting) < len(self.groups):
            return
        outputs = self._waiting.pop(layer)
        if self._is_visible is None:
            views = [output.unflatten(0, (self.B, -1)) for output in outputs]  # (B, V, T, D)
            views = views[0] if len(views) == 1 else torch.cat(views, dim=1)
            self._products[layer] = view_products(views.flatten(2))
        else:
            self._multiply_masked(layer, torch.cat([output.flatten(0, 1) for output in outputs]))

    def _multiply_masked(self, layer, tokens):
        """The products of views that are compared at the positions that are visible in both; see
        `masked_token_distances`. tokens: (rows, D), all that are visible.
        """
        tokens, shape = tokens.double(), self._is_visible.shape
        if tokens.shape[1] not in self._canvases:
            empty = tokens.new_zeros(self._is_visible.numel(), tokens.shape[1])
            self._canvases[tokens.shape[1]] = empty
        # hidden positions stay zeros, as they are the same at all layers
        canvas = self._canvases[tokens.shape[1]].index_copy_(0, self._places, tokens)
        self._products[layer] = view_products(canvas.view(*shape[:2], -1))
        squares = tokens.new_zeros(self._is_visible.numel())
        squares = squares.index_copy_(0, self._places, tokens.square().sum(1)).view(shape)
        self._squares[layer] = squares @ self._is_visible.double().mT  # (B, V, V)

    def losses(self):
        """The alignment losses at every layer, (B, L)."""
        products = torch.cat([self._products[layer] for layer in self.watched.layers])  # (LB, V, V)
        squares = None
        if self._squares:
            squares = torch.cat([self._squares[layer] for layer in self.watched.layers])
        losses = mean_over_pairs(distances_by_products(products, squares))
        return losses.unflatten(0, (-1, self.B)).T

    def _find_places(self):
        """The place among all B V (1 + T) tokens of each that comes out, group after group."""
        B, V, n_tokens = self._is_visible.shape
        numbers = torch.arange(B * V * n_tokens, device=self._is_visible.device)
        numbers, start, places = numbers.view(B, V, n_tokens), 0, []
        for group in self.groups:
            of_group = numbers[:, start : start + len(group)].flatten(0, 1)  # (B V, 1 + T)
            start += len(group)
            if group[0].visible is not None:
                patches = of_group[:, 1:].gather(1, _join([view.visible for view in group]))
                of_group = torch.cat([of_group[:, :1], patches], dim=1)  # (B V, 1 + K)
            places.append(of_group.flatten())
        return torch.cat(places)


def _rows(view, images):
    """Some images of a View. images: a slice."""
    return View(view.pixels[images], None if view.visible is None else view.visible[images])


def _join(views):
    """(B, ...) tensors of V views as one, (B V, ...), the views of an image beside each other."""
    return torch.stack(views, dim=1).flatten(0, 1)


def _see(view, n_patches):
    """Which tokens of a View there are, the class token first: (B, 1 + T) bool."""
    shape, device = (len(view.pixels), 1 + n_patches), view.pixels.device
    if view.visible is None:
        return torch.ones(shape, dtype=torch.bool, device=device)
    is_visible = torch.zeros(shape, dtype=torch.bool, device=device)
    is_visible[:, 0] = True
    return is_visible.scatter_(1, 1 + view.visible, True)


def _check_finite(watched, losses):
    """Raise WrongUse if a layer is NaN or infinite. losses: (B, L)."""
    is_finite = losses.isfinite().all(0)
    if not is_finite.all():
        name = watched.names[int((~is_finite).int().argmax())]
        raise WrongUse(f"{watched.encoder.place}: layer {name}: what comes out is not finite")
