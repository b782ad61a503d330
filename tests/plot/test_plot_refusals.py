"""What cannot be drawn is refused in a sentence that begins with the function called."""

import numpy as np
import pytest

from jaxviz import plot

IM, M = np.ones((2, 6, 6, 3)), np.ones((2, 6, 6))
WINNERS = np.full((2, 3, 3), 1)
SLIDE = {"clean_predicted": [1, 0], "window": (2, 2), "stride": (2, 2)}
BAD_NUMBERS = {
    "words": "photo.png",
    "an object": object(),
    "rows of two lengths": [[1.0], [1.0, 2.0]],
    "complex numbers": M * 1j,
    "nothing": None,
}


def occlusion(**changed):
    given = {"images": IM, "heat": M, "predicted": WINNERS, **SLIDE, **changed}
    return plot.occlusion_sheet(
        given.pop("images"), given.pop("heat"), given.pop("predicted"), **given
    )


# Each first argument of numbers, by the name of its function.
NUMBERS = {
    "explanation_sheet": lambda bad: plot.explanation_sheet(bad, {"m": M}),
    "explanation_sheet: map": lambda bad: plot.explanation_sheet(IM, {"m": bad}),
    "overlay": lambda bad: plot.overlay(bad, M[0]),
    "overlay: attribution": lambda bad: plot.overlay(IM[0], bad),
    "image_grid": lambda bad: plot.image_grid(bad, [0, 1]),
    "image_grid: predicted": lambda bad: plot.image_grid(IM, bad),
    "stitched": plot.stitched,
    "feature_maps": plot.feature_maps,
    "filters": plot.filters,
    "confusion_matrix": plot.confusion_matrix,
    "training_history": lambda bad: plot.training_history({"loss": [1.0], "accuracy": bad}),
    "occlusion_sheet": lambda bad: occlusion(images=bad),
    "occlusion_sheet: map": lambda bad: occlusion(heat=bad),
    "occlusion_sheet: predicted": lambda bad: occlusion(predicted=bad),
    "atlas_page": lambda bad: plot.atlas_page(bad, IM[:, None], [1.0, 1.0]),
    "atlas_page: patches": lambda bad: plot.atlas_page(IM, bad, [1.0, 1.0]),
    "atlas_page: means": lambda bad: plot.atlas_page(IM, IM[:, None], bad),
    "save_gif": lambda bad: plot.save_gif("never.gif", bad),
    "token_sheet: map": lambda bad: plot.token_sheet([["a"]], {"m": bad}),
    "attention_grid": plot.attention_grid,
    "token_layer_map: map": lambda bad: plot.token_layer_map(["a"], {"m": bad}),
    "sequence_logo": lambda bad: plot.sequence_logo(bad, "ACGT"),
    "map_projections": lambda bad: plot.map_projections(bad, {"a": (M, IM, "ab")}),
}


@pytest.mark.parametrize("kind", BAD_NUMBERS)
@pytest.mark.parametrize("name", NUMBERS)
def test_no_array_of_numbers(name, kind):
    if name == "training_history" and kind == "nothing":
        pytest.skip("a curve that is None is one that was not kept")
    with pytest.raises((TypeError, ValueError), match=f"^{name.split(':')[0]}: "):
        NUMBERS[name](BAD_NUMBERS[kind])


