"""What each operation does to the axes of what it reads: the labels that `axes` moves on.

A rule takes the walk, the parameters, the shape and labels of each operand, and the shape of what
is made. What no rule follows is not known (None), never guessed.
"""

import dataclasses
from collections.abc import Callable, Sequence

from jaxviz.graph.axis_labels import (
    BATCH,
    CHANNELS,
    ROWS,
    Label,
    Labels,
    Part,
    Tokens,
    of_batch,
    of_channels,
    regrouped,
)


def _merged(ways: Sequence[Labels], rank: int) -> Labels:
    """Of arrays that are combined place by place: each axis is what any of them says it is."""
    order = {BATCH: 0, ROWS: 1, CHANNELS: 2, None: 5}
    rank_of = lambda label: (
        (1 if of_batch(label) else 4) if isinstance(label, Part) else order.get(label, 3)
    )
    found = []
    for a in range(rank):
        said = [labels[a] for labels in ways]
        label = min(said, key=rank_of, default=None)
        joint = {label for label in said if isinstance(label, Tokens)}
        found.append(None if len(joint) > 1 else label)
    return tuple(found)


def alike(walk, params, given, out):
    """An operation place by place, axes of one place and numbers stretched; else not known."""
    ways = []
    for shape, labels in given:
        if shape and not _stretches(shape, out):
            return None
        if shape and labels:
            pairs = zip(labels, shape, out, strict=True)
            ways.append(tuple(a if n == m else None for a, n, m in pairs))
    return _merged(ways, len(out))


def _stretches(shape: tuple, out: tuple) -> bool:
    return len(shape) == len(out) and all(n in (1, m) for n, m in zip(shape, out, strict=True))


def _unknown(walk, params, given, out):
    return None


def _same_rank(walk, params, given, out):
    """Axes keep their places, and may change their lengths: cut, padded, pooled, joined."""
    ways = []
    for shape, labels in given:
        if labels and len(shape) == len(out):
            counted = [of_batch(a) or isinstance(a, (Part, Tokens)) for a in labels]
            sides = zip(labels, counted, shape, out, strict=True)
            ways.append(tuple(None if of_all and n != m else a for a, of_all, n, m in sides))
    return _merged(ways, len(out))


def _moved(walk, params, given, out):
    """As `_same_rank`, but which place of a joint axis is which is not known any more."""
    labels = _same_rank(walk, params, given, out)
    return tuple(None if isinstance(label, Tokens) else label for label in labels)


def _concatenate(walk, params, given, out):
    found, at = list(_same_rank(walk, params, given, out)), params["dimension"]
    lengths = [shape[at] for shape, _ in given]
    joint = [i for i, (_, a) in enumerate(given) if a and isinstance(a[at], Tokens)]
    if len(joint) == 1:
        (i,) = joint
        label = given[i][1][at]
        before, after = sum(lengths[:i]), sum(lengths[i + 1 :])
        found[at] = dataclasses.replace(
            label, before=label.before + before, after=label.after + after
        )
    return tuple(found)


def _slice(walk, params, given, out):
    found = list(_same_rank(walk, params, given, out))
    shape, labels = given[0]
    for a, label in enumerate(labels):
        first, end = params["start_indices"][a], params["limit_indices"][a]
        if isinstance(label, Tokens) and (params["strides"] or [1] * len(shape))[a] == 1:
            before, after = label.before - first, label.after - (shape[a] - end)
            whole = before >= 0 and after >= 0
            found[a] = dataclasses.replace(label, before=before, after=after) if whole else None
    return tuple(found)


def _transpose(walk, params, given, out):
    return tuple(given[0][1][a] for a in params["permutation"])


def _broadcast(walk, params, given, out):
    (shape, labels), found = given[0], [None] * len(out)
    for n, label, a in zip(shape, labels, params["broadcast_dimensions"], strict=True):
        found[a] = label if n == out[a] else None
    return tuple(found)


def _squeeze(walk, params, given, out):
    gone = params["dimensions"]
    return tuple(label for a, label in enumerate(given[0][1]) if a not in gone)


def _reduce(walk, params, given, out):
    labels = next(a for _, a in given if a)
    gone = params.get("axes", params.get("dimensions", ()))
    kept = tuple(label for a, label in enumerate(labels) if a not in gone)
    return kept if len(kept) == len(out) else None


def _stack(walk, params, given, out):
    if "axis" not in params:
        return None
    inner = [labels for _, labels in given if labels]
    merged = _merged(inner, len(out) - 1)
    at = params["axis"] % len(out)
    return (*merged[:at], None, *merged[at:])


def _reshape(walk, params, given, out):
    shape, labels = given[0]
    if (order := params.get("dimensions")) is not None:  # transposed first
        shape, labels = (tuple(of[a] for a in order) for of in (shape, labels))
    return regrouped(walk.count, shape, labels, out)


def _dot(walk, params, given, out):
    """Batch axes, free axes of the left, free axes of the right; the weights' last are channels.

    But where a product is along another axis (an image resized, tokens mixed), channels stay where
    they are; and heads that say which products there are, are no channels of these.
    """
    contracted, batched = params["dimension_numbers"]
    free: list[list[Label]] = []
    for side, (shape, labels) in enumerate(given):
        rest = [a for a in range(len(shape)) if a not in (*contracted[side], *batched[side])]
        free.append([labels[a] if labels else None for a in rest])
        if not labels and rest:
            free[-1][-1] = _made_of_product(given[1 - side][1], contracted[1 - side])
    both = [given[side][1] and tuple(given[side][1][a] for a in batched[side]) for side in (0, 1)]
    shared = _merged([labels for labels in both if labels], len(batched[0]))
    if all(labels for _, labels in given) and not any(map(of_channels, (*free[0], *free[1]))):
        shared = tuple(None if of_channels(label) else label for label in shared)
    return (*shared, *free[0], *free[1])


