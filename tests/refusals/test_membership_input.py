"""Membership inferences that would tell nothing are refused in one line, and nothing is written."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CPU, Rows, random_bytes

import membership_inference
from memorization.data.images import Split
from memorization.encoder import Encoder
from memorization.errors import WrongUse
from memorization.measuring.membership import check_rows
from memorization.measuring.membership_attacks import compare_crops
from memorization.measuring.membership_guards import find_shared_images


@pytest.fixture
def refuse(run_copy, refusal):
    """refuse(*options) -> the line with which a run is refused, which is left as it is."""

    def infer(*options):
        path, run = run_copy
        before = sorted(run.rglob("*"))
        arguments = ["--config", path, "--run", str(run), *options]
        line = refusal(membership_inference.main, arguments)
        assert sorted(run.rglob("*")) == before
        return line

    return infer


def test_fewer_than_20_members_are_refused(refuse):
    line = refuse("--membership.per_subset", "19")
    assert "there are 19 candidates, which f saw, but at least 20 are needed" in line
    assert "membership.per_subset is 19" in line


@pytest.mark.parametrize("scheme, counts, words", [
    ("fixed", (40, 0), "there are 0 external images, which no encoder saw, but at least 20"),
    ("fixed", (40, 19), "there are 19 external images"),
    ("fixed", (0, 40), "there are 0 candidates"),
    ("crossover", (38, 40), "there are 19 candidates"),
])  # fmt: skip
def test_too_few_images_of_a_list_are_refused(scheme, counts, words):
    class Scheme:
        pass

    Scheme.scheme = scheme
    rows = {"subset": np.repeat(["candidate", "external"], counts)}
    with pytest.raises(WrongUse, match=words):
        check_rows(rows, Scheme, None)


@pytest.mark.parametrize("n", [0, 19])
def test_too_few_images_that_g_alone_saw_are_refused_if_g_is_attacked(n):
    scheme = SimpleNamespace(scheme="fixed")
    names = ["candidate", "external", "independent"]
    rows = {"subset": np.repeat(names, (20, 20, n))}
    check_rows(rows, scheme, None)
    with pytest.raises(WrongUse, match=f"there are {n} independent images, which g saw"):
        check_rows(rows, scheme, None, with_g=True)


@pytest.mark.parametrize("attack, words", [
    ("lira", "lira needs a crossover of 4 seeds or more, and this is one fixed split"),
    ("yeom", "'yeom'"),
])  # fmt: skip
def test_an_attack_that_cannot_be_made_is_refused(attack, words, refuse):
    assert words in refuse("--membership.attacks", "alignment", attack)


def test_an_attack_that_needs_g_is_refused_without_g(run_copy, refuse):
    shutil.rmtree(run_copy[1] / "seed_1/independent")
    line = refuse("--membership.attacks", "reference")
    assert "membership.attacks: reference needs g, which is not there" in line


def test_a_crossover_without_g_of_a_seed_is_refused(pool_copy, refusal):
    path, run = pool_copy
    (run / "seed_1/independent/encoder.pt").unlink()
    line = refusal(membership_inference.main, ["--config", path, "--run", str(run)])
    assert "seed_1/independent/encoder.pt is missing" in line and "both are needed" in line


def test_parts_of_another_length_than_the_positions_of_the_map_are_refused():
    class Longer(Rows):
        def forward(self, pixels, visible=None):
            return pixels.flatten(1)

    class Images:
        train = Split.from_array(random_bytes(4, 8, 8, 1), name="train")
        test = Split.from_array(random_bytes(4, 8, 8, 1), name="test")

    rows = {"index": np.arange(4), "split": np.repeat("train", 4)}
    encoder = Encoder("f", Longer().eval(), 1, 8, ((0.5,), (0.5,)))
    with pytest.raises(WrongUse, match="crops compares vectors of 64 and 8 dimensions"):
        compare_crops(encoder, Images, rows, seed=0)
    as_long = compare_crops(replace(encoder, network=Rows().eval()), Images, rows, seed=0)
    assert as_long.shape == (4,) and (np.abs(as_long) <= 1).all()


def test_members_that_are_also_others_are_refused(fake_twins):
    images, rows, lists = fake_twins
    with pytest.raises(WrongUse, match="members are also others: 50% of one list"):
        find_shared_images(lists, rows, images, CPU)


@pytest.fixture
def fake_twins():
    """(images, rows, lists): half of the external images have the pixels of candidates."""

    class Images:
        train = Split.from_array(random_bytes(60, 8, 8, 1), name="train")

    pixels = random_bytes(20, 8, 8, 1, seed=1)
    pixels[:10] = random_bytes(60, 8, 8, 1)[:10]
    Images.test = Split.from_array(pixels, name="test")
    rows = {"index": np.concatenate([np.arange(60), np.arange(20)])}
    rows["split"] = np.repeat(["train", "test"], [60, 20])
    return Images, rows, {"candidate against external": (np.arange(60), np.arange(60, 80))}
