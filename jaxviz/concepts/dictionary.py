"""A dictionary on a layer: directions in the space of its values, and what is written in them."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from jaxviz.calls.arrays import real_array
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.largest import largest


class Dictionary(NamedTuple):
    """K directions ("atoms") in a layer of C channels, and how a value is written in them.

    Arrays alone, so dictionaries are passed through `jit`, stacked and mapped as they are. Which
    parts there are says of what kind it is:

    | made by | encoder | threshold | keep |
    |---|---|---|---|
    | probes, PCA | yes | no: codes are signed | no |
    | autoencoder with ReLU, JumpReLU | yes | 0, or one for each unit | no |
    | autoencoder with TopK | yes | 0 | k |
    | NMF, and other non-negative ones | no: non-negative least squares | no | no |

    Attributes:
      atoms: `[K, C]`, floating.
      encoder: `[C, K]`, or None: codes are those of non-negative least squares.
      encoder_bias: `[K]`, or None for 0.
      bias: `[C]`, taken away before coding and given back after it, or None for 0.
      threshold: `[K]` or one number: a code that is not above it is 0. None: codes are kept as
        they are, negative ones too.
      keep: An integer array of no axes: so many codes of each row stay, the largest; of equal ones
        the first. None: all.
    """

    atoms: jax.Array
    encoder: jax.Array | None = None
    encoder_bias: jax.Array | None = None
    bias: jax.Array | None = None
    threshold: jax.Array | None = None
    keep: jax.Array | None = None

    __repr__ = shown
    _repr_html_ = shown_html


@public(a=real_array)
@jax.jit
def encode(dictionary: Dictionary, a: jax.Array) -> jax.Array:
    """Values of a layer written in a dictionary.

    With an encoder: `(a - bias) @ encoder + encoder_bias`, then the threshold, then the largest
    `keep`. Without one: the codes `u >= 0` that bring `u @ atoms` nearest to `a - bias`, by
    coordinate descent (HALS, Cichocki and Phan 2009) until no code moves by more than 1e-6 of the
    largest, at most 500 rounds. Their gradient is that of the solution (implicit differentiation):
    the codes that are not 0 are linear in `a`, the others stay where they are.

    Args:
      dictionary: Of K atoms in C channels.
      a: `[..., C]`, floating: any number of places or tokens.

    Returns:
      `[..., K]`, in the type of `a`.

    Raises:
      ValueError: `a` has another number of channels than the atoms.

    Example:
      >>> axes = Dictionary(jnp.eye(2), threshold=jnp.zeros(2), encoder=jnp.eye(2))
      >>> encode(axes, jnp.array([[3.0, -1.0]])).tolist()
      [[3.0, 0.0]]
    """
    _fitting("encode", "a", a, dictionary.atoms.shape[1], "channels")
    if dictionary.bias is not None:
        a = a - _like(dictionary.bias, a)
    if dictionary.encoder is None:
        codes = _differentiable(dictionary.atoms, a)
    else:
        codes = a @ dictionary.encoder.astype(a.dtype)
        if dictionary.encoder_bias is not None:
            codes = codes + _like(dictionary.encoder_bias, a)
    if dictionary.threshold is not None:
        codes = jnp.where(codes > _like(dictionary.threshold, a), codes, jnp.zeros_like(codes))
    if dictionary.keep is not None:
        kept = largest(codes, dictionary.keep, exact=True)
        codes = jnp.where(kept, codes, jnp.zeros_like(codes))
    return codes


@public(codes=real_array)
@jax.jit
def decode(dictionary: Dictionary, codes: jax.Array) -> jax.Array:
    """What codes stand for: `codes @ atoms + bias`, values of the layer.

    Args:
      dictionary: Of K atoms in C channels.
      codes: `[..., K]`, floating.

    Returns:
      `[..., C]`, in the type of `codes`.

    Raises:
      ValueError: There is another number of codes than of atoms.

    Example:
      >>> decode(Dictionary(jnp.array([[1.0, 2.0]])), jnp.array([[3.0]])).tolist()
      [[3.0, 6.0]]
    """
    _fitting("decode", "codes", codes, dictionary.atoms.shape[0], "codes")
    a = codes @ dictionary.atoms.astype(codes.dtype)
    return a if dictionary.bias is None else a + _like(dictionary.bias, a)


@public()
def save_dictionary(dictionary: Dictionary, path: str | os.PathLike) -> Path:
    """Writes a dictionary as a `.safetensors` file, its parts by their names.

    Args:
      dictionary: What is kept; parts that are None are left out.
      path: The file to write; its folder must be there.

    Returns:
      The file's path.

    Raises:
      ValueError: The file's name does not end in `.safetensors`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = save_dictionary(Dictionary(jnp.eye(2)), f"{folder}/axes.safetensors")
      ...     load_dictionary(path).atoms.tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"save_dictionary: path must end in .safetensors, which is what is written; got {path}."
        )
    parts = {k: v for k, v in dictionary._asdict().items() if v is not None}
    safetensors.numpy.save_file(jax.device_get(parts), path)
    return path