REFUSED = {
    "explanation_sheet, maps by no name": (
        lambda: plot.explanation_sheet(IM, M),
        r"maps must be a dict by name, .*got ndarray float64 \(2, 6, 6\)",
    ),
    "explanation_sheet, three targets": (
        lambda: plot.explanation_sheet(IM, {"m": M}, target=[0, 1, 0]),
        "target must be 2 integers",
    ),
    "explanation_sheet, no classes": (
        lambda: plot.explanation_sheet(IM, {"m": M}, probabilities=np.ones((2, 0))),
        r"probabilities must be \[2, K\]",
    ),
    "explanation_sheet, one image of H rows": (
        lambda: plot.explanation_sheet(np.ones((16, 16, 1)), {"m": M}),
        r"one image with 1 channels. One image is images\[None\]",
    ),
    "overlay, a batch": (lambda: plot.overlay(IM, M[0]), r"image must be one, .*image\[0\]"),
    "overlay, maps of a batch": (
        lambda: plot.overlay(IM[0], np.ones((2, 6, 6, 3))),
        r"attribution must be one, .*attribution\[0\]",
    ),
    "overlay, a map of a batch of one": (
        lambda: plot.overlay(IM[0], M[:1]),
        r"got \(1, 6, 6\), which looks like a batch of one",
    ),
    "overlay, an image that was normalised": (
        lambda: plot.overlay(IM[0] * 2, M[0]),
        "images must lie in 0 to 1",
    ),
    "stitched, one colour image": (
        lambda: plot.stitched(IM[0]),
        r"one image with 3 channels. One image is images\[None\]",
    ),
    "stitched, two titles of three": (
        lambda: plot.stitched(M[:1], titles=["a", "b"]),
        "titles must name each of 1 images; got 2",
    ),
    "stitched, a title for titles": (
        lambda: plot.stitched(M, titles="ab"),
        "titles must be .*got 'ab'",
    ),
    "feature_maps, none of them": (lambda: plot.feature_maps(M, max_maps=0), "max_maps must be 1"),
    "feature_maps, no layer": (lambda: plot.feature_maps({}), "maps must hold a layer's maps"),
    "filters, none of them": (
        lambda: plot.filters(np.ones((3, 3, 3, 4)), max_units=0),
        "max_units must be 1 or more; got 0",
    ),
    "filters, NaN": (
        lambda: plot.filters(np.full((3, 3, 3, 4), np.nan)),
        "kernels must be finite; 108 of 108 numbers are not",
    ),
    "filters, half a row": (
        lambda: plot.filters(np.ones((3, 3, 3, 4)), per_row=1.5),
        "per_row must be a whole number; got 1.5",
    ),
    "occlusion_sheet, names of too few": (
        lambda: occlusion(class_names=["a"]),
        "predicted must be class indices, 0 to 0; got 1 to 1",
    ),
    "occlusion_sheet, a number for a pair": (
        lambda: occlusion(window=2),
        "window must be whole numbers, at least 1",
    ),
    "occlusion_sheet, no step": (lambda: occlusion(stride=(0, 0)), "stride must be .*at least 1"),
    "occlusion_sheet, a wide window": (
        lambda: occlusion(window=(9, 2)),
        r"window must fit into the images, \(6, 6\)",
    ),
    "occlusion_sheet, classes below zero": (
        lambda: occlusion(predicted=-WINNERS),
        "predicted must be class indices",
    ),
    "confusion_matrix, shares": (
        lambda: plot.confusion_matrix([[0.5, 0.5], [0.0, 1.0]]),
        "whole numbers; .*Do not normalise",
    ),
    "confusion_matrix, NaN": (
        lambda: plot.confusion_matrix([[np.nan, 0], [0, 1]]),
        "matrix must hold counts",
    ),
    "training_history, a list": (
        lambda: plot.training_history([1.0, 0.5]),
        "history must be a dict or NamedTuple",
    ),
    "atlas_page, means not finite": (
        lambda: plot.atlas_page(IM, IM[:, None], [1.0, np.inf]),
        "means must be finite",
    ),
    "top_projections, no dict": (lambda: plot.top_projections([M]), "tops must be a dict by name"),
    "top_projections, an array": (
        lambda: plot.top_projections({"a": M}),
        "'a' must have patches, projections and scores; got ndarray",
    ),
    "map_projections, no triple": (
        lambda: plot.map_projections(IM[0], {"a": (M, IM)}),
        "'a' must have three things",
    ),
    "map_projections, a batch": (
        lambda: plot.map_projections(IM, {"a": (M, IM, "ab")}),
        "image must be one",
    ),
    "architecture, layers": (
        lambda: plot.architecture(()),  # type: ignore[arg-type]
        "graph must be a LayerGraph; got",
    ),
    "graphviz, layers": (lambda: plot.graphviz(()), "graph must be a LayerGraph"),  # type: ignore[arg-type]
    "save_gif, no image a row": (
        lambda: plot.save_gif("never.gif", M[:, None], per_row=0),
        "per_row must be 1",
    ),
    "save_gif, no such folder": (
        lambda: plot.save_gif("no/such/never.gif", M[:, None]),
        "path must be in a folder that is there",
    ),
    "save_gif, a year": (
        lambda: plot.save_gif("never.gif", M[:, None], hold=1e9),
        "hold must be 0 to 600",
    ),
    "save_gif, kilometres": (  # 6 * 10**8 pixels a side, squared, three bytes, two frames
        lambda: plot.save_gif("never.gif", np.ones((2, 1, 6, 6, 3)), scale=10**8),
        r"600000000 x 600000000 and 2\.01e\+09 GiB",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, told = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=f"^{name.split(',')[0]}: .*{told}"):
        call()


def test_a_batch_of_narrow_grey_images_is_no_image():
    assert len(plot.stitched(np.zeros((4, 3, 3))).axes) == 4
    assert len(plot.stitched(np.zeros((4, 9, 3, 1))).axes) == 4


def test_a_map_with_a_row_of_nan_is_drawn_by_the_rest():
    units = np.random.default_rng(0).normal(size=(8, 8, 3))
    units[0, :, 0], units[:, :, 1], units[:, :, 2], units[0, 0, 2] = np.nan, np.nan, 2.0, np.inf
    figure = plot.feature_maps(units)
    said = [text.get_text() for text in figure.texts]
    finite = units[1:, :, 0]
    assert f"{finite.flat[np.abs(finite).argmax()]:.2g}" in said
    assert {"not finite", "rest 2"} <= set(said)
    assert not [words for words in said if words.startswith("all ")]
    drawn = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn)[:2].all(1), [True, False])
    np.testing.assert_allclose(drawn[1:], (finite - finite.mean()) / finite.std(), rtol=1e-6)


