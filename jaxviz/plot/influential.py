"""The training examples that made it so, as a picture: helpful ones and harmful ones of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxviz.calls.public import public
from jaxviz.plot.colour import ACCENT, INK, QUIET, RIGHT, WRONG, interpolation
from jaxviz.plot.inputs import (
    check_array,
    check_count,
    check_images,
    check_names,
    check_vector,
    first_words,
)
from jaxviz.plot.page import EDGE, GAP, cell_height, fit, frame, put_title, text_width, write

_CELL, _BREAK = 0.72, 0.3  # inches: an image, and what stands between the groups


@public()
def influential_examples(
    images,
    train_images,
    scores: Any,
    *,
    labels=None,
    predicted=None,
    train_labels=None,
    class_names: Sequence[str] | None = None,
    num_examples: int = 5,
    title: str | None = "which training examples made it so",
) -> Figure:
    """Draws test examples, each with its most helpful and its most harmful training examples.

    A row an example and method: the test image, then the helpful ones from the most helpful on,
    then the harmful ones from the most harmful on, with their labels and scores. Those above 0
    alone are called helpful, those below 0 harmful; where there are fewer, places stay empty.

    Args:
      images: Test images, `[T, H, W]` or `[T, H, W, C]`, 1 or 3 channels, 0 to 1 or uint8.
      train_images: `[N, ...]`, likewise.
      scores: `[T, N]`, as functions of `jaxviz.influence` return them, or method -> such.
      labels: `[T]` true classes, or None.
      predicted: `[T]` what the model said, or None; red where that is wrong.
      train_labels: `[N]`, or None. One that is not the test example's label is red.
      class_names: One name a class; None shows indices.
      num_examples: Of each kind, in a row.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. NaN scores are left out.

    Raises:
      ValueError: a shape, range or name that does not fit.

    Example:
      >>> images, scores = np.zeros((3, 8, 8)), np.array([[1.0, 0.0, -2.0]])
      >>> len(influential_examples(images[:1], images, scores).axes)
      3
    """
    who = "influential_examples"
    images, trains = check_images(who, images), check_images(who, train_images)
    given = dict(scores) if isinstance(scores, Mapping) else {"": scores}
    found = {str(name): _checked(who, one, len(images), len(trains)) for name, one in given.items()}
    classes = None if class_names is None else len(class_names)
    labels = check_vector(who, "labels", labels, len(images), classes)
    predicted = check_vector(who, "predicted", predicted, len(images), classes)
    train_labels = check_vector(who, "train_labels", train_labels, len(trains), classes)
    told = [a for a in (labels, predicted, train_labels) if a is not None]
    largest = max((int(a.max()) for a in told), default=0)
    names = first_words(check_names(who, class_names, largest + 1 if classes is None else classes))
    count = check_count(who, "num_examples", num_examples, 5)

    height = max(cell_height(_CELL, a.shape[1:]) for a in (images, trains))
    row = height + 0.42
    beside = max(text_width(name, 7.5) for name in found) + 0.15 if any(found) else 0
    starts = [EDGE + beside, EDGE + beside + _CELL + _BREAK]
    starts.append(starts[1] + count * (_CELL + GAP) - GAP + _BREAK)
    width = starts[2] + count * (_CELL + GAP) - GAP + EDGE
    size = (max(width, 3.0), 0.75 + row * len(images) * len(found) + EDGE)
    figure = Figure(figsize=size, facecolor="white")
    put_title(figure, title)
    heads = ("test", "helpful: without it the loss rises", "harmful: without it the loss falls")
    if max(text_width(head, 7.5) for head in heads) > count * (_CELL + GAP):
        heads = tuple(head.split(":")[0] for head in heads)
    for start, head, colour in zip(starts, heads, (INK, ACCENT, WRONG), strict=True):
        write(figure, start, size[1] - 0.55, head, fontsize=7.5, color=colour)

    def draw(image, left, bottom, first, second, colour):
        ax = frame(figure, left, bottom, _CELL, height)
        ax.imshow(image, interpolation=interpolation(image.shape[0]))
        write(figure, left, bottom - 0.1, fit(first, _CELL, 7), fontsize=7, color=colour)
        write(figure, left, bottom - 0.21, fit(second, _CELL, 7), fontsize=7, color=QUIET)
        return ax

    line = 0
    for t, image in enumerate(images):
        for name, one in found.items():
            bottom = size[1] - 0.7 - line * row - height
            line += 1
            write(figure, EDGE, bottom + height / 2, name, fontsize=7.5, color=INK)
            label = names[labels[t]] if labels is not None else ""
            said = "" if predicted is None else f"said {names[predicted[t]]}"
            colour = INK
            if labels is not None and predicted is not None:
                colour = RIGHT if labels[t] == predicted[t] else WRONG
            draw(image, starts[0], bottom, label, said, colour)
            order = np.argsort(-one[t], kind="stable")
            order = order[~np.isnan(one[t][order])]
            helpful = [n for n in order if one[t, n] > 0][:count]
            harmful = [n for n in order[::-1] if one[t, n] < 0][:count]
            for start, chosen in zip(starts[1:], (helpful, harmful), strict=True):
                for k, n in enumerate(chosen):
                    text, odd = f"no. {n}", False
                    if train_labels is not None:
                        text = names[train_labels[n]]
                        odd = labels is not None and train_labels[n] != labels[t]
                    left = start + k * (_CELL + GAP)
                    draw(trains[n], left, bottom, text, f"{one[t, n]:+.2g}", WRONG if odd else INK)
    return figure


def _checked(who, scores, tests, trains):
    scores = check_array(who, "scores", scores)
    if scores.shape != (tests, trains):
        raise ValueError(
            f"{who}: scores must be [T, N] = {(tests, trains)}, a row a test image and a column a "
            f"training image; got {scores.shape}. Pass what a method of jaxviz.influence returned."
        )
    return scores.astype(float)
