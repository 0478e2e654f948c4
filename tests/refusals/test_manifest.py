"""A manifest: what it says of images is read, and one line names where it is wrong."""

import csv
import io
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import read_table, score, train, write_experiment
from PIL import Image

import remove_samples
from memorization.data.catalogue import DataSettings
from memorization.data.images import open_images
from memorization.data.manifest import read_manifest
from memorization.data.subsets import SubsetSettings, check_pair, check_subsets, draw_subsets
from memorization.errors import WrongUse
from memorization.run import open_run

SUBSET_NAMES = ["shared", "candidate", "candidate", "independent", "independent", "external"]


@pytest.fixture
def root(tmp_path):
    """A folder with 48 images, 0.png to 47.png."""
    chance = np.random.default_rng(0)
    for i in range(48):
        path = tmp_path / f"images/{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def rows_of(**columns):
    """Rows of a manifest on the images, dicts. columns: {name: function from the number of an image
    to a text}.
    """
    return [
        {"path": f"{i}.png"} | {name: text(i) for name, text in columns.items()} for i in range(48)
    ]


def write_manifest(root, rows, encoding="utf-8"):
    """Write rows, or a text as it is, to a CSV beside the images. Returns its path."""
    path = root.parent / "images.csv"
    if not isinstance(rows, str):
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        rows = file.getvalue()
    path.write_bytes(rows.encode(encoding))
    return path


def read(root, rows, share=None, **options):
    """({"train": Listing, "test": Listing}, class names)."""
    train, test, classes = read_manifest(write_manifest(root, rows, **options), root, share)
    return {"train": train, "test": test}, classes


def names(listing):
    return [int(name.removesuffix(".png")) for name in listing.names]


def refusal(root, rows):
    with pytest.raises(WrongUse) as error:
        read(root, rows)
    return str(error.value)


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_splits_and_groups_are_read_with_or_without_a_byte_order_mark(
    root, encoding, capsys
):
    rows = rows_of(
        label=lambda i: ["crane", 'a, "b"\nc', "", "été"][i % 4],
        split=lambda i: "train" if i < 30 else "test",
        group=lambda i: "" if i % 2 else f"p{i // 6}",
    )
    listings, classes = read(root, rows, encoding=encoding)
    assert classes == ('a, "b"\nc', "crane", "été")
    assert listings["train"].labels[:5] == (1, 0, -1, 2, 1)
    assert names(listings["train"]) == list(range(30)) and names(listings["test"])[0] == 30
    assert listings["train"].files[3] == str(root / "3.png")
    groups = np.concatenate([listings["train"].groups, listings["test"].groups])
    assert groups[0] == groups[2] == groups[4] != groups[6] and len(set(groups)) == 24 + 8
    assert listings["train"].subsets is None and capsys.readouterr().out == ""


def test_labels_that_are_numbers_are_classes_in_the_order_of_numbers(root):
    listings, classes = read(root, rows_of(label=lambda i: ["10", "9", "2.5"][i % 3]), 0.3)
    assert classes == ("2.5", "9", "10")


def test_columns_that_are_not_read_are_named(root, capsys):
    read(root, rows_of(camera=lambda i: "x", Label=lambda i: "y"))
    assert "that are not read: 'camera', 'Label'" in capsys.readouterr().out


def test_paths_may_be_absolute_and_are_named_as_they_stand_there(root):
    rows = rows_of()
    rows[5]["path"] = str(root / "5.png")
    listings, _ = read(root, rows)
    both = [*listings["train"].names, *listings["test"].names]
    assert str(root / "5.png") in both and "4.png" in both
    relative, _ = read(root, rows_of())
    assert len(relative["test"].files) == len(listings["test"].files)  # hashed alike


def test_a_folder_whose_name_begins_with_dots_may_be_moved_with_its_images(root, tmp_path):
    """Its images are hashed by their paths in the root, as all others are."""
    rows = [{"path": f"..scans/{i}.png"} for i in range(48)]
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    root.rename(here / "..scans")
    first, _ = read(here, rows)
    here.rename(there)
    second, _ = read(there, rows)
    assert first["test"].names == second["test"].names


