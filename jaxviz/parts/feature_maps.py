"""What class activation maps share: the layers they read, and the map they become."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.calls import options
from jaxviz.calls.models import batch_or_shapes, own_or_told
from jaxviz.calls.options import described
from jaxviz.calls.public import public
from jaxviz.engine.contract import Target
from jaxviz.engine.copies import at_least_float32, is_floating, outputs_of
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import Tokens
from jaxviz.graph.held import hold
from jaxviz.graph.kinds import ACTIVATION_KINDS, NORM_KINDS
from jaxviz.graph.layers import find
from jaxviz.graph.rows import Layer, Row, rows
from jaxviz.graph.split import reached, split_where_read, used
from jaxviz.graph.trace import Traced, trace
from jaxviz.parts.channels import channel_axis
from jaxviz.parts.gradients import input_gradient

Layers = Annotated[str | tuple[str, ...] | None, options.layers]
Resize = bool | tuple[int, ...]


class Cut(NamedTuple):
    """A model cut at a layer: `tail((params, carry), a)` gives the outputs.

    It is the model's own: run it by `outputs_of` or `score_of`.
    """

    tail: Callable
    params: tuple[Any, Any]
    a: jax.Array
    maps: Callable[[jax.Array], jax.Array]  # from the shape of `a` to [N, *space, channels]
    head: Callable  # `(params, x) -> (a, carry)`


def class_activation_map(
    name: str,
    one: Callable[[Cut], jax.Array],
    apply_fn: Callable,
    params: Any,
    x: Any,
    *,
    layer: Layers,
    relu: bool,
    resize: Resize,
    reshape: Callable | None,
) -> jax.Array:
    """`one(cut)` -> `[N, *space]` at each layer; rectified, resized, and the mean over layers."""
    found = []
    for cut in cuts(name, apply_fn, params, x, layer, reshape):
        a = one(cut)
        a = resized(name, jnp.maximum(a, 0) if relu else a, x, resize)
        found.append(a.astype(cut.a.dtype))
    shapes = {a.shape for a in found}
    if len(shapes) > 1:
        raise ValueError(
            f"{name}: several layers must have maps of one size to be averaged; got "
            f"{sorted(shapes)}. Leave resize=True, or name one layer."
        )
    return sum(found[1:], found[0]) / len(found)


def cuts(
    name: str,
    apply_fn: Callable,
    params: Any,
    x: Any,
    layer: Layers,
    reshape: Callable | None,
) -> Iterator[Cut]:
    """The model cut at each layer named, or at the last one with spatial extent."""
    if layer is None:
        layer = last_spatial_layer(name, apply_fn, params, x)
    for one in (layer,) if isinstance(layer, str) else tuple(layer):
        head, tail = split_where_read(apply_fn, params, x, one)
        a, carry = outputs_of(head, params, x)
        axis = channel_axis(name, apply_fn, params, x, one)
        maps = reshape or functools.partial(laid_out, channels=axis, rank=_rank(x))
        if reshape is None and (tokens := _tokens_of(name, apply_fn, params, x, one)):
            maps = functools.partial(grid_of_tokens, tokens=tokens)
        must = f"reshape must be a function of the layer's output {a.shape}"
        try:
            laid = jax.eval_shape(maps, a)
        except Exception as error:  # the user's, of any kind
            raise own_or_told(error, name, must) from error
        if not hasattr(laid, "shape"):
            raise TypeError(f"{name}: {must} that returns an array; got {described(laid)}.")
        shape = laid.shape
        if len(shape) < 3 or shape[0] != a.shape[0]:
            told = f"reshape makes {shape} of it" if reshape else "which has no spatial extent"
            raise ValueError(
                f"{name}: layer {one!r} must give [N, *space, channels]; its output is {a.shape}, "
                f"{told}. Take a layer before pooling and flattening, or pass `reshape` "
                "(tokens: lambda a: a[:, 1:].reshape(len(a), 14, 14, -1))."
            )
        yield Cut(tail, (params, carry), a, maps, head)


@public(x=batch_or_shapes)
def default_layer(apply_fn: Callable, params: Any, x: Any) -> str:
    """The layer that class activation maps take where none is named: the last one with places.

    Places are those of an image, or a transformer's tokens where the model shows how they lie: its
    patches in rows, behind a class token, say (which has no place, and is left out of maps). Where
    there are such other tokens, one of them may be all that is read in the end: then it is the norm
    (or whatever comes last) ahead of the last attention, as behind it patches count no more. Where
    the last one is an activation right after a convolution, it is the convolution. A dropout that
    drops nothing, an identity or a cast is never it.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree; arrays or shapes.
      x: `[N, *space, C]`, or a pytree of such; arrays or shapes. Nothing is computed.

    Returns:
      The name of the last layer whose output has as many axes as `x` (as the leaf of most axes), or
      `[N, tokens, C]`, and more than one place, and which the outputs are made of.

    Raises:
      ValueError: There is none; or the last one is what cuts the image into tokens, ahead of all
        blocks of a transformer, where a map would say little of the model, and how later tokens lie
        is not known.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x).mean((1, 2)) @ w
      >>> default_layer(net, jnp.ones((1, 1)), jnp.ones((1, 2, 2, 1)))
      'relu_0'
    """
    apply_fn, params = hold("default_layer", apply_fn, params)
    return last_spatial_layer("default_layer", apply_fn, params, x)


def last_spatial_layer(name: str, apply_fn: Callable, params: Any, x: Any) -> str:
    """`default_layer` for the method `name`."""
    shape, rank = _shape(x), _rank(x)
    traced = trace(apply_fn, params, x)
    all_rows = _rows_read(traced, x)
    found = [row.layer for row in all_rows]
    sizes = [_shape_of_maps(one, rank) for one in found]
    places = [i for i in range(len(found)) if found[i].can_cut and _has_places(sizes[i], rank)]
    # Queries, keys and values [N, tokens, heads, d] have as many axes as an image.
    heads = {i for i in places if axes(traced).tokens(all_rows[i].value)}
    # By value, for a dropout that does nothing is a layer, too.
    weights = {row.value for i, row in enumerate(all_rows) if _weighs_tokens(found, i)}
    fits = [i for i in places if i not in heads and all_rows[i].value not in weights]
    # What has more axes than x is taken where all layers do: of one example each under `vmap`.
    fits = [i for i in fits if len(found[i].shape) == rank] or fits
    last = fits[-1] if fits else -1
    later = range(last + 1, len(found))
    grids = [i for i in later if _tokens(traced, all_rows[i])]
    softmaxes = [i for i in later if found[i].kind == "softmax" and len(found[i].shape) > 2]
    if grids:
        tokens = _tokens(traced, all_rows[grids[-1]])
        if tokens and softmaxes and tokens.before + tokens.after:
            ahead = [i for i in grids if i < softmaxes[-1]]
            norms = [i for i in ahead if found[i].kind in NORM_KINDS]
            grids = norms or ahead or grids
        return found[grids[-1]].name
    if not fits:
        sides = ", ".join(["N", *"HWD"[: len(shape) - 2], "C"])
        names = ", ".join(repr(one.name) for one in found[-8:])
        raise ValueError(
            f"{name}: no layer has spatial extent, [{sides}] for x {shape}; the layers are "
            f"{names}. "
            "Pass `layer`, and `reshape` if its output is laid out otherwise."
        )
    tokens = [found[i] for i in later if found[i].can_cut and len(sizes[i]) == 3]
    bent = any(one.kind in ACTIVATION_KINDS for one in found[:last])
    if softmaxes and tokens and not bent:
        near = tokens[-1]
        raise ValueError(
            f"{name}: the last layer with the axes of x, {found[last].name!r}, only cuts x into "
            "tokens, ahead of all attention. Pass a layer of tokens and how they lie, such as "
            f"layer={near.name!r} {near.shape} and reshape=lambda a: a[:, 1:].reshape(len(a), "
            "rows, columns, -1), where 1: leaves out a class token."
        )
    if last and found[last].kind in ACTIVATION_KINDS:
        before = found[last - 1]
        if before.kind == "conv" and before.can_cut and before.shape == found[last].shape:
            return before.name  # an activation right after a convolution is no layer of its own
    return found[last].name


def spatial_stages(name: str, apply_fn: Callable, params: Any, x: Any) -> tuple[str, ...]:
    """The last layer of each size of maps, up to `default_layer`; of tokens that alone."""
    last = last_spatial_layer(name, apply_fn, params, x)
    rank = _rank(x)
    traced = trace(*hold(name, apply_fn, params), x)
    known = [row.layer for row in _rows_read(traced, x)]
    end = next(i for i, layer in enumerate(known) if layer.name == last)
    if not _has_places(size := _shape_of_maps(known[end], rank), rank):
        return (last,)
    found = {}
    for layer in known[:end]:
        shape = _shape_of_maps(layer, rank)
        if layer.can_cut and _has_places(shape, rank) and shape[1:-1] != size[1:-1]:
            found.pop(shape[1:-1], None)  # to stand in the order of the last of each
            found[shape[1:-1]] = layer.name
    return (*found.values(), last)


def _rows_read(traced: Traced, x: Any) -> list[Row]:
    """The layers that the image reaches, but for those that outputs do not read, whose maps would
    be zero, and those that hand on another's, by whose name nobody knows it."""
    live, found = used(traced), rows(traced)
    if len(inputs := jax.tree.leaves(traced.x)) > 1:  # words beside an image have their own layers
        live &= reached(traced.program, [inputs[i] for i in pictured(x)])
    own = [row for row in found if not row.idle] or found
    return [row for row in own if row.value in live or not row.layer.can_cut]


