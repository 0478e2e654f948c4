"""Membership: whether an attacker can tell which images an encoder was trained on."""

from memorization.measuring.membership import POOLED
from memorization.reporting.blocks import clean, interval, note, number, table, text, warning


def membership_blocks(result, place):
    """Attacks on single encoders. result: a FoundResult; place: its number among the results."""
    summary = result.summary
    question = "Can an attacker tell which images an encoder was trained on? AUC is how often an "
    question += "image that it saw gets the stronger signal of two; .5 is chance."
    columns = {"lists": None, "attack": None, "AUC": ".3f", "from": ".3f", "to": ".3f"}
    columns |= {"advantage": ".3f", "found at 1 % false positives": ".1%"}
    rows = []
    for attack, comparisons in (summary.attacks or {}).items():
        for comparison, groups in comparisons.items():
            of = groups[POOLED] if POOLED in groups else groups["f"]
            low, high = of["auc"]["interval_95"]
            at = of["rates"].get("0.01")
            hits = None if at is None else at["true_positive_rate"]["value"]
            auc = [of["auc"]["value"], low, high, of["advantage"], hits]
            rows.append([comparison, attack, *auc])
    blocks = [text(question), _table_of_losses(summary, place)]
    if rows:
        caption = "Attacks on one encoder at a time; 95 % intervals over images"
        blocks.append(table(f"membership-{place}-attacks", caption, columns, rows))
    lists = [f"{name}: {meaning}." for name, meaning in (summary.lists or {}).items()]
    return [*blocks, note(*lists, f"{summary.meaning[0].upper()}{summary.meaning[1:]}.")]


def _table_of_losses(summary, place):
    columns = {"pair of lists": None, "AUC of the alignment loss": ".3f", "from": ".3f"}
    columns |= {"to": ".3f", "untrained encoder": ".3f"}
    rows = []
    for pair, of in summary.auc.items():
        low, high = of["interval_95"]
        rows.append([pair, of["value"], low, high, summary.auc_untrained[pair]["value"]])
    caption = "How often an image that was trained on is aligned better"
    return table(f"membership-{place}-losses", caption, columns, rows)


def guards_blocks(result):
    """Whether lists can be told apart without a trained encoder: blocks; empty if an earlier
    version did not look. result: a FoundResult.
    """
    guards, shared = result.summary.guards, result.summary.duplicates or {}
    if not guards:
        return []
    rows, differences = [], []
    for guard, pairs in guards.items():
        for pair, of in pairs.items():
            rows.append([guard, pair, of["value"], *of["interval_95"]])
            if of["differs"]:
                auc = f"AUC {number(of['value'], '.3f')}, {interval(of['interval_95'], '.3f')}"
                differences.append(f"{pair} by {guard} ({auc})")
    columns = {"guard": None, "pair of lists": None, "AUC": ".3f", "from": ".3f", "to": ".3f"}
    caption = "Can lists be told apart without a trained encoder? AUC, .5 if not"
    blocks = [table("guards", caption, columns, rows)]
    if differences:
        listing = "; ".join(map(clean, differences))
        blocks.append(
            warning(f"These lists differ in something that is not membership: {listing}.")
        )
    for pair, groups in shared.items():
        stand = f"{clean(pair)}: {len(groups)} images stand in both lists, equal or nearly equal."
        blocks.append(note(stand))
    return blocks
