"""What is known of an axis, and what becomes of it where a value is reshaped."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

BATCH, ROWS, CHANNELS = "batch", "rows", "channels"  # ROWS: the batch and more in one axis
Label = Any  # one of those, (leaf, axis) of x, Tokens, Part, or None
Labels = tuple[Label, ...]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The label of an axis that has several axes of x in a row, as a transformer's tokens.

    Attributes:
      axes: Those, as (leaf, axis), in order.
      sizes: How many places each has.
      before: Places of the joint axis ahead of theirs, such as a class token.
      after: Places behind.
    """

    axes: tuple[tuple[int, int], ...]
    sizes: tuple[int, ...]
    before: int = 0
    after: int = 0


@dataclasses.dataclass(frozen=True)
class Part:
    """The label of an axis that a reshape made of others, which its undoing gives back.

    Channels in groups for a norm or in heads, examples and channels in one axis for a filter that
    is the same for all of them.

    Attributes:
      labels: Those of the axes that were reshaped together.
      sizes: Theirs.
      parts: The sizes of the axes that they became.
      place: Which of these it is.
    """

    labels: Labels
    sizes: tuple[int, ...]
    parts: tuple[int, ...]
    place: int


def of_batch(label: Label) -> bool:
    """Whether an axis is the batch's, or has its examples one after the other."""
    first = isinstance(label, Part) and label.place == 0
    return of_batch(label.labels[0]) if first else label in (BATCH, ROWS)


def of_channels(label: Label) -> bool:
    """Whether an axis is that of channels, or one of those that it was divided into."""
    return label == CHANNELS or (isinstance(label, Part) and all(map(of_channels, label.labels)))


def regrouped(count: int, before: tuple, labels: Labels, after: tuple) -> Labels:
    """Labels after a reshape: axes stay, join or divide; axes of one place come and go.

    Args:
      count: How many examples there are.
      before: The shape.
      labels: Its axes' labels.
      after: The new shape.
    """
    found: list[Label] = [None] * len(after)
    i = j = 0
    while i < len(before) and j < len(after):
        ones, left = _ones(before, i), _ones(after, j)
        spare = ones - left
        if spare > 0 and labels[i] != BATCH:
            i += 1
        elif before[i] == after[j]:
            found[j] = labels[i]
            i, j = i + 1, j + 1
        elif spare > 0 and not of_batch(labels[i]):
            i += 1
        elif after[j] == 1 and not (count == 1 and of_batch(labels[i])):
            j += 1
        else:
            first, start = i, j
            a, b, i, j = before[i], after[j], i + 1, j + 1
            while a != b and (i < len(before) if a < b else j < len(after)):
                if a < b:
                    a, i = a * before[i], i + 1
                else:
                    b, j = b * after[j], j + 1
            found[start:j] = _together(count, before[first:i], labels[first:i], after[start:j])
    return tuple(found)


def _together(count: int, sizes: tuple, labels: Labels, parts: tuple) -> Sequence[Label]:
    """Labels of the fewest axes that a reshape makes of others together."""
    one = labels[0]
    if len(parts) == 1 and _follow(labels):
        return [Tokens(labels, sizes)]
    if len(sizes) == 1 and isinstance(one, Tokens) and one == Tokens(one.axes, parts):
        return one.axes
    if (whole := _undone(labels)) is not None and whole.sizes == parts:
        return whole.labels
    if len(parts) == 1 and all(map(of_channels, labels)):
        return [CHANNELS]  # in another order
    rest: list[Label] = [None] * (len(parts) - 1)
    if len(sizes) == 1 and isinstance(one, tuple):  # patches: the places within one come after
        return [one, *_parted(Part(labels, sizes, parts, 0))[1:]]
    if of_batch(one) and count and parts[0] == count:
        return [BATCH, *rest]  # rows of the batch come first in the joint axis
    if of_batch(one) and count and parts[0] % count:
        return [None, *rest]
    if not any(label is not None for label in labels):
        return [None, *rest]
    return _parted(Part(labels, sizes, parts, 0))


def _parted(part: Part) -> Labels:
    """The labels of all axes that a reshape made, of which the part is one."""
    return tuple(dataclasses.replace(part, place=k) for k in range(len(part.parts)))


def _undone(labels: Labels) -> Part | None:
    """What was divided into just these axes, in their order."""
    last = labels[-1]
    if not isinstance(last, Part):
        return None
    every = _parted(last)
    patches = (last.labels[0], *every[1:])
    return last if labels in (every, patches) else None


def source(label: Label) -> Label:
    """The label of the one axis that an axis is, or is a part of."""
    return source(label.labels[0]) if isinstance(label, Part) and len(label.labels) == 1 else label


def _follow(labels: Sequence[Label]) -> bool:
    """Whether axes are some of one leaf of x, in order."""
    pairs = [label for label in labels if isinstance(label, tuple)]
    return len(pairs) == len(labels) > 1 and all(
        leaf == other and a < b for (leaf, a), (other, b) in itertools.pairwise(pairs)
    )


def _ones(shape: tuple, at: int) -> int:
    """How many axes of one place follow each other there."""
    run = 0
    while at + run < len(shape) and shape[at + run] == 1:
        run += 1
    return run
