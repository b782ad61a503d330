"""Where a graph's nodes lie: units of a layer's value, or codes of a dictionary on it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.concepts.dictionary import Dictionary, encode
from jaxviz.engine.copies import at_least_float32
from jaxviz.graph.rows import rows
from jaxviz.graph.trace import Traced
from jaxviz.interventions.places import Place, places

INPUT, SCORE = "<input>", "<score>"
ARROW = " -> "


class Site(NamedTuple):
    """A layer of a graph.

    Attributes:
      name: Of the layer whose value its units make.
      read: Whose value makes the units: the same layer, of a transcoder another one before it.
      written: The layer.
      axis: Of channels, in the layer's value.
      read_axis: In the value that is read.
      dictionary: What codes are written in, or None: the channels themselves.
    """

    name: str
    read: Place
    written: Place
    axis: int
    read_axis: int
    dictionary: Any = None


class Units(NamedTuple):
    """The units of one site, or of the input, for one example.

    Attributes:
      values: `[1, ...]`, a number for each unit at each place.
      axis: Along which the units lie; None where each number is one.
      left: What of the layer's value they do not make, or None.
      constant: What a dictionary adds to it anyway, or None.
    """

    values: jax.Array
    axis: int | None
    left: jax.Array | None = None
    constant: jax.Array | None = None

    @property
    def count(self) -> int:
        return math.prod(self.values.shape) if self.axis is None else self.values.shape[self.axis]

    def summed(self, a: jax.Array) -> jax.Array:
        """`[units]`, of an array like the values."""
        if self.axis is None:
            return a.ravel()
        return a.sum([i for i in range(a.ndim) if i != self.axis])

    def spread(self, a: jax.Array) -> jax.Array:
        """`[units]` laid out to multiply the values."""
        if self.axis is None:
            return a.reshape(self.values.shape)
        return a.reshape([-1 if i == self.axis else 1 for i in range(self.values.ndim)])


def sites(
    who: str, traced: Traced, names: Sequence[str], dictionaries: Mapping[str, Any]
) -> list[Site]:
    """The layers in the order of the computation, with their dictionaries.

    Raises:
      ValueError: There is no such layer, or it is the value of another one too; or a dictionary is
        for no layer of these, or of another width.
    """
    axes = {row.layer.name: row.layer.channel_axis for row in rows(traced)}
    axis_of = lambda place: axes.get(place.name, -1) % len(place.shape)
    coders = {name.split(ARROW)[1]: (name.split(ARROW)[0], d) for name, d in dictionaries.items()}
    found: list[Site] = []
    for place in places(who, traced, names):
        if not jnp.issubdtype(place.dtype, jnp.floating) or len(place.shape) < 2:
            raise ValueError(
                f"{who}: layers must be floating, [N, ..., channels]; {place.name!r} is "
                f"{place.dtype} {place.shape}. Take a layer after it."
            )
        origin, dictionary = coders.pop(place.name, (place.name, None))
        (read,) = places(who, traced, (origin,)) if origin != place.name else (place,)
        site = Site(place.name, read, place, axis_of(place), axis_of(read), dictionary)
        _check_dictionary(who, site)
        found.append(site)
    if coders:
        raise ValueError(
            f"{who}: dictionaries must be for layers of the graph; {next(iter(coders))!r} is none "
            f"of {', '.join(map(repr, names))}. Add it to layers."
        )
    found.sort(key=lambda site: site.written.value)
    for before, site in itertools.pairwise(found):
        if before.written.value == site.written.value:
            raise ValueError(
                f"{who}: layers must be different values; {before.name!r} and {site.name!r} are "
                "names of one. Name one of them."
            )
    return found


def _check_dictionary(who: str, site: Site) -> None:
    if site.dictionary is None:
        return
    width = site.dictionary.atoms.shape[1]
    size = site.written.shape[site.axis]
    encoder = site.dictionary.encoder
    if encoder is not None:
        width, size = (width, encoder.shape[0]), (size, site.read.shape[site.read_axis])
    if width != size:
        raise ValueError(
            f"{who}: dictionaries must be as wide as their layers; that of {site.name!r} has "
            f"{width} channels, the layer {size}."
        )
    if encoder is None and site.read.value != site.written.value:
        raise ValueError(
            f"{who}: a transcoder needs an encoder; that of {site.name!r} has none. Fit one, or "
            "take the layer alone for a dictionary without."
        )


def units_of(site: Site, by: str, read: jax.Array, written: jax.Array) -> Units:
    """The units of a site whose layers have these values, `[1, ...]`."""
    if site.dictionary is None:
        wide = written.astype(at_least_float32(written))
        return Units(wide, site.axis if by == "channel" else None)
    found = _coder(site)
    a = jnp.moveaxis(read, site.read_axis, -1)
    a = a.astype(at_least_float32(a))
    codes = encode(found, a)
    atoms = site.dictionary.atoms.astype(codes.dtype)
    made, constant = codes @ atoms, jnp.zeros((), codes.dtype)
    if site.dictionary.bias is not None:
        bias = site.dictionary.bias.astype(codes.dtype)
        constant = bias.reshape((1,) * (made.ndim - 1) + bias.shape)
    target = jnp.moveaxis(written, site.axis, -1).astype(codes.dtype)
    constant = jnp.broadcast_to(constant, target.shape)
    axis = codes.ndim - 1 if by == "channel" else None
    return Units(codes, axis, target - made - constant, constant)


def slopes_of(site: Site, gradient: jax.Array) -> jax.Array:
    """By the units, from the gradient by the layer's value."""
    if site.dictionary is None:
        return gradient.astype(at_least_float32(gradient))
    return _last(gradient, site.axis) @ site.dictionary.atoms.T.astype(at_least_float32(gradient))


