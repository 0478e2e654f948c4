"""How well an encoder aligns views, and the memorization score: how much better f aligns them than
g (SSLMem, arXiv 2401.12233).
"""

import itertools

import torch

from memorization.machine.threads import encode_in_parts
from memorization.normalization import normalize


def alignment_loss(representations):
    """How far apart an encoder places the views of each sample; small means well aligned.

    representations: (B, V, D), V >= 2 views of the same B images, l2-normalized by the caller.
    Returns (B,), the mean L2 distance over all V (V - 1) / 2 pairs of views (eq. 1 of SSLMem).
    """
    return mean_over_pairs(view_distances(representations))


def memorization_score(loss_f, loss_g):
    """L_align(g) - L_align(f), positive where f memorized the sample (eq. 2 of SSLMem)."""
    return loss_g - loss_f


def represent(encoder, views, representation="pooled"):
    """Representations of V views of the same B images, each l2-normalized.

    representation: "pooled", the encoder's output; "tokens", all its positions before pooling,
    flattened. Returns (B, V, D). Raises ValueError for tokens of masked views, which stand at other
    positions in every view.
    """
    if representation == "tokens" and any(view.visible is not None for view in views):
        raise ValueError(
            "tokens of masked views are no vectors to compare; see masked_token_distances"
        )
    encode = {
        # A network that knows no hidden patches takes pixels alone.
        "pooled": lambda pixels, visible: (
            encoder(pixels) if visible is None else encoder(pixels, visible)
        ),
        "tokens": lambda pixels, visible: encoder.tokens(pixels, visible).flatten(1),
    }[representation]
    representations = torch.stack(encode_in_parts(encode, views), dim=1)  # (B, V, D)
    return normalize(in_single_at_least(representations), dim=2)


def in_single_at_least(representations):
    """Representations of half precision in float32, in which they are compared; others as they are."""
    return representations.to(torch.promote_types(representations.dtype, torch.float32))


def view_distances(representations):
    """L2 distances between the views of each sample. representations: (B, V, D). Returns (B, V, V),
    zeros on the diagonal.
    """
    # By differences, not by inner products, which lose half the digits where views nearly agree.
    return torch.cdist(
        representations, representations, compute_mode="donot_use_mm_for_euclid_dist"
    )


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
    """The tokens of V views of the same B images, each at its own position, of a vision
    transformer.

    Returns tokens (B, V, 1 + T, D), the class token first, undefined where a patch is hidden; and
    seen (B, V, 1 + T), bool.
    """
    tokens, seen = [], []
    for view, known in zip(views, encode_in_parts(encoder.tokens, views)):
        T = (view.pixels.shape[2] // encoder.patch) ** 2
        known = in_single_at_least(known)  # (B, 1 + K, D)
        places = torch.arange(1 + T, device=known.device).expand(len(known), -1)
        if view.visible is not None:
            places = torch.cat([places[:, :1], 1 + view.visible], dim=1)  # (B, 1 + K)
        everywhere = known.new_zeros(len(known), 1 + T, known.shape[2])
        tokens.append(everywhere.scatter_(1, places[:, :, None].expand_as(known), known))
        seen.append(
            torch.zeros(len(known), 1 + T, dtype=torch.bool, device=known.device).scatter_(
                1, places, True
            )
        )
    return torch.stack(tokens, dim=1), torch.stack(seen, dim=1)


def masked_token_distances(tokens, seen):
    """L2 distances between flattened tokens, each pair of views only at the positions that both
    see, l2-normalized after the restriction.

    Zeros for hidden tokens would measure how much the masks overlap, not the encoder. tokens: (B,
    V, T, D); seen: (B, V, T), bool, with at least one position that all views see, the class
    token's. Returns (B, V, V), zeros on the diagonal.
    """
    B, V = seen.shape[:2]
    distances = tokens.new_zeros(B, V, V)
    for i, j in itertools.combinations(range(V), 2):
        both = (seen[:, i] & seen[:, j])[:, :, None]  # (B, T, 1)
        one, other = (
            normalize(torch.where(both, tokens[:, v], 0.0).flatten(1), dim=1) for v in (i, j)
        )
        distances[:, i, j] = distances[:, j, i] = (one - other).norm(dim=1)
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
    """Standard error of each sample's memorization score over the choice of views, by leaving out
    one view at a time.

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
