"""A thread pool for work on a CPU. Every thread runs its operations single-threaded.

For encoders that is faster than to let torch divide each operation among its threads: the
activations of a small part of a batch stay in a thread's cache.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from itertools import islice

import torch

# What a thread encodes at a time, at most: its activations are to stay in the thread's cache.
IMAGES_TOGETHER, PIXELS_TOGETHER = 64, 2**18
# The same if all views of an image are encoded at once, of which there are many.
PIXELS_OF_ALL_VIEWS = 2**17
PIXELS_TOGETHER_ELSEWHERE = 2**22  # on a device that does not tell the size of its memory
# Bytes of a GPU's memory for each pixel that it encodes at a time. A ResNet-50 takes 2**12.
BYTES_A_PIXEL = 2**14


def count(device):
    """Number of worker threads: one on a GPU and inside a worker thread."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def map_in_threads(work, parts, device):
    """[work(part) for part in parts], computed by a pool of threads on a CPU."""
    # torch keeps these modes, and autocast, for each thread
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    halved = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def work_on(part):
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            torch.autocast("cpu", halved) if halved else nullcontext(),
        ):
            return work(part)

    threads = count(device)
    return list(map(work, parts) if threads == 1 else _pool(threads).map(work_on, parts))


def use_one_thread_in(executor):
    """Make torch run the operations of an executor's only thread single-threaded, and of no other.

    executor: a ThreadPoolExecutor of one thread.
    """
    before = torch.get_num_threads()
    executor.submit(_use_one_thread).result()
    torch.set_num_threads(before)  # else threads that begin later would take one, too


def encode_in_parts(encode, views):
    """[encode(view.pixels, view.visible) for view in views], in fewer or more calls.

    encode: each of its rows depends on one image alone. On a CPU the images are divided among
    threads. A GPU encodes views of one shape together, as far as its memory allows: every call
    costs the host time, and under autocast casts all weights.
    """
    device = views[0].pixels.device
    if device.type != "cpu":
        return _encode_together(encode, views, _pixels_at_once(device))
    share = math.ceil(sum(len(view.pixels) for view in views) / count(device))
    parts = [_parts(view, min(IMAGES_TOGETHER, share)) for view in views]
    encodings = iter(map_in_threads(lambda part: encode(*part), sum(parts, []), device))
    return [torch.cat(list(islice(encodings, len(of_view)))) for of_view in parts]


def divide_images(n_images, n_views, n_pixels, device):
    """The images of a batch in parts, a list of slices, for work that encodes all views of an image
    at once. On a CPU the parts are for threads.

    n_pixels: of one view.
    """
    most = PIXELS_OF_ALL_VIEWS if device.type == "cpu" else _pixels_at_once(device)
    length = min(most // (n_pixels * n_views), math.ceil(n_images / count(device)))
    length = max(1, length)
    return [slice(start, start + length) for start in range(0, n_images, length)]


def _encode_together(encode, views, most):
    """What `encode_in_parts` returns. A call encodes views of one shape, with at most `most` pixels
    in all; a view that has more pixels is encoded by itself.
    """
    places_of = {}
    for place, (pixels, visible) in enumerate(views):
        shapes = pixels.shape, None if visible is None else visible.shape
        places_of.setdefault(shapes, []).append(place)
    encodings = [None] * len(views)
    for (shape, visible_shape), places in places_of.items():
        calls = math.ceil(len(places) / max(1, most // max(1, shape[0] * shape[2] * shape[3])))
        length = math.ceil(len(places) / calls)
        for group in (places[start : start + length] for start in range(0, len(places), length)):
            pixels = _join([views[place].pixels for place in group])
            visible = None
            if visible_shape is not None:
                visible = _join([views[place].visible for place in group])
            for place, rows in zip(group, encode(pixels, visible).tensor_split(len(group))):
                encodings[place] = rows
    return encodings


def _pixels_at_once(device):
    """How many pixels a device encodes in one call.

    The same for all GPUs of a kind, however full they are, so that results are rounded alike.
    """
    if device.type != "cuda":
        return PIXELS_TOGETHER_ELSEWHERE
    return torch.cuda.get_device_properties(device).total_memory // BYTES_A_PIXEL


def _join(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(view, most):
    """A view in parts of at most `most` images, fewer if these are large: [(pixels, visible)]."""
    height, width = view.pixels.shape[2:]
    length = max(1, min(most, PIXELS_TOGETHER // (height * width)))
    pixels = view.pixels.split(length)
    visible = [None] * len(pixels) if view.visible is None else view.visible.split(length)
    return list(zip(pixels, visible))


@cache
def _pool(threads):
    """A pool of threads. Each runs its operations single-threaded: they are small, and torch rounds
    a sum differently if several threads compute it.
    """
    return ThreadPoolExecutor(threads, initializer=_use_one_thread)


def _use_one_thread():
    """Make torch run the operations of this thread single-threaded."""
    torch.set_num_threads(1)
    # This fixes the number. Else the first operation would take the one that any thread set last.
    torch.get_num_threads()


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not follow into a forked process