def test_a_map_of_nan_is_not_zero_everywhere():
    maps = np.stack([np.full((6, 6), np.nan), np.zeros((6, 6)), np.zeros((6, 6))])
    maps[1, 0, 0] = np.inf
    figure = plot.explanation_sheet(np.ones((3, 6, 6)), {"m": maps})
    said = [[text.get_text() for text in ax.texts] for ax in figure.axes[1:6:2]]
    assert said == [["not finite", ""], ["zero elsewhere"], ["zero everywhere"]]


def test_infinities_of_both_signs_in_two_channels_are_not_finite():
    one = np.ones((1, 4, 4, 2))
    one[0, 0, 0] = np.inf, -np.inf
    figure = plot.explanation_sheet(np.ones((1, 4, 4)), {"m": one})
    assert [text.get_text() for text in figure.axes[1].texts] == ["0 to 1"]


@pytest.mark.parametrize("bad", [None, True, 5])
def test_an_overlay_is_names(bad):
    for draw, given in ((plot.explanation_sheet, IM), (plot.signal_sheet, M[:, 0])):
        maps = {"m": given[..., 0] if given is IM else given}
        with pytest.raises(TypeError, match=rf"^{draw.__name__}: overlay must be names of maps"):
            draw(given, maps, overlay=bad)


def test_a_class_far_beyond_all_names_is_told_of():  # not a name for each class below it
    told = "classes without names must be at most 1,000,000; got index 1000000000"
    with pytest.raises(ValueError, match=f"^explanation_sheet: {told}"):
        plot.explanation_sheet(IM, {"m": M}, labels=[0, 10**9])
    with pytest.raises(ValueError, match=f"^image_grid: {told}"):
        plot.image_grid(IM, [0, 10**9])