def test_without_a_test_part_images_are_held_out_and_of_a_group_all_or_none(root, capsys):
    listings, classes = read(root, rows_of(group=lambda i: f"p{i // 4}"), 0.4)
    assert classes == () and not set(listings["train"].groups) & set(listings["test"].groups)
    n_test = len(listings["test"].files)
    assert n_test % 4 == 0 and f"{n_test} of its 48 images are held out" in capsys.readouterr().out


def test_the_subset_tells_the_split_if_nothing_else_does(root):
    listings, _ = read(root, rows_of(subset=lambda i: [*SUBSET_NAMES, "", ""][i % 8]))
    assert names(listings["test"]) == list(range(5, 48, 8))
    assert set(listings["train"].subsets) == {*SUBSET_NAMES, ""} - {"external"}


def test_parquet_says_the_same_as_csv(root, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = rows_of(label=lambda i: i % 3, split=lambda i: "test" if i % 5 else "train")
    rows[4]["label"] = rows[9]["label"] = None
    path = tmp_path / "images.parquet"
    table = pyarrow.Table.from_pylist(rows)
    as_floats = table.set_column(1, "label", table["label"].cast("float64"))  # as pandas has it
    expected = read(root, rows)
    for kind in (table, as_floats):
        parquet.write_table(kind, path)
        train, test, classes = read_manifest(path, root)
        for listing, of_csv in zip((train, test), expected[0].values()):
            assert listing[:3] == of_csv[:3]
        assert classes == expected[1] == ("0", "1", "2")
    parquet.write_table(table.set_column(1, "label", pyarrow.array([[1]] * 48)), path)
    with pytest.raises(WrongUse, match="images.parquet, row 1: label is of type list"):
        read_manifest(path, root)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(WrongUse, match="images.parquet: cannot be read as Parquet"):
        read_manifest(path, root)


def test_parquet_without_pyarrow_ends_in_one_line(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        WrongUse, match="data.manifest: .*images.parquet is a Parquet file; install"
    ):
        read_manifest(tmp_path / "images.parquet", root)


# --- where it is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "images.csv: its header needs a column path, but has nothing"),
        ("file;label\n0.png;1\n", "needs a column path, but has 'file;label'; commas part them"),
        ("path,label,label\n0.png,1,2\n", "has the column label more than once"),
        ("path\n", "images.csv: lists no image"),
        ("path,label\n0.png,1\n1.png\n", "images.csv, line 3: 1 cells, but the header has 2"),
        ("path\n0.png\n\n./0.png\n", "images.csv, line 4: ./0.png stands in line 2 too"),
        ("path\n0.png\n99.png\n", "line 3: .*99.png: cannot be read .No such file"),
        ("path\n0.png\n../images\n", "line 3: .*images is no file"),
        ('path,label\n"",1\n', "line 2: path is '', which is the name of no file"),
        ("path\n0\0.png\n", "line 2: "),
        ('path\n"0.png\n', "is not CSV"),
        ("path,split\n0.png,train\n1.png,val\n", "line 3: split is 'val', but must be train, test"),
        ("path,split\n0.png,train\n1.png,\n", "line 3: split is '', but must be"),
        ("path,subset\n0.png,f\n", "line 2: subset is 'f', but must be shared, .*l or empty"),
        ("path,split,subset\n0.png,train,external\n",
         "line 2: split is train, but external images are test images"),
        ("path,split\n0.png,train\n", "images.csv: has no test image; leave out the columns"),
        ("path,subset,group\n0.png,shared,a\n1.png,,a\n2.png,,b\n3.png,external,a\n",
         "line 5: group 'a' is in shared .line 2. and in external; a group is never divided"),
    ],
)  # fmt: skip
def test_one_line_names_the_file_and_the_line(root, text, reason):
    with pytest.raises(WrongUse, match=reason) as error:
        read(root, text)
    assert str(error.value).startswith(str(root.parent / "images.csv"))


def test_other_encodings_and_missing_manifests_end_in_one_line(root):
    assert "is not UTF-8" in refusal_of_bytes(root, "path,label\n0.png,été\n".encode("latin-1"))
    with pytest.raises(WrongUse, match="absent.csv: cannot be read .No such file"):
        read_manifest(root / "absent.csv", root)


