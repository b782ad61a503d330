"""The explanation sheet: what each pixel and each line of text says."""

import matplotlib.pyplot
import numpy as np
import pytest

from jaxviz.plot import explanation_sheet, overlay


def texts(ax):
    return [text.get_text() for text in ax.texts]


def drawn(figure, title):
    """The colours of the first row's map under a column title."""
    (ax,) = [ax for ax in figure.axes if ax.get_title() == title]
    return np.asarray(ax.images[-1].get_array())


IMAGE = np.full((1, 4, 4), 0.5)


def test_red_is_for_blue_against_white_nothing():  # oracle: RdBu_r's ends and middle, by name
    one = np.zeros((1, 4, 4))
    one[0, 0, 0], one[0, 3, 3] = 2.0, -2.0
    colours = drawn(explanation_sheet(IMAGE, {"m": one}, percentile=100), "m")
    red, blue, white = colours[0, 0], colours[3, 3], colours[1, 1]
    assert red[0] > 0.3
    assert max(red[1], red[2]) < 0.15
    assert blue[2] > 0.3
    assert blue[0] < 0.1
    assert min(white[:3]) > 0.95


def test_an_unsigned_map_runs_from_dark_to_bright():
    one = np.arange(16.0).reshape(1, 4, 4)
    lightness = drawn(explanation_sheet(IMAGE, {"m": one}), "m")[..., :3].sum(-1).ravel()
    assert (np.diff(lightness) >= 0).all()
    assert lightness[0] < 0.1
    assert lightness[-1] > 2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_channels_are_summed_with_a_sign_and_else_the_largest_counts(sign):
    channels = np.zeros((1, 4, 4, 3))
    channels[..., 0], channels[..., 1] = 3.0, sign  # sum 2 (signed), largest 3
    figure = explanation_sheet(IMAGE, {"m": channels})
    (ax,) = [ax for ax in figure.axes if ax.get_title() == "m"]
    assert texts(ax) == (["0 to 3"] if sign > 0 else ["±2"])


def test_the_scale_is_the_percentile_of_the_magnitudes():  # oracle: 0..100 has percentile p at p
    one = np.concatenate([np.arange(101.0), [0.0] * 20])[None, :100].reshape(1, 10, 10)
    image = np.zeros((1, 10, 10))
    for percentile, limit in ((100, 99), (50, 49.5)):
        figure = explanation_sheet(image, {"m": one}, percentile=percentile)
        assert texts(figure.axes[1]) == [f"0 to {limit:.2g}"]


def test_a_sparse_map_is_not_lost_by_clipping():  # its 99th percentile is zero
    one = np.zeros((1, 20, 20))
    one[0, 5, 5] = 4.0
    figure = explanation_sheet(np.zeros((1, 20, 20)), {"m": one})
    assert texts(figure.axes[1]) == ["0 to 4"]
    assert drawn(figure, "m")[5, 5, :3].sum() > 2


def test_nothing_anywhere_is_said_and_drawn_without_a_warning():
    figure = explanation_sheet(IMAGE, {"m": np.zeros((1, 4, 4))})
    assert texts(figure.axes[1]) == ["zero everywhere"]


def test_numbers_that_are_not_finite_are_green_and_leave_the_scale_alone():
    one = np.ones((1, 4, 4))
    one[0, 0, 0], one[0, 1, 1] = np.nan, np.inf
    figure = explanation_sheet(IMAGE, {"m": one})
    colours = drawn(figure, "m")
    for place in ((0, 0), (1, 1)):
        red, green, blue = colours[place][:3]
        assert green > max(red, blue)
    assert texts(figure.axes[1]) == ["0 to 1"]
    assert "not finite" in texts(explanation_sheet(IMAGE, {"m": one * np.nan}).axes[1])


