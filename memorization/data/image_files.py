"""One image file as the square that encoders see: its format, its range of values, and the memory
that decoding takes.
"""

import ctypes
import os
import stat
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from memorization.machine.files import size_in_words

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Endings of images that torchvision's ImageFolder passes over too.
OTHER_ENDINGS = (".gif", ".jfif", ".jpe", ".jp2", ".heic", ".avif", ".tga")
# Formats that are read, whatever the name of a file ends in. PIL knows more, and for PostScript it
# starts an interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
# Bytes a pixel while a file is decoded and turned to RGB, at most, as measured.
BYTES_A_PIXEL = {"WEBP": 20, "TIFF": 14, "JPEG": 12}
BYTES_A_PIXEL_OF_OTHERS = 9
MOST_MEMORY = 2**30  # bytes for one image
# bytes for all images that threads decode at once, if no single one needs more
SHARED_MEMORY = 3 * 2**28
LARGE = 2**24  # bytes from which on an image's memory is given back to the system at once
ROWS_AT_ONCE = 256  # of an image whose values are scaled

NOTES = {
    "transparent": "{} with an alpha channel or a transparent colour, which is dropped",
    "several": "{} of files that hold several, of which the first is taken",
    "deep": "{} of 16 bits, scaled to 8",
}

_C = ctypes.CDLL(None)  # the C library


class BrokenImage(Exception):
    """A file that cannot be decoded as an image. The message is the reason."""


@dataclass(frozen=True)
class DecodedImage:
    """A square image.

    pixels: (3, size, size) uint8. geometry: scale and x and y offset of
    prepared pixel = original pixel * scale - offset. notes: keys of NOTES that hold for the file.
    """

    pixels: np.ndarray
    geometry: tuple
    notes: tuple


def decode_image(path, size):
    """The centre square of an image file, its short side scaled to size, a DecodedImage.

    Like torchvision, it ignores EXIF orientation and drops transparency. Values of more than 8 bits
    are scaled if the file tells their range. Raises BrokenImage, and OSError if the system cannot
    read the file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a FIFO would wait for ever
        raise BrokenImage("it is no regular file")
    with _reasons_of_decoders():
        with Image.open(path, formats=FORMATS) as file:
            needed = _bytes_to_decode(file)
        with _memory.reserve(needed):
            image = _decode_square(path, size)  # frees its memory when it returns
            if needed > LARGE:
                _return_free_memory()
            return image


def _decode_square(path, size):
    with Image.open(path, formats=FORMATS) as file:
        notes = _notes(file)
        image = _in_rgb(file)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    scale = size / side
    return DecodedImage(
        np.asarray(square).transpose(2, 0, 1), (scale, left * scale, top * scale), notes
    )


def _return_free_memory():
    """Return free memory to the system; glibc would keep some for each thread that decoded."""
    if hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)


@contextmanager
def _reasons_of_decoders():
    """Turn what PIL raises for broken files into BrokenImage."""
    try:
        yield
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage(f"no image in a format that is read: {', '.join(FORMATS)}") from None
    except Exception as error:  # its decoders raise errors of many kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BrokenImage(" ".join(str(error).split()) or type(error).__name__) from error


@contextmanager
def strict_decoders():
    """Let PIL refuse the images whose size it would only warn of. It is silent about what NOTES
    says.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        yield


class _SharedMemory:
    """An amount of memory that threads share: each waits until there is room for its image."""

    def __init__(self, size):
        self._size = self._free = size
        self._change = threading.Condition()

    @contextmanager
    def reserve(self, amount):
        amount = min(amount, self._size)  # larger ones are worked on alone
        with self._change:
            self._change.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._change:
                self._free += amount
                self._change.notify_all()


_memory = _SharedMemory(SHARED_MEMORY)


