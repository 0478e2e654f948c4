"""Files that are either whole or not there, and folders in which one process alone writes.

Of several processes that work together, which share a disk, the first one alone writes: in the
others the functions that write, and locks, do nothing.
"""

import errno
import fcntl
import io
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from memorization.errors import Broken, WrongUse, escape
from memorization.machine.processes import is_first, on_first_process
from memorization.machine.screen import say

MOST_TEXT = 2**25  # bytes of a text file that is read at once: of a log, 100,000 epochs
MOST_JSON = 2**23  # characters; small lists take twenty times as much memory
MOST_DIRECTORY = 2**24  # bytes of a zip file's list of members, some 80 a member
TRIED_BYTES = 4096  # written to find out if a folder takes files; a full disk takes empty ones
LEFT_BEHIND = 24 * 3600  # seconds after which a temporary file has no writer, if locks cannot tell
OF_ROOM = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of a file too large
# Errors of folders that cannot be synced, or not be opened to sync them.
UNKNOWN_SYNC = (
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EBADF, errno.EACCES,
)  # fmt: skip
UNKNOWN_LOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
# A file is opened only if it is there as such: no link is followed, and nothing is waited for.
AS_IT_IS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def atomically(path):
    """Give a binary file, whose content is written to path once the body has ended; see
    `write_atomically`.

    It is in memory until then, so that its size is known if the disk does not take it.
    """
    content = io.BytesIO()
    yield content
    write_atomically(path, content.getbuffer())


@on_first_process
def write_atomically(path, content):
    """Write bytes or text to path: a temporary file in the same folder, flushed, synced, renamed.

    A link at path is replaced, and what it leads to is left alone. Raises WrongUse if the disk does
    not take the file, or if something else than a file lies there; it is then as it was before.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    with refuse_unwritable(path, len(content)):
        with stage(path, content) as temporary:
            os.replace(temporary, path)
        sync_folder(path.parent)


@contextmanager
def stage(path, content):
    """Write bytes into a temporary file beside path, and give its path. It is deleted unless the
    body renames it.

    Raises WrongUse if the disk does not take it, or if something else than a file lies at path.
    """
    if not is_first():
        yield path
        return
    with ExitStack() as stack:
        with refuse_unwritable(path, len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_replaceable(path)
            file, temporary = stack.enter_context(temporary_file(path))
            _write_through(file, content)
        yield temporary


@on_first_process
def append(path, text):
    """Write text behind what a file holds, flushed and synced.

    Raises WrongUse if the disk does not take it; the file is then as it was before.
    """
    content = text.encode()
    with refuse_unwritable(path, len(content)):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | AS_IT_IS
        with os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0) as file:
            size = _regular_status(file.fileno(), path).st_size
            try:
                _write_through(file, content)
            except BaseException:
                os.ftruncate(file.fileno(), size)  # half a line would be taken for a broken file
                raise


def _write_through(file, content):
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


@contextmanager
def temporary_file(path):
    """A new file beside path, as (unbuffered binary file, its path). It is deleted in the end.

    No other process opens it: its name cannot be guessed, and its writer holds a lock on it.
    Temporary files that killed writers have left beside path are deleted first.
    """
    _delete_left_behind(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | AS_IT_IS, 0o666)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            try:
                if _flock(descriptor) is not False and _leads_to(temporary, descriptor):
                    yield file, temporary
                    return
            finally:
                with suppress(OSError):  # the next writer deletes it
                    temporary.unlink(missing_ok=True)


def _delete_left_behind(path):
    """Delete temporary files of path whose writers were killed."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.partial")
    # what cannot be deleted does no harm
    with suppress(OSError), os.scandir(path.parent) as entries:
        for temporary in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            with suppress(OSError):  # gone already, another user's, or a link
                _delete_if_left_behind(temporary)


def _delete_if_left_behind(temporary):
    with closing_descriptor(os.open(temporary, os.O_RDWR | AS_IT_IS)) as descriptor:
        written = _regular_status(descriptor, temporary).st_mtime
        locked = _flock(descriptor)
        if locked is None:
            locked = time.time() - written > LEFT_BEHIND
        if locked and _leads_to(temporary, descriptor):
            temporary.unlink()


