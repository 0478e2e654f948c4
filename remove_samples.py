"""Remove the most memorized samples, and others for comparison, from f's training set; retrain, and
see what downstream accuracy loses.

    python remove_samples.py --config configs/removal_cifar10_simclr.yaml
    python remove_samples.py --config configs/removal_cifar10_simclr.yaml --retrain
    python remove_samples.py --config configs/removal_cifar10_simclr.yaml --retrain --jobs list
    python remove_samples.py --config configs/removal_cifar10_simclr.yaml --retrain --jobs 0/4

Reads the run folder (subsets.npz, scores/, encoder.pt) and the data set. Writes
removal/subsets/<policy>_<count>_draw<d>.npz, each a training set of f alone that train_<method>.py
takes by --subsets.file with --role candidate. With --retrain trains f's encoder on each, for every
seed, probes it on every data set, and writes removal/summary.json, curve.csv and curve.png. Work
that is done is kept: the same command goes on where it was. --jobs list tells the retrainings,
--jobs 0/4 does a quarter of them and leaves the curve for later.
"""

import csv
import hashlib
import io
import json
import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from memorization.checkpoint import encoder_file, folder_of, load_pair, load_trained
from memorization.config import read_run_config
from memorization.data.images import open_images
from memorization.data.subsets import load_subsets, save_subsets
from memorization.errors import WrongUse, escape
from memorization.figures import draw_removal_curve
from memorization.fingerprints import first_difference
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.files import (
    check_writable,
    exists,
    parse_json,
    read_text,
    refuse_broken,
    sole_process,
    write_json,
)
from memorization.machine.interruption import run_child, stop_requests
from memorization.machine.resources import memory_for, print_estimate
from memorization.measuring.probing import ProbeSettings, prepared_for_probing, probe, probed_data
from memorization.measuring.removal import (
    DRAWN,
    distances_to_centres,
    duplicate_groups,
    removal_order,
    remove_in_order,
)
from memorization.measuring.representations import encode_images, raw_pixels
from memorization.results import Summary
from memorization.run import open_run
from memorization.significance import mean_and_spread, paired_test
from memorization.training import whole_lines

ACTIONS = {
    "jobs": "with --retrain: list tells the retrainings, I/N does part I (from 0) of N and leaves the curve for later"
}
FLAGS = {"retrain": "train f's encoder on each reduced set, probe it, and draw the curve"}
COLUMNS = ["dataset", "policy", "count", "draw", "seed", "top_1"]


@dataclass(frozen=True)
class Removal:
    """One reduced training set."""

    policy: str
    count: int
    draw: int

    @property
    def name(self):
        return f"{self.policy}_{self.count}_draw{self.draw}"


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "removal", ACTIONS, FLAGS)
    config, device, subsets = run.config, run.device, run.subsets
    check_actions(config)
    images = run.images
    ranked = ranked_samples(run)
    removals = planned_removals(ranked, subsets, config)
    mine = share(removals, config.actions["jobs"])
    if config.actions["retrain"]:
        for seed in config.seeds:
            # of this run, or the curve would begin at another encoder
            run.encoder(seed, "candidate")
    if config.actions["jobs"] == "list":
        print(
            "\n".join(
                f"{removal.name} seed {seed}" for removal in removals for seed in config.seeds
            )
        )
        return
    check_writable(config.folder / "removal")
    result, trained_on = run.output(), len(subsets.training_set("candidate"))
    if config.actions["retrain"]:
        result.check_place()
        check_epochs(removals, trained_on, config)
        print_steps(removals, trained_on, config)
    datasets = (
        [prepared_for_probing(open_images(data), config.probe) for data in probed_data(config)]
        if config.actions["retrain"]
        else []
    )
    with sole_process(config.folder / "removal" / "lock", wait=True):
        groups = (
            near_duplicates(ranked, images, config) if config.removal.group_duplicates else None
        )
        write_subset_files(removals, ranked, groups, subsets, images, config)
    if not config.actions["retrain"]:
        return
    print_retrainings(mine, subsets, config, device)
    with stop_requests() as stop:
        for removal in mine:
            for seed in config.seeds:
                retrain(removal, seed, trained_on, config, stop)
        if config.actions["jobs"] is None:
            rows, encoders = probe_all(removals, datasets, config, device, stop)
            write_curve(result, rows, encoders, removals, ranked, groups, subsets, config, device)