def refusal_of_bytes(root, content):
    path = root.parent / "images.csv"
    path.write_bytes(content)
    with pytest.raises(WrongUse) as error:
        read_manifest(path, root)
    return str(error.value)


def test_a_share_is_refused_if_the_manifest_says_which_images_are_test_images(root):
    for column, word in (("split", "test"), ("subset", "external")):
        rows = rows_of(**{column: lambda i, word=word: word})
        with pytest.raises(WrongUse, match=f"data.test_share: 0.3 .*the column {column} of"):
            read(root, rows, 0.3)


# --- subsets --------------------------------------------------------------------------------------


def images_of(root, rows):
    path = write_manifest(root, rows)
    settings = {"root": str(root), "prepared": str(root.parent / "prepared"), "size": 8}
    return open_images(DataSettings(name="manifest", manifest=str(path), **settings))


def subsets_of(root, rows, **settings):
    subsets = draw_subsets(
        SubsetSettings(**({"order": "manifest"} | settings)), images_of(root, rows)
    )
    check_subsets(subsets)
    check_pair(subsets)
    return subsets


def in_subsets(i):
    return SUBSET_NAMES[i % 6]


def test_the_four_sets_are_as_the_manifest_says(root):
    images = images_of(root, rows_of(subset=in_subsets))
    subsets = subsets_of(root, rows_of(subset=in_subsets), shared=8)
    numbers = {name: names(getattr(images, name)) for name in ("train", "test")}
    assert [numbers["train"][i] for i in subsets.shared] == list(range(0, 48, 6))
    assert [numbers["train"][i] for i in subsets.candidate[:3]] == [1, 2, 7]
    assert [numbers["train"][i] for i in subsets.independent[:3]] == [3, 4, 9]
    assert [numbers["test"][i] for i in subsets.external] == list(range(5, 48, 6))


def test_candidate_and_independent_rows_are_the_pool_of_a_crossover(root):
    rows = rows_of(subset=in_subsets)
    fixed, crossover = subsets_of(root, rows), subsets_of(root, rows, scheme="crossover")
    assert set(crossover.candidate) == {*fixed.candidate, *fixed.independent}
    assert len(crossover.of_seed(0).candidate) == len(crossover.of_seed(0).independent) == 16


def test_the_pool_of_a_manifest_is_halved_without_dividing_its_groups(root):
    rows = rows_of(subset=in_subsets, group=lambda i: f"{in_subsets(i)} {i // 12}")
    images = images_of(root, rows)
    subsets = subsets_of(root, rows, scheme="crossover", pool=32)
    for seed in range(20):
        of_seed = subsets.of_seed(seed)
        f, g = (images.train.groups[half] for half in (of_seed.candidate, of_seed.independent))
        assert not set(f) & set(g)


def test_a_pool_whose_groups_have_no_equal_halves_is_refused_with_the_size_that_can_be_had(root):
    subset_of = {**dict.fromkeys((1, 2, 3, 4), "candidate"), 0: "shared", 5: "external"}
    rows = rows_of(
        subset=lambda i: subset_of[i % 6],
        group=lambda i: "a" if i < 40 and i % 6 in (1, 2, 3) else "",
    )
    with pytest.raises(WrongUse, match="subsets.pool: the manifest says 32, but .* 22 of them can"):
        subsets_of(root, rows, scheme="crossover")
    assert len(subsets_of(root, rows, scheme="crossover", pool=22).candidate) == 22


@pytest.mark.parametrize(
    ("changes", "settings", "reason"),
    [
        ({}, {"shared": 9}, "subsets.shared: 9 was given, but the manifest says 8"),
        ({}, {"candidate": 8, "independent": 8}, "subsets.candidate: 8 was given, but .* says 16"),
        ({}, {"scheme": "crossover", "pool": 40}, "subsets.pool: 40 was given, but .* says 32"),
        ({1: ""}, {}, "subsets: 15 candidates, but 16 independents; they must be equally many"),
        ({1: ""}, {"scheme": "crossover"}, "the manifest has 31 candidate and independent images"),
        (dict.fromkeys(range(5, 40, 6), ""), {}, None),
        (dict.fromkeys(range(5, 46, 6), ""), {}, "has 1 external images, but must have 2"),
        ({}, {"order": "shuffled", "shared": 8, "candidate": 4, "independent": 4, "external": 4},
         "subsets.order: 'shuffled' is not allowed: .* a column `subset`: set it to manifest"),
    ],
)  # fmt: skip
def test_sizes_must_fit_what_the_manifest_says(root, changes, settings, reason):
    rows = rows_of(subset=lambda i: changes.get(i, in_subsets(i)))
    with pytest.raises(WrongUse, match=reason) if reason else nullcontext():
        subsets_of(root, rows, **settings)


