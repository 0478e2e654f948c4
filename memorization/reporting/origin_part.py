"""How the pair was made: what was trained on what, by which versions, and how to repeat it."""

import json

from memorization.errors import shorten
from memorization.machine.files import exists, parse_json, read_text, refuse_broken
from memorization.machine.strict_yaml import dump_yaml
from memorization.reporting.blocks import clean, code, facts, fold, part, table, text
from memorization.reporting.result_folders import command_again, command_of_encoders
from memorization.reporting.titles import title_of

MOST_CONFIG = 20_000  # characters


def origin_parts(run, scored, results):
    """Parts on the experiment, the commands that repeat it, and its versions.

    run: a Run; scored: its ScoredRun, or None; results: {section: its FoundResults}.
    """
    return [_experiment_part(run), _commands_part(run, results), _versions_part(run, scored)]


def _experiment_part(run):
    trained = run.config
    method = trained.method["name"] if trained.method else "import"
    rows = [
        ("method", title_of(method)),
        ("encoder", clean(trained.encoder.label)),
        ("data set", title_of(trained.data.name)),
        ("scheme", run.subsets.scheme, _scheme_in_words(run.subsets.scheme)),
        ("seeds", ", ".join(map(str, run.seeds))),
    ]
    if trained.training is not None:
        rows.append(("epochs", str(trained.training.epochs)))
    for name in ("shared", "candidate", "independent", "external"):
        count = len(getattr(run.subsets, name))
        if count:
            pool = name == "candidate" and run.subsets.scheme == "crossover"
            rows.append((f"{'pool' if pool else name} images", f"{count:,}"))
    settings = dump_yaml(trained.model_dump())
    file = code([shorten(clean_lines(settings), MOST_CONFIG)], title="config.yaml")
    return part("experiment", "The experiment", facts(rows), file)


def _scheme_in_words(scheme):
    if scheme == "crossover":
        return "every seed halves one pool of images anew: f sees one half, g the other"
    return "f sees the candidates, g the independent images, and both the shared ones"


def _commands_part(run, results):
    lines = [command_of_encoders(run)]
    for section, of_section in results.items():
        lines += [command_again(run, section, result) for result in of_section]
    words = text("The same commands in a checkout of this project repeat the results.")
    return part("repeat", "Commands to repeat it", words, code(lines))


def _versions_part(run, scored):
    path, machines = run.folder / "environment.json", {}
    if exists(path):
        with refuse_broken(path, "not a whole record of machines"):
            for encoder, of_encoder in parse_json(read_text(path)).items():
                for machine in of_encoder:
                    key = json.dumps(machine, sort_keys=True)
                    machines.setdefault(key, []).append(encoder)
    rows = []
    for key, encoders in machines.items():
        for name, value in json.loads(key).items():
            rows.append([name, value, f"{len(set(encoders))} encoders"])
    fingerprints = [("subsets", run.subsets.fingerprint)]
    if run.subsets.data:
        for split in ("train", "test"):
            fingerprints.append((f"{split} images", run.subsets.data[split]["sha256"]))
    if scored is not None:
        fingerprints.append(("scores", scored.summary.fingerprints["scores"]))
        encoders = scored.summary.fingerprints["encoders"]
        fingerprints += [(name, value) for name, value in encoders.items()]
    columns = {"what": None, "value": None, "of": None}
    return part(
        "versions",
        "Versions and fingerprints",
        table("versions-table", "The machines that trained the encoders", columns, rows)
        if rows
        else None,
        fold(
            "Fingerprints",
            [
                table(
                    "fingerprints",
                    "SHA-256 of what was trained on and measured; equal ones mean equal bytes",
                    {"what": None, "SHA-256": None},
                    [[name, value] for name, value in fingerprints],
                )
            ],
        ),
    )


def clean_lines(content):
    """A text of several lines as the page shows it; see `clean`."""
    return "\n".join(clean(line) for line in content.splitlines())
