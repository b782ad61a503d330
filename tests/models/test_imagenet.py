"""Photographs for ImageNet's networks: torchvision's pixels, and the classes' names."""

import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from jaxviz import models

DATA = pathlib.Path(os.environ.get("JAXVIZ_DATA", "none"))


def colours(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.skipif(not (DATA / "imagenet").is_dir(), reason="$JAXVIZ_DATA/imagenet is not there")
def test_photographs_are_torchvisions_to_the_pixel():
    """Oracle: the ten photographs scaled and cut by torchvision, as stored with the weights."""
    with np.load(DATA / "weights" / "squeezenet1_1_reference.npz") as file:
        expected, names = file["inputs_uint8"], [str(name) for name in file["names"]]
    files = [next((DATA / "imagenet").glob(f"{pathlib.Path(name).stem}.*")) for name in names]
    out = models.photographs(files)
    assert (out.shape, out.dtype) == ((len(names), 224, 224, 3), np.float32)
    np.testing.assert_array_equal((out * 255).round().astype(np.uint8), expected)


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_is_cut_out(wide):  # nothing to scale: the pixels themselves
    image = colours(10, 15, 3)
    expected = image[:, 2:12] / np.float32(255)  # 2.5 left out at each side, rounded to even
    out = models.photographs([image if wide else image.swapaxes(0, 1)], size=10, shorter=10)[0]
    np.testing.assert_array_equal(out if wide else out.swapaxes(0, 1), expected)


def test_a_border_is_scaled_and_cut_off():
    image = np.kron(colours(6, 6), np.ones((2, 2), np.uint8))  # halved, all but its edges come out
    out = models.photographs([image], size=2, shorter=6, channels=1)
    assert out.shape == (1, 2, 2, 1)
    kernel = np.array([1, 3, 3, 1]) / 8  # the triangle over two pixels, at half-pixel centres
    weights = np.zeros((2, 12))
    weights[0, 3:7], weights[1, 5:9] = kernel, kernel
    np.testing.assert_allclose(out[0, :, :, 0] * 255, weights @ image @ weights.T, atol=1)


def test_a_cubic_filter_is_keys():
    """Oracle: Keys' cubic convolution with a = -1/2, stretched over twice the pixels."""
    image = colours(16, 16)
    out = models.photographs([image], size=2, shorter=8, channels=1, cubic=True)[0, :, :, 0]
    away = np.abs((np.arange(16)[None] + 0.5) / 2 - np.array([3.5, 4.5])[:, None])
    near = 1.5 * away**3 - 2.5 * away**2 + 1
    far = -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0)) / 2
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    expected = np.clip(weights @ image @ weights.T, 0, 255)
    np.testing.assert_allclose(out * 255, expected, atol=1.5)  # each pass rounds


def test_a_turned_camera_is_turned_back(tmp_path):
    turned = Image.Exif()
    turned[0x112] = 6  # the top of the scene is at the right of the file
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=turned)
    out = models.photographs([tmp_path / "a.png"], size=16, shorter=16)[0, :, :, 0]
    # Turned a quarter clockwise, the right half comes to lie below.
    np.testing.assert_array_equal(out.mean(1), np.arange(16) >= 8)


def test_modes_are_converted_or_refused(tmp_path):
    image = Image.fromarray(colours(8, 8, 3))
    for mode, file in (("L", "a.png"), ("LA", "b.png"), ("RGBA", "c.png"), ("CMYK", "d.jpg")):
        image.convert(mode).save(tmp_path / file)
    image.quantize(4).save(tmp_path / "e.png", transparency=b"\x00\xff")
    files = sorted(tmp_path.iterdir())
    assert models.photographs(files, size=8, shorter=8).shape == (5, 8, 8, 3)
    Image.fromarray(colours(8, 8).astype(np.uint16)).save(tmp_path / "f.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "g.tif")
    for file in ("f.png", "g.tif"):
        with pytest.raises(ValueError, match=rf"8 bits a channel; got .*{file}"):
            models.photographs([tmp_path / file])


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ("a.png", {}, r"images must be a list or tuple; got 'a.png'"),
        ([], {}, r"images must be a list of at least one; got"),
        ([__file__], {}, r"test_imagenet\.py must be an image file; cannot identify"),
        (["no/such.jpg"], {}, r"no/such\.jpg must be an image file; .*No such file"),
        ([np.zeros((8, 8, 3))], {}, r"uint8, \[H, W, 3\] or \[H, W\]; got float64, \(8, 8, 3\)"),
        ([colours(3, 8, 8)], {}, r"got uint8, \(3, 8, 8\).*channels last"),
        ([colours(8, 8)], {"size": 8, "shorter": 7}, r"size or more; got 7 and 8"),
    ],
)
def test_what_is_no_picture_is_refused(images, options, message):
    kind = TypeError if isinstance(images, str) else ValueError
    with pytest.raises(kind, match=message):
        models.photographs(images, **options)


def test_preprocess_by_hand():
    out = models.preprocess(np.full((1, 2, 2, 3), 0.5, np.float32))
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    np.testing.assert_allclose(out[0, 1, 1], expected, rtol=1e-6)
    assert out.dtype == np.float32


def test_names_of_classes(tmp_path, monkeypatch):
    file = tmp_path / "imagenet" / "labels.txt"
    monkeypatch.setenv("JAXVIZ_DATA", str(tmp_path))
    assert models.imagenet_classes()[::333] == ("0", "333", "666", "999")
    file.parent.mkdir()
    file.write_text("".join(f"{n:x}, also {n}\n" for n in range(1000)), encoding="utf-8")
    assert models.imagenet_classes()[11:13] == models.imagenet_classes(file)[11:13] == ("b", "c")
    file.write_text("tench\n")
    with pytest.raises(ValueError, match=r"line for each of 1000 classes; it has 1"):
        models.imagenet_classes()
    with pytest.raises(FileNotFoundError):
        models.imagenet_classes(tmp_path / "nothing.txt")