def check_actions(config):
    """Raise WrongUse for actions and settings that do not go together."""
    if config.actions["jobs"] and not config.actions["retrain"]:
        raise WrongUse("command line: --jobs shares retrainings; add --retrain")
    if processes.count() > 1:
        raise WrongUse(
            f"remove_samples.py is one process, but torchrun started {processes.count()}; --jobs I/N shares retrainings"
        )
    if config.actions["retrain"] and config.probe.fine_tune:
        raise WrongUse(
            "probe.fine_tune: True is not allowed here: the removal curve is one of linear probes"
        )
    if config.actions["retrain"] and not training_script(config).exists():
        name = config.method["name"]
        raise WrongUse(
            f"method.name: {name!r} was trained, but there is no {training_script(config).name} to train it again"
        )


def ranked_samples(run):
    """What is known of the samples that may be removed, in the order of the training set: (N,)
    arrays index, label and score, and `seeds`, over which the scores are means.

    Raises WrongUse where shared samples, which have no score, are in the way, or the scores are not
    those of this run's encoders.
    """
    config, subsets = run.config, run.subsets
    if len(subsets.shared) and not config.removal.candidates_only:
        raise WrongUse(
            f"subsets.shared: {len(subsets.shared)} samples trained both encoders and have no score; train disjoint halves "
            "(configs/removal_demo.yaml: subsets.shared 0), or rank the candidates alone with --removal.candidates_only true"
        )
    scores = run.candidate_scores()
    places = {index: place for place, index in enumerate(scores.index.tolist())}
    missing = [index for index in subsets.candidate.tolist() if index not in places]
    if missing:
        where, total = run.scored().folder, len(subsets.candidate)
        raise WrongUse(
            f"{where}: {len(missing)} of {total} candidates have no score; score all (scores.per_subset null)"
        )
    order = [places[index] for index in subsets.candidate.tolist()]
    ranked = {"index": scores.index, "label": scores.label, "score": scores.score}
    return {name: values[order] for name, values in ranked.items()} | {"seeds": scores.seeds}


def planned_removals(ranked, subsets, config):
    """Every Removal of the config: policy by policy, count by count, and draw by draw where there
    is chance in the policy.
    """
    settings, available = config.removal, len(ranked["index"])
    shares = {share: round(available * share / 100) for share in settings.percentages}
    for share, count in shares.items():
        if not 1 <= count < available:
            raise WrongUse(
                f"removal.percentages: {share} is not allowed: of {available} ranked samples that is {count}"
            )
    counts = list(dict.fromkeys([*settings.counts, *shares.values()]))
    if not counts:
        raise WrongUse(
            "removal.counts: nothing to remove; give counts, such as [500, 1000], or percentages"
        )
    if max(counts) >= available:
        raise WrongUse(
            f"removal.counts: {max(counts)} is not allowed: of {available} ranked samples not all can be removed"
        )
    left = len(subsets.training_set("candidate")) - max(counts)
    if config.actions["retrain"] and left < config.training.batch_size:
        raise WrongUse(
            f"removal.counts: {max(counts)} leaves {left} images, but training.batch_size is {config.training.batch_size}"
        )
    if "random_matched" in settings.policies and (ranked["label"] < 0).any():
        raise WrongUse("removal.policies: random_matched needs labels, but some samples have none")
    if "typical" in settings.policies and (settings.clusters or 1) >= available:
        raise WrongUse(
            f"removal.clusters: {settings.clusters} is not allowed: there are {available} ranked samples"
        )
    draws = {policy: settings.draws if policy in DRAWN else 1 for policy in settings.policies}
    return [
        Removal(policy, count, draw)
        for policy in settings.policies
        for count in counts
        for draw in range(draws[policy])
    ]


def share(removals, part):
    """All removals, or part I of N where `part` is "I/N"; all seeds of a removal stay together, in
    one run folder.
    """
    if part in (None, "list"):
        return removals
    numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part)
    if not numbers or int(numbers[1]) >= int(numbers[2]):
        raise WrongUse(
            f"command line: --jobs: {part!r} is not allowed: list, or I/N with I from 0 to N - 1"
        )
    return removals[int(numbers[1]) :: int(numbers[2])]


def near_duplicates(ranked, images, config):
    """The groups of near duplicates among the ranked samples, (N,), found in pixels or in g, never
    in f, whose memory is measured.
    """
    try:
        groups = duplicate_groups(
            representations(ranked, images, config, config.removal.duplicates_in),
            config.removal.duplicate_similarity,
        )
    except ValueError as error:
        raise WrongUse(f"removal.duplicate_similarity: {error}") from None
    sizes = np.bincount(groups)
    print(
        f"{(sizes > 1).sum()} groups of near duplicates hold {sizes[sizes > 1].sum()} of {len(groups)} samples, at most {sizes.max()} each"
    )
    return groups


