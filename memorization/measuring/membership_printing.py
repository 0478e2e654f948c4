"""What the screen shows of a membership inference: guards first, then the attacks."""

from memorization.errors import escape
from memorization.machine.screen import caution, say
from memorization.measuring.membership import LISTS, POOLED
from memorization.measuring.membership_rates import RATES

NAMED = 5  # duplicates on the screen
WIDTH, GUARD, NAMES, AUCS, RATE = 40, 14, 24, 38, 27  # of columns
INDENT = 6
GUARDS = {
    "raw pixels": "raw pixels",
    "untrained encoder: representations": "untrained",
    "untrained encoder: alignment": "its alignment",
    "untrained encoder: encodermi_threshold": "its cosine",
}


def print_guards(guards, shared):
    """The guards on the screen, and a warning for every one that tells lists apart.

    guards: of `measure_guards`; shared: of `find_shared_images`.
    """
    say("\nguards: can lists be told apart without a trained encoder? AUC, .5 if not")
    say(f"{'':>{WIDTH}} {' '.join(f'{name:>{GUARD}}' for name in GUARDS.values())}")
    for pair in next(iter(guards.values())):
        words = []
        for guard in GUARDS:
            low, high = guards[guard][pair]["interval_95"]
            words.append(f"{guards[guard][pair]['value']:.3f} ± {(high - low) / 2:.3f}")
        say(f"{pair:>{WIDTH}} {' '.join(f'{word:>{GUARD}}' for word in words)}")
    for guard, of in guards.items():
        for pair, result in of.items():
            if result["differs"]:
                alone = f"{guard} alone has an AUC of {_auc(result)}"
                doubt = "these lists differ in something that is not membership"
                caution(f"membership: {pair}: {alone}: {doubt}")
    for pair, groups in shared.items():
        named = [" = ".join(f"{split} {index}" for split, index in group) for group in groups]
        more = f" and {len(groups) - NAMED} more" if len(groups) > NAMED else ""
        stand = "1 image stands" if len(groups) == 1 else f"{len(groups)} images stand"
        same = f"{stand} in both lists, equal or nearly equal"
        caution(f"membership: {pair}: {same}: {'; '.join(named[:NAMED])}{more}")


def print_summary(summary, folder):
    """The summary on the screen. folder: of the result."""
    say(f"\nalignment loss, {summary.meaning}:")
    for name, values in summary.subsets.items():
        mean, std = (f"{values[key]:.4f}" for key in ("mean", "std"))
        say(f"{name:>12}: n {values['n']}  mean {mean}  std {std}")
    say(f"{'how often a seen image is aligned better (AUC)':>48}   mean over seeds     untrained")
    for pair, of_f in summary.auc.items():
        untrained = _auc(summary.auc_untrained[pair])
        say(f"{pair:>48}   {_auc(of_f):<24} {untrained}")
    reasons = {}
    for attack, why in summary.left_out.items():
        reasons.setdefault(why, []).append(attack)
    for why, attacks in reasons.items():
        who = "each" if len(attacks) > 1 else "it"
        say(f"left out: {', '.join(attacks)}, as {who} {why}")
    _print_attacks(summary)
    _print_exposure(summary)
    say(f"\nthe results are in {escape(folder)}: membership.csv, summary.json, roc.png")


def _print_attacks(summary):
    comparisons = {}
    for attack, of_comparison in summary.attacks.items():
        for comparison, groups in of_comparison.items():
            comparisons.setdefault(comparison, {})[attack] = groups
    say("\nattacks on one encoder at a time; means over the encoders, intervals over the images")
    for name, meaning in LISTS.items():
        say(f"{name:>12}: {meaning}")
    for comparison, attacks in comparisons.items():
        pooled = POOLED in next(iter(attacks.values()))
        first = f"{'AUC f':>6}{'g':>6}  f and g" if pooled else "AUC of f"
        say(f"\n{comparison:>{NAMES}} {first:<{AUCS}} advantage")
        groups_of = {name: of[POOLED] if pooled else of["f"] for name, of in attacks.items()}
        for attack, of in groups_of.items():
            apart = [attacks[attack][name]["auc"]["value"] for name in ("f", "g") if pooled]
            result = "".join(f"{value:>6.3f}" for value in apart) + "  " * pooled + _auc(of["auc"])
            say(f"{attack:>{NAMES}} {result:<{AUCS}} {of['advantage']:>+9.3f}")
        print_rates({attack: of["rates"] for attack, of in groups_of.items()})


def print_rates(rates_of):
    """How many members are found at each false positive rate, and which rates cannot be shown.
    rates_of: {attack: its rates}.
    """
    shown = {}
    for rate in RATES:
        known = [rates[f"{rate:g}"] for rates in rates_of.values() if rates[f"{rate:g}"]]
        if known:
            shown[rate] = known[0]
    words = [
        f"{100 * rate:g} %" if rate else f"0 of {of['others_to_choose']}"
        for rate, of in shown.items()
    ]
    words[0] += " false positives"
    first = f"found of {shown[0.0]['members']:.0f} members at"
    say(f"{first:>{NAMES}} {_in_columns(words)}")
    for attack, rates in rates_of.items():
        say(f"{attack:>{NAMES}} {_in_columns([_found(rates[f'{rate:g}']) for rate in shown])}")
    for rate in RATES:
        if rate not in shown:
            needed = f"{2 / rate:,.0f} others are needed, half of them to choose the threshold"
            say(f"{'':>{INDENT}}{100 * rate:g} % false positives cannot be shown: {needed}")


def _in_columns(words):
    return " ".join(f"{word:<{RATE}}" for word in words).rstrip()


def _found(rates):
    """Members found at a false positive rate, in words."""
    if rates is None:
        return "not shown"
    of = rates["true_positive_rate"]
    low, high = (100 * bound for bound in of["interval_95"])
    return f"{100 * of['value']:.1f} % ({low:.1f} to {high:.1f}): {rates['exposed']:.1f}"


def _print_exposure(summary):
    if not summary.exposure:
        return
    say("\nis who is exposed who is memorized? rank correlation of signal and memorization score")
    say(
        f"{'':>{NAMES}} {'candidates':>24} {'external, by chance':>24} {'score by other seeds':>24}"
    )
    for attack, of in summary.exposure.items():
        words = [
            "-" if of[name] is None else _auc(of[name], "+.2f")
            for name in ("candidate", "external", "by_other_seeds")
        ]
        say(f"{attack:>{NAMES}} " + " ".join(f"{word:>24}" for word in words))


def _auc(one, form=".3f"):
    """A value with its interval."""
    low, high = one["interval_95"]
    return f"{one['value']:{form}} ({low:{form}} to {high:{form}})"
