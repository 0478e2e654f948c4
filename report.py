"""Show a run as a page: which images were memorized, how much, and how far that can be believed.

    python report.py --config configs/demo.yaml
    python report.py runs/demo
    python report.py runs/demo runs/demo_byol --output runs/two_methods.html

Reads what lies in the run folder: scores, layers, units, Deja Vu, membership, linear probes,
removal and training logs; and the data set, if there are scores. No encoder is opened. A part
without results names the command that makes them. Writes report.html into the run folder, a page in
one file that needs no network. Of several runs on the same candidates it compares the scores, as
compare_runs.py does, and writes report.html into the working directory.
"""

import time
from pathlib import Path

from memorization.errors import WrongUse, escape
from memorization.fields import check_path
from memorization.machine import processes
from memorization.machine.command import one_line_errors
from memorization.machine.files import check_writable, size_in_words, write_atomically
from memorization.machine.screen import say
from memorization.machine.strict_yaml import read_yaml
from memorization.options import read_words
from memorization.reporting.comparison_payload import payload_of_comparison
from memorization.reporting.html import render
from memorization.reporting.payload import payload_of_run
from memorization.run import check_different, read_run, short_names

RUNS = ("RUN", "run folders: one, or several to compare")
OPTIONS = {
    "config": ("FILE", None, "the YAML file of an experiment, in place of its run folder"),
    "output": ("FILE", None, "where to write (default: report.html in the run folder)"),
    "data.root": ("FOLDER", None, "the data set, if it is not where the run found it"),
}
PAGE, ENDINGS = "report.html", (".html", ".htm")  # no file of a run has such a name


@one_line_errors
def main(argv=None):
    start = time.monotonic()
    words = read_words(argv, __doc__, RUNS, OPTIONS)
    paths, is_import = run_folders(words)
    output = Path(words["output"] or default_output(paths)).expanduser()
    check_writable(output.parent)
    runs = [read_run(path, words["data.root"], is_import) for path in paths]
    payload = (
        payload_of_comparison(runs, short_names(paths))
        if len(runs) > 1
        else payload_of_run(runs[0])
    )
    content = render(payload)
    write_atomically(output, content)
    seconds = time.monotonic() - start
    size = size_in_words(len(content))
    say(f"{escape(output)}: {size}, {seconds:.0f} s; open it in a browser")


def run_folders(words):
    """The run folders that a command line names, texts, and whether a config says that others
    trained the encoders. Raises WrongUse if there is no folder.
    """
    if processes.count() > 1:
        raise WrongUse(f"report.py is one process, but torchrun started {processes.count()}")
    paths, is_import = list(words["RUN"]), False
    if words["config"] is not None:
        if paths:
            raise WrongUse("command line: --config or run folders, not both")
        run, is_import = read_config_of_run(words["config"])
        paths = [run]
    if not paths:
        raise WrongUse("command line: a run folder is needed, or --config FILE")
    for path in [*paths, *filter(None, [words["output"], words["data.root"]])]:
        try:
            check_path(path)
        except ValueError as error:
            raise WrongUse(f"command line: {error}") from None
    check_different(paths)
    if words["output"] and Path(words["output"]).suffix not in ENDINGS:
        endings = " or ".join(ENDINGS)
        raise WrongUse(f"command line: --output is {words['output']}, but must end in {endings}")
    return paths, is_import


def read_config_of_run(path):
    """The run folder that the YAML file of an experiment names, a text, and whether it says that
    others trained the encoders.
    """
    values = read_yaml(path)
    if "run" not in values:
        raise WrongUse(f"{path}: run is missing")
    if not isinstance(values["run"], str):
        raise WrongUse(f"{path}: run is {values['run']!r}, but must be the path of a folder")
    return values["run"], "import" in values


def default_output(paths):
    """Where the page of run folders is written."""
    return Path(paths[0]) / PAGE if len(paths) == 1 else PAGE


if __name__ == "__main__":
    main()
