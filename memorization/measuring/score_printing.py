"""What the screen shows of scores: subsets, tests between them, and what single images tell."""

import math
from datetime import timedelta

from memorization.data.confounders import print_class_counts
from memorization.errors import escape
from memorization.machine.screen import percent, say
from memorization.reliability import predicted_reliability, seeds_for

AIM = 0.8  # reliability for which the number of seeds is told
MORE_VIEWS = (1, 2, 4)  # times as many views as were measured
AGREEMENTS = {
    "spearman": "rank correlation",
    "kendall": "Kendall's tau",
    "overlap": "first tenth in common",
}
SCORES = ("score", "score_local")
PARTS = {"image": "the image", "training": "the training", "views": "the choice of views"}


def print_summary(summary, folder):
    """Print the summary of scores. summary: a ScoresSummary; folder: of the result."""
    _print_subsets(summary)
    print_class_counts(summary.class_counts)
    _print_tests(summary)
    _print_single_images(summary)
    if summary.ranking_reliability:
        _print_reliability(summary)
    if summary.error_of_precision:
        _print_error_of_precision(summary)
    pictures = f"{escape(folder)}: gallery.png, histogram.png, scatter.png"
    say(f"\n{summary.images_per_second:.0f} images/s; the pictures are in {pictures}")


def _print_subsets(summary):
    columns = f"{'mean score':>12} {'std. error':>11} {'range scale':>12} {'ratio':>9}"
    say(f"\n{'subset':>12} {'n':>7} {columns}")
    for name, scales in summary.subsets.items():
        raw, in_range, ratio = scales["raw"], scales["range"]["mean"], scales["ratio"]["mean"]
        means = f"{raw['mean']:>12.5f} {raw['standard_error']:>11.5f} {in_range:>12.4f}"
        say(f"{name:>12} {raw['n']:>7} {means} {ratio:>9.4f}")
    say("range scale: it depends on how many images are scored, as their extremes do")
    pair = "this pair" if len(summary.seeds) == 1 else "these pairs"
    offset = f"{summary.offset_on_unseen_images:.5f}"
    say(f"\noffset of {pair} on unseen images (mean of external): {offset}")
    for name, contrast in summary.free_of_the_offset.items():
        low, high = contrast["interval_95"]
        interval = f"95 % interval {low:.5f} to {high:.5f}"
        say(f"{name:>32}: {contrast['value']:.5f}  ({interval})")


def _print_tests(summary):
    say("\ngiven this pair, one-sided Welch tests:")
    for name, test in summary.given_this_pair["welch"].items():
        t_and_p, d = f"t {test['t']:.2f}  p {test['p']:.2g}", test["d_free_of_views"]
        free = "" if math.isnan(d) else f" ({d:.2f} free of the noise of views)"
        say(f"{name:>32}: {t_and_p}  Cohen's d {test['d']:.2f}{free}")
    if summary.over_seeds:
        say(f"\nover {len(summary.seeds)} seeds, paired t tests of the means:")
        for name, test in summary.over_seeds["paired"].items():
            difference = f"mean difference {test['mean_difference']:.5f}"
            say(f"{name:>32}: t {test['t']:.2f}  p {test['p']:.2g}  {difference}")


def _print_single_images(summary):
    """How many candidates stand out from S_E, and how many of those that do are false."""
    images = summary.single_images
    say(f"\nsingle images, against the scores of {images['external']} external images:")
    for name in sorted(SCORES, key=lambda name: name != summary.headline):
        counts = images[name]
        if counts.get("unlike_all_external") == images["candidates"]:
            say(f"{name:>12}: none: too few external images, or none like the candidates")
            continue
        beyond = f"{counts['q < 0.1']} of {images['candidates']} candidates stand out at q < .1"
        first = f"{percent(counts['false_share_of_first_16'])} of the first 16"
        tenth = f"{percent(counts['false_share_of_first_tenth'])} of the first tenth"
        say(f"{name:>12}: {beyond}, {counts['q < 0.05']} at q < .05")
        say(f"{'':>12}  expected to be false: at most {first}, {tenth}")
        if name == "score_local":
            _print_local_offset(images)
    say(f"single images are ranked by {summary.headline}")
    if not summary.ranking_reliability:
        noise = f"noise of S_E {images['noise']:.4f}, mean effect {images['mean_effect']:.4f}"
        say(f"{noise}: one pair does not tell which single images are memorized; train more seeds")


