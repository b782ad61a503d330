"""The signal sheet: a line for each channel, bars that add up, colours that say the sign."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from jaxviz.plot import explanation_sheet, signal_sheet
from jaxviz.plot.signals import AGAINST, FOR

WAVES = np.random.default_rng(0).normal(size=(2, 12))


def panels(figure):
    return {ax.get_label(): ax for ax in figure.axes[: len(figure.axes) // 2]}


def bars(ax, colour):
    """The tops of the steps of one colour, one a place."""
    (area,) = [a for a in ax.collections if to_rgb(a.get_facecolor()[0]) == to_rgb(colour)]
    corners = area.get_paths()[0].vertices
    found = {}
    for x, y in corners:
        if abs(x - np.round(x)) > 0.4 and y != 0:
            found.setdefault(y, []).append(x)
    return {round(float(np.mean(xs)), 3): y for y, xs in found.items()}


def test_bars_have_the_signs_and_sizes_of_the_map():
    one = np.array([[0.0, 2.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    figure = explanation_sheet(WAVES[:, :4], {"map": one}, percentile=100, title="two waves")
    ax = panels(figure)["map"]
    assert bars(ax, FOR) == {1.0: 1.0}
    assert bars(ax, AGAINST) == {2.0: -0.5}
    assert [t.get_text() for t in ax.texts] == ["map", "±2"]
    assert [t.get_text() for t in figure.axes[-1].texts] == ["map", "zero everywhere"]
    line = panels(figure)["input"].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), WAVES[0, :4])
    assert figure.get_suptitle() == "two waves"


def test_channels_are_lines_and_are_summed_in_maps():
    series = np.stack([WAVES, -2 * WAVES], -1)
    figure = signal_sheet(series, {"sum": series}, overlay="sum", percentile=100)
    top, strip = panels(figure)["input"], panels(figure)["sum"]
    assert len(top.lines) == 2
    place = np.abs(WAVES[0]).argmax()
    colour = AGAINST if WAVES[0, place] > 0 else FOR  # of the sum, minus the wave
    assert abs(bars(strip, colour)[float(place)]) == 1
    assert len(strip.lines) == 3  # zero and the two channels in grey


def test_what_is_not_finite_is_green_and_said():
    broken = WAVES.copy()
    broken[0, 3], broken[1] = np.nan, np.inf
    figure = signal_sheet(WAVES, {"map": broken})
    first, second = (ax for ax in figure.axes if ax.get_label() == "map")
    assert len(first.patches) == 1
    assert len(second.patches) == 12
    assert "not finite" in [t.get_text() for t in second.texts]


def test_a_heat_strip_has_the_colours_of_its_numbers():
    broken = WAVES.copy()
    broken[0, 3] = np.nan
    figure = signal_sheet(WAVES, {"map": broken}, strips="heat", percentile=100.0)
    strip = panels(figure)["map"] if len(WAVES) == 1 else figure.axes[1]
    found = np.ma.filled(np.ma.asarray(strip.images[0].get_array()), np.nan)[0]
    np.testing.assert_allclose(found, broken[0] / np.nanmax(np.abs(broken[0])))
    assert len(strip.patches) == 1  # the green place


def test_classes_are_told_above_each():
    probabilities = np.array([[0.75, 0.25], [0.125, 0.875]])
    names = {"class_names": ["wave", "noise"], "labels": [0, 0]}
    figure = explanation_sheet(WAVES, {"map": WAVES}, probabilities=probabilities, **names)
    told = [text.get_text() for text in figure.texts]
    assert told == [
        "example 0 · true: wave · explained: wave (75.0%)",
        "example 1 · true: wave · explained: noise (87.5%)",
    ]


@pytest.mark.parametrize(
    ("signals", "maps", "told"),
    [
        (WAVES[0], {"map": WAVES}, r"^signal_sheet: signals must be \[N, L\] or \[N, L, C\]"),
        (WAVES, {"map": WAVES[:1]}, r"^signal_sheet: map 'map' must be \[2, l\]"),
        (WAVES, {}, r"^signal_sheet: maps must name at least one"),
    ],
)
def test_what_does_not_fit_is_refused(signals, maps, told):
    with pytest.raises(ValueError, match=told):
        signal_sheet(signals, maps)
