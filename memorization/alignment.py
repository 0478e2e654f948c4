"""How well an encoder aligns views, and the memorization score: how much better f aligns them than g (SSLMem, arXiv 2401.12233)."""

import torch
import torch.nn.functional as F


def represent(encoder, views, representation="pooled"):
    """Representations of V views of the same B images, each l2-normalized.

    representation: "pooled", the encoder's output; "tokens", all its positions before pooling, flattened. Returns (B, V, D).
    """
    encode = {"pooled": encoder, "tokens": lambda pixels, visible: encoder.tokens(pixels, visible).flatten(1)}[representation]
    representations = torch.stack([encode(view.pixels, view.visible) for view in views], dim=1)  # (B, V, D)
    return F.normalize(representations, dim=2)


def view_distances(representations):
    """L2 distances between the views of each sample. representations: (B, V, D). Returns (B, V, V), zeros on the diagonal."""
    # By differences, not by inner products, which lose half the digits where views nearly agree.
    return torch.cdist(representations, representations, compute_mode="donot_use_mm_for_euclid_dist")


def alignment_loss(representations):
    """How far apart an encoder places the views of each sample; small means well aligned.

    representations: (B, V, D), V >= 2 views of the same B images, l2-normalized by the caller.
    Returns (B,), the mean L2 distance over all V (V - 1) / 2 pairs of views (eq. 1 of SSLMem).
    """
    V = representations.shape[1]
    if V < 2:
        raise ValueError(f"the alignment loss compares views: {V} given, at least 2 needed")
    return view_distances(representations).sum((1, 2)) / (V * (V - 1))


def memorization_score(loss_f, loss_g):
    """L_align(g) - L_align(f), positive where f memorized the sample (eq. 2 of SSLMem)."""
    return loss_g - loss_f


def jackknife_error(representations_f, representations_g):
    """Standard error of each sample's memorization score over the choice of views, by leaving out one view at a time.

    representations_f, representations_g: (B, V, D) of the same V >= 3 views, l2-normalized. Returns (B,),
    sqrt((V - 1) / V sum_v (m_(-v) - mean)^2). Pairs share views, so their spread over sqrt(pairs) would come out three times too small.
    """
    V = representations_f.shape[1]
    if V < 3:
        raise ValueError(f"the jackknife leaves out a view: {V} given, at least 3 needed")
    distances = memorization_score(view_distances(representations_f), view_distances(representations_g))  # (B, V, V)
    total, of_view = distances.sum((1, 2)), distances.sum(2)  # (B,), (B, V)
    without = (total[:, None] - 2 * of_view) / ((V - 1) * (V - 2))  # (B, V)
    return ((without - without.mean(1, keepdim=True)).square().sum(1) * (V - 1) / V).sqrt()
