"""YAML, JSON, tables and XML that are broken or made to do harm. They have no checksum: another
text that can be read is another value.
"""

import json
from pathlib import Path

import numpy as np
import yaml
from conftest import write_experiment
from hostile import HOSTILE_JSON, HOSTILE_YAML, LAUGHS, boxes_read, fuzz, scores_read

from memorization.config import read_config, read_run_config
from memorization.errors import WrongUse
from memorization.measuring.removal_curve import read_accuracy
from memorization.training import read_log, run_files


def test_the_summary_of_scores(run):
    path = run / "scores/summary.json"
    summary = json.loads(path.read_text())
    changes = [
        {"seeds": [0, 0]}, {"seeds": [1, 0]}, {"seeds": "01"}, {"seeds": [0.0, 1.0]},
        {"seeds": [0, 10**400]},
        {"seeds": list(range(10**4))},
        {"fingerprints": []}, {"checkpoint": "encoder"}, {"checkpoint": {"name": "../encoder"}},
        {"checkpoint": {"name": 5}},
    ]  # fmt: skip
    contents = [json.dumps(summary | change).encode() for change in changes]
    fuzz(path, lambda: scores_read(run), HOSTILE_JSON + contents)


def laughing(path):
    """A config in which a setting is a list of lists of lists: whoever writes it out never ends."""
    content = yaml.safe_load(path.read_text())
    lines = [
        "method:",
        *(f"  {line}" for line in LAUGHS.splitlines()),
        "encoder: {name: resnet_small, width: *a39}",
    ]
    others = {key: value for key, value in content.items() if key not in ("method", "encoder")}
    return "\n".join([*lines, yaml.safe_dump(others)]).encode()


def changed_yaml(path, changes):
    """The bytes of a YAML file with each of some changes. changes: (dotted key, value)."""
    contents = []
    for key, value in changes:
        *sections, last = key.split(".")
        changed = yaml.safe_load(path.read_text())
        section = changed
        for part in sections:
            section = section[part]
        section[last] = value
        contents.append(yaml.safe_dump(changed).encode())
    return contents


CONFIG_CHANGES = [
    *((f"encoder.{key}", value) for key in ("width", "depth", "patch") for value in (10**9, -1,
        float("nan"), "8", [8], 10**400)),
    ("augmentation.views", [{"size": 10**9}]), ("training.learning_rate", float("inf")),
    ("seeds", [-1]), ("a\nb", 1), ("encoder.x\ny", 1),
]  # fmt: skip


def test_the_config_of_a_run(run):
    path = run / "config.yaml"
    hostile = [*HOSTILE_YAML, laughing(path), *changed_yaml(path, CONFIG_CHANGES)]
    fuzz(
        path,
        lambda: read_run_config(run).model_dump(),
        hostile,
        valid=lambda found: found["encoder"]["width"] <= 1024,
    )


def test_the_config_of_a_script(run, tmp_path):
    path = Path(write_experiment(tmp_path, {"seeds": [0, 1]}))
    hostile = [*HOSTILE_YAML, laughing(path), *changed_yaml(path, CONFIG_CHANGES)]
    trained = read_config("", ["--config", str(path)]).model_dump(
        include={"encoder", "training", "augmentation"}
    )

    def valid(found):  # what was trained cannot be another
        return {section: found[section] for section in trained} == trained

    wrong = []

    def read():
        try:
            return read_config("", ["--config", str(path)]).model_dump()
        # some name a key of the file, or the run folder that it leads to
        except WrongUse as refusal:
            wrong.append(str(refusal))
            raise WrongUse(f"{path}: {refusal}") from None

    fuzz(path, read, hostile, valid)
    assert all(len(line) < 2 * 10**5 for line in wrong)


def are_boxes(found):
    return all(
        np.isfinite(boxes).all() and (np.array(boxes)[:, :2] < np.array(boxes)[:, 2:]).all()
        for boxes in found.values()
        if boxes
    )