def representations(ranked, images, config, what):
    """Representations of the ranked samples, (N, D), made on the CPU, alike everywhere: of "g", of
    the first scored seed, or "pixels".
    """
    g = load_pair(config.folder, ranked["seeds"][0]).g
    source = raw_pixels(g) if what == "pixels" else g
    return encode_images(
        source, images.train, torch.from_numpy(ranked["index"]), torch.device("cpu")
    ).numpy()


def write_subset_files(removals, ranked, groups, subsets, images, config):
    """One file a Removal: what is left of f's training set, and what it was made from.

    Raises WrongUse, before anything is written, where groups do not add up to a count, or an
    encoder was retrained on another set.
    """
    typicality = None
    if "typical" in config.removal.policies:
        try:
            values = representations(ranked, images, config, "g")
            typicality = distances_to_centres(
                values, config.removal.clusters or len(images.classes), seed=0
            )
        except ValueError as error:
            raise WrongUse(f"removal.clusters: {error}") from None
    parents = {
        "subsets": subsets.fingerprint,
        "scores": hashlib.sha256(
            ranked["index"].astype("<i8").tobytes() + ranked["score"].astype("<f8").tobytes()
        ).hexdigest(),
        "near_duplicates": config.removal.model_dump(
            include={"duplicates_in", "duplicate_similarity"}
        )
        if groups is not None
        else None,
    }
    reduced = {}
    for removal in removals:
        order = removal_order(
            removal.policy,
            ranked["score"],
            ranked["label"],
            removal.count,
            removal.draw,
            typicality,
            groups,
        )
        try:
            candidate = np.delete(subsets.candidate, remove_in_order(order, removal.count, groups))
        except ValueError as error:
            raise WrongUse(
                f"removal.counts: {removal.count} cannot be reached by {removal.policy}: {error}"
            ) from None
        independent = np.empty(0, dtype=np.int64)
        reduced[removal] = replace(
            subsets, candidate=candidate, independent=independent, role="candidate", parents=parents
        )
        trained = removal_folder(removal, config) / "subsets.npz"
        if exists(trained) and load_subsets(trained).fingerprint != reduced[removal].fingerprint:
            raise WrongUse(
                f"{trained.parent}: trained on another set than scores and settings now give; delete it to train it again"
            )
        file = subset_file(removal, config)
        if exists(file) and load_subsets(file).fingerprint != reduced[removal].fingerprint:
            raise WrongUse(
                f"{file}: made from other scores or settings than these; delete {file.parent} to make all anew"
            )
    for removal, kept in reduced.items():
        save_subsets(kept, subset_file(removal, config))
    print(
        f"{len(removals)} training sets are in {escape(config.folder / 'removal' / 'subsets')}",
        flush=True,
    )


def subset_file(removal, config):
    return config.folder / "removal" / "subsets" / f"{removal.name}.npz"


def removal_folder(removal, config):
    return config.folder / "removal" / removal.name


# --- retraining -----------------------------------------------------------------------------------


def print_retrainings(removals, subsets, config, device):
    """What the retrainings that are left will take, by the time and the disk that f took."""
    left = [
        (removal, seed)
        for removal in removals
        for seed in config.seeds
        if not exists(retrained_file(removal, seed, config))
    ]
    log = folder_of(config.folder, config.seeds[0], "candidate") / "log.jsonl"
    if not left or not exists(log):
        return
    speeds = [
        line["images_per_second"] for line in whole_lines(log) if line["images_per_second"] > 0
    ]
    if not speeds:
        return
    trained_on = len(subsets.training_set("candidate"))
    images = sum(
        epochs_of(removal, trained_on, config) * (trained_on - removal.count) for removal, _ in left
    )
    disk = len(left) * sum(file.stat().st_size for file in log.parent.iterdir())
    print_estimate(
        f"{len(left)} retrainings", images / np.median(speeds), device, disk, config.folder
    )


def epochs_of(removal, trained_on, config):
    """Epochs of a retraining; with removal.fixed_steps as many steps as on the whole set, to the
    nearest epoch.
    """
    return steps_of(removal.count, trained_on, config)["epochs"]


def steps_of(count, trained_on, config):
    """Epochs, steps an epoch and all steps on a set of `trained_on` images without `count` of them,
    a dict.

    Batches are whole: a few images less may cost a step of every epoch.
    """
    epochs, batch_size = config.training.epochs, config.training.batch_size
    of_all, an_epoch = trained_on // batch_size, (trained_on - count) // batch_size
    if config.removal.fixed_steps:
        epochs = max(1, round(epochs * of_all / an_epoch))
    return {"epochs": epochs, "steps_an_epoch": an_epoch, "steps": epochs * an_epoch}


