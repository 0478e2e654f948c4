"""What does not go with drawing duplicates into one subset is refused."""

import numpy as np
import pytest
from conftest import four_classes_config, train, write_experiment
from PIL import Image


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--subsets.separate_duplicates", "true", "--subsets.order", "balanced"],
            "separate_duplicates is True, which does not go with order: balanced; take shuffled",
        ),
        (["--subsets.separate_duplicates", "maybe"], "subsets.separate_duplicates: 'maybe'"),
        (["--subsets.find_duplicates", "2"], "subsets.find_duplicates: 2"),
        (["--subsets.find_duplicate", "true"], "find_duplicates"),
    ],
)
def test_wrong_settings_end_in_one_line_and_nothing_is_written(options, line, tmp_path, capsys):
    path = write_experiment(tmp_path)
    with pytest.raises(SystemExit) as ended:
        train(path, *options)
    (said,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line in said
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore::memorization.errors.Caution")
def test_too_few_images_beside_one_large_group_are_refused_with_what_can_be_had(
    four_classes, capsys
):
    image = np.asarray(Image.open(four_classes / "images/train/a/00.png"))
    for i in range(20):  # all of a class
        Image.fromarray(image).save(four_classes / "images/train/a" / f"{i:02d}.png")
    path = four_classes_config(
        four_classes, {"subsets.shared": 40, "subsets.separate_duplicates": True}
    )
    train(path)  # the group is one half of the pool, or in S_S
    capsys.readouterr()
    path = four_classes_config(
        four_classes,
        {
            "subsets": {
                "scheme": "crossover", "shared": 0, "pool": 80, "external": 20,
                "separate_duplicates": True,
            },
            "run": str(four_classes / "other"),
        },
    )  # fmt: skip
    for split, count in (("b", 15), ("c", 6)):
        for i in range(count):
            Image.fromarray(image).save(four_classes / "images/train" / split / f"{i:02d}.png")
    with pytest.raises(SystemExit) as ended:
        train(path)
    assert ended.value.code == 2 and not (four_classes / "other").exists()
    said = capsys.readouterr().err.splitlines()[-1]
    assert "(pool) is 80, but" in said and "without dividing a group" in said
