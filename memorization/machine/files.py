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
import stat
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from memorization.errors import Broken, WrongUse
from memorization.machine.processes import is_first, on_first_process

MOST_TEXT = 2**25  # bytes of a text file that is read at once: of a log, 100,000 epochs
MOST_JSON = 2**23  # characters; small lists take twenty times as much memory
TRIAL_BYTES = 4096  # written to find out if a folder takes files; a full disk takes empty ones
ABANDONED = 24 * 3600  # seconds after which a temporary file has no writer, if locks cannot tell
OF_ROOM = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of a file too large
# Errors of folders that cannot be synced, or not be opened to sync them.
NO_SYNC = (
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EBADF,
    errno.EACCES,
)  # fmt: skip
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
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
    write_atomically(path, content.getvalue())  # no copy; a buffer would outlive an error


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
            size = regular_status(file.fileno(), path).st_size
            try:
                _write_through(file, content)
            except BaseException:
                os.ftruncate(file.fileno(), size)  # half a line would be taken for a broken file
                raise


def _write_through(file, content):
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


@contextmanager
def temporary_file(path):
    """A new file beside path, as (unbuffered binary file, its path). It is deleted in the end.

    No other process opens it: its name cannot be guessed, and its writer holds a lock on it.
    Temporary files that killed writers have left beside path are deleted first.
    """
    _delete_abandoned(path)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | AS_IT_IS, 0o666)
        with os.fdopen(descriptor, "r+b", buffering=0) as file, _deleting(temporary):
            if try_flock(descriptor) is not False and _leads_to(temporary, descriptor):
                yield file, temporary
                return


@contextmanager
def _deleting(temporary):
    """Delete a temporary file in the end, unless the body renames it. Raises WrongUse if that
    cannot be done.
    """
    try:
        yield
    except BaseException:
        with suppress(WrongUse):  # the first error matters, and the next writer deletes the file
            delete_file(temporary)
        raise
    delete_file(temporary)


def _delete_abandoned(path):
    """Delete temporary files of path whose writers were killed."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.partial")
    # what cannot be deleted does no harm
    with suppress(OSError), os.scandir(path.parent) as entries:
        for temporary in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            with suppress(OSError):  # gone already, another user's, or a link
                _delete_if_abandoned(temporary)


def _delete_if_abandoned(temporary):
    with closing_descriptor(os.open(temporary, os.O_RDWR | AS_IT_IS)) as descriptor:
        written = regular_status(descriptor, temporary).st_mtime
        locked = try_flock(descriptor)
        if locked is None:
            locked = time.time() - written > ABANDONED
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
    """Raise WrongUse unless files can be written into a folder, or the folder can be made."""
    for place in (Path(folder), *Path(folder).parents):
        if exists(place) and not is_folder(place):
            raise WrongUse(f"{place}: cannot be written to (it is a file, and should be a folder)")
    folder = nearest_folder(folder)
    with refuse_unwritable(folder, TRIAL_BYTES), temporary_file(folder / "writable") as (file, _):
        _write_through(file, bytes(TRIAL_BYTES))


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
    """Rename a file, over a file or a link that is there. Raises WrongUse if that fails."""
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
            if error.errno not in NO_SYNC:  # the file itself is synced
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
    needed = f": it needs {size_in_words(size)}"
    try:
        free = free_bytes(Path(path).parent)
    except (OSError, WrongUse):  # of a disk that is gone
        return needed
    return f"{needed}, {size_in_words(free)} are free there"


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
    for unit, n_bytes in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= n_bytes:
            return f"{size / n_bytes:.1f} {unit}"
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


def try_flock(descriptor):
    """Lock an open file. Returns True, False if another has it locked, None if the file system has
    no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None


def _leads_to(path, descriptor):
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
        regular_status(descriptor, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def regular_status(descriptor, path):
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