def print_steps(removals, trained_on, config):
    """For every count, the steps of a retraining beside those of f."""
    whole = steps_of(0, trained_on, config)
    for count in dict.fromkeys(removal.count for removal in removals):
        steps = steps_of(count, trained_on, config)
        both = [
            f"{of['epochs']} epochs of {of['steps_an_epoch']} steps, {of['steps']}"
            for of in (steps, whole)
        ]
        more = 100 * (steps["steps"] / whole["steps"] - 1)
        print(
            f"without {count} of {trained_on} images: {both[0]} in all; with all of them: {both[1]} ({more:+.1f} %)",
            flush=True,
        )
    if not config.removal.fixed_steps:
        print(
            "  fewer steps cost accuracy by themselves: --removal.fixed_steps true trains on all sets for as many",
            flush=True,
        )


def check_epochs(removals, trained_on, config):
    """Raise WrongUse if a reduced set was trained on for another number of epochs than it would be
    now.
    """
    for removal in removals:
        folder = removal_folder(removal, config)
        if not exists(folder / "config.yaml"):
            continue
        trained, epochs = (
            read_run_config(folder).training.epochs,
            epochs_of(removal, trained_on, config),
        )
        if trained != epochs:
            raise WrongUse(
                f"removal.fixed_steps: {config.removal.fixed_steps} trains {folder} for {epochs} epochs, but it was trained for {trained}; "
                "delete it to train it again"
            )


def retrained_file(removal, seed, config):
    """Where a retrained encoder lies."""
    return encoder_file(removal_folder(removal, config), seed, "candidate")


def retrain(removal, seed, trained_on, config, stop):
    """Train f's encoder of a seed on a reduced set by its method's own script, in removal/<name>/;
    goes on where it was.

    stop: of `stop_requests`.
    """
    options = {
        "config": config.folder / "config.yaml", "run": removal_folder(removal, config), "seeds": seed, "role": "candidate",
        "subsets.file": subset_file(removal, config), "training.epochs": epochs_of(removal, trained_on, config),
        "data.root": config.data.root, "data.prepared": config.data.prepared, "data.verify": config.data.verify,
        "device": config.device, "threads": "null" if config.threads is None else config.threads,
    }  # fmt: skip
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with sole_process(removal_folder(removal, config) / "lock", wait=True):
        with sole_process(retrained_file(removal, seed, config).parent / "lock", wait=True):
            pass  # a child whose parent was killed may still be saving
        code = run_script(training_script(config), words, stop)
    if code == 128 + signal.SIGPIPE:  # nobody reads what both scripts print
        stop.number = int(signal.SIGPIPE)
        stop.check("what was retrained so far is kept")
    if code != 0:
        raise WrongUse(
            f"{removal.name}, seed {seed}: {training_script(config).name} failed, see above; what was done so far is kept"
        )


def training_script(config):
    """The script that trained the run, by the name of its method."""
    return Path(__file__).parent / f"train_{config.method['name']}.py"


def run_script(script, arguments, stop):
    """Run a script as a process of its own. Returns its exit code; raises Interrupted, once it has
    ended, where this process is told to.
    """
    code = run_child([sys.executable, script, *arguments], stop)
    stop.check("what was retrained so far is kept")
    return code


def probe_all(removals, datasets, config, device, stop):
    """Top-1 accuracies of f and of every retrained encoder on every data set.

    Returns a list of dicts with the keys of COLUMNS, and {encoder: hash}.

    stop: of `stop_requests`. Raises WrongUse where an encoder was trained in another precision than
    f.
    """
    encoders = [(("none", 0, 0, seed), config.folder) for seed in config.seeds]
    for removal in removals:
        encoders += [
            ((removal.policy, removal.count, removal.draw, seed), removal_folder(removal, config))
            for seed in config.seeds
        ]
    rows, precisions, identities = [], {}, {}
    for (policy, count, draw, seed), folder in encoders:
        path = encoder_file(folder, seed, "candidate")
        source = load_trained(folder, seed, "candidate")
        precision = source.record["precision"]
        if precisions.setdefault(seed, precision) != precision:
            raise WrongUse(
                f"{path}: trained in {precision}, but f in {precisions[seed]}; retrain on the same kind of device"
            )
        identities[str(path.parent.relative_to(config.folder))] = source.identity
        for images in datasets:
            accuracy = kept_probe(source, images, config, device)
            rows.append(dict(zip(COLUMNS, (images.name, policy, count, draw, seed, accuracy))))
            print(
                f"{images.name:>14}  {policy} {count}, draw {draw}, seed {seed}: top-1 {100 * accuracy:.2f} %",
                flush=True,
            )
            stop.check("what was retrained and probed so far is kept")
    return rows, identities


