"""One sparse autoencoder in training: its weights, its codes, and what each kind minimises."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.concepts.dictionary import Dictionary
from jaxviz.concepts.few import at_places, few_largest, read_at, write_at
from jaxviz.concepts.largest import largest

KINDS = ("top_k", "batch_top_k", "matryoshka", "archetypal", "standard", "gated", "jump_relu")
# Those that keep so many codes; the others pay for each.
KEEPING = KINDS[:4]
# Those that choose row by row: what few codes read and write is computed for those alone.
OVER_ROWS = ("top_k", "archetypal")
# Those that choose over the whole batch, and have one threshold when they are done.
OVER_BATCH = ("batch_top_k", "matryoshka")
ATOM_NORM, FIRST_THRESHOLD = 0.1, 0.01  # SAELens'
THRESHOLD_MEMENTO = 0.99  # of the running threshold of BatchTopK, a step


class Fixed(NamedTuple):
    """What shapes the program, the same for all autoencoders that are trained together."""

    kind: str
    transcodes: bool  # then what is coded is not what is decoded to
    auxiliary: str
    auxiliary_weight: float
    bandwidth: float
    prefixes: tuple[float, ...]
    relaxation: float
    dead_after: int


class Weights(NamedTuple):
    """What is learned; None where the kind has no such thing."""

    encoder: jax.Array  # [C, K]
    encoder_bias: jax.Array  # [K]; of the gate, if there is one
    bias: jax.Array  # [D], of what is decoded to
    decoder: jax.Array | None = None  # [K, D]
    log_threshold: jax.Array | None = None  # [K], of JumpReLU
    magnitude: jax.Array | None = None  # [K], by which a gated unit's size differs from its gate
    magnitude_bias: jax.Array | None = None  # [K]
    mixture: jax.Array | None = None  # [K, P], of the archetypes
    residue: jax.Array | None = None  # [K, D]
    log_scale: jax.Array | None = None


class Losses(NamedTuple):
    """What is minimised is the sum of the four; all in summed squares of a value's channels."""

    reconstruction: jax.Array
    sparsity: jax.Array
    auxiliary: jax.Array
    nested: jax.Array

    def total(self) -> jax.Array:
        return self.reconstruction + self.sparsity + self.auxiliary + self.nested


def first_weights(fixed: Fixed, key: jax.Array, num_units: int, size: int, out: int, points):
    """Random directions of norm 0.1, the encoder their transpose, no biases (SAELens).

    Args:
      points: `[P, D]` archetypes, or None.
    """
    atoms = jax.random.normal(key, (num_units, out), jnp.float32)
    atoms *= ATOM_NORM / jnp.linalg.norm(atoms, axis=1, keepdims=True)
    zeros, none = jnp.zeros(num_units, jnp.float32), jnp.zeros(out, jnp.float32)
    if fixed.transcodes:
        encoder = jax.random.normal(jax.random.fold_in(key, 1), (size, num_units), jnp.float32)
        encoder *= ATOM_NORM / jnp.linalg.norm(encoder, axis=0, keepdims=True)
    else:
        encoder = atoms.T
    if fixed.kind == "archetypal":
        count = len(points)
        chosen = jax.random.permutation(key, count)[jnp.arange(num_units) % count]
        chosen_points = jnp.take(points, chosen, axis=0)
        if not fixed.transcodes:
            norms = jnp.linalg.norm(chosen_points, axis=1)
            encoder = (chosen_points / jnp.maximum(norms, 1e-6)[:, None]).T
        mixture = jax.nn.one_hot(chosen, count, dtype=jnp.float32)
        residue = jnp.zeros((num_units, out), jnp.float32)
        scale = jnp.zeros((), jnp.float32)
        return Weights(encoder, zeros, none, None, None, None, None, mixture, residue, scale)
    weights = Weights(encoder, zeros, none, atoms)
    if fixed.kind == "jump_relu":
        return weights._replace(
            log_threshold=jnp.full(num_units, math.log(FIRST_THRESHOLD), jnp.float32)
        )
    if fixed.kind == "gated":
        return weights._replace(magnitude=zeros, magnitude_bias=zeros)
    return weights


def kept_within(fixed: Fixed, weights: Weights) -> Weights:
    """Archetypal atoms brought back: convex mixtures of points, and a residue of bounded norm."""
    if weights.mixture is None or weights.residue is None:
        return weights
    mixture = jax.nn.relu(weights.mixture)
    mixture /= mixture.sum(1, keepdims=True) + 1e-8
    norm = jnp.linalg.norm(weights.residue, axis=1, keepdims=True)
    residue = weights.residue * jnp.minimum(fixed.relaxation / jnp.maximum(norm, 1e-12), 1)
    return weights._replace(mixture=mixture, residue=residue)


def atoms_of(weights: Weights, points: Any) -> jax.Array:
    """`[K, D]`."""
    if weights.decoder is not None:
        return weights.decoder
    assert weights.mixture is not None and weights.residue is not None  # noqa: PT018
    assert weights.log_scale is not None
    return (weights.mixture @ points + weights.residue) * jnp.exp(weights.log_scale)