def _made_of_product(labels: Labels | None, along: Sequence[int]) -> Label:
    """The label of weights' last axis, after a product with a value along some of its axes."""
    gone = [labels[a] for a in along] if labels else []
    stay = any(of_channels(label) for a, label in enumerate(labels or ()) if a not in along)
    if not stay or any(map(of_channels, gone)):
        return CHANNELS
    return gone[0] if len(gone) == 1 and isinstance(gone[0], tuple) else None


def _conv(walk, params, given, out):
    """The output's channels are where the dimension numbers put them; so were the input's."""
    numbers, (_, labels) = params["dimension_numbers"], given[0]
    found: list[Label] = [None] * len(out)
    if labels is None:  # only the kernel comes from x
        return None
    channels = whole = labels[numbers.lhs_spec[1]]
    # Examples with kernels of their own come as groups of channels, example by example.
    if isinstance(channels, Part) and of_batch(channels) and len(channels.labels) == 2:
        whole = channels.labels[1]
    if isinstance(whole, tuple):
        leaf, axis = whole
        walk.fed[leaf].add(axis)
    elif isinstance(channels, Part) and not of_batch(channels):
        walk.parts.add(channels)
    _left_over(walk, [labels[a] for a in numbers.lhs_spec[2:]])
    for before, after in zip(numbers.lhs_spec, numbers.out_spec, strict=True):
        found[after] = None if of_channels(labels[before]) else labels[before]
    made, count = numbers.out_spec[1], walk.count
    found[made] = CHANNELS
    if of_batch(channels):
        each = (count, out[made] // max(1, count))
        fits = each[0] * each[1] == out[made]
        found[made] = Part((BATCH, CHANNELS), each, out[made : made + 1], 0) if fits else ROWS
    return tuple(found)


def _left_over(walk, space: Sequence[Label]) -> None:
    """Tells the walk which axis of an image a convolution does not go over."""
    if not space or not all(isinstance(label, tuple) for label in space):
        return
    leaf, over = space[0][0], {axis for _, axis in space}
    rest = set(range(1, walk.ranks[leaf])) - over
    if len(rest) == 1 and all(label[0] == leaf for label in space):
        walk.beside[leaf] |= rest


def _gather(walk, params, given, out):
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    (shape, labels), (places, index_labels) = given[:2]
    labels = labels or (None,) * len(shape)
    index_labels = index_labels or (None,) * len(places)
    batching = getattr(numbers, "operand_batching_dims", ())
    paired = dict(zip(getattr(numbers, "start_indices_batching_dims", ()), batching, strict=True))
    whole = [
        labels[a] if sizes[a] == shape[a] else None
        for a in range(len(shape))
        if a not in (*numbers.collapsed_slice_dims, *batching)
    ]
    picked = [labels[paired[a]] if a in paired else index_labels[a] for a in range(len(places) - 1)]
    parts = {True: iter(whole), False: iter(picked)}
    return tuple(next(parts[a in numbers.offset_dims]) for a in range(len(out)))


def _scatter(walk, params, given, out):
    numbers = params["dimension_numbers"]
    (_, labels), _, (updated, update_labels) = given[:3]
    ways = [labels] if labels else []
    if update_labels:
        batching = getattr(numbers, "operand_batching_dims", ())
        paired = dict(
            zip(getattr(numbers, "scatter_indices_batching_dims", ()), batching, strict=True)
        )
        window = [a for a in range(len(out)) if a not in (*numbers.inserted_window_dims, *batching)]
        found: list[Label] = [None] * len(out)
        for a, u in zip(window, numbers.update_window_dims, strict=True):
            found[a] = update_labels[u] if updated[u] == out[a] else None
        scattered = [u for u in range(len(updated)) if u not in numbers.update_window_dims]
        for i, u in enumerate(scattered):
            if i in paired:
                found[paired[i]] = update_labels[u]
        ways.append(tuple(found))
    return _merged(ways, len(out))


RULES: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "gather": _gather,
    "concatenate": _concatenate,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
    "unstack": lambda walk, params, given, out: _reduce(
        walk, {"axes": (params["axis"],)}, given, out
    ),
    **dict.fromkeys(
        "cumlogsumexp cummax cummin cumprod cumsum dynamic_slice dynamic_update_slice"
        " reduce_window reduce_window_max reduce_window_min reduce_window_sum"
        " select_and_gather_add select_n split tile".split(),
        _same_rank,
    ),
    **dict.fromkeys("fft pad rev sort top_k".split(), _moved),
    **dict.fromkeys(
        "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split(),
        _reduce,
    ),
    **dict.fromkeys(
        "scatter scatter-add scatter_add scatter-max scatter_max scatter-min scatter_min"
        " scatter-mul scatter_mul".split(),
        _scatter,
    ),
    # Shapes say nothing of what these do.
    **dict.fromkeys(
        "custom_call ffi_call io_callback pure_callback pallas_call shard_map".split(), _unknown
    ),
}