def _bytes_to_decode(file):
    """The memory that decoding an open file takes at most. Raises BrokenImage for too much."""
    needed = file.width * file.height * BYTES_A_PIXEL.get(file.format, BYTES_A_PIXEL_OF_OTHERS)
    if needed > MOST_MEMORY:
        size = f"{file.width} x {file.height} pixels of {file.format}"
        most = f"at most {size_in_words(MOST_MEMORY)} are given"
        raise BrokenImage(f"{size} take {size_in_words(needed)} of memory, but {most}")
    return needed


def _notes(file):
    """The keys of NOTES that hold for an open image file."""
    holds = {
        "transparent": "transparency" in file.info
        or file.mode in ("RGBA", "LA", "PA", "RGBa", "La"),
        "several": getattr(file, "is_animated", False),
        "deep": _is_deep(file),
    }
    return tuple(name for name, value in holds.items() if value)


def _is_deep(file):
    """Whether the values of an open image file have more than 8 bits, and 16 at most."""
    return file.mode.startswith("I;16") or any(_deep_arguments(tile.args) for tile in file.tile[:1])


def _deep_arguments(arguments):
    """Whether the arguments of a decoder of PIL are those for 16 bits: a raw mode, or PNM's highest
    value.
    """
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    raw_modes = [argument for argument in arguments if isinstance(argument, str)]
    return any(";16" in mode for mode in raw_modes) or (
        len(arguments) == 2 and arguments[-1] in range(256, 65536)
    )


def _in_rgb(file):
    """An open image file as an RGB image of 8 bits. Raises BrokenImage if the range of its values
    is not known.
    """
    deep, high = _is_deep(file), _highest_value(file)
    file.load()
    if file.mode.startswith("I;16") or (file.mode == "I" and file.format in ("PPM", "PNG")):
        return _scale_to_8_bits(file, high).convert("RGB")
    if file.mode in ("I", "F"):
        integers = "integers of 32 bits or with a sign"
        kind = integers if file.mode == "I" else "floating-point numbers"
        advice = "whose range it does not tell; convert it to 8 bits"
        raise BrokenImage(f"mode {file.mode}: its values are {kind}, {advice}")
    if deep and high is None:
        bands = [file.getextrema()] if len(file.getbands()) == 1 else file.getextrema()
        highest = [most for name, (_, most) in zip(file.getbands(), bands) if name not in "Aa"]
        _check_range(max(highest) * 257, file.mode)
    return file if file.mode == "RGB" else file.convert("RGB")


def _highest_value(file):
    """The value of white that an open image file states, or None if it states at most the number of
    bits.
    """
    if file.format == "PPM" and file.tile and isinstance(file.tile[0].args, tuple):
        highest = file.tile[0].args[-1]
        if isinstance(highest, int) and 255 < highest < 65535:
            return 65535  # PIL has scaled to this
    if file.format == "TIFF" and file.mode.startswith("I;16"):
        # MaxSampleValue, BitsPerSample
        highest, bits = (file.tag_v2.get(tag) for tag in (281, 258))
        highest = highest[0] if isinstance(highest, tuple) else highest
        if isinstance(highest, int) and 0 < highest < 65535:
            return highest
        if bits and bits[0] < 16:
            return 2 ** bits[0] - 1
    return None


def _scale_to_8_bits(image, high):
    """A gray image of 16 bits as one of 8. high: the value of white, or None for 65535."""
    if high is None:
        _check_range(image.getextrema()[1], image.mode)
        high = 65535
    # WhiteIsZero, which PIL leaves as it is
    inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0
    gray = np.empty((image.height, image.width), dtype=np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):
        rows = np.asarray(image.crop((0, top, image.width, min(top + ROWS_AT_ONCE, image.height))))
        values = rows.astype(np.int64).clip(0, high)
        gray[top : top + len(rows)] = (255 * values + high // 2) // high
    return Image.fromarray(255 - gray if inverted else gray)


def _check_range(highest, mode):
    """Raise BrokenImage if 16-bit values use less than half of their range, as those of 12 bits in
    16 do.
    """
    if 0 < highest < 2**15:
        doubt = "it does not tell whether that is white; convert it to 8 bits"
        raise BrokenImage(f"mode {mode}: its 16-bit values end at {highest}, and {doubt}")