@contextmanager
def closing_descriptor(descriptor):
    """Give an open file's descriptor, and close it in the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@on_first_process
def check_writable(folder):
    """Raise WrongUse unless files can be written into a folder, or into where it will be made."""
    for place in (Path(folder), *Path(folder).parents):
        if exists(place) and not is_folder(place):
            raise WrongUse(f"{place}: cannot be written to (it is a file, and should be a folder)")
    folder = nearest_folder(folder)
    with refuse_unwritable(folder, TRIED_BYTES), temporary_file(folder / "writable") as (file, _):
        _write_through(file, bytes(TRIED_BYTES))


@on_first_process
def make_folder(folder):
    """Make a folder and those above it. Raises WrongUse if that cannot be done."""
    with refuse_unwritable(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)


@on_first_process
def delete_file(path):
    """Delete a file or a link, if it is there. Raises WrongUse if that cannot be done."""
    with refuse_unwritable(path):
        Path(path).unlink(missing_ok=True)


@on_first_process
def rename(path, new):
    """Rename a file, over a file or a link that is there. Raises WrongUse if that cannot be done."""
    with refuse_unwritable(path):
        _check_replaceable(path)
    with refuse_unwritable(new):
        _check_replaceable(new)
        os.replace(path, new)


@on_first_process
def sync_folder(folder):
    """Make a rename in this folder durable, if its file system can do that for folders."""
    with refuse_unwritable(folder):
        try:
            with closing_descriptor(os.open(folder, os.O_RDONLY)) as descriptor:
                os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNKNOWN_SYNC:  # the file itself is synced
                raise


@contextmanager
def refuse_unwritable(path, size=None):
    """Turn an error of the file system into WrongUse that names the file and its size in bytes."""
    try:
        yield
    except OSError as error:
        room = "" if size is None or error.errno not in OF_ROOM else _stated_room(path, size)
        raise WrongUse(f"{path}: cannot be written ({reason_of(error, path)}){room}") from None


def _stated_room(path, size):
    try:
        return f": it needs {size_in_words(size)}, {size_in_words(free_bytes(Path(path).parent))} are free there"
    except (OSError, WrongUse):  # of a disk that is gone
        return f": it needs {size_in_words(size)}"


def reason_of(error, path=None):
    """What the system says of an OSError, in words."""
    if error.errno == errno.ELOOP and path is not None and os.path.islink(path):
        return "it is a link, and nothing is written through a link"
    return error.strerror or str(error) or type(error).__name__


def _check_replaceable(path):
    """Raise OSError if something lies at path that is neither a file nor a link."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        raise _not_regular(status, path)


def free_bytes(folder):
    """Room on the disk that holds a folder, which may still have to be made."""
    return shutil.disk_usage(nearest_folder(folder)).free


def nearest_folder(folder):
    """The folder itself, or the first one above it that is there."""
    folder = Path(folder).absolute()
    return next(place for place in (folder, *folder.parents) if is_folder(place))


def size_in_words(size):
    """A size in bytes, in words."""
    for unit, count in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= count:
            return f"{size / count:.1f} {unit}"
    return f"{size} bytes"


def write_json(path, value):
    """Write a nested value of plain types as JSON; see `json_text`."""
    write_atomically(path, json_text(value))


def json_text(value):
    """A nested value of plain types as JSON, with null for NaN and infinity, which JSON does not
    know.
    """
    return json.dumps(_finite_or_none(value), indent=2) + "\n"


def _finite_or_none(value):
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- reading --------------------------------------------------------------------------------------


def exists(path):
    """Whether something is at path. Raises WrongUse if that cannot be found out, or for a link to
    nothing.
    """
    return _status(path) is not None


def is_folder(path):
    """Whether path is a folder, or a link to one. Raises WrongUse if that cannot be found out."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _status(path):
    """What os.stat gives, or None. Path.exists raises PermissionError, or hides it from 3.14 on."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise WrongUse(f"{path}: a link that leads nowhere") from None
        return None
    except OSError as error:
        raise WrongUse(f"{path}: cannot be read ({reason_of(error)})") from None


