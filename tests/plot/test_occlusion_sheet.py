"""The picture of occlusion: what is drawn where, and the count of winners beside it."""

import numpy as np
import pytest

from jaxviz.plot import occlusion_sheet

SLIDE = {"window": (4, 4), "stride": (4, 4)}


def sheet(predicted=((0, 2), (1, 2)), clean=0, **options):
    images = np.linspace(0, 1, 64).reshape(1, 8, 8)
    heat = np.zeros((1, 8, 8))
    heat[0, 0, 0], heat[0, 7, 7] = 2.0, -4.0
    options = {"class_names": ["zero", "one", "two"]} | options
    return occlusion_sheet(
        images, heat, np.array([predicted]), clean_predicted=np.array([clean]), **SLIDE, **options
    )


def test_windows_colour_their_own_step():
    axes = sheet().axes
    winners = np.asarray(axes[2].images[0].get_array())
    colour = np.ptp(winners, axis=-1) > 0.05  # grey where the class is the one as uncovered
    assert not colour[:4, :4].any()
    assert colour[:4, 4:].all()
    assert colour[4:].all()
    texts = [t.get_text() for t in axes[3].get_legend().get_texts()]
    assert texts == ["zero: 1 of 4 (as uncovered)", "two: 2 of 4", "one: 1 of 4"]
    # The heat map is signed about zero: red for what is lost, blue for what is gained.
    heat = np.asarray(axes[1].images[0].get_array())
    assert heat[0, 0, 0] > heat[0, 0, 2]
    assert heat[7, 7, 2] > heat[7, 7, 0]


def test_rare_winners_share_a_colour():
    figure = sheet(predicted=((1, 1), (2, 0)), num_colours=1)
    texts = [t.get_text() for t in figure.axes[3].get_legend().get_texts()]
    assert texts == ["zero: 1 of 4 (as uncovered)", "one: 2 of 4", "1 others: 1 of 4"]


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"predicted must be \[1, 2, 2\].*got \(1, 1, 2\)"):
        sheet(predicted=((0, 1),))
    with pytest.raises(ValueError, match="num_colours must be 1 to 9; got 0"):
        sheet(num_colours=0)
