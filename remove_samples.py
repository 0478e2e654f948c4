"""Remove the most memorized samples, and others, from f's training set; see what accuracy loses.

    python remove_samples.py --config configs/removal_cifar10_simclr.yaml
    python remove_samples.py --config configs/removal_cifar10_simclr.yaml --retrain
    python remove_samples.py --config configs/removal_cifar10_simclr.yaml --retrain --jobs list
    python remove_samples.py --config configs/removal_cifar10_simclr.yaml --retrain --jobs 0/4

Reads the run folder (subsets.npz, scores/, encoder.pt) and the data set. Writes
removal/subsets/<policy>_<count>_draw<d>.npz, each a training set of f alone that train_<method>.py
takes by --subsets.file with --role candidate. With --retrain trains f's encoder on each set, for
every seed, probes it on every data set, and writes removal/summary.json, curve.csv and curve.png.
Finished work is kept: the same command goes on. --jobs list prints the retrainings; --jobs 0/4 does
a quarter of them and no curve.

Samples are ranked by the scores of the same settings and seeds; if these have a folder of their own
in scores/, so have the sets in removal/. In a crossover every sample of the pool is ranked, and the
curve begins at an encoder that is trained on the whole pool, removal/none_0_draw0/.
"""

from pathlib import Path

from memorization.errors import WrongUse, escape
from memorization.figures import draw_removal_curve
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.device import describe_machine
from memorization.machine.files import check_writable, exists
from memorization.machine.interruption import stop_requests
from memorization.machine.locks import sole_process
from memorization.machine.screen import say
from memorization.measuring.probing import open_probed_images
from memorization.measuring.removal import (
    NOTHING,
    check_shared,
    compare_samples,
    place_of_sets,
    plan_removals,
    rank_candidates,
    whole_set,
    write_reduced_sets,
)
from memorization.measuring.removal_curve import (
    CurveSummary,
    ProbeCache,
    Seeds,
    curve_table,
    probe_all,
    summarize,
)
from memorization.measuring.retraining import Budget, Retraining, share
from memorization.run import open_run
from memorization.training import whole_lines

ACTIONS = {
    "jobs": "with --retrain: list prints the retrainings, I/N does part I (from 0) of N and "
    "leaves the curve for later"
}
FLAGS = {"retrain": "train f's encoder on each reduced set, probe it, and draw the curve"}


@one_line_errors
def main(argv=None):
    run = open_run(__doc__, argv, "removal", ACTIONS, FLAGS)
    check_actions(run)
    _ = run.images  # refuses other images than those of training
    check_shared(run.subsets, run.settings)
    scores, folder = run.candidate_scores(), run.scores_output().folder
    samples = rank_candidates(scores, run.subsets.candidate, folder)
    place = place_of_sets(folder, run.folder)
    removals = plan_removals(samples, run.subsets, run.settings, place)
    if run.actions["retrain"]:
        retrain(removals, samples, run)
    else:
        check_writable(run.folder / "removal")
        write_sets(removals, samples, run)


def check_actions(run):
    """Raise WrongUse for actions and settings that do not go together."""
    if run.actions["jobs"] and not run.actions["retrain"]:
        raise WrongUse("command line: --jobs shares retrainings; add --retrain")
    if processes.count() > 1:
        alone = f"remove_samples.py is one process, but torchrun started {processes.count()}"
        raise WrongUse(f"{alone}; --jobs I/N shares retrainings")
    if run.actions["retrain"] and run.config.probe.fine_tune:
        raise WrongUse("probe.fine_tune: True is not allowed here: the curve is of linear probes")
    if run.actions["retrain"] and run.config.import_settings:
        raise WrongUse(f"command line: --retrain: others trained the encoders of {run.name}")
    if run.actions["retrain"] and not training_script(run).exists():
        method, script = run.config.method["name"], training_script(run).name
        raise WrongUse(f"method.name: {method!r} was trained, but there is no {script}")


def training_script(run):
    """The script that trained the run, by the name of its method."""
    return Path(__file__).with_name(f"train_{run.config.method['name']}.py")


