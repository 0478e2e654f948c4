import time

import pytest
import torch

from memorization.errors import Caution, WrongUse
from memorization.resources import TRIALS, memory_for, print_estimate, seconds_of, tensor_bytes

CPU = torch.device("cpu")


def test_the_time_of_work_leaves_out_its_first_time():
    calls = []

    def work():
        calls.append(None)
        time.sleep(0.5 if len(calls) == 1 else 0.01)

    assert 0.01 <= seconds_of(work, CPU) < 0.5 and len(calls) == 1 + TRIALS


def test_an_estimate_is_a_line_and_warns_where_the_disk_is_too_small(tmp_path, capsys):
    print_estimate("a job", 3725, CPU, 5_000_000, tmp_path / "still/to/be/made")
    line = capsys.readouterr().out
    assert line.startswith("  a job: about 1:02:05, ") and line.endswith(" of memory, 5.0 MB on the disk\n")
    print_estimate("a job", 5, CPU)
    assert capsys.readouterr().out.endswith(" of memory\n")
    with pytest.warns(Caution, match="1000000000.0 GB will be written"):
        print_estimate("a job", 1, CPU, 10**18, tmp_path)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_names_the_setting(error):
    with pytest.raises(WrongUse, match="scores.batch_size: 7 needs more than .* lower it"), memory_for("scores.batch_size", 7):
        raise error


def test_out_of_host_memory_is_known_as_torch_tells_it():
    with (
        pytest.raises(WrongUse, match=r"probe.train_images: null \(all\) needs more than memory has left"),
        memory_for("probe.train_images", None),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_another_error_passes():
    with pytest.raises(RuntimeError, match="shapes"), memory_for("scores.batch_size", 7):
        raise RuntimeError("shapes do not fit")


def test_bytes_of_tensors_are_counted_wherever_they_are():
    assert tensor_bytes({"a": [torch.zeros(3), {"b": torch.zeros(2, dtype=torch.uint8)}], "c": 5, "d": "x"}) == 14
