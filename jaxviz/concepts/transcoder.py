"""Transcoders: many units, few active at once, that read one layer and write another."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import maybe
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.autoencoder import SparseAutoencoders, trained_together
from jaxviz.concepts.autoencoder_options import ADAM, CHECKS, Kind, Options
from jaxviz.concepts.dictionary import Dictionary, decode, encode
from jaxviz.concepts.streaming import source


class Transcoder(NamedTuple):
    """What reads one layer and writes another: `relu`-like codes of the first, atoms in the second.

    Attributes:
      atoms: `[K, D]`, directions in the layer that is written, of norm 1.
      encoder: `[C, K]`, of the layer that is read.
      encoder_bias: `[K]`.
      bias: `[D]`, added to what is written.
      threshold: `[K]`: a code that is not above it is 0.
      keep: So many codes of a row stay, or None for all.
    """

    atoms: jax.Array
    encoder: jax.Array
    encoder_bias: jax.Array
    bias: jax.Array
    threshold: jax.Array
    keep: jax.Array | None = None

    __repr__ = shown
    _repr_html_ = shown_html


@public(**CHECKS, inputs=source, outputs=maybe(source))
def transcoder(
    inputs: Any,
    outputs: Any = None,
    *,
    key: jax.Array,
    num_units: int | Sequence[int],
    kind: Kind = "top_k",
    keep: float | Sequence[float] | None = None,
    penalty: float | Sequence[float] | None = None,
    num_seeds: int = 1,
    num_steps: int = 2_000,
    batch_size: int = 4_096,
    optimizer: optax.GradientTransformation = ADAM,
    auxiliary_weight: float | None = None,
    dead_after: int = 1_000,
    bandwidth: float = 0.05,
    checkpoint: Any = None,
) -> SparseAutoencoders:
    """Learns units, few active at once, that do what lies between two layers: read one, write one.

    As `sparse_autoencoder`, but codes of `inputs`, `sigma(x @ E + e)`, are decoded to `outputs`:
    `z @ D + b`. What is between the layers, an MLP say, is then a sum of few units' directions.

    Args:
      inputs: `[..., C]`, values of the layer that is read; or a function `number -> ([rows, C],
        [rows, D])` of a block, as `activations_of` makes for two layers.
      outputs: `[..., D]`, those of the layer that is written, at the same places; None where the
        function gives both.
      key: PRNG key.
      num_units: K, or several widths.
      kind: As for `sparse_autoencoder`.
      keep: Likewise.
      penalty: Likewise.
      num_seeds: How many of each.
      num_steps: Steps, >= 1.
      batch_size: Rows of a step.
      optimizer: Any optax transformation.
      auxiliary_weight: As for `sparse_autoencoder`, of "dead".
      dead_after: Steps.
      bandwidth: Of "jump_relu".
      checkpoint: A file, as for `sparse_autoencoder`.

    Returns:
      A `SparseAutoencoders` whose dictionaries are `Transcoder`s; explained variance is that of the
      outputs. `transcode` applies one.

    Raises:
      ValueError: As for `sparse_autoencoder`, or places that differ.
      TypeError: Arrays without outputs, or a function with them.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (64, 3))
      >>> found = transcoder(
      ...     x, jax.nn.relu(x[:, :2]), key=jax.random.key(1), num_units=4, num_steps=2,
      ...     batch_size=8,
      ... )
      >>> transcode(found.dictionaries[0], x).outputs.shape
      (64, 2)

    Reference:
      Dunefsky et al. 2024, arXiv:2406.11944, eq. 3-5; there with an L1 penalty ("standard").
    """
    who = "transcoder"
    if callable(outputs):
        raise TypeError(
            f"{who}: outputs must be an array [..., D]; got a function. Let inputs be one that "
            "gives pairs."
        )
    if callable(inputs) != (outputs is None):
        got = "a function and outputs" if callable(inputs) else "an array and none"
        raise TypeError(
            f"{who}: outputs must be given beside an array of inputs, and only then; got {got}. A "
            "function gives pairs."
        )
    options = Options(
        *(kind, num_units, keep, penalty, num_seeds, num_steps, batch_size, optimizer, "dead"),
        *(auxiliary_weight, dead_after, bandwidth, (1 / 16, 1 / 8, 1 / 4, 1 / 2)),
        *(None, 1.0, None, checkpoint),
    )
    given = (inputs,) if outputs is None else (inputs, outputs)
    found = trained_together(who, given, key, options)
    made = tuple(Transcoder(*dictionary) for dictionary in found.dictionaries)
    return found._replace(dictionaries=made)


class Transcoded(NamedTuple):
    """What a transcoder makes of values.

    Attributes:
      codes: `[..., K]`.
      outputs: `[..., D]`, of the layer that it writes.
    """

    codes: jax.Array
    outputs: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html


@public(a=rows(1, "an array [..., C]"))
def transcode(transcoder: Transcoder, a: jax.Array) -> Transcoded:
    """Applies a transcoder: codes of one layer's values, and what they write into another.

    Args:
      transcoder: Of C channels to D.
      a: `[..., C]`, floating, values of the layer that it reads.

    Returns:
      A `Transcoded`.

    Raises:
      ValueError: `a` has another number of channels.

    Example:
      >>> one = Transcoder(
      ...     jnp.array([[0.0, 2.0]]), jnp.ones((1, 1)), jnp.zeros(1), jnp.ones(2), jnp.zeros(1)
      ... )
      >>> transcode(one, jnp.array([[3.0]])).outputs.tolist()
      [[1.0, 7.0]]
    """
    size = transcoder.encoder.shape[0]
    if a.shape[-1] != size:
        raise ValueError(
            f"transcode: a must be [..., {size}], as the transcoder reads {size} channels; got "
            f"{a.shape}. Put the axis of channels last."
        )
    codes = encode(_reader(transcoder), a)
    return Transcoded(codes, decode(Dictionary(transcoder.atoms, bias=transcoder.bias), codes))


def _reader(made: Transcoder) -> Dictionary:
    """The part that codes."""
    encoder = jnp.asarray(made.encoder)
    return Dictionary(
        encoder.T, encoder, made.encoder_bias, threshold=made.threshold, keep=made.keep
    )