def test_boxes_in_a_table(tmp_path):
    path = tmp_path / "boxes.csv"
    path.write_text(
        "index,xmin,ymin,xmax,ymax\n" + "".join(f"{i},{i},2,{i + 3.5},4\n" for i in range(9))
    )
    head = b"index,xmin,ymin,xmax,ymax\n"
    rows = [
        b"0," + b"1" * 10**7 + b",2,3,4", b'0,"' + b"x" * 10**6, b"0,nan,0,1,1", b"0,0,0,inf,1",
        b"-1,0,0,1,1", b"9,0,0,1,1",
        b"1" * 5000 + b",0,0,1,1", b"0,0,0,1,1,1", b"0,0,0,1", b"\xff", b"0,0\x00,0,1,1",
    ]  # fmt: skip
    fuzz(
        path,
        lambda: boxes_read(path),
        [*(head + row for row in rows), b"", b"x" * 2**27, b"index,index"],
        valid=are_boxes,
    )


def test_boxes_of_an_image(tmp_path):
    path = tmp_path / "a.xml"
    box = (
        "<object><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></object>"
    )
    path.write_text(f"<annotation><filename>a</filename>{box * 4}</annotation>")
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 20))
    hostile = [
        (
            f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">{entities}]>'
            "<annotation>&a19;</annotation>"
        ).encode(),
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><annotation>&a;</annotation>',
        b'<!DOCTYPE x [<!ENTITY % a SYSTEM "file:///etc/passwd">%a;]><annotation/>',
        "<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>".encode("utf-16"),
        b"<a>", b"", b"\x00", b"x" * 2**27, b"<a><bndbox/></a>", b"<a/><b/>",
        box.replace("1", "nan").encode(), box.replace("1", "x").encode(),
    ]  # fmt: skip
    fuzz(
        path,
        lambda: boxes_read(tmp_path, [f"/images/c/{'a' if i == 0 else i}.png" for i in range(9)]),
        hostile,
        valid=are_boxes,
    )


def test_a_log(run):
    path = run / "seed_0/candidate/log.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    changes = [
        {"loss": None},
        {"loss": "x"},
        {"loss": 1},
        {"epoch": 2},
        {"knn_accuracy": "x"},
        {"spread": [1.0]},
        {"loss": 1e999},
    ]
    contents = [json.dumps(line | change).encode() for change in changes]

    def valid(lines):
        return [line["epoch"] for line in lines] == list(range(1, len(lines) + 1)) and np.isfinite(
            [line["loss"] for line in lines]
        ).all()

    fuzz(
        path,
        lambda: read_log(path),
        [content for content in HOSTILE_JSON if content] + contents,
        valid,
    )


def test_the_environment_of_a_run(run, monkeypatch):
    path = run / "environment.json"
    monkeypatch.setattr(run_files, "describe_machine", lambda device: {})

    def read():  # and written again, with the machine of one encoder put in
        run_files.note_machine(run, "seed_0/candidate", None, is_resumed=True)
        return json.loads(path.read_text())

    fuzz(
        path,
        read,
        [content for content in HOSTILE_JSON if content != b"{}"],
        valid=lambda found: found["seed_0/candidate"][-1] == {},
    )


def test_a_kept_probe(tmp_path):
    path = tmp_path / "probe.json"
    path.write_text(
        json.dumps(
            {
                "top_1": {"mean": 0.4375, "std": None, "n": 1},
                "top_5": {"mean": 0.875, "std": None, "n": 1},
            }
        )
    )
    changes = [{"top_1": {"mean": mean}} for mean in ("x", None, 2.0, -1.0, [0.5], True)]
    fuzz(
        path,
        lambda: read_accuracy(path),
        HOSTILE_JSON + [json.dumps(change).encode() for change in changes],
        valid=lambda x: 0 <= x <= 1,
    )
