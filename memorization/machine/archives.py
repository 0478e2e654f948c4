"""Arrays in .npy files, and in .npz and other zip files. Nothing in them is executed or trusted."""

import errno
import io
import os
import zipfile
from contextlib import contextmanager

import numpy as np

from memorization.machine.files import open_regular

MOST_DIRECTORY = 2**24  # bytes of a zip file's list of members, some 80 a member


def read_arrays(path):
    """{name: array} of an .npz file of np.savez. Raises ValueError if it is broken or compressed,
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
    """Raise ValueError if the list of members is larger than ours are: each becomes an object."""
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
    """The array in the bytes of an .npy file. Raises ValueError if its header claims another size
    than they have.
    """
    file = io.BytesIO(content)
    shape, fortran_order, dtype = array_header(file)
    values = np.frombuffer(content, dtype, offset=file.tell())
    # A copy, as the bytes cannot be written to.
    return values.reshape(shape, order="F" if fortran_order else "C").copy()


def array_header(file):
    """(shape, whether in Fortran's order, dtype) at the start of an open .npy file. Raises
    ValueError for what np.save of numbers and text does not write: nothing of it is executed.
    """
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    # numpy reads the header as Python's literals, and raises errors of many kinds for broken ones
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