def test_order_manifest_needs_a_column_subset(root):
    with pytest.raises(
        WrongUse, match="'manifest' is not allowed: manifest has no manifest with a"
    ):
        subsets_of(root, rows_of())


def test_groups_are_kept_whole_if_subsets_are_drawn(root):
    rows = rows_of(group=lambda i: f"p{i // 3}", split=lambda i: "test" if i > 34 else "train")
    images = images_of(root, rows)
    sizes = {"shared": 6, "candidate": 9, "independent": 9, "external": 7, "order": "shuffled"}
    subsets = subsets_of(root, rows, **sizes)
    of = [
        set(
            getattr(images, "test" if name == "external" else "train").groups[
                getattr(subsets, name)
            ]
        )
        for name in ("shared", "candidate", "independent", "external")
    ]
    assert sum(map(len, of)) == len(set.union(*of))


# --- a run ----------------------------------------------------------------------------------------


def config_of(root, rows, subsets, **changes):
    data = {"name": "manifest", "manifest": str(write_manifest(root, rows)), "root": str(root)}
    data |= {"prepared": str(root.parent / "prepared"), "size": 16}
    quick = {"training.epochs": 1, "training.batch_size": 8, "scores.views": 3}
    return write_experiment(root.parent, {"data": data, "subsets": subsets} | quick | changes)


def test_a_run_is_trained_and_scored_and_scores_csv_names_the_files(root, capsys):
    path = config_of(root, rows_of(subset=in_subsets), {"order": "manifest"})
    train(path)
    score(path)
    header, table = read_table(root.parent / "run/scores")
    assert header[-1] == "file" and len(table["file"]) == 48
    for file, subset in zip(table["file"], table["subset"]):
        assert in_subsets(int(file.removesuffix(".png"))) == subset
    # another place of the manifest is another name of the same images
    (root.parent / "images.csv").rename(root.parent / "moved.csv")
    moved = ["--data.manifest", str(root.parent / "moved.csv")]
    score(path, *moved)
    retraining = remove_samples.make_retraining(open_run("", ["--config", path, *moved], "removal"))
    assert retraining.options["data.manifest"] == moved[1]
    with pytest.raises(SystemExit):
        score(path)
    assert "images.csv: cannot be read" in capsys.readouterr().err


def test_an_encoder_is_trained_again_without_some_images_of_a_manifest(root):
    path = config_of(root, rows_of(subset=in_subsets), {"order": "manifest"})
    train(path)
    score(path)
    options = ["--removal.candidates_only", "true", "--removal.counts", "2"]
    remove_samples.main(["--config", path, *options, "--removal.policies", "memorized"])
    (reduced,) = (root.parent / "run/removal/subsets").glob("memorized_2_*.npz")
    run = str(root.parent / "reduced")
    train(path, "--run", run, "--subsets.file", str(reduced), "--role", "candidate")
    assert (root.parent / "reduced/seed_0/candidate/encoder.pt").exists()


def test_another_share_of_test_images_is_another_training(root, capsys):
    sizes = {"shared": 8, "candidate": 4, "independent": 4, "external": 4, "order": "shuffled"}
    path = config_of(root, rows_of(), sizes)
    train(path)
    with pytest.raises(SystemExit):
        score(path, "--data.test_share", "0.4")
    assert "data.test_share" in capsys.readouterr().err


def test_broken_images_of_a_manifest_with_subsets_are_named(root, capsys):
    (root / "2.png").write_bytes(b"no image")
    path = config_of(
        root, rows_of(subset=in_subsets), {"order": "manifest"}, **{"data.skip_broken": True}
    )
    with pytest.raises(SystemExit):
        train(path)
    assert "1 broken images in candidate" in (err := capsys.readouterr().err) and "2.png" in err
