"""Training curves and the confusion matrix."""

from typing import NamedTuple

import numpy as np
import pytest

from jaxviz.plot import confusion_matrix, training_history

CURVES = {
    "loss": [1.0, 0.5, 0.2],
    "validation_loss": [1.1, 0.4, 0.6],
    "accuracy": [0.5, 0.8, 0.99],
    "validation_accuracy": [0.4, 0.85, 0.8],
    "seconds": [1.0, 1.0, 1.0],
}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_curves_are_drawn_by_epoch_and_the_best_is_marked():
    loss, accuracy = training_history(CURVES, best_epoch=1).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 1.0], [2, 0.5], [3, 0.2]])
    assert legend(loss) == ["train, last 0.2", "validation, last 0.6", "kept: epoch 2, 0.4"]
    assert legend(accuracy)[-1] == "kept: epoch 2, 85.00%"


def test_a_named_tuple_without_validation_is_drawn_as_it_is():
    class History(NamedTuple):
        loss: list
        validation_loss: list

    (ax,) = training_history(History([3.0, 1.0], [np.nan, np.nan])).axes
    assert legend(ax) == ["train, last 1"]


def test_a_diverged_run_can_be_drawn():
    training_history(
        {"loss": [1.0, np.nan], "validation_loss": [np.inf, np.nan]}, best_epoch=0
    ).savefig("/dev/null", format="png")


@pytest.mark.parametrize(
    ("history", "best", "message"),
    [
        ({"losses": [1.0]}, None, r"at least one of loss.*got \['losses'\]"),
        ({"loss": [1.0], "accuracy": [1.0, 0.5]}, None, r"one length.*\(1,\).*\(2,\)"),
        ({"loss": []}, None, "numbers for at least one"),
        ({"loss": [1.0]}, 2, "0 to 0; got 2"),
    ],
)
def test_training_history_refuses(history, best, message):
    with pytest.raises(ValueError, match=f"training_history: .*{message}"):
        training_history(history, best_epoch=best)


def test_counts_and_shares_are_written():  # shares done by hand: 8/10, 3/5, no example
    figure = confusion_matrix([[8, 2, 0], [1, 3, 1], [0, 0, 0]], class_names=["a", "b", "c"])
    text = [t.get_text() for t in figure.axes[0].texts]
    assert figure.get_suptitle() == "accuracy 73.33 % (11 of 15)"
    assert text[:5] == ["8", "2", "1", "3", "1"]
    assert text[5:8] == ["80.0%", "60.0%", "none"]


def test_right_is_blue_wrong_is_red_none_is_white():
    figure = confusion_matrix([[8, 2], [0, 10]])
    cells = np.asarray(figure.axes[0].images[0].get_array())
    assert cells[0, 0, 2] > cells[0, 0, 0]
    assert cells[0, 1, 0] > cells[0, 1, 2]
    np.testing.assert_array_equal(cells[1, 0], [1, 1, 1])


def test_a_hundred_classes_still_fit():
    figure = confusion_matrix(np.eye(100, dtype=int))
    assert max(figure.get_size_inches()) < 13
    figure.savefig("/dev/null", format="png")


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"\[K, K\].*got \(2, 3\)"),
        (np.zeros((2, 2)), "not all zero; got 0.0 to 0.0"),
        (-np.eye(2), "got -1.0 to -0.0"),
    ],
)
def test_confusion_matrix_refuses(matrix, message):
    with pytest.raises(ValueError, match=f"confusion_matrix: .*{message}"):
        confusion_matrix(matrix)
