import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU

from memorization.data.augmentations import View
from memorization.machine import threads
from models.encoders import encoder_settings, make_encoder


@pytest.fixture(autouse=True, params=[1, 2, 3])
def number(request):
    """As many threads as torch is to have."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_work_is_done_by_as_many_threads_each_alone_and_comes_out_in_order(number):
    all_here = threading.Barrier(number, timeout=20)

    def work(part):
        all_here.wait()  # for as many as there are to be
        return part, threading.get_ident(), torch.get_num_threads()

    made = threads.map_in_threads(work, range(2 * number), CPU)
    assert [part for part, _, _ in made] == list(range(2 * number))
    assert len({thread for _, thread, _ in made}) == number and {alone for _, _, alone in made} == {
        1
    }
    assert threads.map_in_threads(work, [], CPU) == [] and torch.get_num_threads() == number


def test_a_thread_stays_alone_whatever_is_set_before_its_first_operation(number):
    threads._pool.cache_clear()
    # starts threads, in which torch does nothing yet
    threads.map_in_threads(lambda part: part, range(2 * number), CPU)
    torch.set_num_threads(number)
    assert set(
        threads.map_in_threads(lambda part: torch.get_num_threads(), range(2 * number), CPU)
    ) == {1}


def test_what_holds_for_one_thread_holds_where_its_work_is_done():
    def states():
        return {
            (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
                torch.get_autocast_dtype("cpu"),
            )
        }

    for state in (
        torch.enable_grad(),
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.float16),
    ):
        with state:
            expected = states()
            assert (
                set().union(*threads.map_in_threads(lambda part: states(), range(4), CPU))
                == expected
            )
    assert set().union(*threads.map_in_threads(lambda part: states(), range(4), CPU)) == states()


def test_an_error_in_one_thread_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        threads.map_in_threads(lambda part: 1 / part, [1, 0, 2], CPU)


@pytest.mark.parametrize("size, count, together", [
    # as many as the cache may hold
    (28, 0, [0]), (28, 1, [1]), (28, 150, [64, 64, 22]), (128, 40, [16, 16, 8]), (600, 2, [1, 1]),
    # as many as give each thread its share
    (28, 64, {1: [64], 2: [64], 3: [43, 21]}), (28, 30, {1: [30], 2: [30], 3: [20, 10]}),
])  # fmt: skip
def test_threads_encode_some_images_at_a_time(size, count, together, number):
    torch.manual_seed(0)
    encoder, worked_on = (
        make_encoder(encoder_settings(name="resnet_small", width=8), 1, size).eval(),
        [],
    )
    view = View(torch.rand(count, 1, size, size))
    expected = encoder(view.pixels).detach()
    encoder.layers[0].register_forward_hook(
        lambda layer, given, result: worked_on.append((len(result), threading.get_ident()))
    )
    with torch.no_grad():
        found, again = threads.encode_in_parts(encoder, [view, view])
    assert (
        torch.equal(found, again)
        and found.shape == expected.shape
        and torch.allclose(found, expected, atol=1e-5)
    )
    assert sorted(length for length, _ in worked_on) == sorted(
        2 * (together if type(together) is list else together[number])
    )
    assert (threading.get_ident() in {thread for _, thread in worked_on}) == (number == 1)


def test_views_of_several_sizes_are_each_encoded_under_their_own_mask():
    torch.manual_seed(0)
    encoder = make_encoder(
        encoder_settings(name="vit_mini", width=32, depth=1, patch=4), 1, 16
    ).eval()
    visible = torch.rand(70, 16).argsort(1)[:, :5]
    views = [
        View(torch.rand(70, 1, 16, 16)),
        View(torch.rand(70, 1, 16, 16), visible),
        View(torch.rand(70, 1, 8, 8)),
    ]
    with torch.no_grad():
        found = threads.encode_in_parts(encoder.tokens, views)
        expected = [encoder.tokens(view.pixels, view.visible) for view in views]
    assert [tokens.shape for tokens in found] == [(70, 17, 32), (70, 6, 32), (70, 5, 32)]
    assert all(torch.allclose(tokens, wanted, atol=1e-5) for tokens, wanted in zip(found, expected))


def views_on_meta(*shapes):
    """A View for each (images, size, visible patches or None)."""
    views = []
    for count, size, seen in shapes:
        visible = None if seen is None else torch.empty(count, seen, device="meta")
        views.append(View(torch.empty(count, 3, size, size, device="meta"), visible))
    return views


@pytest.mark.parametrize("shapes, together", [
    ([(64, 32, None)] * 10, [640]),
    ([(64, 32, 16)] * 10, [640]),
    ([(500, 8, None)], [500]),
    ([(0, 8, None)] * 3, [0]),
    (
        [(8, 32, None), (8, 16, None), (8, 32, None), (8, 32, 16), (8, 32, 20), (8, 32, 16)],
        [16, 8, 16, 8],
    ),
    ([(1024, 32, None)] * 10, [4096, 4096, 2048]),  # no more than memory allows
    ([(1024, 32, None)] * 6, [3072, 3072]),  # shared evenly
    ([(2, 4096, None)] * 2, [2, 2]),  # each beyond that
])  # fmt: skip
def test_a_gpu_is_given_views_of_one_shape_together(shapes, together):
    views, seen = views_on_meta(*shapes), []

    def encode(pixels, visible):
        seen.append((len(pixels), threading.get_ident()))
        assert visible is None or len(visible) == len(pixels)
        return pixels.flatten(1)

    found = threads.encode_in_parts(encode, views)
    assert seen == [(count, threading.get_ident()) for count in together]
    assert [rows.shape for rows in found] == [(count, 3 * size**2) for count, size, _ in shapes]


def test_a_gpu_with_less_memory_is_given_fewer_views_at_a_time(monkeypatch):
    cards = [SimpleNamespace(total_memory=gigabytes * 2**30) for gigabytes in (8, 24)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cards[device.index])
    small, large = (threads._pixels_at_once(torch.device("cuda", index)) for index in range(2))
    assert 512 * 32**2 <= small == large // 3


@pytest.mark.parametrize("masked", [False, True])
def test_views_encoded_together_are_those_encoded_one_by_one(masked, number):
    torch.manual_seed(0)
    settings = encoder_settings(name="vit_mini", width=32, depth=1, patch=4)
    encoder, views = make_encoder(settings, 1, 16).eval(), []
    for size in (16, 8, 16, 16, 8):
        visible = torch.rand(7, 4).argsort(1) if masked else None
        views.append(View(torch.rand(7, 1, size, size), visible))
    with torch.no_grad():
        found = threads._encode_together(encoder.tokens, views, most=2 * 7 * 16**2)
        expected = [encoder.tokens(view.pixels, view.visible) for view in views]
    assert all(torch.allclose(tokens, wanted, atol=1e-6) for tokens, wanted in zip(found, expected))