@public()
def load_dictionary(path: str | os.PathLike) -> Dictionary:
    """Reads what `save_dictionary` wrote.

    Args:
      path: The file.

    Returns:
      The dictionary.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file is damaged, or holds something else than a dictionary.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load_dictionary: there is no file {path}.")
    try:
        parts = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"load_dictionary: {path} is no safetensors file: {error}.") from None
    if "atoms" not in parts or set(parts) - set(Dictionary._fields):
        raise ValueError(
            f"load_dictionary: {path} must hold a dictionary (atoms, and some of "
            f"{', '.join(Dictionary._fields[1:])}); it holds {', '.join(sorted(parts))}."
        )
    return Dictionary(**jax.device_put(parts))


def _non_negative(atoms, a, rounds=500):
    """Codes `[..., K] >= 0` of the least squares, each in turn while the others stand still."""
    atoms = atoms.astype(a.dtype)
    gram, wanted = atoms @ atoms.T, a @ atoms.T
    size = jnp.diagonal(gram)
    per = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)  # an atom of zeros has code 0

    def each(k, codes):
        one = codes[..., k] + (wanted[..., k] - codes @ gram[k]) * per[k]
        return codes.at[..., k].set(jnp.where(per[k] > 0, jnp.maximum(one, 0), 0))

    def around(state):
        codes, _, turn = state
        new = jax.lax.fori_loop(0, len(atoms), each, codes)
        moved = jnp.max(jnp.abs(new - codes), initial=0)
        return new, moved > 1e-6 * jnp.max(new, initial=0), turn + 1

    start = (jnp.zeros_like(wanted), jnp.asarray(True), jnp.asarray(0))
    return jax.lax.while_loop(lambda s: s[1] & (s[2] < rounds), around, start)[0]


def _differentiable(atoms, a):
    """Non-negative codes, written as the linear function of `a` that they are near it."""
    codes = _non_negative(atoms, jax.lax.stop_gradient(a))
    atoms = atoms.astype(a.dtype)
    used = codes > 0
    gram = atoms @ atoms.T
    each = lambda matrix: jnp.broadcast_to(matrix, (*used.shape, len(atoms)))
    among = jnp.where(used[..., None] & used[..., None, :], each(gram), 0)
    # Atoms that are alike share what is theirs: without a little more they could not be told apart.
    more = jnp.where(used, 1e-6 * jnp.max(jnp.diagonal(gram)), 1)
    inverse = jnp.linalg.inv(among + more[..., None] * each(jnp.eye(len(atoms), dtype=a.dtype)))
    linear = jnp.einsum("...jk,...k->...j", inverse, a @ atoms.T)
    linear = jnp.where(used, linear, 0)
    # Rounding apart this is 1: the codes are those that were found.
    still = jax.lax.stop_gradient(linear)
    return linear * jnp.where(used & (still != 0), codes / jnp.where(still == 0, 1, still), 1)


def _like(part, a):
    """A part of a dictionary, `[n]` or one number, in the type and with the axes of `a`."""
    part = jnp.asarray(part, a.dtype)
    return part.reshape((1,) * (a.ndim - part.ndim) + part.shape)


def _fitting(who, option, value, size, what):
    if value.ndim < 1 or value.shape[-1] != size:
        raise ValueError(
            f"{who}: {option} must be [..., {size}], as the dictionary has {size} {what}; "
            f"got {value.shape}. Put the axis of {what} last."
        )
