"""The picture of helpful and harmful training examples: read back from its texts and images."""

import numpy as np
import pytest

from jaxviz import plot

RNG = np.random.default_rng(0)
TRAIN, TEST = RNG.uniform(size=(5, 6, 6, 1)), RNG.uniform(size=(2, 6, 6))
SCORES = np.array([[0.1, -0.5, 3.0, np.nan, 0.2], [0.0, 0.0, 0.0, 0.0, 0.0]])


def test_the_most_helpful_and_the_most_harmful_come_first():
    figure = plot.influential_examples(
        TEST, TRAIN, {"a": SCORES, "b": -SCORES}, labels=[0, 1], predicted=[0, 0],
        train_labels=[0, 1, 0, 1, 1], class_names=["cat", "dog"], num_examples=2,
    )  # fmt: skip
    shown = [ax.images[0].get_array()[..., 0] for ax in figure.axes]
    wanted = [TEST[0], TRAIN[2], TRAIN[4], TRAIN[1], TEST[0], TRAIN[1], TRAIN[2], TRAIN[4]]
    assert len(shown) == 4 + 4 + 1 + 1  # a row each; the second example has none that count
    for ours, image in zip(shown, wanted, strict=False):
        np.testing.assert_allclose(ours, image.reshape(6, 6), atol=1e-6)
    texts = [text.get_text() for text in figure.texts]
    assert [texts.count(word) for word in ("a", "b", "said cat", "+3", "-0.5")] == [2, 2, 4, 1, 1]
    colours = {text.get_text(): text.get_color() for text in figure.texts}
    assert colours["dog"] != colours["a"]  # another label, and a wrong prediction


def test_scores_of_another_shape_are_refused():
    told = r"^influential_examples: scores must be \[T, N\] = \(2, 5\)"
    with pytest.raises(ValueError, match=told):
        plot.influential_examples(TEST, TRAIN, SCORES.T)
