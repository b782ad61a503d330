"""Where data sets are found, what comes back, and what a broken download leaves (nothing)."""

import gzip
import hashlib
import os
import re
import struct

import numpy as np
import pooch
import pytest
import requests
import sklearn.datasets

from jaxviz import data
from jaxviz.data import loading
from jaxviz.data.sources import File, Source, find

needs_data = pytest.mark.skipif(
    "JAXVIZ_DATA" not in os.environ, reason="$JAXVIZ_DATA names no folder of data sets"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no $JAXVIZ_DATA."""
    monkeypatch.delenv("JAXVIZ_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "jaxviz"


def write_idx_pair(folder, part, labels, value, suffix="", pack=bytes, kinds=("-idx3", "-idx1")):
    folder.mkdir(parents=True, exist_ok=True)
    n = len(labels)
    images = bytes([0, 0, 8, 3]) + struct.pack(">3i", n, 28, 28) + bytes([value]) * (n * 784)
    text = bytes([0, 0, 8, 1]) + struct.pack(">i", n) + bytes(labels)
    (folder / f"{part}-images{kinds[0]}-ubyte{suffix}").write_bytes(pack(images))
    (folder / f"{part}-labels{kinds[1]}-ubyte{suffix}").write_bytes(pack(text))


def test_images_are_floats_between_zero_and_one(tmp_path):
    write_idx_pair(tmp_path, "train", [3, 9], 255)
    out = data.load("mnist", folder=tmp_path)
    assert out.images.shape == (2, 28, 28, 1)
    assert (out.images.dtype, out.labels.dtype) == (np.float32, np.int32)
    assert out.images.min() == out.images.max() == 1.0
    assert out.labels.tolist() == [3, 9]
    assert out.class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("suffix", "pack", "kinds"),
    [
        ("", bytes, ("-idx3", "-idx1")),
        (".gz", gzip.compress, ("-idx3", "-idx1")),
        ("", bytes, (".idx3", ".idx1")),
    ],
)
def test_each_spelling_of_the_files_is_found(tmp_path, suffix, pack, kinds):
    write_idx_pair(tmp_path / "fashion_mnist", "t10k", [1], 0, suffix, pack, kinds)
    out = data.load("fashion_mnist", "test", folder=tmp_path)
    assert out.class_names[out.labels[0]] == "trouser"


def test_places_are_searched_in_order(tmp_path, cache, monkeypatch):
    def label():
        return data.load("mnist", download=False).labels.tolist()

    write_idx_pair(cache / "mnist", "train", [1], 0)
    assert label() == [1]
    monkeypatch.setenv("JAXVIZ_DATA", str(tmp_path / "env"))
    assert label() == [1]  # nothing there: the cache still counts
    write_idx_pair(tmp_path / "env" / "mnist", "train", [2], 0)
    assert label() == [2]
    write_idx_pair(tmp_path / "mine", "train", [3], 0)
    assert data.load("mnist", folder=tmp_path / "mine").labels.tolist() == [3]


def test_half_a_set_is_not_a_place(tmp_path, cache, monkeypatch):
    write_idx_pair(cache / "mnist", "train", [1], 0)
    write_idx_pair(tmp_path / "mnist", "train", [2], 0)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setenv("JAXVIZ_DATA", str(tmp_path))
    assert data.load("mnist", download=False).labels.tolist() == [1]


@pytest.mark.usefixtures("cache")
def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte\.gz.*not found in"):
        data.load("mnist", "test", download=False)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin.*in the folder given"):
        data.load("cifar10", folder=tmp_path)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"got 'minst'\. Use one of digits, mnist"):
        data.load("minst")
    with pytest.raises(ValueError, match=r"got 'validation'\..*train_validation_split"):
        data.load("mnist", "validation")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_idx_pair(tmp_path, "train", [1, 2], 0)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 5]))
    with pytest.raises(
        ValueError, match=r"labels-idx1-ubyte must hold one label for each of the 2"
    ):
        data.load("mnist", folder=tmp_path)
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 10]))
    with pytest.raises(ValueError, match=r"labels 0 to 9; got 10"):
        data.load("mnist", folder=tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(labels.read_bytes())
    with pytest.raises(ValueError, match=r"images \[N, 28, 28\]; got \(2,\)"):
        data.load("mnist", folder=tmp_path)


def test_cifar10_parts_are_joined_in_order(tmp_path):
    for number in range(1, 6):
        content = bytes([number]) + bytes(3072)
        (tmp_path / f"data_batch_{number}.bin.gz").write_bytes(gzip.compress(content))
    out = data.load("cifar10", folder=tmp_path)
    assert out.labels.tolist() == [1, 2, 3, 4, 5]
    assert out.images.shape == (5, 32, 32, 3)


def fake_network(monkeypatch, answers, calls):
    """Replaces pooch's downloader: `answers` maps addresses to bytes; what is not there fails."""

    def make(**_):
        def download(url, output_file, _):
            calls.append(url)
            if url not in answers:
                raise requests.ConnectionError("no route to host")
            output_file = getattr(output_file, "name", output_file)
            with open(output_file, "wb") as file:
                file.write(answers[url])

        return download

    monkeypatch.setattr(pooch, "HTTPDownloader", make)


CONTENT = b"the whole file"
MD5 = hashlib.md5(CONTENT).hexdigest()
SOURCE = Source({"train": (File(("part.bin",), f"md5:{MD5}"),)}, ("http://a/", "http://b/"))


def test_a_download_is_kept_and_not_repeated(cache, monkeypatch, capfd):
    calls = []
    fake_network(monkeypatch, {"http://a/part.bin": CONTENT}, calls)
    for _ in range(2):
        (path,) = find("toy", SOURCE, "train", None, True)
        assert path == cache / "toy" / "part.bin"
        assert path.read_bytes() == CONTENT
    assert calls == ["http://a/part.bin"]
    assert capfd.readouterr() == ("", "")  # no terminal, nothing printed


@pytest.mark.usefixtures("cache")
def test_the_next_mirror_is_tried(monkeypatch):
    calls = []
    answers = {"http://a/part.bin": CONTENT[:-1], "http://b/part.bin": CONTENT}
    fake_network(monkeypatch, answers, calls)
    (path,) = find("toy", SOURCE, "train", None, True)
    assert path.read_bytes() == CONTENT
    assert len(calls) == 2


def test_a_broken_download_leaves_nothing(cache, monkeypatch):
    fake_network(monkeypatch, {"http://a/part.bin": CONTENT[:-1]}, [])
    with pytest.raises(ConnectionError, match=r"http://a/part\.bin.*http://b/part\.bin.*no route"):
        find("toy", SOURCE, "train", None, True)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_every_download_has_a_checksum():
    for source in loading._SOURCES.values():
        files = (
            [source.bundle] if source.bundle else [f for fs in source.files.values() for f in fs]
        )
        assert all(re.fullmatch("md5:[0-9a-f]{32}", file.checksum) for file in files)


def test_digits_are_the_originals_enlarged():
    """Each old pixel is the middle of a 3x3 block, and cubic convolution keeps it."""
    train, test = data.load("digits"), data.load("digits", "test")
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert train.images.min() == 0.0
    assert train.images.max() == 1.0
    assert set(test.labels.tolist()) == set(range(10))
    small, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(1797)
    np.testing.assert_array_equal(test.labels, labels[order[:360]])
    original = small[order[:360]].reshape(-1, 8, 8) / 16
    np.testing.assert_allclose(test.images[:, 3:27:3, 3:27:3, 0], original, atol=1e-6)
    assert test.images[:, [0, -1]].max() < 0.15  # the margin stays dark


def test_digits_are_the_same_each_time():
    first, second = data.load("digits", "test"), data.load("digits", "test")
    np.testing.assert_array_equal(first.images, second.images)


@needs_data
@pytest.mark.parametrize(("split", "number"), [("train", 60000), ("test", 10000)])
def test_real_mnist(split, number):
    out = data.load("mnist", split, download=False)
    assert out.images.shape == (number, 28, 28, 1)
    if split == "train":  # the published statistics
        np.testing.assert_allclose(out.images.mean(dtype=np.float64), 0.1307, atol=5e-5)
        np.testing.assert_allclose(out.images.std(dtype=np.float64), 0.3081, atol=5e-5)
        assert out.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
        assert np.bincount(out.labels).tolist()[:3] == [5923, 6742, 5958]


@needs_data
def test_real_cifar10():
    out = data.load("cifar10", "test", download=False)
    assert out.images.shape == (10000, 32, 32, 3)
    assert np.bincount(out.labels).tolist() == [1000] * 10
    assert [out.class_names[i] for i in out.labels[:4]] == ["cat", "ship", "ship", "airplane"]