def kept_probe(source, images, config, device):
    """The mean top-1 accuracy of probes on an encoder, from removal/probes/ where the same was
    probed before.
    """
    probed = config.probe.model_dump(
        exclude={
            name
            for name in ProbeSettings.model_fields
            if name == "datasets" or name.startswith("fine_tune")
        }
    )
    what = {"source": source.identity, "data": images.fingerprint, "probe": probed}
    path = (
        config.folder
        / "removal"
        / "probes"
        / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]}.json"
    )
    accuracy = read_accuracy(path, what) if exists(path) else None
    if accuracy is None:
        check_writable(path.parent)
        with memory_for("probe.train_images", config.probe.train_images):
            result = probe(source, images, config.probe, None, device)
        write_json(path, {"of": what, **result})
        accuracy = result["top_1"]["mean"]
    return accuracy


def read_accuracy(path, what=None):
    """The mean top-1 accuracy in a file of removal/probes/, or None if the file is not of `what`.

    what: what was probed, and how; None accepts any. Raises WrongUse if the file is broken or
    cannot be read.
    """
    with refuse_broken(
        path, "not a whole result of probing", "; delete it, and it will be made again"
    ):
        kept = parse_json(read_text(path))
        accuracy = kept["top_1"]["mean"]
        if type(accuracy) is not float or not 0 <= accuracy <= 1:
            raise ValueError(f"its top-1 accuracy is {accuracy!r}")
        is_other = (
            what is not None
            and first_difference(kept.get("of"), json.loads(json.dumps(what))) is not None
        )
    if is_other:
        print(
            f"{escape(path)}: does not tell that it is of this encoder, data set and probe; made again",
            flush=True,
        )
    return None if is_other else accuracy


def write_curve(result, rows, encoders, removals, ranked, groups, subsets, config, device):
    """curve.csv, summary.json and curve.png."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    trained_on = len(subsets.training_set("candidate"))
    summary = {
        "datasets": {
            name: summarize([row for row in rows if row["dataset"] == name])
            for name in dict.fromkeys(row["dataset"] for row in rows)
        },
        "groups_of_near_duplicates": None
        if groups is None
        else int((np.bincount(groups) > 1).sum()),
        "trained": config.trained_part(),
        "settings": {
            section: getattr(config, section).model_dump()
            for section in ("removal", "probe", "scores")
        },
        "seeds": {"scores": ranked["seeds"], "retrained": config.seeds},
        "steps": {
            count: steps_of(count, trained_on, config)
            for count in dict.fromkeys([0, *(removal.count for removal in removals)])
        },
        "fingerprints": {**result.fingerprints, "encoders": encoders},
        "machine": describe_machine(device),
    }
    folder = result.folder
    with result.save({"curve.csv": table.getvalue().encode()}, Summary(**summary), ["curve.png"]):
        draw_removal_curve(summary, folder / "curve.png")
    for dataset, found in summary["datasets"].items():
        for count, test in found["random_above_memorized"].items():
            print(
                f"{dataset}, {count} removed: random above memorized by {100 * test['mean_difference']:.2f} points, p {test['p']:.2g}"
            )
    print(f"the curve is in {escape(folder)}: curve.png", flush=True)


def summarize(rows):
    """Of one data set: accuracy with nothing removed, by policy and count, and tests of random
    above memorized, paired over seeds.
    """

    def of_seeds(policy, count):
        """{seed: mean accuracy over draws}"""
        chosen = [row for row in rows if (row["policy"], row["count"]) == (policy, count)]
        return {
            seed: np.mean([row["top_1"] for row in chosen if row["seed"] == seed])
            for seed in dict.fromkeys(row["seed"] for row in chosen)
        }

    removals = dict.fromkeys(
        (row["policy"], row["count"]) for row in rows if row["policy"] != "none"
    )
    policies = {}
    for policy, count in removals:
        accuracies = [
            row["top_1"] for row in rows if (row["policy"], row["count"]) == (policy, count)
        ]
        policies.setdefault(policy, {})[count] = mean_and_spread(accuracies)
    tests = {}
    for count in dict.fromkeys(count for _, count in removals):
        random, memorized = of_seeds("random", count), of_seeds("memorized", count)
        if len(memorized) > 1 and random:
            tests[count] = paired_test(list(random.values()), list(memorized.values()))
    return {
        "nothing_removed": mean_and_spread(list(of_seeds("none", 0).values())),
        "policies": policies,
        "random_above_memorized": tests,
    }


if __name__ == "__main__":
    main()
