"""How well an encoder aligns views, and the memorization score: how much better f aligns them than
g (SSLMem, arXiv 2401.12233).
"""

import itertools

import torch
import torch.nn.functional as F

from memorization.machine.threads import encode_in_parts
from memorization.normalization import normalize

SAME = 1e-7  # distance of unit vectors that differ by the rounding of float32
NUMBERS_TOGETHER = 2**16  # in float64 they fit into a CPU's cache


def alignment_loss(representations):
    """How far apart an encoder places the views of each sample; small means well aligned.

    representations: (B, V, D), V >= 2 views of the same B images, l2-normalized by the caller.
    Returns (B,), the mean L2 distance over all V (V - 1) / 2 pairs of views (eq. 1 of SSLMem).
    """
    return mean_over_pairs(view_distances(representations))


def memorization_score(loss_f, loss_g):
    """L_align(g) - L_align(f), positive if f memorized the sample (eq. 2 of SSLMem)."""
    return loss_g - loss_f


def represent(encoder, views, representation="pooled"):
    """Representations of V views of the same B images, each l2-normalized.

    representation: "pooled", the encoder's output; "tokens", all its positions before pooling,
    flattened. Returns (B, V, D). Raises ValueError for tokens of masked views: their positions
    differ from view to view.
    """
    if representation == "tokens" and any(view.visible is not None for view in views):
        message = "tokens of masked views are no vectors to compare; see masked_token_distances"
        raise ValueError(message)

    def pooled(pixels, visible):
        # A network that knows no hidden patches takes pixels alone.
        return encoder(pixels) if visible is None else encoder(pixels, visible)

    def tokens(pixels, visible):
        return encoder.tokens(pixels, visible).flatten(1)

    encode = {"pooled": pooled, "tokens": tokens}[representation]
    representations = torch.stack(encode_in_parts(encode, views), dim=1)  # (B, V, D)
    return normalize(widen_half(representations), dim=2)


def widen_half(representations):
    """Casts half-precision representations to float32 before they are compared."""
    return representations.to(torch.promote_types(representations.dtype, torch.float32))


def view_distances(representations):
    """L2 distances between the views of each sample. representations: (B, V, D). Returns (B, V, V),
    zeros on the diagonal.
    """
    # Differences, not inner products: those lose half the digits if views nearly agree.
    by_differences = "donot_use_mm_for_euclid_dist"
    return torch.cdist(representations, representations, compute_mode=by_differences)


def encoder_distances(encoder, views, representation="pooled"):
    """L2 distances between an encoder's l2-normalized representations of V views of the same B
    images, (B, V, V), zeros on the diagonal.

    representation: "pooled" or "tokens", see `represent`; tokens of masked views are compared as in
    `masked_token_distances`.
    """
    if representation == "tokens" and any(view.visible is not None for view in views):
        return masked_token_distances(*masked_tokens(encoder, views))
    return view_distances(represent(encoder, views, representation))


