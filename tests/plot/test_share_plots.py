"""Pictures of shares of columns: what stands where, that it adds up, what is refused."""

import itertools

import numpy as np
import pytest

from jaxviz.plot import bar, beeswarm, force, waterfall

VALUES = np.array([0.5, -2.0, 0.25, 1.0])
NAMES = ["age", "dose", "$x", "weight"]
SET = np.stack([VALUES, -VALUES, 3 * VALUES])


def bars(figure):
    """Where the bars begin and end."""
    return [(p.get_x(), p.get_x() + p.get_width()) for p in figure.axes[0].patches]


def rows(figure):
    return [t.get_text() for t in figure.axes[0].get_yticklabels()]


def test_a_waterfall_leads_from_the_base_to_the_score():
    figure = waterfall(VALUES, base=1.0, score=0.75, inputs=[31, 2.5, 0, 70], names=NAMES)
    assert rows(figure) == ["dose = 2.5", "weight = 70", "age = 31", "$x = 0"]
    steps = bars(figure)
    assert steps[0][1] == 0.75  # from the score on top down to the base
    assert steps[-1][0] == 1.0
    for (begin, _), (_, end) in itertools.pairwise(steps):
        assert begin == end
    few = waterfall(VALUES, names=NAMES, max_features=2)
    assert rows(few)[-1] == "2 others"
    np.testing.assert_allclose(np.ptp(bars(few)[-1]), 0.75)


def test_forces_meet_at_the_score():
    figure = force(VALUES, base=1.0, names=NAMES)
    spans = [sorted(one) for one in bars(figure)]
    score = 0.75
    below, above = ([s for s in spans if (s[0] < score) == low] for low in (True, False))
    assert max(s[1] for s in below) == min(s[0] for s in above) == score
    assert min(s[0] for s in below) == score - 1.75
    assert max(s[1] for s in above) == score + 2.0


def test_bars_are_mean_magnitudes_of_a_set_and_signed_of_one():
    figure = bar(SET, names=NAMES, max_features=3)
    assert rows(figure) == ["dose", "weight", "age", "1 others"]
    np.testing.assert_allclose(
        [end for _, end in bars(figure)], np.array([2, 1, 0.5, 0.25]) * 5 / 3
    )
    one = bar(VALUES, errors=[0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose([end for _, end in bars(one)], [-2.0, 1.0, 0.5, 0.25])


def test_a_swarm_has_each_example_at_its_share_and_none_over_another():
    values = np.stack([np.zeros(40), np.linspace(-1, 1, 40)], 1)
    values[0, 1] = np.nan
    figure = beeswarm(values, inputs=np.stack([np.arange(40), np.ones(40)], 1), names=["a", "b"])
    assert rows(figure) == ["b", "a"]
    spread, stack = (np.asarray(c.get_offsets()) for c in figure.axes[0].collections[:2])
    np.testing.assert_allclose(spread[:, 0], values[1:, 1])
    assert (stack[:, 0] == 0).all()
    assert len(np.unique(stack[:, 1])) == 40
    assert np.abs(stack[:, 1] - 1).max() < 0.5
    colours = figure.axes[0].collections[1].get_facecolor()
    assert len(np.unique(np.asarray(colours), axis=0)) > 30


@pytest.mark.parametrize(
    ("draw", "options", "said"),
    [
        (waterfall, {"values": SET}, r"waterfall: values must be \[F\] finite"),
        (waterfall, {"values": VALUES, "score": 3.0}, "waterfall: score must be base plus all"),
        (force, {"values": VALUES, "base": 1.0, "score": 3.0}, "force: score must be base plus"),
        (force, {"values": VALUES, "names": ["a"]}, "force: names must be 4"),
        (waterfall, {"values": VALUES, "inputs": [1.0]}, r"waterfall: inputs must be \(4,\)"),
        (bar, {"values": SET[None]}, "bar: values must be"),
        (bar, {"values": SET, "errors": VALUES}, "bar: errors must be"),
        (beeswarm, {"values": VALUES}, r"beeswarm: values must be \[N, F\]"),
        (beeswarm, {"values": SET, "inputs": VALUES}, r"beeswarm: inputs must be \(3, 4\)"),
    ],
)
def test_what_does_not_fit_is_refused(draw, options, said):
    with pytest.raises(ValueError, match=said):
        draw(**options)