def losses(
    fixed: Fixed,
    weights: Weights,
    a: jax.Array,
    target: jax.Array,
    limit: jax.Array,
    most: int,
    dead: jax.Array,
    any_dead: jax.Array,
    points: jax.Array | None,
) -> tuple[Losses, jax.Array, jax.Array]:
    """What one autoencoder minimises on a batch, its codes, and in how many rows each unit has one.

    Args:
      fixed: The kind and its options.
      weights: Of the autoencoder.
      a: `[B, C]`, what is coded.
      target: `[B, D]`, what is decoded to: `a` itself, but for transcoders.
      limit: How many codes are kept (a mean over the batch, where the kind chooses over it), or
        the weight of what pays for them.
      most: The largest number of codes that any autoencoder of the program keeps of a row.
      dead: `[K]`, which units have long not been active.
      any_dead: Whether any unit of the program is: else what revives them is not computed.
      points: `[P, D]` archetypes, or None.
    """
    atoms = atoms_of(weights, points)
    norm = jnp.linalg.norm(atoms, axis=1)

    # Units are compared by what they add, as if atoms were of norm 1. What is scaled for that are
    # codes: scaled weights would have slopes of all of them, where few codes have some.
    even = fixed.kind in KEEPING and fixed.kind != "archetypal"
    times = norm if even else jnp.ones_like(norm)
    over = jnp.maximum(times, 1e-12)
    of_atoms = lambda codes: codes / over[None]

    def before(encoder, inner):
        # (a - b) E + e is a E + this: a gradient by `a` would take one more product, for b alone.
        return inner if fixed.transcodes else inner - weights.bias @ encoder

    encoder, shift = weights.encoder, before(weights.encoder, weights.encoder_bias) * times
    pre = (a @ encoder) * times[None] + shift[None]
    decoded = lambda codes: of_atoms(codes) @ atoms + weights.bias[None]
    off = lambda found: (found * found).sum(-1).mean()
    none = jnp.zeros((), a.dtype)
    sparsity = auxiliary = nested = none
    if fixed.kind in OVER_ROWS:
        _, places = few_largest(jax.nn.relu(pre), most)
        few = jax.nn.relu(read_at(a, encoder, places) * times[places] + shift[places])
        few = jnp.where(jnp.arange(most, dtype=limit.dtype)[None] < limit, few, 0)
        codes = at_places(few, places, len(norm))
        written = write_at(few / over[places], places, atoms) + weights.bias[None]
        often = jnp.zeros_like(norm).at[places].add((few > 0).astype(few.dtype))
    else:
        codes = _codes(fixed, weights, lambda e, inner: a @ e + before(e, inner)[None], pre, limit)
        written = decoded(codes)
        often = (codes > 0).astype(codes.dtype).sum(0)  # faster than of truths
    reconstruction = off(written - target)
    if fixed.kind == "standard":
        sparsity = limit * (codes * norm[None]).sum(-1).mean()
    elif fixed.kind == "gated":
        gate = jax.nn.relu(pre)
        sparsity = limit * (gate * norm[None]).sum(-1).mean()
        auxiliary = off(decoded(gate) - target)
    elif fixed.kind == "jump_relu":
        threshold = _threshold(weights)
        active = _step(pre, jnp.broadcast_to(threshold[None], pre.shape), fixed.bandwidth)
        sparsity = limit * active.sum(-1).mean()
        if fixed.auxiliary_weight:
            below = jax.nn.relu(threshold[None] - pre) * (dead.astype(a.dtype) * norm)[None]
            auxiliary = fixed.auxiliary_weight * below.sum(-1).mean()
    elif fixed.auxiliary_weight and fixed.auxiliary == "dead":
        residual = jax.lax.stop_gradient(target - written)

        def revived():
            pre = (a @ encoder) * times[None] + shift[None]  # anew: few calls want its slope
            wanted, there = a.shape[1] // 2, dead.sum()
            chosen = largest(jnp.where(dead[None], pre, -jnp.inf), jnp.minimum(wanted, there))
            codes = jnp.where(chosen & dead[None], pre, 0)
            share = jnp.minimum(there / max(wanted, 1), 1).astype(a.dtype)
            return share * off(decoded(codes) - residual)

        found = jax.lax.cond(any_dead, revived, lambda: none)
        auxiliary = fixed.auxiliary_weight * found
    elif fixed.auxiliary_weight:
        unused = jax.nn.relu(pre) - codes
        half = largest(unused, pre.shape[1] // 2)
        found = of_atoms(jnp.where(half, unused, 0)) @ atoms
        auxiliary = fixed.auxiliary_weight * off(target - written - found)
    if fixed.kind == "matryoshka":
        sizes = of_atoms(codes)
        for width in nested_widths(fixed.prefixes, len(norm)):
            nested += off(sizes[:, :width] @ atoms[:width] + weights.bias[None] - target)
    return Losses(reconstruction, sparsity, auxiliary, nested), codes, often


def nested_widths(prefixes: tuple[float, ...], num_units: int) -> tuple[int, ...]:
    """The numbers of units of the inner dictionaries of a Matryoshka autoencoder."""
    widths = sorted({max(1, round(part * num_units)) for part in prefixes})
    return tuple(width for width in widths if width < num_units)


def _codes(fixed, weights, read, pre, limit):
    """`[B, K]`."""
    if fixed.kind == "standard":
        return jax.nn.relu(pre)
    if fixed.kind == "gated":
        tilted = weights.encoder * jnp.exp(weights.magnitude)[None]
        sizes = jax.nn.relu(read(tilted, weights.magnitude_bias))
        return jnp.where(pre > 0, sizes, 0)
    if fixed.kind == "jump_relu":
        threshold = jnp.broadcast_to(_threshold(weights)[None], pre.shape)
        return _jump(pre, threshold, fixed.bandwidth)
    positive = jax.nn.relu(pre)
    count = jnp.floor(limit * len(pre)).astype(jnp.int32)
    kept = largest(positive.reshape(-1), count).reshape(pre.shape)
    return jnp.where(kept, positive, 0)


def _threshold(weights):
    return jnp.exp(weights.log_threshold)


def _near(pre, threshold, bandwidth):
    return (jnp.abs(pre - threshold) < bandwidth / 2).astype(pre.dtype)


@jax.custom_vjp
def _jump(pre, threshold, bandwidth):
    """JumpReLU; its slope in the threshold is that of a smoothed one (2407.14435, eq. 11)."""
    return jnp.where(pre > threshold, pre, 0)


def _jump_forward(pre, threshold, bandwidth):
    return _jump(pre, threshold, bandwidth), (pre, threshold, bandwidth)


def _jump_back(held, slope):
    pre, threshold, bandwidth = held
    by_pre = jnp.where(pre > threshold, slope, 0)
    by_threshold = -threshold / bandwidth * _near(pre, threshold, bandwidth) * slope
    return by_pre, by_threshold, None


_jump.defvjp(_jump_forward, _jump_back)


@jax.custom_vjp
def _step(pre, threshold, bandwidth):
    """Whether a unit is active; its slope in the threshold likewise (eq. 12)."""
    return (pre > threshold).astype(pre.dtype)


def _step_forward(pre, threshold, bandwidth):
    return _step(pre, threshold, bandwidth), (pre, threshold, bandwidth)


def _step_back(held, slope):
    pre, threshold, bandwidth = held
    return jnp.zeros_like(pre), -_near(pre, threshold, bandwidth) / bandwidth * slope, None


_step.defvjp(_step_forward, _step_back)


def finished(
    fixed: Fixed,
    weights: Weights,
    limit: jax.Array,
    running: jax.Array,
    before: tuple[jax.Array, jax.Array],
    after: tuple[jax.Array, jax.Array],
    points: jax.Array | None,
) -> Dictionary:
    """What was learned, for values as the layer has them, with atoms of norm 1.

    What was coded is `(a - mean) * scale`, and what was decoded to likewise.

    Args:
      running: The threshold of those that choose over the batch.
      before: `(mean, scale)` of what is coded.
      after: Of what is decoded to.

    Returns:
      A `Dictionary`; of a transcoder its bias is that of what it decodes to.
    """
    atoms = atoms_of(weights, points)
    norm = jnp.linalg.norm(atoms, axis=1)
    # Units of an archetypal one are compared as they are, so its atoms keep their norms.
    norm = jnp.ones_like(norm) if fixed.kind == "archetypal" else jnp.maximum(norm, 1e-12)
    encoder, inner, threshold = weights.encoder, weights.encoder_bias, jnp.zeros_like(norm)
    if fixed.kind == "gated":
        assert weights.magnitude is not None and weights.magnitude_bias is not None  # noqa: PT018
        tilt = jnp.exp(weights.magnitude)
        # The gate is open where the magnitude is above so much: they are one line, tilted.
        threshold = jnp.maximum(weights.magnitude_bias - weights.encoder_bias * tilt, 0)
        encoder, inner = encoder * tilt[None], weights.magnitude_bias
    elif fixed.kind == "jump_relu":
        threshold = _threshold(weights)
    threshold = threshold * norm
    if fixed.kind in OVER_BATCH:
        threshold = jnp.full_like(norm, running)
    (mean, scale), (out_mean, out_scale) = before, after
    encoder = encoder * norm[None] * scale / out_scale
    inner = inner * norm / out_scale
    if fixed.transcodes:
        inner = inner - mean @ encoder
    return Dictionary(
        atoms / norm[:, None],
        encoder,
        inner,
        out_mean + weights.bias / out_scale,
        threshold / out_scale,
        None if fixed.kind not in OVER_ROWS else limit.astype(jnp.int32),
    )
