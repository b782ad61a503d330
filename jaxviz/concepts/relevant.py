"""What in a data set a unit is relevant for, and which units of earlier layers carry it there."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.propagation import (
    Rules,
    concept_relevance,
    relevance_at,
    relevance_below,
    through_channel,
)
from jaxviz.calls.arrays import image_list
from jaxviz.calls.options import choice, flag, layer as one_layer, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import Target, explanation, program
from jaxviz.engine.layout import ChannelsLast, channels_of
from jaxviz.engine.targets import check_target, output_shape, with_classes
from jaxviz.features.examples import Collection, TopExamples, filled, numbered
from jaxviz.graph.held import hold
from jaxviz.parts.channels import channel_axis, checked_channel
from jaxviz.rules import lrp_composites
from jaxviz.rules.fast import is_large


class RelevantExamples(NamedTuple):
    """Of each of U units of a layer the images that use it most, beside those that excite it most.

    Attributes:
      relevance: A `TopExamples` ranked by relevance: its `scores` are relevances, its boxes what
        the place of largest relevance sees, its `means` the mean of all places' relevances.
      activation: The `TopExamples` of the same pass, ranked by activation.
      heat: `[U, K, h, w]`: of the patches of `relevance`, what of the unit's relevance each pixel
        has (`concept_relevance`, summed over colours); NaN where there were fewer images.
    """

    relevance: TopExamples
    activation: TopExamples
    heat: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


def _target(who: str, option: str, value: Any) -> Any:
    return value if value is None or callable(value) else whole(0)(who, option, value)


@public(images=image_list, target=_target, by=choice("sum", "max"), normalized=flag)
def relevant_examples(
    apply_fn: Callable,
    params: Any,
    images: Any,
    target: int | Callable | None = None,
    *,
    layer: str,
    rules: Rules = "epsilon_plus",
    by: str = "sum",
    normalized: bool = False,
    num_images: int = 9,
    batch_size: int = 64,
) -> RelevantExamples:
    """The images for whose score each unit is most relevant (RelMax), beside those that excite it.

    A unit may be excited by what the class does not need. Relevance of unit u on image n is that of
    `lrp` at the layer, summed over places, or its largest.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      images: As for `top_examples`: `[M, H, W, C]` (or channels first), or an iterable of batches,
        which is read once.
      target: A class index, `outputs -> [N]`, or None for each image's own top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`; its output is `[N, *space, U]`.
      rules: As for `lrp`.
      by: "sum" over places, or "max".
      normalized: Whether each image's relevances are first divided by the sum of their magnitudes
        over units, so that sure images do not outweigh others.
      num_images: K, how many images for each unit, >= 1.
      batch_size: Images at once.

    Returns:
      A `RelevantExamples` of NumPy arrays. Costs a pass forward and one back through the part of
      the model after the layer over all images, and U K conditional heat maps at the end; memory is
      that of a batch and of the U K images kept.

    Raises:
      ValueError: No such layer, no images, or images of differing shapes.
      NotImplementedError: An operation without a rule.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x * w).sum((1, 2)) @ jnp.array([[1.0], [-1.0]])
      >>> images = np.array([[[[1.0, 0.0]]], [[[2.0, 9.0]]]], "f4")  # two of one pixel
      >>> found = relevant_examples(net, 2.0, images, 0, layer="relu_0", num_images=1)
      >>> found.activation.indices.tolist(), found.relevance.indices.tolist()
      ([[1], [1]], [[1], [0]])

    Reference:
      Achtibat et al. 2023, arXiv:2206.03208, section "Understanding concepts" (RelMax); zennit-crp
      0.6.0 `reference_sampling` (there 40 images, "sum", not normalised when called from its
      feature visualisation; with `abs_norm` 1e-10 is added to what it divides by).
    """
    who = "relevant_examples"
    found_rules = lrp_composites.resolve(who, rules)
    apply_fn, params = hold(who, apply_fn, params)
    by_relevance: Any = None
    by_activation: Any = None
    kept: dict[int, np.ndarray] = {}
    moves, size = None, 0
    for first, batch in numbered(who, images, batch_size):
        if by_relevance is None and (moves := channels_of(apply_fn, params, batch)):
            apply_fn = ChannelsLast(apply_fn, moves)
        batch = np.moveaxis(batch, moves[0], -1) if moves and moves[0] else batch
        if by_relevance is None:
            if not callable(target):
                apply_fn = with_classes(apply_fn, params, batch)
                check_target(
                    who, apply_fn, params, batch, output_shape(apply_fn, params, batch), target
                )
            compute = functools.partial(
                _ranked, apply_fn, layer, found_rules, by, normalized, target
            )
            jax.eval_shape(compute, params, batch)
            by_relevance, by_activation = (
                Collection(who, apply_fn, params, batch, layer, num_images) for _ in range(2)
            )
            size = len(batch)
        compiled = program(_ranked, (0, 1, 2, 3, 4, 5), nested=False, large=is_large(params))
        relevant, active = compiled(
            apply_fn, layer, found_rules, by, normalized, target, params, filled(batch, size)
        )
        by_relevance.add(first, batch, relevant)
        by_activation.add(first, batch, active)
        still = set(by_relevance.indices.ravel().tolist())
        kept = {n: a for n, a in kept.items() if n in still}
        kept |= {n: batch[n - first].copy() for n in still if first <= n < first + len(batch)}
    if by_relevance is None:
        raise ValueError(f"{who}: images must hold at least one image; got none.")
    relevance, activation = by_relevance.result(), by_activation.result()
    heat = _heats(apply_fn, params, target, layer, found_rules, relevance, kept, size)
    found = RelevantExamples(relevance, activation, heat)
    if not moves or not moves[0]:
        return found
    turned = [top._replace(patches=np.moveaxis(top.patches, -1, moves[0] + 1)) for top in found[:2]]
    return RelevantExamples(turned[0], turned[1], heat)


def _ranked(apply_fn, layer, rules, by, normalized, target, params, x):
    """Of each image and unit the relevance, its place and mean; and the same of the activation."""
    _, a, relevance = relevance_at(apply_fn, params, x, target, layer, rules)
    axis = channel_axis("relevant_examples", apply_fn, params, x, layer)
    laid = lambda a: jnp.moveaxis(a, axis, -1).reshape(a.shape[0], -1, a.shape[axis])
    a, relevance = laid(a), laid(relevance)
    score = relevance.sum(1) if by == "sum" else relevance.max(1)
    if normalized:
        whole = jnp.abs(score).sum(1, keepdims=True)
        score = jnp.where(whole > 0, score / jnp.where(whole > 0, whole, 1), 0)
    return (
        (score, relevance.argmax(1), relevance.mean(1)),
        (a.max(1), a.argmax(1), a.mean(1)),
    )


def _heats(apply_fn, params, target, layer, rules, top, kept, size):
    """What each pixel of the patches has of the unit's relevance."""
    patches = top.patches
    heat = np.full(patches.shape[:4], np.nan, np.float32)
    pairs = [(u, k) for u, k in np.ndindex(*top.indices.shape) if top.indices[u, k] >= 0]
    height, width = patches.shape[2:4]
    for at in range(0, len(pairs), size):
        some = pairs[at : at + size]
        batch = np.stack([kept[int(top.indices[pair])] for pair in some])
        channels = jnp.asarray([u for u, _ in some] + [some[-1][0]] * (size - len(some)))
        maps = concept_relevance(
            apply_fn,
            params,
            filled(batch, size),
            target,
            layer=layer,
            channel=channels,
            rules=rules,
        )
        room = np.array(maps.shape[1:3]) - (height, width)
        for pair, one in zip(some, np.asarray(maps), strict=False):
            i, j = np.minimum(top.boxes[pair][:2], room)
            heat[pair] = one[i : i + height, j : j + width].sum(-1)
    return heat