def of_value(site: Site, gradient: jax.Array, part: jax.Array) -> jax.Array:
    """The sum of a gradient by the layer's value times a part of it, channels last."""
    return (_last(gradient, site.axis) * part).sum()


def made_by(site: Site, units: Units, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a weighted sum of units is made of: a slope by the value read, and a constant.

    Args:
      site: Where they are.
      units: They themselves.
      weights: Like their values.

    Returns:
      `[1, ...]` like the value that is read; and a number.
    """
    if site.dictionary is None:
        return weights.astype(site.read.dtype), jnp.zeros((), weights.dtype)
    found, codes = _coder(site), units.values
    active = (codes != 0).astype(codes.dtype)
    if found.encoder is not None and found.threshold is None and found.keep is None:
        active = jnp.ones_like(codes)  # codes of any sign: no gate
    weights = weights * active
    atoms = found.atoms.astype(codes.dtype)
    bias = jnp.zeros((atoms.shape[1],), codes.dtype)
    if found.bias is not None:
        bias = found.bias.astype(codes.dtype)
    if found.encoder is not None:
        slope = weights @ found.encoder.T.astype(codes.dtype)
        constant = jnp.zeros((), codes.dtype)
        if found.encoder_bias is not None:
            constant = (weights @ found.encoder_bias.astype(codes.dtype)).sum()
        if found.bias is not None:
            constant = constant - (slope @ bias).sum()
    else:
        # Least squares of the atoms that are in use: linear as long as those are the same ones.
        alike = lambda a: a.reshape((1,) * (codes.ndim - 1) + a.shape)
        gram = active[..., :, None] * alike(atoms @ atoms.T) * active[..., None, :]
        inverse = jnp.linalg.pinv(gram, hermitian=True)
        slope = (inverse @ weights[..., None])[..., 0] @ atoms
        constant = -(slope @ bias).sum()
    slope = jnp.moveaxis(slope, -1, site.read_axis)
    return slope.astype(site.read.dtype), constant


def _coder(site: Site) -> Dictionary:
    """What codes the value that is read: a transcoder's bias belongs to the other layer."""
    found = site.dictionary
    same = site.read.value == site.written.value
    return Dictionary(
        found.atoms if same else found.encoder.T,
        found.encoder,
        found.encoder_bias,
        found.bias if same else None,
        found.threshold,
        found.keep,
    )


def _last(a: jax.Array, axis: int) -> jax.Array:
    return jnp.moveaxis(a, axis, -1).astype(at_least_float32(a))
