"""One image file: its format and its range of values are what it says, or it is refused; decoding
takes a bounded memory.
"""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from memorization.data import image_files
from memorization.data.image_files import BrokenImage, decode_image, strict_decoders

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint16), (64, 1))  # from black to white
EXPECTED = np.linspace(4, 251, 32)


def png_of_16_bits(values):
    """A PNG file of 16 bits a value, which PIL does not write in colour. values: (H, W) or (H, W,
    channels).
    """
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def saved(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def pnm(values, highest):
    kind = "P6" if values.ndim == 3 else "P5"
    return (
        f"{kind} {values.shape[1]} {values.shape[0]} {highest}\n".encode()
        + values.astype(">u2").tobytes()
    )


def in_colour(values):
    return np.stack([values] * 3, axis=-1)


def with_alpha(values):
    return np.concatenate(
        [values if values.ndim == 3 else values[..., None], np.full((64, 64, 1), 65535)], axis=-1
    )


TOLD = {  # files that tell their range
    "8 bits": saved(RAMP.astype(np.uint8), "png"),
    "gray png of 16": png_of_16_bits(RAMP * 257),
    "png of 16": png_of_16_bits(in_colour(RAMP * 257)),
    "png of 16 with alpha": png_of_16_bits(with_alpha(in_colour(RAMP * 257))),
    "gray png of 16 with alpha": png_of_16_bits(with_alpha(RAMP * 257)),
    "tiff of 16": saved(RAMP * 257, "tiff"),
    "compressed tiff of 16": saved(RAMP * 257, "tiff", compression="tiff_lzw"),
    "tiff of 12 in 16 that tells its highest value": saved(RAMP * 16, "tiff", tiffinfo={281: 4095}),
    "tiff of 16 where white is 0": saved(65535 - RAMP * 257, "tiff", tiffinfo={262: 0}),
    "pgm of 16": pnm(RAMP * 257, 65535),
    "pgm of 12": pnm(RAMP * 16, 4095),
    "ppm of 12": pnm(in_colour(RAMP * 16), 4095),
}
UNTOLD = {
    "png of 12 in 16": png_of_16_bits(RAMP * 16),
    "png of 14 in 16": png_of_16_bits(RAMP * 64),
    "colour png of 12 in 16": png_of_16_bits(in_colour(RAMP * 16)),
    "png of 12 in 16 with alpha": png_of_16_bits(with_alpha(in_colour(RAMP * 16))),
    "tiff of 12 in 16": saved(RAMP * 16, "tiff"),
    "pgm of 12 in 16": pnm(RAMP * 16, 65535),
    "32-bit integers": saved(RAMP.astype(np.int32) * 257, "tiff"),
    "floats in [0, 1]": saved((RAMP / 255).astype(np.float32), "tiff"),
    "floats in [0, 255]": saved(RAMP.astype(np.float32), "tiff"),
}


@pytest.mark.parametrize("kind", TOLD)
def test_values_are_scaled_by_the_range_that_the_file_tells(kind, tmp_path):
    (tmp_path / "x.png").write_bytes(TOLD[kind])
    image = decode_image(tmp_path / "x.png", 32)
    assert np.abs(image.pixels.astype(int) - EXPECTED).max() <= 3
    assert ("deep" in image.notes) == (kind != "8 bits")


@pytest.mark.parametrize("kind", UNTOLD)
def test_values_of_unknown_range_are_refused_with_their_mode(kind, tmp_path):
    (tmp_path / "x.png").write_bytes(UNTOLD[kind])
    with pytest.raises(BrokenImage, match="mode (I|I;16|F|RGB|RGBA): .*convert it to 8 bits"):
        decode_image(tmp_path / "x.png", 32)


def test_a_black_image_of_16_bits_is_black(tmp_path):
    (tmp_path / "x.png").write_bytes(png_of_16_bits(RAMP * 0))
    assert not decode_image(tmp_path / "x.png", 32).pixels.any()


def test_transparency_and_further_images_of_a_file_are_noted(tmp_path):
    gray = Image.fromarray(RAMP.astype(np.uint8))
    gray.convert("LA").save(tmp_path / "alpha.png")
    gray.convert("P").save(tmp_path / "palette.png", transparency=3)
    for name in ("x.gif", "x.webp", "x.tiff"):
        gray.save(tmp_path / name, save_all=True, append_images=[gray.rotate(180)], lossless=True)
    with strict_decoders():
        images = {path.name: decode_image(path, 32) for path in tmp_path.iterdir()}
    several = ("several",)
    notes = {
        "alpha.png": ("transparent",),
        "palette.png": ("transparent",),
        "x.gif": several,
        "x.webp": several,
        "x.tiff": several,
    }
    assert {name: image.notes for name, image in images.items()} == notes
    # the first of each
    assert all(np.abs(image.pixels.astype(int) - EXPECTED).max() <= 3 for image in images.values())


@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    saved(RAMP.astype(np.uint8), "tga"),
    saved(RAMP.astype(np.uint8), "pcx"), b"GIF89a", b"",
])  # fmt: skip
def test_other_formats_behind_the_name_of_an_image_are_refused_and_start_nothing(
    content, tmp_path, monkeypatch
):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)  # would be called
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(BrokenImage):
        decode_image(tmp_path / "x.png", 32)


def test_a_pipe_behind_the_name_of_an_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BrokenImage, match="no regular file"):
        decode_image(tmp_path / "x.png", 32)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    Image.new("1", (8900, 8900)).save(tmp_path / "x.tif", compression="group4")
    with pytest.raises(BrokenImage, match="8900 x 8900 pixels of TIFF take 1.1 GB"):
        decode_image(tmp_path / "x.tif", 32)


def test_threads_decode_no_more_at_once_than_the_memory_for_it_holds(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(image_files, "_memory", image_files._SharedMemory(2 * 9 * 100 * 100))
    at_work, most, decode = [], [], image_files._in_rgb

    def watched(file):
        at_work.append(threading.get_ident())
        most.append(len(at_work))
        threading.Event().wait(0.01)
        at_work.remove(threading.get_ident())
        return decode(file)

    monkeypatch.setattr(image_files, "_in_rgb", watched)
    threads = [
        threading.Thread(target=decode_image, args=(tmp_path / "x.png", 8)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 12 and max(most) <= 2