def test_an_overlay_of_nothing_is_the_grey_image():  # 0.15 + 0.8 * mean of the channels
    image = np.random.default_rng(0).random((1, 4, 4, 3))
    maps = {"m": np.zeros((1, 4, 4))}
    colours = drawn(explanation_sheet(image, maps, overlay=maps), "m")[..., :3]
    grey = np.repeat(0.15 + 0.8 * image[0].mean(-1, keepdims=True), 3, -1)
    np.testing.assert_allclose(colours, grey, atol=1e-6)


def test_a_coarse_map_is_stretched_with_pixel_centres_aligned():  # oracle: done by hand
    image = np.zeros((1, 1, 4))
    # Centres of 2 pixels over 4 lie at 0.5 and 2.5: values 0, .25, .75, 1.
    coarse = drawn(explanation_sheet(image, {"m": np.array([[[0.0, 1.0]]])}, percentile=100), "m")
    fine = np.array([[[0.0, 0.25, 0.75, 1.0]]])
    expected = drawn(explanation_sheet(image, {"m": fine}, percentile=100), "m")
    np.testing.assert_allclose(coarse, expected, atol=1e-6)


def test_the_five_largest_probabilities_with_names_and_the_explained_class():
    probabilities = np.array([[0.05, 0.3, 0.02, 0.4, 0.1, 0.13]])
    figure = explanation_sheet(
        IMAGE,
        {"m": IMAGE},
        probabilities=probabilities,
        class_names=["ant", "bee", "cat", "dog, hound", "elk", "fox"],
        labels=[1],
    )
    lines = texts(figure.axes[1])
    assert lines[0::2] == ["dog", "bee (true)", "fox", "elk", "ant", *lines[10::2]]
    assert lines[1:10:2] == ["40.0%", "30.0%", "13.0%", "10.0%", "5.0%"]
    assert lines[-1] == "explained: dog"
    assert texts(figure.axes[0]) == ["true: bee  ✗"]


def test_the_explained_class_may_be_another_and_one_for_all():
    figure = explanation_sheet(
        np.zeros((2, 4, 4)), {"m": np.zeros((2, 4, 4))}, probabilities=np.eye(3)[:2], target=2
    )
    said = [t for ax in figure.axes for t in texts(ax) if t.startswith("explained")]
    assert said == ["explained: 2", "explained: 2"]


def test_images_of_bytes_equal_images_of_floats():
    values = np.random.default_rng(1).integers(0, 256, (1, 5, 5, 3), dtype=np.uint8)
    ours, theirs = (
        np.asarray(explanation_sheet(x, {"m": x[..., 0]}).axes[0].images[0].get_array())
        for x in (values, values / 255)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_it_leaves_no_state_and_saves_in_every_format(tmp_path):
    figure = explanation_sheet(IMAGE, {"m": IMAGE}, title="one")
    for kind in ("png", "pdf", "svg"):
        figure.savefig(tmp_path / f"sheet.{kind}")
        assert (tmp_path / f"sheet.{kind}").stat().st_size > 1000
    assert matplotlib.pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 4))}, r"images must be \[N, H, W\].*got \(4, 4\)"),
        ({"images": np.zeros((1, 4, 4, 2))}, r"1 or 3 channels; got \(1, 4, 4, 2\)"),
        ({"images": np.full((1, 4, 4), 2.0)}, "0 to 1 .*got 2 to 2. Undo"),
        ({"images": np.full((1, 4, 4), np.nan)}, "0 to 1 .*got nan"),
        ({"maps": {}}, "at least one explanation"),
        ({"maps": {"m": np.zeros((2, 4, 4))}}, r"map 'm' must be \[1, h, w\].*got \(2, 4, 4\)"),
        ({"overlay": ["n"]}, r"got 'n'. There are \['m'\]"),
        ({"percentile": 0}, "above 0, up to 100; got 0"),
        ({"probabilities": np.ones(3)}, r"must be \[1, K\].*got \(3,\)"),
        ({"probabilities": np.array([[-1.0, 2.0]])}, "got -1 to 2. Pass jax.nn.softmax"),
        ({"labels": [1, 2]}, r"labels must be 1 integers.*got shape \(2,\)"),
        ({"labels": [0.5]}, "float64"),
        ({"labels": [7], "probabilities": np.eye(3)[:1]}, "0 to 2; got 7 to 7"),
        ({"class_names": ["a"], "probabilities": np.eye(3)[:1]}, "each of 3 classes; got 1"),
    ],
)
def test_wrong_input_is_refused_with_what_came(change, message):
    arguments = {"images": IMAGE, "maps": {"m": IMAGE}} | change
    with pytest.raises(ValueError, match=f"explanation_sheet: .*{message}"):
        explanation_sheet(arguments.pop("images"), arguments.pop("maps"), **arguments)