def names_in(folder):
    """The names of what lies in a folder, in order; none if it is not there. Raises WrongUse if it
    cannot be listed.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WrongUse(f"{folder}: cannot be listed ({reason_of(error)})") from None


def open_regular(path):
    """Open a file for reading bytes. Raises OSError for a pipe, a device or a folder: none is
    waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _regular_status(descriptor, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _regular_status(descriptor, path):
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(status, path)
    return status


def _not_regular(status, path):
    if stat.S_ISDIR(status.st_mode):
        return IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
    kinds = {"a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    kind = next((name for name, is_kind in kinds.items() if is_kind(status.st_mode)), "a device")
    return OSError(errno.ENXIO, f"it is {kind}, not a file", str(path))


def read_bytes(path, most=None):
    """The bytes of a file. Raises ValueError if there are more than `most`, OSError as the system
    does.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise ValueError(f"{size} bytes, but at most {most} are expected")
        return file.read() if most is None else file.read(most)


def read_text(path, most=MOST_TEXT):
    """The text in a file. Raises ValueError if it has more than `most` bytes, or is not UTF-8."""
    with io.StringIO(read_bytes(path, most).decode("utf-8"), newline=None) as text:
        return text.read()  # with every line break as \n


@contextmanager
def refuse_broken(path, words, advice=""):
    """Turn what goes wrong while files are read into WrongUse.

    A file that cannot be read is refused with the system's reason. One that was read and is broken
    raises Broken: `words`, such as "not a whole log", the fault, and `advice`.
    """
    try:
        yield
    except WrongUse:
        raise
    except FileNotFoundError as error:
        raise WrongUse(f"{error.filename or path}: no such file") from None
    except OSError as error:
        raise WrongUse(f"{error.filename or path}: cannot be read ({reason_of(error)})") from None
    except MemoryError:
        raise WrongUse(f"{path}: cannot be read (not enough memory)") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        fault = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise Broken(f"{path}: {words} ({fault}){advice}") from None


def parse_json(text):
    """The value of a JSON text.

    Raises ValueError also if it is too long or nested too deeply, or has NaN or infinity in it.
    """
    if len(text) > MOST_JSON:
        raise ValueError(f"{len(text)} characters, but at most {MOST_JSON} are expected")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def read_arrays(path):
    """{name: array} of an .npz file of np.savez. Raises ValueError where it is broken, compressed
    or claims more than it holds.
    """
    with open_archive(path) as file:
        return {
            member.filename.removesuffix(".npy"): array_in(file.read(member))
            for member in file.infolist()
        }


@contextmanager
def open_archive(path):
    """Open a zip file whose members are stored as they are. Raises ValueError if it is broken,
    OSError as the system does.
    """
    try:
        with open_regular(path) as opened:
            _check_directory(opened)
            with zipfile.ZipFile(opened) as file:
                check_members(file)
                yield file
    # also of encrypted and of foreign archives
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(str(error)) from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place before the beginning of the file
            raise
        raise ValueError("its directory leads out of it") from None


def _check_directory(file):
    """Raise ValueError if the list of members is larger than ours ever are: each becomes an object."""
    end = zipfile._EndRecData(file)  # what ZipFile itself goes by
    if end is not None and end[zipfile._ECD_SIZE] > MOST_DIRECTORY:
        raise ValueError(f"a list of members of {end[zipfile._ECD_SIZE]} bytes")


def check_members(file):
    """Raise ValueError unless the members of an open zip file are stored as they are, each once,
    together no larger than the file.
    """
    size, members = os.fstat(file.fp.fileno()).st_size, file.infolist()
    if len({member.filename for member in members}) < len(members):
        raise ValueError("a member stands twice")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} is compressed")
    if sum(member.file_size for member in members) > size:  # several may lie in the same place
        raise ValueError(f"its members claim more than its {size} bytes")


def array_in(content):
    """The array in the bytes of an .npy file. Raises ValueError where its header claims another
    size than they have.
    """
    file = io.BytesIO(content)
    shape, fortran_order, dtype = array_header(file)
    values = np.frombuffer(content, dtype, offset=file.tell())
    # of its own memory, which may be written to
    return values.reshape(shape, order="F" if fortran_order else "C").copy()


def array_header(file):
    """(shape, whether in Fortran's order, dtype) at the start of an open .npy file. Raises
    ValueError for what np.save of numbers and text does not write: nothing of it is executed.
    """
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    # numpy reads the header as Python's literals, and raises many kinds for broken ones
    except Exception:
        raise ValueError("no header of an array") from None
    if (
        version != (1, 0)
        or dtype.kind not in "biufU"
        or dtype.itemsize == 0
        or dtype.subdtype
        or min(shape, default=0) < 0
    ):
        raise ValueError(f"{dtype} of shape {shape} is no array of numbers or text")
    return shape, fortran_order, dtype


# --- one process at a time ------------------------------------------------------------------------

HEARTBEAT = 20  # seconds between two signs of life of a lock's holder
# seconds without one, by the clock of the file system, after which its holder is dead
SILENCE = 300
PATIENCE = 3  # seconds of waiting before a line says so
LONGEST_PAUSE = 0.5  # seconds between two tries
CONTEST = 1  # seconds in which another host may take over the same lock
LOCK_START = b'{"host": '  # of every lock file
_own_tokens = set()  # of the locks that this process holds


@contextmanager
def sole_process(path, wait=False):
    """Hold a lock file, which names this host and process; it is deleted in the end.

    The file's time is renewed while it is held. A lock that a dead process of this host left behind
    is taken over; so is one of another host whose time is SILENCE old. If another process holds it,
    this one waits, with a line on the screen after PATIENCE, or, unless `wait`, raises WrongUse.
    Raises WrongUse also if the lock file cannot be written.
    """
    if not is_first():
        yield
        return
    path = Path(path)
    lock = _Lock(path)
    start, pause, is_silent = time.monotonic(), 0.01, True
    while True:
        with refuse_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            holder = lock.try_to_take()
        if holder is None:
            break
        if not wait:
            raise WrongUse(_refusal(path, holder))
        if is_silent and time.monotonic() - start > PATIENCE:
            who = f"{escape(path.parent)}: {_stated_holder(holder)}"
            say(f"{who} is writing here; waiting for it to end")
            is_silent = False
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    try:
        yield
    except BaseException:
        # the first error matters; a lock that is left behind is taken over
        with suppress(WrongUse):
            lock.release()
        raise
    lock.release()


def _refusal(path, holder):
    if _is_here(holder):
        return f"{path.parent}: {_stated_holder(holder)} is writing here; wait for it to end"
    hours = (time.time() - holder["since"]) / 3600
    return (
        f"{path.parent}: {_stated_holder(holder)} has written here for {hours:.1f} hours; "
        f"if it has ended: rm {path}, or wait {SILENCE // 60} minutes"
    )


def _stated_holder(holder):
    return (
        "another process"
        if holder["host"] is None
        else escape(f"process {holder['process']} of {holder['host']}")
    )


class _Lock:
    """A lock file. It is locked by flock; if the file system has none, its existence alone is the
    lock.
    """

    def __init__(self, path):
        self.path, self.descriptor = path, None
        self.record = {
            "host": socket.gethostname(), "boot": _boot(), "numbering": _numbering(), "process": os.getpid(),
            "since": time.time(), "token": secrets.token_hex(8),
        }  # fmt: skip
        self.ended = threading.Event()

    def try_to_take(self):
        """Take the lock and return None, or return who holds it."""
        holder = _RELEASED
        while holder is _RELEASED:
            holder = self._try_once()
        return holder

    def _try_once(self):
        flags, is_new = os.O_RDWR | AS_IT_IS, True
        try:
            descriptor = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            is_new = False
            try:
                descriptor = os.open(self.path, flags)
            except FileNotFoundError:
                return _RELEASED
        try:
            _regular_status(descriptor, self.path)
            _check_is_lock(descriptor, self.path)
            holder = self._holder_in_the_way(descriptor, is_new)
            if holder is None:
                self.descriptor = descriptor
                self._keep_alive()
            return holder
        except BaseException:
            if is_new and _leads_to(self.path, descriptor):
                self.path.unlink(missing_ok=True)
            raise
        finally:
            if self.descriptor is None:
                os.close(descriptor)

    def _holder_in_the_way(self, descriptor, is_new):
        locked, holder = _flock(descriptor), _read_holder(descriptor)
        if not _leads_to(self.path, descriptor):
            return _RELEASED
        if locked is False:
            return holder
        if is_new:
            _write_holder(descriptor, self.record)
            return None
        age = _now(self.path) - os.fstat(descriptor).st_mtime
        if age < SILENCE and not (_is_here(holder) and (locked or _has_ended(holder))):
            return holder
        if not _is_here(holder):
            silence = f"which gave no sign of life for {age / 60:.0f} minutes"
            say(f"{escape(self.path)}: taken over from {_stated_holder(holder)}, {silence}")
        _write_holder(descriptor, self.record)
        if not locked or not _is_here(holder):
            time.sleep(CONTEST)  # the last one who wrote into it has it
        now = _read_holder(descriptor)
        return (
            None
            if now["token"] == self.record["token"] and _leads_to(self.path, descriptor)
            else now
        )

    def _keep_alive(self):
        _own_tokens.add(self.record["token"])

        def renew():
            while not self.ended.wait(HEARTBEAT):
                # a server that is away for a moment; the next beat comes soon
                with suppress(OSError):
                    os.utime(self.descriptor)

        self.thread = threading.Thread(target=renew, daemon=True)
        self.thread.start()

    def release(self):
        """Delete the lock file, unless another has taken it over."""
        self.ended.set()
        self.thread.join()
        try:
            with refuse_unwritable(self.path):
                is_own = _read_holder(self.descriptor)["token"] == self.record["token"]
                if is_own and _leads_to(self.path, self.descriptor):
                    self.path.unlink(missing_ok=True)
        finally:
            _own_tokens.discard(self.record["token"])
            os.close(self.descriptor)


def _flock(descriptor):
    """Lock an open file. Returns True, False if another has it locked, None if the file system has
    no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNKNOWN_LOCK:
            raise
        return None


def _leads_to(path, descriptor):
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


_RELEASED = {}  # stands for a holder who has deleted the lock meanwhile
_UNKNOWN = {
    "host": None,
    "boot": None,
    "numbering": None,
    "process": "another",
    "since": 0.0,
    "token": None,
}


def _check_is_lock(descriptor, path):
    """Raise OSError if an open file holds something else than a lock, or what was left of one."""
    start = os.pread(descriptor, len(LOCK_START), 0).rstrip(b"\0")
    if not LOCK_START.startswith(start):
        raise OSError(errno.EEXIST, "it is no lock, but a file of something else", str(path))


def _read_holder(descriptor):
    """Who wrote a lock file, a dict; host is None if it holds nothing that can be read."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        texts = {name: str(content.get(name))[:200] for name in ("boot", "numbering", "token")}
        known = {
            "host": str(content["host"])[:200],
            "process": int(content["process"]),
            "since": float(content["since"]),
        }
        return known | texts
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return _UNKNOWN | {"since": time.time()}


def _write_holder(descriptor, record):
    content = json.dumps(record).encode()
    os.ftruncate(descriptor, 0)
    if os.pwrite(descriptor, content, 0) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_here(holder):
    """Whether a holder is, or was, on this machine. A container may have another host name at each
    start.
    """
    return holder["host"] in (None, socket.gethostname()) or (
        _boot() is not None and holder["boot"] == _boot()
    )


def _has_ended(holder):
    """Whether a holder on this machine is known to have ended."""
    if type(holder["process"]) is not int or holder["process"] <= 0:
        return False
    if holder["numbering"] not in ("None", str(_numbering())):  # "None": of an earlier version
        return False
    if holder["process"] == os.getpid():
        return holder["token"] not in _own_tokens
    try:
        os.kill(holder["process"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's
        return False
    return False


def _boot():
    """What identifies the running kernel, or None."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _numbering():
    """What tells processes that are numbered together from those of another container, or None."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _now(path):
    """The time by the clock of the file system, which may be another host's."""
    with temporary_file(path) as (file, _):
        return os.fstat(file.fileno()).st_mtime
