"""Pictures of features: what is drawn is what was given, in the order and colours promised."""

import numpy as np
import pytest
from PIL import Image

from jaxviz import plot

RNG = np.random.default_rng(0)


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def test_stitched_shows_every_image_under_its_title():
    images = RNG.uniform(size=(5, 6, 4, 3)).astype(np.float32)
    figure = plot.stitched(images, titles=list("abcde"), notes=["1", "2", "3", "4", "5"], per_row=3)
    assert [ax.get_label() for ax in figure.axes] == list("abcde")
    for ax, image in zip(figure.axes, images, strict=True):
        np.testing.assert_allclose(drawn(ax), image)
    tops = [round(ax.get_position().y0, 3) for ax in figure.axes]
    assert tops[0] == tops[2] > tops[3]
    assert {"a", "5", "images"} <= {text.get_text() for text in figure.findobj(match=_is_text)}


def test_notes_of_short_titles_are_whole_and_titles_may_repeat():
    images, notes = np.zeros((3, 6, 6)), ["100.0%", "99.9%", "100.0%"]
    figure = plot.stitched(images, titles=["7", "7", "8"], notes=notes, title=None)
    told = sorted(text.get_text() for text in figure.findobj(match=_is_text))
    assert told == sorted([*notes, "7", "7", "8"])


def _is_text(artist):
    return hasattr(artist, "get_text") and artist.get_text() != ""


def test_filters_of_three_channels_are_colours_about_grey():
    kernels = RNG.normal(size=(3, 3, 3, 4))
    kernels[..., 2] *= 10
    figure = plot.filters(kernels, ranked=True)
    norms = np.sqrt((kernels**2).sum((0, 1, 2)))
    order = np.argsort(-norms)
    assert [ax.get_label() for ax in figure.axes] == [str(u) for u in order]
    expected = 0.5 + 0.5 * kernels[..., 2] / np.abs(kernels[..., 2]).max()
    np.testing.assert_allclose(drawn(figure.axes[0]), expected, atol=1e-6)


def test_deeper_filters_are_cut_into_the_strongest_channels():
    kernel = np.zeros((2, 2, 20, 1))
    kernel[:, :, 7, 0], kernel[0, 0, 3, 0] = 1.0, -1.0
    picture = drawn(plot.filters(kernel).axes[0])
    assert picture.shape == (8, 8, 3)  # three by three of 2x2 with one between
    red = (picture[..., 0] > 0.3) & (picture[..., 2] < 0.2)
    blue = (picture[..., 2] > 0.3) & (picture[..., 0] < 0.2)
    assert (red.sum(), blue.sum()) == (4, 1)


def test_the_page_of_a_layer_has_all_its_parts():
    images, patches = RNG.uniform(size=(3, 8, 8)), RNG.uniform(size=(3, 2, 5, 5, 1))
    means = np.array([0.5, -1.0, 0.25])
    figure = plot.atlas_page(images, patches, means, names=["u", "v", "w"], scores=np.ones((3, 2)))
    assert len(figure.axes) == 3 * (1 + 2 + 1)
    bars = [ax.patches[0].get_width() for ax in figure.axes[3::4]]
    np.testing.assert_allclose(bars, [0.5, 1.0, 0.25])
    np.testing.assert_allclose(drawn(figure.axes[6])[..., 0], patches[1, 1, ..., 0], atol=1e-6)


def test_a_gif_has_the_frames_it_was_given(tmp_path):
    frames = np.linspace(0, 1, 4)[:, None, None, None, None] * np.ones((1, 3, 10, 10, 1))
    path = tmp_path / "climb.gif"
    plot.save_gif(path, frames, per_row=2, scale=2, seconds=3, hold=2)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size) == (4, (42, 42))
        durations, greys = [], []
        for n in range(4):
            gif.seek(n)
            durations.append(gif.info["duration"])
            greys.append(np.asarray(gif.convert("RGB"))[5, 5, 0])
    assert durations == [1000, 1000, 1000, 2000]
    np.testing.assert_allclose(greys, [0, 85, 170, 255], atol=3)


def test_maps_of_several_layers_by_strength():
    weak, strong = np.zeros((4, 4, 2)), np.zeros((2, 2, 3))
    weak[0, 0], strong[0, 0] = [1, 2], [-3, 1, 2]
    figure = plot.feature_maps({"weak": weak, "strong": strong}, ranked=True, max_maps=2)
    assert [ax.get_label() for ax in figure.axes] == ["1", "0", "0", "2"]
    texts = {text.get_text() for text in figure.findobj(match=_is_text)}
    assert {"weak  4 x 4 x 2", "strong  2 x 2 x 3", "-3"} <= texts


def test_errors(tmp_path):
    for told, call in (
        ("stitched: per_row", lambda: plot.stitched(np.zeros((1, 4, 4)), per_row=0)),
        (r"filters: kernels must be \[h, w, in, units\]", lambda: plot.filters(np.ones((3, 3)))),
        (
            r"atlas_page: patches must be \[2, K, h, w\]",
            lambda: plot.atlas_page(np.zeros((2, 4, 4)), np.zeros((1, 3, 4, 4)), np.ones(2)),
        ),
        ("save_gif: path must end in .gif", lambda: plot.save_gif("a.png", np.zeros((1, 1, 4, 4)))),
        ("save_gif: frames must be", lambda: plot.save_gif("a.gif", np.zeros((0, 1, 4, 4)))),
        (
            "feature_maps: names go with the maps of one layer",
            lambda: plot.feature_maps(
                {"a": np.ones((2, 2, 1)), "b": np.ones((2, 2, 1))}, names=["x"]
            ),
        ),
    ):
        with pytest.raises(ValueError, match=told):
            call()
