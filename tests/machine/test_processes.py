"""Several processes, as torchrun starts them: they give what one gives, and what they cannot share
is refused by name.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn as nn
import train_in_double
from conftest import METHODS, ROOT, train, write_experiment
from started import Started

import dejavu
import import_encoders
import linear_probing_train
import memorization_scores
import remove_samples
import train_simclr
from memorization.checkpoint import read_checkpoint
from memorization.errors import WrongUse
from memorization.machine import meeting, processes
from memorization.neighbors import nearest_neighbors
from memorization.training import loop, pair, progress

IN_DOUBLE = {
    "training.epochs": 5,  # of four steps
    "training.batch_size": 14,
    "training.clip_gradient": 1.0,
    "training.knn_every": 5,
}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(script, *arguments):
    """[the ended torchrun] of two processes of a script."""
    address = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *address]
    command += ["--", script, *arguments]
    return [subprocess.run(command, capture_output=True, text=True)]


def start_together(script, *arguments):
    """[the two ended processes] of a script, started by the variables alone, which is quicker."""
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    variables["PYTHONPATH"] = str(ROOT)
    started = [Started(script, *arguments, RANK=str(rank), **variables) for rank in range(2)]
    for process in started:
        process.wait()
    return started


def weights_of(run, role):
    return read_checkpoint(run / "seed_0" / role / "last.pt")["method"]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_trains_and_what_they_began_one_ends(method, tmp_path):
    settings = METHODS[method].changes | IN_DOUBLE
    (tmp_path / "one").mkdir()
    alone = write_experiment(tmp_path / "one", settings)
    train_in_double.main([alone, method])
    together = write_experiment(tmp_path, settings)
    start = torchrun if method == "simclr" else start_together
    # f's 20 steps, and 12 of g's
    ended = start("tests/train_in_double.py", together, method, "32")
    errors = "".join(process.stderr for process in ended)
    assert "independent is saved after step 12 of 20" in errors, errors
    assert "FutureWarning" not in errors, errors
    assert not (tmp_path / "run/seed_0/independent/encoder.pt").exists()
    assert read_checkpoint(tmp_path / "run/seed_0/independent/last.pt")["step"] == 12
    log = [
        json.loads(line)
        for line in (tmp_path / "run/seed_0/candidate/log.jsonl").read_text().splitlines()
    ]
    of_one = [
        json.loads(line)
        for line in (tmp_path / "one/run/seed_0/candidate/log.jsonl").read_text().splitlines()
    ]
    for key in ("loss", "spread", "knn_accuracy"):
        assert [line[key] for line in log if line[key]] == pytest.approx(
            [line[key] for line in of_one if line[key]], abs=1e-6
        )
    train_in_double.main([together, method])
    for role in ("candidate", "independent"):
        expected, found = (
            weights_of(run, role) for run in (tmp_path / "one/run", tmp_path / "run")
        )
        assert next(iter(found.values())).dtype == torch.float64
        for name in expected:
            assert (found[name] - expected[name]).abs().max() < 1e-9, (role, name)


def test_several_processes_measure_what_one_measures(scored_run, tmp_path):
    path, run = scored_run
    options = {
        memorization_scores: ["--scores.batch_size", "16"],
        dejavu: ["--dejavu.k", "5"],
        linear_probing_train: [
            *("--probe.train_images", "300"),
            *("--probe.epochs", "3"),
            *("--probe.warmup_epochs", "1"),
        ],
    }
    for folder in ("one", "two"):
        shutil.copytree(run, tmp_path / folder)
    for script, changes in options.items():
        script.main(["--config", path, *changes, "--run", str(tmp_path / "one")])
        start = torchrun if script is linear_probing_train else start_together
        ended = start(script.__file__, "--config", path, *changes, "--run", str(tmp_path / "two"))
        for process in ended:
            assert process.returncode == 0, process.stderr
    for name in ("scores/scores.csv", "dejavu/k_5/dejavu.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (
        json.loads(next((tmp_path / folder).glob("probe/*/summary.json")).read_text())
        for folder in ("one", "two")
    )
    assert one["results"] == two["results"]
    assert (one["machine"]["processes"], two["machine"]["processes"]) == (1, 2)


@pytest.fixture
def two_processes(monkeypatch):
    """As in the first of two processes, as far as one process alone can tell."""
    monkeypatch.setattr(processes, "count", lambda: 2)


def test_a_batch_that_cannot_be_shared_is_refused(two_processes, write_config, refusal):
    line = refusal(train_simclr.main, ["--config", write_config({"training.batch_size": 15})])
    assert "training.batch_size: 15 is not a multiple of the 2 processes" in line


OWN_NORM = """
import torch.nn as nn