@public(below=one_layer)
def channels_below(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layer: str,
    channel: int | jax.Array,
    below: str,
    rules: Rules = "epsilon_plus",
) -> jax.Array:
    """Which channels of an earlier layer carry a channel: its relevance, handed down to them.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, floating, or a pytree of such.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      channel: Index along the layer's axis of channels, or one for each example `[N]`; `jax.vmap`
        over them gives all.
      below: A layer before it.
      rules: As for `lrp`.

    Returns:
      `[N, channels below]`, summed over places, in units of the explained output. They add up to
      the channel's relevance less what biases took and what bypasses the layer below. With factors
      held in place of rules: `attribution_graph`.

    Raises:
      NotImplementedError: An operation without a rule.
      ValueError: No such layer, or `below` does not come before `layer`.

    Example:
      >>> w = {"a": jnp.eye(2), "b": jnp.array([[1.0, 2.0], [3.0, 0.0]]), "c": jnp.ones((2, 1))}
      >>> net = lambda w, x: jax.nn.relu(jax.nn.relu(x @ w["a"]) @ w["b"]) @ w["c"]
      >>> options = dict(layer="relu_1", below="relu_0", rules="epsilon")
      >>> x = jnp.array([[1.0, 2.0]])
      >>> channels_below(net, w, x, 0, channel=0, **options).tolist()
      [[1.0, 6.0]]

    Reference:
      Achtibat et al. 2023, arXiv:2206.03208, "attribution graphs"; zennit-crp's `AttributionGraph`.
    """
    who = "channels_below"
    found = lrp_composites.resolve(who, rules)
    checked_channel(who, apply_fn, params, x, layer, channel)
    return _below(
        apply_fn, params, x, target, layer=layer, channel=channel, below=below, rules=found
    )


def _channels_below(apply_fn, params, x, target=None, *, layer, channel, below, rules):
    who = "channels_below"
    head, a, relevance = relevance_at(apply_fn, params, x, target, layer, rules)
    axis = channel_axis(who, apply_fn, params, x, layer)
    score = through_channel(a, relevance, channel, axis)
    found = relevance_below(head, params, x, score, below, rules)
    axis = channel_axis(who, apply_fn, params, x, below) % found.ndim
    return found.sum([i for i in range(1, found.ndim) if i != axis])


_channels_below.__name__ = "channels_below"
_below = explanation("layer", "below", "rules")(_channels_below)