def masked_tokens(encoder, views):
    """The tokens that a vision transformer makes of V views of the same B images, each at its
    position in the image.

    Returns tokens (B, V, 1 + T, D), the class token first, undefined if the patch is hidden; and
    is_visible (B, V, 1 + T), bool.
    """
    all_tokens, all_visible = [], []
    for view, tokens in zip(views, encode_in_parts(encoder.tokens, views)):
        T = (view.pixels.shape[2] // encoder.patch) ** 2
        tokens = widen_half(tokens)  # (B, 1 + K, D)
        positions = torch.arange(1 + T, device=tokens.device).expand(len(tokens), -1)
        if view.visible is not None:
            positions = torch.cat([positions[:, :1], 1 + view.visible], dim=1)  # (B, 1 + K)
        in_image = tokens.new_zeros(len(tokens), 1 + T, tokens.shape[2])
        all_tokens.append(in_image.scatter_(1, positions[:, :, None].expand_as(tokens), tokens))
        is_visible = torch.zeros(len(tokens), 1 + T, dtype=torch.bool, device=tokens.device)
        all_visible.append(is_visible.scatter_(1, positions, True))
    return torch.stack(all_tokens, dim=1), torch.stack(all_visible, dim=1)


def view_products(vectors):
    """Inner products between the views of each sample, (B, V, V) float64. vectors: (B, V, D).

    In float64 distances of views that nearly agree keep their digits, see `distances_by_products`;
    a matrix product is several times as fast as differences.
    """
    at_once = len(vectors)
    if vectors.device.type == "cpu":
        at_once = max(1, NUMBERS_TOGETHER // vectors[0].numel())
    parts = (part.double() for part in vectors.split(at_once))
    return torch.cat([part @ part.mT for part in parts])


def distances_by_products(products, squares=None):
    """L2 distances between the l2-normalized vectors of V views, (B, V, V) float64, zeros on the
    diagonal.

    products: of `view_products`; squares: (B, V, V), the squared norm of view i as it is compared
    with view j, None for that of the whole vector. Vectors of zeros stay zeros. Distances below
    1e-7 are 0: float32 tells no such vectors apart.
    """
    if squares is None:
        squares = products.diagonal(dim1=1, dim2=2)[:, :, None]  # (B, V, 1)
    scales = torch.where(squares == 0, 0.0, squares.rsqrt())
    lengths = (squares != 0).to(squares.dtype)  # of normalized vectors, but for those of zeros
    cosines = (products * scales).mul_(scales.mT)
    squared = cosines.mul_(-2).add_(lengths).add_(lengths.mT)
    return F.threshold_(squared, SAME**2, 0.0).sqrt_()  # which keeps NaN


def masked_token_distances(tokens, is_visible):
    """L2 distances between flattened tokens. A pair of views is compared only at the positions that
    are visible in both; the tokens there are l2-normalized together.

    Zeros for hidden tokens would measure how much the masks overlap, not the encoder. tokens: (B,
    V, T, D); is_visible: (B, V, T), bool, with at least one position that is visible in all views,
    the class token's. Returns (B, V, V), zeros on the diagonal.
    """
    B, V = is_visible.shape[:2]
    distances = tokens.new_zeros(B, V, V)
    for i, j in itertools.combinations(range(V), 2):
        in_both = (is_visible[:, i] & is_visible[:, j])[:, :, None]  # (B, T, 1)
        first, second = (
            normalize(torch.where(in_both, tokens[:, v], 0.0).flatten(1), dim=1) for v in (i, j)
        )
        distances[:, i, j] = distances[:, j, i] = (first - second).norm(dim=1)
    return distances


def mean_over_pairs(distances):
    """The mean over all V (V - 1) / 2 pairs of views. distances: (B, V, V), V >= 2, zeros on the
    diagonal. Returns (B,).
    """
    V = distances.shape[1]
    if V < 2:
        raise ValueError(f"the alignment loss compares views: {V} given, at least 2 needed")
    return distances.sum((1, 2)) / (V * (V - 1))


def jackknife_error(distances_f, distances_g):
    """Standard error of each sample's memorization score over the choice of views, by the
    jackknife that leaves out one view at a time.

    distances_f, distances_g: (B, V, V) between the same V >= 3 views, zeros on the diagonal.
    Returns (B,), sqrt((V - 1) / V sum_v (m_(-v) - mean)^2). Pairs share views, so their spread over
    sqrt(pairs) would come out three times too small.
    """
    V = distances_f.shape[1]
    if V < 3:
        raise ValueError(f"the jackknife leaves out a view: {V} given, at least 3 needed")
    distances = memorization_score(distances_f, distances_g)
    total, of_view = distances.sum((1, 2)), distances.sum(2)  # (B,), (B, V)
    without = (total[:, None] - 2 * of_view) / ((V - 1) * (V - 2))  # (B, V)
    return ((without - without.mean(1, keepdim=True)).square().sum(1) * (V - 1) / V).sqrt()