class Own(nn.BatchNorm2d):
    def train(self, mode=True):  # always frozen
        return super().train(False)

def make_encoder(channels, size):
    return nn.Sequential(nn.Conv2d(channels, 8, 3), Own(8), nn.Flatten())
"""


def test_a_norm_that_processes_cannot_share_is_refused_by_name(
    two_processes, write_config, refusal, tmp_path
):
    (tmp_path / "own.py").write_text(OWN_NORM)
    encoder = {"name": "function", "file": str(tmp_path / "own.py"), "function": "make_encoder"}
    line = refusal(train_simclr.main, ["--config", write_config({"encoder": encoder})])
    assert "encoder.name: function has a batch norm of a class of its own" in line
    assert ".1), which 2 processes cannot share" in line and not (tmp_path / "run").exists()


def test_compiling_for_several_processes_is_refused_by_name(
    two_processes, write_config, refusal, tmp_path
):
    changes = {"encoder": {"name": "vit_mini", "width": 32, "depth": 1}, "training.compile": True}
    line = refusal(train_simclr.main, ["--config", write_config(changes)])
    assert (
        "training.compile: True is not allowed with 2 processes" in line
        and not (tmp_path / "run").exists()
    )


def test_several_processes_ask_for_a_signal_every_tenth_step_or_every_second(monkeypatch):
    assert progress.steps_between_questions(3) == 1  # one process asks itself
    monkeypatch.setattr(processes, "count", lambda: 2)
    steps = {
        milliseconds: progress.steps_between_questions(milliseconds)
        for milliseconds in (0, 3, 100, 250, 900, 5000)
    }
    assert steps == {0: 10, 3: 10, 100: 10, 250: 4, 900: 1, 5000: 1}


def test_a_signal_between_two_questions_is_saved_at_the_next_one(
    write_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(progress, "steps_between_questions", lambda milliseconds: 10)
    step, maxima, order = loop.train_step, processes.maxima, []

    def signalling(*arguments, **named):
        order.append("step")
        if order.count("step") == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **named)

    monkeypatch.setattr(loop, "train_step", signalling)
    monkeypatch.setattr(
        processes, "maxima", lambda *numbers: order.append("question") or maxima(*numbers)
    )
    with pytest.raises(SystemExit):
        train_simclr.main(["--config", write_config()])
    # After the first step, at the end of each epoch of three, and once all wait for the end of the
    # save.
    assert order == [
        "step",
        "question",
        "step",
        "step",
        "question",
        "step",
        "step",
        "step",
        "question",
        "question",
    ]
    assert read_checkpoint(tmp_path / "run/seed_0/candidate/last.pt")["step"] == 6


def test_retraining_is_shared_by_jobs_not_by_processes(two_processes, scored_run, refusal):
    line = refusal(remove_samples.main, ["--config", scored_run[0], "--removal.counts", "4"])
    assert "torchrun started 2" in line and "--jobs I/N" in line


def test_encoders_are_imported_by_one_process(two_processes, tmp_path, refusal):
    weights = {"weights": "f.pth"}
    section = {"candidate": weights, "independent": None, "size": 16, "mean": "from_model"}
    section |= {"std": "from_model"}
    changes = {"method": None, "training": None, "import": section, "subsets.order": "file"}
    path = write_experiment(tmp_path, changes)
    line = refusal(import_encoders.main, ["--config", path])
    assert "import_encoders.py is one process, but torchrun started 2" in line


def test_one_gpu_is_not_named_for_several_processes(scored_run, refusal, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = refusal(train_simclr.main, ["--config", scored_run[0], "--device", "cuda:1"])
    assert "device: 'cuda:1' is one GPU for 2 processes" in line


@pytest.mark.parametrize("parts", [[], [3], list(range(7))])
def test_divided_work_comes_back_in_order(parts, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    worked = []
    for rank in range(3):

        def all_gather(shares, own, rank=rank):
            assert own == [10 * part for part in parts[rank::3]]
            shares[:] = [[10 * part for part in parts[other::3]] for other in range(3)]

        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes.dist, "all_gather_object", all_gather)
        assert processes.map_in_processes(
            lambda part: worked.append(part) or 10 * part, parts, "work"
        ) == [10 * part for part in parts]
    assert sorted(worked) == parts  # each by one process


def test_a_batch_is_shared_out_whole(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 4)
    parts = []
    for rank in range(4):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.shard(torch.arange(12)))
    assert torch.equal(torch.cat(parts), torch.arange(12)) and {len(part) for part in parts} == {3}


def test_the_gradients_of_one_process_are_its_own():
    module = nn.Linear(2, 2)
    assert processes.share_gradients(module) is module


# --- the meeting ----------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch):
    """environment(WORLD_SIZE="2", ...) sets these variables of a cluster, and no others."""
    for variable in (*meeting.VARIABLES, "LOCAL_RANK", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(variable, raising=False)

    def set_variables(**variables):
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)

    return set_variables


ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("variables, words", [
    ({"WORLD_SIZE": "2"}, ["WORLD_SIZE: 2", "not RANK, MASTER_ADDR, MASTER_PORT",
                           "torchrun, or unset WORLD_SIZE to"]),
    ({"WORLD_SIZE": ""}, ["WORLD_SIZE: ''"]),
    ({"WORLD_SIZE": "x"}, ["WORLD_SIZE: 'x'", "a number from 1"]),
    ({"WORLD_SIZE": "0"}, ["WORLD_SIZE: '0'"]),
    ({"WORLD_SIZE": "\u00b2"}, ["WORLD_SIZE: '\u00b2'"]),
    ({"WORLD_SIZE": "9" * 5000}, ["WORLD_SIZE: '999"]),
    ({"WORLD_SIZE": "2", **ADDRESS},
     ["but not RANK;", "unset WORLD_SIZE, MASTER_ADDR, MASTER_PORT"]),
    ({"WORLD_SIZE": "2", "RANK": "", **ADDRESS}, ["but not RANK;"]),
    ({"WORLD_SIZE": "2", "RANK": "2", **ADDRESS}, ["RANK: '2'", "0 to 1"]),
    ({"WORLD_SIZE": "1", "RANK": "1"}, ["RANK: '1'", "0 to 0"]),
    ({"WORLD_SIZE": "2", "RANK": "0", **ADDRESS, "MASTER_PORT": "70000"},
     ["MASTER_PORT: '70000'", "1 to 65535"]),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, ["but not MASTER_ADDR"]),
])  # fmt: skip
def test_a_clusters_variables_that_lead_to_no_meeting_are_named_at_once(
    variables, words, environment, write_config, refusal, tmp_path
):
    environment(**variables)
    line = refusal(train_simclr.main, ["--config", write_config()])
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_the_variables_of_a_batch_system_alone_mean_one_process(environment):
    environment(SLURM_NTASKS="4", SLURM_PROCID="1")
    assert meeting.world_size() == 1
    environment(WORLD_SIZE="1", RANK="0")
    assert meeting.world_size() == 1


def test_a_gpu_of_several_is_named_by_the_local_rank(
    environment, write_config, refusal, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment(WORLD_SIZE="2", RANK="0", **ADDRESS)
    line = refusal(train_simclr.main, ["--config", write_config({"device": "cuda"})])
    assert "WORLD_SIZE: 2 in the environment, but not LOCAL_RANK" in line


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_waits_says_for_whom_and_does_not_wait_for_ever(
    rank, environment, monkeypatch, capsys
):
    monkeypatch.setattr(meeting, "FIRST_WORD", 0.2)
    monkeypatch.setattr(meeting, "PATIENCE", 1.5)
    place = f"127.0.0.1:{free_port()}"
    environment(
        WORLD_SIZE="2", RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=place.partition(":")[2]
    )
    whom = {
        "0": f"RANK 1: 1 of 2 processes are at {place}",
        "1": f"the first process, which does not answer at {place}",
    }[rank]
    with pytest.raises(WrongUse) as refused:
        meeting.join(torch.device("cpu"))
    assert f"process {rank} of 2 (WORLD_SIZE) waits for {whom}" in capsys.readouterr().err
    assert (
        "WORLD_SIZE: waited" in str(refused.value)
        and whom in str(refused.value)
        and "torchrun" in str(refused.value)
    )


def test_the_address_that_a_process_waits_at_cannot_command_the_terminal(
    environment, monkeypatch, capsys
):
    monkeypatch.setattr(meeting, "FIRST_WORD", 0.1)
    monkeypatch.setattr(meeting, "PATIENCE", 0.5)
    environment(WORLD_SIZE="2", RANK="1", MASTER_ADDR="a\x1b[2J", MASTER_PORT="29500")
    with pytest.raises(WrongUse):
        meeting.join(torch.device("cpu"))
    assert "a\\x1b[2J:29500" in capsys.readouterr().err


def test_processes_that_were_told_different_world_sizes_do_not_meet(environment, monkeypatch):
    monkeypatch.setattr(meeting, "PATIENCE", 1)
    port = free_port()
    environment(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    of_three = meeting.Place(3, 1, "127.0.0.1", int(port))
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(lambda: meeting._meet(of_three, meeting._Wait(of_three)))
        with pytest.raises(WrongUse, match="waited .* for RANK 1: 1 of 2 processes are at"):
            meeting.join(torch.device("cpu"))
        assert isinstance(other.exception(), WrongUse)


def test_processes_that_cannot_reach_each_other_end_with_one_line_each(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "absent")
    codes, lines = ended_together(["pass"], tmp_path)
    assert codes == [2, 2] and len(lines) == 2, lines
    assert all(line.startswith("error: no connection to the other processes") for line in lines), (
        lines
    )


def connected_and_then(*lines):
    """Lines of a script: the first process is connected and then does what these lines say, while
    the second one goes on.
    """
    return [
        "connect = torch.distributed.init_process_group",
        "def connect_and_more(*arguments, rank, **options):",
        "    connect(*arguments, rank=rank, **options)",
        "    if rank == 0:",
        *(f"        {line}" for line in lines),
        "torch.distributed.init_process_group = connect_and_more",
    ]


def test_a_process_leaves_a_meeting_once_all_are_connected(tmp_path):
    """Earlier it would break a connection that another one is still making."""
    before = connected_and_then("time.sleep(0.5)", f"open('{tmp_path}/connected', 'w').close()")
    body = [f"raise WrongUse('connected' if os.path.exists('{tmp_path}/connected') else 'early')"]
    codes, lines = ended_together(body, tmp_path, before)
    assert codes == [2, 2] and lines == ["error: connected"]


def test_if_one_process_cannot_be_connected_all_end(tmp_path):
    before = connected_and_then("raise RuntimeError('no way')")
    codes, lines = ended_together(["pass"], tmp_path, before)
    fault = "no connection to the other processes (no way); GLOO_SOCKET_IFNAME names the network"
    assert codes == [2, 2] and lines == 2 * [f"error: {fault}"]


def test_a_port_that_is_taken_is_named(environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environment(WORLD_SIZE="2", RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        with pytest.raises(WrongUse, match=f"MASTER_PORT: {port} cannot be used"):
            meeting.join(torch.device("cpu"))


def ended_together(body, tmp_path, before=()):
    """(exit codes, lines on stderr) of two processes that meet, and then do what the body of a
    function says. before: lines that come before the meeting.
    """
    script = tmp_path / "script.py"
    lines = ["import os, sys, time, torch", "from memorization.machine import meeting, processes"]
    lines += [
        "from memorization.errors import WrongUse",
        "from memorization.machine.command import one_line_errors",
        "@one_line_errors",
        "def main(argv):",
    ]
    lines += [f"    {line}" for line in [*before, "meeting.join(torch.device('cpu'))", *body]]
    lines += ["main(None)"]
    script.write_text("\n".join(lines))
    ended = start_together(script)
    lines = [line for process in ended for line in process.stderr.splitlines()]
    return [process.returncode for process in ended], lines


@pytest.mark.parametrize("body, line", [
    (["with processes.first_before_others():", "    if processes.is_first():",
      "        raise WrongUse('no room')"], "no room"),
    (["raise WrongUse('all see it')"], "all see it"),
    (["if not processes.is_first():", "    raise WrongUse('the second')",
      "processes.wait_for_all()"], "the second"),
    (["if not processes.is_first():", "    os._exit(2)", "processes.wait_for_all()"],
     "one of the 2 processes has ended"),
])  # fmt: skip
def test_an_error_of_one_process_ends_all_with_one_line(body, line, tmp_path):
    codes, lines = ended_together(body, tmp_path)
    assert (
        codes == [2, 2] and len(lines) == 1 and lines[0].startswith("error: ") and line in lines[0]
    ), lines


def test_processes_that_start_together_find_the_data_prepared_by_the_first(
    environment, write_config, monkeypatch
):
    """The scripts that train meet the others before they open the data."""
    order = []
    monkeypatch.setattr(pair, "choose_device", lambda *_: order.append("meet"))
    monkeypatch.setattr(pair, "open_images", lambda settings: order.append("open"))
    for name, method in METHODS.items():
        monkeypatch.setattr(method.script, "train_pair", lambda *_: order.append("train"))
        train(write_config(method.changes), method=name)
    assert order == ["meet", "open", "train"] * len(METHODS)


def test_even_a_few_queries_are_shared_among_processes(monkeypatch):
    shares = []

    def map_parts(search, parts, _):
        shares.extend(map(len, parts))
        return [search(part) for part in parts]

    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "map_in_processes", map_parts)
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 8, generator=generator) for n in (300, 20))
    distances = (queries[:, None].double() - bank.double()).square().sum(2)
    nearest = distances.argsort(dim=1, stable=True)[:, :5]
    assert torch.equal(nearest_neighbors(queries, bank, 5)[0], nearest)
    assert shares == [7, 7, 6]
