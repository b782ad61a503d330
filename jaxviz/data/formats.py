"""Reads the idx files of MNIST and the binary files of CIFAR-10, and checks every byte count.

Files are judged by their content (magic number, counts, exact length), not by a checksum, so a file
that was packed again is as good as the published one. Nothing is ever unpickled.
"""

import gzip
import math
import os
import tarfile
import zlib
from collections.abc import Sequence

import numpy as np

from jaxviz.calls.naming import caller
from jaxviz.calls.public import public

RECORD_BYTES = 1 + 3 * 32 * 32
"""Length of a CIFAR-10 record: one label byte, then the red, green and blue 32x32 planes."""

_IDX_UINT8 = 0x08
_MOST_AXES = 8  # no data set has more


@public()
def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Reads an idx file of unsigned bytes, the format of MNIST and Fashion-MNIST.

    Two zero bytes, the type code 8, the number of axes, the length of each axis (big-endian int32),
    then the values in row-major order.

    Args:
      path: The file; gzipped if its first two bytes say so, whatever its name.

    Returns:
      uint8 array of the shape that the header states: `[N]` for labels, `[N, 28, 28]` for images.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is no idx file, or it is shorter or longer than its header says, or it is a
        broken gzip file.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "labels-idx1-ubyte")
      ...     with open(path, "wb") as file:
      ...         _ = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 5]))
      ...     read_idx(path).tolist()
      [7, 5]

    Reference:
      The format is described on the MNIST page (LeCun, Cortes and Burges); only its type code 8
      (unsigned byte) is read here.
    """
    content = _content(path)
    num_axes = content[3] if len(content) >= 4 else 0
    header = 4 + 4 * num_axes
    starts = content[:3] == bytes([0, 0, _IDX_UINT8]) and 1 <= num_axes <= _MOST_AXES
    if not starts or len(content) < header:
        raise ValueError(
            f"read_idx: {path} must start with an idx header, bytes 00 00 08 and the number of "
            "axes; "
            f"got {content[:4].hex(' ') or 'an empty file'}. Replace the file."
        )
    shape = tuple(np.frombuffer(content, ">i4", num_axes, offset=4).tolist())
    expected = header + math.prod(shape)
    if min(shape) < 0 or len(content) != expected:
        raise ValueError(
            f"read_idx: {path} must hold {expected:,} bytes for the shape {shape} in its header; "
            f"got {len(content):,}. Replace the file: it is truncated or damaged."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@public()
def read_cifar10(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads one file of the binary version of CIFAR-10.

    Args:
      path: A file of records of 3,073 bytes; gzipped if its first two bytes say so.

    Returns:
      `(images, labels)`: uint8 `[N, 32, 32, 3]` and uint8 `[N]`, 0 to 9.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The length is no whole number of records, or a label is above 9, or it is a broken
        gzip file.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "batch.bin")
      ...     with open(path, "wb") as file:
      ...         _ = file.write(bytes([3]) + bytes(3072))
      ...     images, labels = read_cifar10(path)
      >>> images.shape, labels.tolist()
      ((1, 32, 32, 3), [3])

    Reference:
      A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Planes are
      stored channel first; here the channel is the last axis.
    """
    return _cifar10_records(_content(path), path)


@public()
def read_cifar10_tar(
    path: str | os.PathLike, members: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads named files out of the official archive `cifar-10-binary.tar.gz`, without unpacking it.

    Args:
      path: The archive.
      members: File names, found in whatever folder of the archive, read in this order.

    Returns:
      `(images, labels)` of all of them: uint8 `[N, 32, 32, 3]` and uint8 `[N]`.

    Raises:
      FileNotFoundError: There is no such archive.
      ValueError: The archive is damaged or lacks one of the files, or a file is as `read_cifar10`
        refuses.

    Example:
      >>> import io, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "cifar-10-binary.tar.gz")
      ...     with tarfile.open(path, "w:gz") as archive:
      ...         member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
      ...         member.size = 2 * 3073
      ...         archive.addfile(member, io.BytesIO(bytes(2 * 3073)))
      ...     images, labels = read_cifar10_tar(path, ["test_batch.bin"])
      >>> images.shape
      (2, 32, 32, 3)
    """
    if not members:
        raise ValueError(
            "read_cifar10_tar: members must name a file or more; got none. The test part is "
            '["test_batch.bin"].'
        )
    found = {}
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:  # One pass: a compressed archive can only be read forwards.
                name = os.path.basename(member.name)
                if name in members and member.isfile():
                    file = archive.extractfile(member)
                    found[name] = file.read() if file is not None else b""
            while stream.read(2**20):  # To the end, where gzip compares its checksum.
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"read_cifar10_tar: {path} must be a whole tar.gz archive; got {error}. Replace the "
            "file: it "
            "is truncated or damaged."
        ) from error
    missing = [name for name in members if name not in found]
    if missing:
        raise ValueError(
            f"read_cifar10_tar: {path} must hold {', '.join(members)}; {', '.join(missing)} is not "
            "in "
            "it. Use the binary version of CIFAR-10, cifar-10-binary.tar.gz."
        )
    parts = [_cifar10_records(found[name], f"{path}:{name}") for name in members]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _cifar10_records(content, path):
    if not content or len(content) % RECORD_BYTES:
        raise ValueError(
            f"read_cifar10: {path} must be a whole number of records of {RECORD_BYTES:,} bytes, at "
            f"least one; got {len(content):,} bytes. Replace the file: it is truncated or damaged."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() > 9:
        record = int(np.argmax(labels > 9))
        raise ValueError(
            f"read_cifar10: {path} must hold labels 0 to 9; record {record} has label "
            f"{labels[record]}. Use the binary version of CIFAR-10 (CIFAR-100 differs)."
        )
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.copy()


def _content(path):
    with open(path, "rb") as file:
        content = file.read()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{caller('read_idx')}: {path} must be a whole gzip file; got {error}. Replace the "
            "file: it is truncated or damaged."
        ) from error
