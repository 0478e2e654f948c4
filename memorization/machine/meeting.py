"""How the processes of one job find each other: by the variables that torchrun sets, at the address
that they name.
"""

import os
import re
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from memorization.errors import WrongUse, one_line
from memorization.machine import processes

VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
FIRST_WORD = 10  # seconds after which a waiting process says what it waits for
PATIENCE = 600  # seconds that a process waits for the others to start
STORE_PATIENCE = timedelta(seconds=60)  # for an answer of the store, once a connection is there
BETWEEN_TRIES = 0.2  # seconds


@dataclass(frozen=True)
class Place:
    """Where n_processes meet. rank: the number of this one."""

    n_processes: int
    rank: int
    address: str
    port: int

    def __str__(self):
        return f"{self.address}:{self.port}"


def world_size():
    """Number of processes of this job, this one included. Raises WrongUse if WORLD_SIZE is no
    number of processes.
    """
    if "WORLD_SIZE" not in os.environ:
        return 1
    n_processes = _number("WORLD_SIZE", 1, 2**20)
    if os.environ.get("RANK"):
        _number("RANK", 0, n_processes - 1)
    return n_processes


def own_gpu():
    """The GPU of this process among those of its host. Raises WrongUse if LOCAL_RANK does not name
    one.
    """
    _check_present("LOCAL_RANK")
    return torch.device("cuda", _number("LOCAL_RANK", 0, 127))


def join(device):
    """Meet the other processes of this job. From then on only the first one prints.

    Raises WrongUse, naming the environment's variables, if they lead to no meeting or if the others
    do not come.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    _check_present(*VARIABLES)
    rank, port = _number("RANK", 0, world_size() - 1), _number("MASTER_PORT", 1, 2**16 - 1)
    place = Place(world_size(), rank, os.environ["MASTER_ADDR"], port)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _Wait(place) as wait:
        store = _meet(place, wait)
        _connect(place, store, device, wait)
    processes.meeting_point = store
    if place.rank > 0:
        sys.stdout = open(os.devnull, "w")


def _number(variable, least, most):
    """The whole number in a variable of the environment, within bounds."""
    text = os.environ[variable]
    if not re.fullmatch("[0-9]{1,7}", text) or not least <= int(text) <= most:
        fault = f"{text[:80]!r} in the environment is not allowed: a number from {least} to {most}"
        raise WrongUse(f"{variable}: {fault}; {_advice()}")
    return int(text)


def _check_present(*variables):
    missing = [variable for variable in variables if not os.environ.get(variable)]
    if missing:
        size = os.environ["WORLD_SIZE"]
        fault = f"{size} in the environment, but not {', '.join(missing)}"
        raise WrongUse(f"WORLD_SIZE: {fault}; {_advice()}")


def _advice():
    names = [variable for variable in VARIABLES if variable in os.environ]
    return f"start several processes with torchrun, or unset {', '.join(names)} to start one"


# --- the meeting ----------------------------------------------------------------------------------


class _Wait:
    """A wait for other processes. It says for whom after FIRST_WORD seconds, and ends after
    PATIENCE seconds.

    Timers do so even while torch waits: for a name server, or for a program that never answers, it
    waits for ever.
    """

    def __init__(self, place):
        self.place, self.start = place, time.monotonic()
        self.for_whom = f"the first process at {place}"
        self.timers = [
            threading.Timer(FIRST_WORD, self._report),
            threading.Timer(PATIENCE + 10, self._end),
        ]

    def __enter__(self):
        for timer in self.timers:
            timer.daemon = True
            timer.start()
        return self

    def __exit__(self, *_):
        for timer in self.timers:
            timer.cancel()

    def _end(self):
        print(one_line(f"error: {self._out_of_patience()}"), file=sys.stderr, flush=True)
        os._exit(2)  # its main thread is in torch and takes no exception

    def _out_of_patience(self):
        return f"WORLD_SIZE: waited {PATIENCE / 60:.0f} minutes for {self.for_whom}; {_advice()}"

    def _report(self):
        who = f"process {self.place.rank} of {self.place.n_processes} (WORLD_SIZE)"
        print(one_line(f"{who} waits for {self.for_whom}"), file=sys.stderr, flush=True)

    def go_on(self, for_whom):
        """Sleep until the next try. for_whom: in words. Raises WrongUse after PATIENCE seconds."""
        self.for_whom = for_whom
        if time.monotonic() - self.start > PATIENCE:
            raise WrongUse(self._out_of_patience())
        time.sleep(BETWEEN_TRIES)


def _meet(place, wait):
    """The store of a job, once all of its processes are there, with the same WORLD_SIZE."""
    try:
        store = _open_store(place, wait)
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        store = dist.PrefixStore(f"meeting {start} of {place.n_processes}", store)
        if store.add(f"process {place.rank}", 1) > 1:
            fault = f"{place.rank} in the environment of two processes that meet at {place}"
            raise WrongUse(f"RANK: {fault}; each needs its own")
        while missing := [
            rank for rank in range(place.n_processes) if not store.check([f"process {rank}"])
        ]:
            here = place.n_processes - len(missing)
            names = ", ".join(map(str, missing[:5])) + (" and others" if len(missing) > 5 else "")
            wait.go_on(f"RANK {names}: {here} of {place.n_processes} processes are at {place}")
    except dist.DistError as error:
        fault = f"no meeting at {place} ({_first_line(error)})"
        raise WrongUse(f"MASTER_ADDR, MASTER_PORT: {fault}; {_advice()}") from None
    return store


def _connect(place, store, device, wait):
    """Connect this process with the others, which have met in a store.

    It returns once all of them are connected: one that leaves earlier breaks the connections that
    others are still making. Raises WrongUse, in all of them, if one cannot be connected.
    """
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    wait.for_whom = (
        "connections to the others; GLOO_SOCKET_IFNAME names the network that leads to them"
    )
    store.set_timeout(processes.PATIENCE)
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=place.rank,
            world_size=place.n_processes,
            timeout=processes.PATIENCE,
        )
        store.add("connected", 1)
        while store.add("connected", 0) < place.n_processes:
            if store.check(["unconnected"]):
                raise RuntimeError(store.get("unconnected").decode())
            wait.go_on(wait.for_whom)
    except RuntimeError as error:
        reason = _first_line(error)
        with suppress(dist.DistError):  # the process of the store is gone
            store.set("unconnected", reason)
        processes.wait_for_farewells(store, place.n_processes, place.rank == 0)
        fault = f"no connection to the other processes ({reason})"
        raise WrongUse(f"{fault}; GLOO_SOCKET_IFNAME names the network") from None


def _open_store(place, wait):
    """The store of a job. torchrun serves it, or else the first process."""
    served_here = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if served_here:
        _check_free(place)
        return dist.TCPStore(
            "127.0.0.1", place.port, is_master=True, timeout=STORE_PATIENCE, wait_for_workers=False
        )
    while reason := _unreachable(place):
        wait.go_on(f"the first process, which does not answer at {place} ({reason})")
    return dist.TCPStore(place.address, place.port, timeout=STORE_PATIENCE, wait_for_workers=False)


def _check_free(place):
    try:
        socket.create_server(("", place.port)).close()
    except OSError as error:
        fault = f"{place.port} cannot be used ({os.strerror(error.errno)})"
        raise WrongUse(f"MASTER_PORT: {fault}; take another port") from None


def _unreachable(place):
    """Why no connection can be made to a place, in words, or None if one can."""
    try:
        socket.create_connection((place.address, place.port), timeout=2).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
        return _first_line(getattr(error, "strerror", None) or error)
    return None


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