def _tokens_of(name: str, apply_fn: Callable, params: Any, x: Any, layer: str) -> Tokens | None:
    """How the tokens `[N, tokens, C]` of a layer lie in `x`, where the model shows it."""
    traced = trace(*hold(name, apply_fn, params), x)
    return _tokens(traced, find(rows(traced), layer, name))


def _tokens(traced: Any, row: Row) -> Tokens | None:
    found = axes(traced).tokens(row.value) if row.layer.can_cut else None
    if found is None or len(row.layer.shape) != 3 or row.batch != 0 or found[0] != 1:
        return None
    return found[1]


def grid_of_tokens(a: jax.Array, tokens: Tokens) -> jax.Array:
    """`[N, tokens, C]` as `[N, rows, columns, C]`; those before and after have no place in it."""
    patches = a[:, tokens.before : a.shape[1] - tokens.after]
    return patches.reshape(len(a), *tokens.sizes, -1)


def _weighs_tokens(found: Sequence[Layer], i: int) -> bool:
    """Whether a layer is inside an attention: of its axes one may be the heads, none the rows."""
    kind = found[i].kind
    near = [one.kind for one in found[i + 1 : i + 3]]
    return kind == "matmul" or (kind == "softmax" and "matmul" in near)


def pictured(x: Any) -> list[int]:
    """The leaves of x that maps lie on: of an image beside its caption's ids, or ages, the image.

    Those of most axes; where some of these are floating, they alone, as they are explained.
    """
    leaves = jax.tree.leaves(x)
    most = [i for i, leaf in enumerate(leaves) if jnp.ndim(leaf) == max(map(jnp.ndim, leaves))]
    return [i for i in most if is_floating(leaves[i])] or most