def test_an_overlay_leaves_the_image_where_nothing_is_and_centres_a_signed_map_at_zero():
    image = np.linspace(0, 1, 16).reshape(4, 4)
    one = np.zeros((4, 4))
    one[0, 0], one[3, 3], one[1, 1] = 1.0, -4.0, np.nan
    figure = overlay(image, one, percentile=100, title="a map")
    colours = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(colours[2, 2, :3], 0.15 + 0.8 * image[2, 2], rtol=1e-6)
    weak, strong = colours[0, 0], colours[3, 3]  # for, and four times as much against
    assert weak[0] > weak[2]
    assert strong[2] > strong[0]
    assert np.ptp(strong[:3]) > 2 * np.ptp(weak[:3])
    assert colours[1, 1, 1] > max(colours[1, 1, 0], colours[1, 1, 2])
    assert texts(figure.axes[0]) == ["±4"]
    assert texts(figure.axes[1]) == ["against", "for"]
    assert figure.get_suptitle() == "a map"


@pytest.mark.parametrize("size", [(4, 5), (2, 4)])
def test_an_overlay_is_its_column_of_the_sheet(size):
    rng = np.random.default_rng(0)
    image, one = rng.random((4, 5, 3)), rng.normal(size=(*size, 3))
    sheet = explanation_sheet(image[None], {"m": one[None]}, overlay="m")
    wanted = drawn(sheet, "m")
    turned = lambda a: np.moveaxis(a, -1, 0)
    for figure in (overlay(image, one), overlay(turned(image), turned(one))):
        np.testing.assert_array_equal(np.asarray(figure.axes[0].images[0].get_array()), wanted)
    grey = overlay((255 * image[..., 0]).astype(np.uint8), np.abs(one[..., 0]))
    assert texts(grey.axes[1]) == ["none", "much"]


def test_a_title_is_set_smaller_and_on_two_lines_before_it_is_cut():
    names = [
        "information bottleneck",
        "a title far too long for any column",
        "w" * 60,
        "ig\nrank 1",
    ]
    figure = explanation_sheet(IMAGE, dict.fromkeys(names, IMAGE), title="above")
    titles = [ax.get_title() for ax in figure.axes]
    assert "information bottleneck" in titles
    assert "a title far too\nlong for any column" in titles
    assert "ig\nrank 1" in titles
    assert any(title.startswith("www") and "…" in title for title in titles)
    figure.canvas.draw()  # two lines lie below what stands above everything
    low = figure._suptitle.get_window_extent().y0
    assert max(ax.title.get_window_extent().y1 for ax in figure.axes) < low


def test_the_explained_class_has_its_cell_and_the_gaps_beside_it():
    names = [f"class {k}" for k in range(8)] + ["tiger shark"]
    shown = np.linspace(0.3, 0.0, 9)[None] / 1.35  # explained: the least probable of nine
    sheet = explanation_sheet(
        np.ones((1, 8, 8, 1)), {"m": np.ones((1, 8, 8))}, probabilities=shown, target=8,
        class_names=names,
    )  # fmt: skip
    written = [text.get_text() for ax in sheet.axes for text in ax.texts]
    assert "explained: tiger shark (0.0%)" in written
