"""Files of torch.save are read as PyTorch reads them, and nothing in them is run."""

import io
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxviz.models.pth import read_pth

FOLDER = pathlib.Path(__file__).parent.parent / "reference"
FILES = ("tiny_state.pth", "tiny_state_older.pth")  # torch 2.15; see run_torchvision.py


@pytest.mark.parametrize("file", FILES)
def test_tensors_are_what_was_saved(file):
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    expected = {
        "whole": base,
        "transposed": base.transpose(2, 1, 0),
        "part": base[1, 1:],
        "parameter": np.array([0.5, -2.0], np.float32),
        "half": np.array([1.5, -3.0], np.float16),
        "brain": np.array([1.5, -3.0], ml_dtypes.bfloat16),
        "count": np.array(7, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    out = read_pth(FOLDER / file)
    assert list(out) == list(expected)
    for name, value in expected.items():
        assert out[name].dtype == value.dtype
        np.testing.assert_array_equal(out[name], value)


class Attack:
    """What a file would do if it were unpickled freely."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zipped(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", content)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_file_is_called(older, protocol, tmp_path):
    path, mark = tmp_path / "net.pth", tmp_path / "mark"
    content = pickle.dumps({"a": Attack(os.mkdir, str(mark))}, protocol)
    path.write_bytes(content) if older else zipped(path, content)
    with pytest.raises(ValueError, match=r"it names \w+\.mkdir, which no file of tensors needs"):
        read_pth(path)
    assert not mark.exists()


def test_a_tensor_cannot_reach_beyond_its_numbers(tmp_path):
    with zipfile.ZipFile(FOLDER / FILES[0]) as archive:
        table = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        content = archive.read(table)
        rest = {n: archive.read(n) for n in archive.namelist() if n != table}
    wider = b"K\x02K\x03K\x04\x87"  # the size (2, 3, 4) of the first tensor
    assert content.count(wider) == 1
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(table, content.replace(wider, b"K\x02K\x03K\x05\x87"))
        for name, value in rest.items():
            archive.writestr(name, value)
    with pytest.raises(ValueError, match=r"must be a file of torch\.save"):
        read_pth(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be a file of torch.save"),
        (b"<html>not found</html>", "it does not begin like one"),
        ((FOLDER / FILES[1]).read_bytes()[:-9], "it breaks off or is damaged"),
        ((FOLDER / FILES[0]).read_bytes()[:-99], "must be a file of torch.save"),
        (pickle.dumps({"a": 1}), "it does not begin like one"),
    ],
)
def test_damaged_files_are_refused(content, message, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_pth(path)


def test_what_is_no_state_dict_is_refused(tmp_path):
    zipped(tmp_path / "nested.pth", pickle.dumps({"state_dict": {}}, 2))
    with pytest.raises(ValueError, match="something else than tensors by name"):
        read_pth(tmp_path / "nested.pth")
    with zipfile.ZipFile(io.BytesIO(), "w"), zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ValueError, match="it is another zip file"):
        read_pth(tmp_path / "a.pth")