def write_sets(removals, samples, run):
    """Write the reduced training sets. Returns RankedSamples and BeyondChance of the removed."""
    settings, subsets = run.settings, run.subsets
    with sole_process(run.folder / "removal" / "lock", wait=True):
        if settings.group_duplicates or "typical" in settings.policies:
            seeds = samples.seeds if subsets.scheme == "crossover" else samples.seeds[:1]
            pairs = [run.pair(seed) for seed in seeds]
            samples = compare_samples(samples, pairs, subsets, run.images, settings)
        return samples, write_reduced_sets(removals, samples, subsets, settings, run.folder)


def retrain(removals, samples, run):
    """Train f's encoder on each reduced set and draw the curve, or do what --jobs says."""
    retraining = make_retraining(run)
    retraining.budget.check(removals)
    part = share(removals, run.actions["jobs"])
    jobs = [(removal, seed) for removal in part for seed in run.seeds]
    for seed in run.seeds:
        run.encoder(seed, "candidate")  # refuses one of another run
    if run.actions["jobs"] == "list":
        say("\n".join(f"{removal.name} seed {seed}" for removal, seed in jobs))
        return
    check_writable(run.folder / "removal")
    result = run.output()
    result.check_place()
    retraining.check_epochs(removals)
    retraining.budget.print_steps(removals)
    datasets = open_probed_images(run.config.data, run.config.probe, run.config.size)
    samples, beyond = write_sets(removals, samples, run)
    log = run.folder_of(run.seeds[0], "candidate") / "log.jsonl"
    retraining.print_estimate(jobs, whole_lines(log) if exists(log) else [], run.device)
    with stop_requests() as stop:
        for removal, seed in jobs:
            retraining.train(removal, seed, stop)
        if run.actions["jobs"] is None:
            if run.subsets.scheme == "fixed":
                jobs = [*((NOTHING, seed) for seed in run.seeds), *jobs]
            probes = ProbeCache(run.folder / "removal" / "probes", run.config.probe, run.device)
            probed = probe_all(jobs, datasets, probes, run.folder, stop)
            write_curve(probed, samples, beyond, retraining.budget, result, run)


def make_retraining(run):
    """The Retraining of f in the run."""
    config, trained = run.config, run.config.training
    keys = ("root", "manifest", "prepared", "verify")
    options = {f"data.{key}": getattr(config.data, key) for key in keys}
    options |= {"device": config.device, "threads": config.threads}
    options = {key: "null" if value is None else value for key, value in options.items()}
    images = len(whole_set(run.subsets).training_set("candidate"))
    budget = Budget(images, trained.epochs, trained.batch_size, run.settings.fixed_steps)
    return Retraining(run.folder, training_script(run), options, budget)


def write_curve(probed, samples, beyond, budget, result, run):
    """curve.csv, summary.json and curve.png. probed: of `probe_all`; beyond: a BeyondChance."""
    (rows, encoders), sections = probed, ("removal", "probe", "scores")
    summary = CurveSummary(
        datasets=summarize(rows),
        groups_of_near_duplicates=samples.count_groups(),
        beyond_chance=beyond,
        trained=run.config.trained_part(),
        settings={section: getattr(run.config, section).model_dump() for section in sections},
        seeds=Seeds(scores=samples.seeds, retrained=run.seeds),
        steps={row.count: budget.steps_without(row.count) for row in rows},
        fingerprints={**result.fingerprints, "encoders": encoders},
        machine=describe_machine(run.device),
    )
    with result.save({"curve.csv": curve_table(rows)}, summary, ["curve.png"]):
        draw_removal_curve(summary.plain(), result.folder / "curve.png")
    for dataset, curve in summary.datasets.items():
        for count, test in curve.random_above_memorized.items():
            points = f"{100 * test.mean_difference:.2f} points, p {test.p:.2g}"
            say(f"{dataset}, {count} removed: random above memorized by {points}")
    say(f"the curve is in {escape(result.folder)}: curve.png")


if __name__ == "__main__":
    main()