def _print_local_offset(images):
    """What was subtracted for the local score, and how many candidates have none."""
    explained = min(images["local_offset_explains"]), max(images["local_offset_explains"])
    share = " to ".join(f"{value:.0%}" for value in dict.fromkeys(explained))
    say(f"{'':>12}  less what external images of a kind score, {share} of their variance")
    unlike = images["score_local"]["unlike_all_external"]
    if unlike:
        say(f"{'':>12}  {unlike} candidates are unlike all external images: no local score")


def _print_reliability(summary):
    """How well the ranking of candidates repeats, S_E's beside it."""
    reliability, seeds = summary.ranking_reliability, len(summary.seeds)
    say(f"\nhow well the ranking of {seeds} seeds repeats    candidate   external")
    candidate, external = (reliability[name] for name in ("candidate", "external"))

    def say_both(words, of_candidate, of_external):
        say(f"{words:>43} {of_candidate:>10.2f} {of_external:>10.2f}")

    for pairs, of in (
        ("between_seeds", "two seeds"),
        ("between_halves", "two halves of the seeds"),
    ):
        for measure, words in AGREEMENTS.items():
            if candidate[pairs]:
                means = [one[pairs][measure]["mean"] for one in (candidate, external)]
                say_both(f"{words}, {of}", *means)
    say_both("reliability of the mean", candidate["predicted"], external["predicted"])
    low, high = candidate["predicted_interval_95"]
    say(f"{'95 % interval over images':>43} {f'{low:.2f} to {high:.2f}':>10}")
    overlap = "predicted_overlap_of_first_tenth"
    say_both("so first tenth in common", candidate[overlap], external[overlap])
    variances = candidate["components"]
    shares = {words: max(variances[name]["value"], 0.0) for name, words in PARTS.items()}
    total = sum(shares.values())
    if total:
        parts = [f"{words} {share / total:.0%}" for words, share in shares.items()]
        say(f"variance of the scores of one seed: {', '.join(parts)}")
    if seeds_for(variances, AIM) is None:
        say("nothing of an image's score repeats; more seeds of this experiment will not help")
    else:
        say(f"a reliability of {AIM} takes {seeds_for(variances, AIM)} seeds; --plan tells more")


def print_plan(summary, seconds):
    """What more seeds and views would give. summary: a ScoresSummary of several seeds; seconds:
    that one seed took to train and to score, or None if that is not known.
    """
    candidate, views = summary.ranking_reliability["candidate"], summary.settings["views"]
    variances = candidate["components"]
    mean = f"reliability of the mean {summary.headline} of a candidate"
    say(f"{mean}, measured with {len(summary.seeds)} seeds:")
    say(f"{'seeds':>8}" + "".join(f"{f'{views * times} views':>12}" for times in MORE_VIEWS))
    for seeds in (1, 2, 4, 8, 16, 32, 64):
        values = [predicted_reliability(variances, seeds, times) for times in MORE_VIEWS]
        say(f"{seeds:>8}" + "".join(f"{value:>12.2f}" for value in values))
    for aim in (0.5, AIM, 0.9):
        seeds = seeds_for(variances, aim)
        if seeds is None:
            return say("nothing of an image's score repeats: no number of seeds is enough")
        time = (
            "" if seconds is None else f": about {timedelta(seconds=round(seeds * seconds))} here"
        )
        say(f"reliability {aim} takes {seeds} seeds{time}")


def _print_error_of_precision(summary):
    off = summary.error_of_precision["score_error"]
    by_views = summary.error_of_precision["standard_error_of_scores"]
    against = f"{summary.settings['precision']}, against fp32 on {off['n']} images of one seed"
    say(f"\n{against}: scores are off by {off['mean']:.2g} on average,")
    spread = f"std {off['std']:.2g}, at most {off['largest']:.2g}"
    say(f"{spread}; the choice of views alone leaves a standard error of {by_views:.2g}")