def _shape(x: Any) -> tuple[int, ...]:
    return jnp.shape(jax.tree.leaves(x)[pictured(x)[0]])


def _rank(x: Any) -> int:
    return len(_shape(x))


def _shape_of_maps(layer: Layer, rank: int) -> tuple[int, ...]:
    gone = _spare(layer.shape, layer.channel_axis, rank)
    kept = [n for a, n in enumerate(layer.shape) if a not in gone]
    channels = layer.channel_axis % len(layer.shape) if layer.shape else 0
    channels -= sum(a < channels for a in gone)
    return (*kept[:channels], *kept[channels + 1 :], *kept[channels : channels + 1])


def _has_places(shape: tuple[int, ...], rank: int) -> bool:
    """Whether maps `[N, *space, channels]` have more than one place, and as many axes as `x`."""
    return len(shape) == rank >= 3 and any(n > 1 for n in shape[1:-1])


def _spare(shape: tuple[int, ...], channels: int, rank: int) -> tuple[int, ...]:
    """Axes of one place that a value has beyond those of `x`.

    `jax.vmap(lambda x: net(x[None])[0])` makes them: each example is a batch of one.
    """
    beside = (0, channels % max(len(shape), 1))
    ones = tuple(a for a, n in enumerate(shape) if n == 1 and a not in beside)
    more = len(shape) - rank
    return ones[:more] if 0 < more <= len(ones) else ()


def laid_out(a: jax.Array, channels: int, rank: int) -> jax.Array:
    """A layer's values with channels last, without axes of one place beyond those of `x`."""
    gone = _spare(a.shape, channels, rank)
    last = jnp.moveaxis(a, channels, -1)
    after = channels % a.ndim
    return jnp.squeeze(last, tuple(axis - (axis > after) for axis in gone)) if gone else last


def resized(name: str, a: jax.Array, x: Any, resize: Resize) -> jax.Array:
    """`[N, *space]` at the spatial size of `x`: linear, pixels being areas (half-pixel centres)."""
    if resize is False:
        return a
    if resize is True:
        leaves = jax.tree.leaves(x)
        sizes = {jnp.shape(leaves[i])[1:-1] for i in pictured(x)}
        size = sizes.pop() if len(sizes) == 1 else ()
    else:
        size = tuple(resize)
    if len(size) != a.ndim - 1:
        raise ValueError(
            f"{name}: resize=True needs x [N, *space, C] with {a.ndim - 1} axes of space, as the "
            f"map {a.shape} has; got x {jax.tree.map(jnp.shape, x)}. Pass resize=False or a size."
        )
    return jax.image.resize(a, (a.shape[0], *size), "linear", antialias=False)


def map_and_gradient(cut: Cut, target: Target) -> tuple[jax.Array, jax.Array]:
    """The layer's maps and the gradient of the explained number by them, laid out alike."""
    gradient = input_gradient(cut.tail, cut.params, cut.a, target)
    # Maps are weighed and added up in float32 at least, and become what the layer is at the end.
    wide = lambda a: cut.maps(a).astype(at_least_float32(a))
    return wide(cut.a), wide(gradient)


def over_space(a: jax.Array) -> tuple[int, ...]:
    """The axes of space of `[N, *space, channels]`."""
    return tuple(range(1, a.ndim - 1))
