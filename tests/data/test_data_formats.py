"""The readers of idx and CIFAR-10 files, on files written here byte by byte."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from jaxviz import data, models


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def record(label, red, green, blue):
    return bytes([label]) + bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_is_read_plain_and_gzipped(tmp_path, pack):
    images = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    (tmp_path / "images").write_bytes(pack(idx_bytes(images)))
    out = data.read_idx(tmp_path / "images")
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, images)


@settings(max_examples=25, deadline=None)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_any_shape_comes_back(tmp_path_factory, shape, seed):
    array = np.random.RandomState(seed).randint(0, 256, shape)
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(idx_bytes(array))
    np.testing.assert_array_equal(data.read_idx(path), array)


WHOLE = idx_bytes(np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (WHOLE[:-1], r"24 bytes for the shape \(3, 4\) in its header; got 23"),
        (WHOLE + b"\0", r"got 25"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", r"truncated or damaged"),  # a length of -1
        (WHOLE[:7], r"must start with an idx header"),
        (b"", r"got an empty file"),
        (b"\0\0\x08\0", r"number of axes"),
        (b"\0\0\x0d\x01" + WHOLE[4:], r"got 00 00 0d 01"),  # floats, not bytes
        (b"<html>404</html>", r"got 3c 68 74 6d"),
        (gzip.compress(WHOLE, mtime=0)[:-9], r"must be a whole gzip file"),
        (gzip.compress(WHOLE, mtime=0)[:20] + b"\x55" * 20, r"must be a whole gzip file"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "train-images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path)
    assert str(path) in str(error.value)


def test_gzip_with_one_flipped_bit_is_refused(tmp_path):
    packed = bytearray(gzip.compress(WHOLE, mtime=0))
    packed[-6] ^= 1  # in the stored checksum
    (tmp_path / "file.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"file\.gz must be a whole gzip file"):
        data.read_idx(tmp_path / "file.gz")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_cifar10_planes_become_channels(tmp_path, pack):
    first = bytearray(record(7, 1, 2, 3))
    first[1 + 1024 + 33] = 99  # green, row 1, column 1
    (tmp_path / "batch").write_bytes(pack(bytes(first) + record(0, 4, 5, 6)))
    images, labels = data.read_cifar10(tmp_path / "batch")
    assert labels.tolist() == [7, 0]
    assert images.shape == (2, 32, 32, 3)
    assert images[0, 0, 0].tolist() == [1, 2, 3]
    assert images[0, 1, 1].tolist() == [1, 99, 3]
    assert images[1, 31, 31].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (record(1, 0, 0, 0)[:-1], r"records of 3,073 bytes, at least one; got 3,072"),
        (b"", r"got 0 bytes"),
        (record(1, 0, 0, 0) + record(10, 0, 0, 0), r"record 1 has label 10"),
    ],
)
def test_a_damaged_cifar10_file_is_named(tmp_path, content, message):
    path = tmp_path / "data_batch_1.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_cifar10(path)
    assert str(path) in str(error.value)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_archive_members_come_in_the_order_asked_for(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    folder = "cifar-10-batches-bin/"
    write_tar(
        path,
        [
            (folder + "readme.html", b"no record"),
            (folder + "b.bin", record(2, 0, 0, 0)),
            (folder + "a.bin", record(1, 0, 0, 0) * 2),
        ],
    )
    images, labels = data.read_cifar10_tar(path, ["a.bin", "b.bin"])
    assert labels.tolist() == [1, 1, 2]
    assert images.shape == (3, 32, 32, 3)
    with pytest.raises(ValueError, match=r"c\.bin is not in it"):
        data.read_cifar10_tar(path, ["a.bin", "c.bin"])


def test_a_cut_archive_is_refused(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    noise = np.random.RandomState(0).bytes(3072)
    write_tar(path, [("a.bin", b"\x01" + noise), ("b.bin", b"\x02" + noise[::-1])])
    whole = path.read_bytes()
    for length in (len(whole) // 4, len(whole) - 12):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"binary\.tar\.gz must be a whole tar\.gz archive"):
            data.read_cifar10_tar(path, ["a.bin", "b.bin"])
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the stored checksum
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"must be a whole tar\.gz archive"):
        data.read_cifar10_tar(path, ["a.bin", "b.bin"])
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"must be a whole tar\.gz archive"):
        data.read_cifar10_tar(path, ["a.bin"])


READERS = {
    "read_idx": data.read_idx,
    "read_cifar10": data.read_cifar10,
    "read_cifar10_tar": lambda path: data.read_cifar10_tar(path, ["test_batch.bin"]),
    "load_torchvision": lambda path: models.load_torchvision(models.CIFARNet(), path),
}
FOREIGN = {
    "nothing": b"",
    "one byte": b"\0",
    "text": b"a text, and nothing else",
    "two bytes of gzip": b"\x1f\x8b",
    "an unknown compression": b"\x1f\x8b\x09" + bytes(30),
    "half a gzip file": gzip.compress(bytes(range(200)) * 9)[:60],
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "many axes": bytes([0, 0, 8, 255]) + bytes(4 * 255),
    "a huge array": bytes([0, 0, 8, 3]) + b"\x7f\xff\xff\xff" * 3,
    "floats": bytes([0, 0, 13, 1, 0, 0, 0, 1]) + bytes(4),
    "a pickle": pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}),
}


@pytest.mark.parametrize("ending", ["", ".safetensors", ".pth"])
@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("reader", READERS)
def test_foreign_files_are_refused_in_one_sentence(tmp_path, reader, kind, ending):
    path = tmp_path / f"file{ending}"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(ValueError, match=f"^{reader}: ") as told:
        READERS[reader](path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_told(tmp_path, reader):
    with pytest.raises(OSError, match=f"^{reader}: .*nowhere"):
        READERS[reader](tmp_path / "nowhere")
    with pytest.raises(OSError, match=f"^{reader}: "):
        READERS[reader](tmp_path)
    for path in ("", "a\0b", 3, b"bytes", None if reader != "load_torchvision" else 3.5):
        with pytest.raises((TypeError, ValueError), match=f"^{reader}: path must be"):
            READERS[reader](path)


def test_members_of_an_archive_are_named(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, [("a.bin", record(1, 0, 0, 0))])
    for members in ([], "a.bin", [1], None):
        with pytest.raises((TypeError, ValueError), match=r"read_cifar10_tar: .*members"):
            data.read_cifar10_tar(path, members)
