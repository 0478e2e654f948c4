"""What dejavu.py prints of a result."""

from memorization.errors import escape
from memorization.machine.screen import say


def print_summary(summary, folder):
    """A table of the scores, and the chance level beside it."""
    words, public = summary.words, summary.public
    k = f"k {public.k} of {public.images} public images"
    say(f"\n{summary.checkpoint.name}: query {summary.query}, {k}")
    names = f"{words.target:>9} {words.reference:>10} {words.score:>14}"
    say(f"{'seed':>6} {'surest':>8} {names}   95 % interval")
    for seed in summary.seeds:
        _print_seed(seed, words)
    if summary.caveat:
        say(f"{summary.caveat}; what f knows of images in general is in the difference, too")
    always = f"always {summary.majority.label!r}, the most frequent public label"
    say(f"chance {summary.chance:.1%}; {always}: {summary.majority.accuracy:.1%}")
    _print_comparison(summary.memorization_scores)
    say(f"searched in {summary.representation}")
    pictures = f"the pictures are in {escape(folder)}: confidence.png, shares.png, cases.png"
    say(f"{summary.seconds:.0f} s; {pictures}")


def _print_seed(seed, words):
    """The lines of one seed."""
    for percent, at in seed.at.items():
        low, high = at.interval_95
        accuracies = f"{at.acc_target:>9.1%} {at.acc_reference:>10.1%} {at.score:>+14.1%}"
        say(f"{seed.seed:>6} {percent:>6} % {accuracies}   {low:+.1%} to {high:+.1%}")
    shares = [f"{words.outcomes[name]} {share:.1%}" for name, share in seed.shares.items()]
    p = f"McNemar's p {seed.net['mcnemar_p']:.2g}{words.tested}"
    say(f"       {', '.join(shares)}; {p}; vote ties {seed.vote_ties}")
    for reason, n_images in seed.dropped.items():
        say(f"       {n_images} images dropped: {reason}")
    for fault, n_images in seed.boxes.items():
        if n_images:
            say(f"       {n_images} {fault}")
    known = {name: share for name, share in seed.knn_accuracy_whole.items() if share is not None}
    knn = ", ".join(f"{name} {share:.1%}" for name, share in known.items())
    say(f"       kNN accuracy on whole test images: {knn}")


def _print_comparison(comparison):
    """How alike Deja Vu and the memorization score rank candidates, and two seeds of either."""
    if comparison is None:
        missing = "none by these settings, or no encoder g to check them against"
        return say(f"not compared with memorization scores: {missing}")
    in_common = f"have this share of their first {comparison.top} in common"
    by_chance = f"{comparison.top_overlap_by_chance:.1%} by chance"
    say(f"of {comparison.candidates} candidates two rankings {in_common} ({by_chance}):")
    agreements = {
        "Deja Vu and memorization score": comparison.deja_vu_and_score,
        "Deja Vu of two seeds": comparison.deja_vu_between_seeds,
        "memorization score of two seeds": comparison.score_between_seeds,
    }
    for name, agreement in agreements.items():
        if agreement is not None:
            tau = f"Kendall's tau {agreement.kendall_tau:+.2f}"
            say(f"{name:>38} {agreement.top_overlap:.1%}, {tau}")
