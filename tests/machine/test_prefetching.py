import threading
from dataclasses import replace

import pytest
import torch

from memorization.data.images import Split
from memorization.data.prefetching import AHEAD, make_ahead, prefetch

PIXELS = torch.arange(40 * 3 * 4 * 4).view(40, 3, 4, 4).to(torch.uint8)
BATCHES = list(torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(8))


def in_a_map(indices):
    """A Split of 100 images of which these are prepared, as a folder of images has them."""
    rows = torch.full((100,), -1).index_put((indices,), torch.arange(40))
    return Split("train", PIXELS, torch.arange(100), row_of=rows)


def test_images_at_hand_are_left_where_they_are():
    split = Split("train", PIXELS, torch.arange(40))
    assert not split.is_far and all(found is split for _, found in prefetch(split, BATCHES))


def test_images_of_a_map_are_the_same_once_fetched():
    prepared = torch.arange(50, 90)
    split, batches = in_a_map(prepared), [50 + batch for batch in BATCHES]
    assert split.is_far
    found = list(prefetch(split, batches))
    assert [indices.tolist() for indices, _ in found] == [batch.tolist() for batch in batches]
    for indices, fetched in found:
        assert torch.equal(fetched.gather(indices), split.gather(indices))
        assert torch.equal(fetched.gather(indices[3:5]), split.gather(indices[3:5]))
        assert (
            len(fetched.pixels) == 8
            and len(fetched) == 100
            and torch.equal(fetched.labels, split.labels)
        )
        with pytest.raises(AssertionError, match="not prepared"):
            fetched.gather(
                torch.tensor([next(i for i in range(50, 90) if i not in indices.tolist())])
            )


def test_only_some_batches_are_fetched_ahead(monkeypatch):
    asked = []
    fetch = Split.fetch
    monkeypatch.setattr(
        Split, "fetch", lambda split, indices: asked.append(None) or fetch(split, indices)
    )
    for done, _ in enumerate(prefetch(in_a_map(torch.arange(40)), BATCHES)):
        assert len(asked) <= done + 1 + AHEAD
    assert len(asked) == len(BATCHES)


def test_an_error_of_fetching_comes_out_and_leaving_early_ends_the_thread():
    split = in_a_map(torch.arange(40))
    with pytest.raises(AssertionError, match="not prepared"):
        list(prefetch(split, [*BATCHES, torch.tensor([99])]))
    left_early = prefetch(split, BATCHES)
    next(left_early)
    left_early.close()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_items_made_ahead_come_in_their_order_and_on_a_cpu_when_they_are_asked_for(device):
    begun = []
    items = make_ahead((begun.append(i) or i for i in range(5)), torch.device(device))
    assert next(items) == 0
    seen = [begun[:] for _ in items]
    assert begun == [0, 1, 2, 3, 4]
    for done, so_far in enumerate(seen, start=2):
        assert done <= len(so_far) <= min(5, done + 1 if device == "cuda" else done)


def test_an_error_of_what_is_made_ahead_comes_out_and_leaving_early_ends_the_thread():
    def broken():
        yield 1
        raise ValueError("broken")

    items = make_ahead(broken(), torch.device("cuda"))
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    endless = make_ahead(iter(int, 1), torch.device("cuda"))
    next(endless)
    endless.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("making_ahead")]


def test_what_is_made_ahead_is_computed_by_one_thread_and_all_else_by_as_many_as_before(one_thread):
    def threads_of_a_new_thread():
        numbers = []
        thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return numbers[0]

    torch.set_num_threads(3)
    items = ((torch.get_num_threads(), threads_of_a_new_thread()) for _ in range(3))
    for item in make_ahead(items, torch.device("cuda")):
        assert item == (1, 3) and torch.get_num_threads() == 3


def test_pixels_stay_where_they_are_told_to(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * PIXELS.nbytes, 0))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *target: moved.append(target) or tensor)
    split, gpu = Split("train", PIXELS, torch.arange(40)), torch.device("cuda")
    for place, moves in (("auto", 1), ("cuda", 1), ("cpu", 0)):
        moved.clear()
        assert split.to(gpu, place).device == gpu and len(moved) == moves
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * PIXELS.nbytes, 0))
    for place, moves in (("auto", 0), ("cuda", 1)):
        moved.clear()
        assert split.to(gpu, place).is_far and len(moved) == moves
    assert replace(split, device=gpu).is_far
