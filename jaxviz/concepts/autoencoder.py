"""Sparse autoencoders and transcoders: many units for a layer, of which few are active at once."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz.calls.options import instance, maybe, path, real, rows as finite_rows, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.autoencoder_losses import KEEPING, Fixed
from jaxviz.concepts.autoencoder_training import (
    Data,
    Grid,
    Measured,
    Recipe,
    learned,
    measured,
    trained,
)
from jaxviz.concepts.dictionary import Dictionary, decode, encode
from jaxviz.concepts.matching import matched_atoms
from jaxviz.concepts.streaming import Rows, source
from jaxviz.engine.contract import program

# SAELens' rate and clipping.
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-4))
_MOST_POINTS = 1_024  # archetypes drawn from the data, where none are given

Kind = Literal[
    "top_k", "batch_top_k", "matryoshka", "archetypal", "standard", "gated", "jump_relu"
]  # fmt: skip


class AutoencoderHistory(NamedTuple):
    """The numbers of a training, step by step; float32 `[M, num_steps]` each.

    Attributes:
      loss: What is minimised, on the step's batch, of values of variance 1 a channel.
      explained_variance: 1 - |a - decoded|^2 / variance of the batch.
      l0: Codes that are not 0, a row.
      dead: Share of the units that were not active for more than `dead_after` steps.
    """

    loss: np.ndarray
    explained_variance: np.ndarray
    l0: np.ndarray
    dead: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


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


class SparseAutoencoders(NamedTuple):
    """M autoencoders that were trained together, width by width, then by sparsity, then by seed.

    Attributes:
      dictionaries: M of them, each a `Dictionary` (or `Transcoder`) for values as the layer has
        them; atoms have norm 1, but those of archetypal ones.
      num_units: `[M]`, units of each.
      sparsity: `[M]`, its `keep` or its `penalty`.
      seed: `[M]`.
      explained_variance: `[M]`, of the validation rows, coded as users code.
      l0: `[M]`, codes that are not 0, a row.
      dead: `[M]`, share of the units that no validation row makes active.
      stability: `[M]`, mean `matched_atoms` to the other seeds of the same settings; NaN for one
        seed alone.
      history: The training's numbers.
    """

    dictionaries: tuple[Any, ...]
    num_units: np.ndarray
    sparsity: np.ndarray
    seed: np.ndarray
    explained_variance: np.ndarray
    l0: np.ndarray
    dead: np.ndarray
    stability: np.ndarray
    history: AutoencoderHistory

    __repr__ = shown
    _repr_html_ = shown_html


def _one_or_several(check, what):
    many = several(check, what)

    def checked(who, option, value):
        if isinstance(value, (list, tuple, range)) or np.ndim(value) == 1:
            return many(who, option, tuple(value) if isinstance(value, range) else value)
        return (check(who, option, value),)

    return checked


_CHECKS = {
    "num_units": _one_or_several(whole(1), "whole numbers, at least 1"),
    "keep": maybe(_one_or_several(real(0, above=True), "numbers above 0")),
    "penalty": maybe(_one_or_several(real(0), "numbers, at least 0")),
    "num_seeds": whole(1),
    "dead_after": whole(1),
    "bandwidth": real(0, above=True),
    "relaxation": real(0),
    "auxiliary_weight": maybe(real(0)),
    "prefixes": several(real(0, 1, above=True, below=True), "shares between 0 and 1"),
    "points": maybe(finite_rows(2, "points [P, C]")),
    "validation": maybe(finite_rows(2, "rows [..., C]")),
    "optimizer": instance(optax.GradientTransformation),
    "checkpoint": maybe(path),
}


@public(**_CHECKS, activations=source)
def sparse_autoencoder(
    activations: Any,
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
    auxiliary: Literal["dead", "unused"] = "dead",
    auxiliary_weight: float | None = None,
    dead_after: int = 1_000,
    bandwidth: float = 0.05,
    prefixes: Sequence[float] = (1 / 16, 1 / 8, 1 / 4, 1 / 2),
    points: jax.Array | None = None,
    relaxation: float = 1.0,
    validation: jax.Array | None = None,
    checkpoint: Any = None,
) -> SparseAutoencoders:
    """Learns units of a layer of which few are active at once: dictionaries, many in one program.

    Each autoencoder codes `z = sigma((a - b) @ E + e)` and decodes `a^ = z @ D + b`, to make
    `mean |a - a^|^2` small, in values moved to mean 0 and variance 1 a channel (one scale for all
    channels, so directions stay). All widths, sparsities and seeds are trained at once on the same
    batches, drawn with replacement. What is returned is for values as the layer has them.

    | kind | codes | what else is minimised |
    |---|---|---|
    | "top_k" | the `keep` largest, where positive | dead units code the rest (below) |
    | "batch_top_k" | the largest `keep` x B of a batch, then what is above their least | same |
    | "matryoshka" | likewise | same, and what the first `prefixes` of the units decode alone |
    | "archetypal" | as "top_k" | same; atoms are mixtures of `points`, and a bounded residue |
    | "standard" | ReLU | `penalty` x sum of codes x norms of atoms |
    | "gated" | ReLU, where a gate of its direction is open | same of the gate, and its decoding |
    | "jump_relu" | ReLU above a learned threshold | `penalty` x number of codes that are not 0 |

    Args:
      activations: `[..., C]`, floating: values of a layer, channels last, any number of places
        (NumPy, a memory map, an array of a sweep's store); or a function `number -> [rows, C]` of
        a block, the same for the same number, such as `activations_of` makes. Each block is used
        for `rows // batch_size` steps.
      key: PRNG key: same key, same numbers. Seed s draws the same whatever is trained beside it.
      num_units: K, or several widths.
      kind: See above.
      keep: Codes that stay, of the kinds that choose; or several. None is a tenth of the units.
        "batch_top_k" and "matryoshka" take fractions, a mean over the batch.
      penalty: Weight of what the other kinds pay for their codes; or several. None is 1.
      num_seeds: How many of each, from different starts.
      num_steps: Steps, >= 1. Time is linear in it.
      batch_size: B, rows of a step.
      optimizer: Any optax transformation, of each autoencoder alone. Make it once: it is a part
        of the compiled program.
      auxiliary: "dead": units that were not active for `dead_after` steps code what the others
        leave, with half as many codes as channels (Gao et al.); "unused": half of the units, those
        that were largest without being chosen, whether dead or not (overcomplete).
      auxiliary_weight: Its weight; None is 1 for "dead" and 0.1 for "unused". Of "jump_relu" that
        of what pulls dead units to their thresholds (Anthropic's), None is 0.
      dead_after: Steps.
      bandwidth: Of "jump_relu", within which thresholds feel a value.
      prefixes: Of "matryoshka", shares of the units.
      points: Of "archetypal", `[P, C]`, values of the layer; better k-means' centres than single
        ones. None draws 1,024 rows by the key.
      relaxation: Of "archetypal", the residue's largest norm, in values of variance 1 a channel.
      validation: `[..., C]`, other rows for the final numbers; None takes the (first block of the)
        activations. The first 65,536 are used.
      checkpoint: A file, to which the whole state is written every 128 steps. If it is there, of
        the same options and data, training goes on from it, to the same bytes as if it had never
        been interrupted; `num_steps` may have grown.

    Returns:
      A `SparseAutoencoders`. On a terminal a bar shows the steps. Memory is that of the data, up to
      1 GB of it at once, and of M times B x K codes.

    Raises:
      ValueError: More codes kept than there are units, an option of another kind, values that are
        not finite, or a checkpoint of another training.

    Example:
      >>> a = jax.nn.relu(jax.random.normal(jax.random.key(0), (64, 3)))
      >>> found = sparse_autoencoder(
      ...     a, key=jax.random.key(1), num_units=4, keep=[1, 2], num_steps=2, batch_size=8
      ... )
      >>> len(found.dictionaries), found.dictionaries[1].atoms.shape, found.sparsity.tolist()
      (2, (4, 3), [1.0, 2.0])

    Reference:
      "standard": Bricken et al. 2023, and the April 2024 update of Transformer Circuits; "gated":
      Rajamanoharan et al. 2024, arXiv:2404.16014; "top_k": Gao et al. 2024, arXiv:2406.04093;
      "jump_relu": Rajamanoharan et al. 2024, arXiv:2407.14435; "batch_top_k": Bussmann et al. 2024,
      arXiv:2412.06410; "matryoshka": Bussmann et al. 2025, arXiv:2503.17547; "archetypal": Fel et
      al. 2025, arXiv:2502.12892. Losses, starts and defaults are those of SAELens 6 ("dead": its
      auxiliary decodes with the bias, too), on values moved and scaled as said; means over
      channels, as overcomplete has them, are these divided by C.
    """
    options = _Options(
        *(kind, num_units, keep, penalty, num_seeds, num_steps, batch_size, optimizer, auxiliary),
        *(auxiliary_weight, dead_after, bandwidth, tuple(prefixes), points, relaxation, validation),
        checkpoint,
    )
    return _found("sparse_autoencoder", (activations,), key, options)


@public(**_CHECKS, inputs=source, outputs=maybe(source))
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
    options = _Options(
        *(kind, num_units, keep, penalty, num_seeds, num_steps, batch_size, optimizer, "dead"),
        *(auxiliary_weight, dead_after, bandwidth, (1 / 16, 1 / 8, 1 / 4, 1 / 2)),
        *(None, 1.0, None, checkpoint),
    )
    return _found(who, (inputs,) if outputs is None else (inputs, outputs), key, options)


class Transcoded(NamedTuple):
    """What a transcoder makes of values.

    Attributes:
      codes: `[..., K]`.
      outputs: `[..., D]`, of the layer that it writes.
    """

    codes: jax.Array
    outputs: jax.Array


@public(a=finite_rows(1, "an array [..., C]"))
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


class _Options(NamedTuple):
    kind: str
    num_units: Any  # tuples, once they are checked
    keep: Any
    penalty: Any
    num_seeds: int
    num_steps: int
    batch_size: int
    optimizer: Any
    auxiliary: str
    auxiliary_weight: float | None
    dead_after: int
    bandwidth: float
    prefixes: tuple[float, ...]
    points: Any
    relaxation: float
    validation: Any
    checkpoint: Any


def _found(who: str, given: tuple[Any, ...], key: jax.Array, options: Any) -> SparseAutoencoders:
    fixed = _fixed(who, options, len(given) > 1 or who == "transcoder")
    grids = _grids(who, options)
    rows = Rows(who, given, key, options.batch_size)
    first = rows.block(0)
    sizes = first[0].shape[1], first[-1].shape[1]
    moments = [program(_moments, (), False, False)(a) for a in first]
    mean, scale = zip(*[moments[0], moments[-1]], strict=True)
    points = _points(who, options, first[-1], key)
    if points is not None:
        points = (points - mean[1][None]) * scale[1]
    validation = first
    if options.validation is not None:
        if np.shape(options.validation)[-1] != sizes[0]:
            raise ValueError(
                f"{who}: validation must be [..., {sizes[0]}], as activations are; got "
                f"{np.shape(options.validation)}."
            )
        validation = (jnp.asarray(options.validation, jnp.float32).reshape(-1, sizes[0]),)
    recipe = Recipe(fixed, grids, sizes, options.batch_size, options.optimizer)
    data = Data(key, first, mean, scale, points)
    told = {
        **{k: v for k, v in options._asdict().items() if k not in _NOT_TOLD},
        **{"rows": rows.digest, "key": np.asarray(jax.random.key_data(key)).tolist()},
        "points": None if points is None else float(jnp.abs(points).sum()),
    }
    steps = options.num_steps
    state, numbers = trained(who, recipe, rows, data, steps, options.checkpoint, told)
    stacks = learned(recipe, state, data, steps)
    numbers_of = [measured(stack, validation) for stack in stacks]
    found = Measured(*map(np.concatenate, zip(*numbers_of, strict=True)))
    dictionaries: list[Any] = [one for stack in stacks for one in _apart(stack)]
    settings = [
        (grid.num_units, limit, seed)
        for grid in grids
        for limit, seed in zip(grid.limits, grid.seeds, strict=True)
    ]
    columns = [np.asarray(column) for column in zip(*settings, strict=True)]
    if who == "transcoder":
        dictionaries = [Transcoder(*one) for one in dictionaries]
    return SparseAutoencoders(
        tuple(dictionaries),
        columns[0],
        columns[1].astype(np.float32),
        columns[2],
        found.explained_variance,
        found.l0,
        found.dead,
        _stability(dictionaries, settings),
        AutoencoderHistory(*np.moveaxis(np.concatenate(numbers), -1, 0)),
    )


# What may differ when a training goes on, or is told otherwise.
_NOT_TOLD = {"num_steps", "optimizer", "validation", "checkpoint", "points"}


def _fixed(who: str, options: _Options, transcodes: bool) -> Fixed:
    keeping, weight = options.kind in KEEPING, options.auxiliary_weight
    strange = {
        "keep": not keeping and options.keep is not None,
        "penalty": keeping and options.penalty is not None,
        "auxiliary_weight": options.kind in ("standard", "gated") and weight is not None,
        "points": options.kind != "archetypal" and options.points is not None,
    }
    for option, wrong in strange.items():
        if wrong:
            raise ValueError(
                f"{who}: {option} must be left out for kind {options.kind!r}, which has no use for "
                "it; got one. `keep` is of those kinds that choose, `penalty` of the others."
            )
    if weight is None:
        usual = {"dead": 1.0, "unused": 0.1}[options.auxiliary]
        weight = 0.0 if options.kind == "jump_relu" else usual
    return Fixed(
        *(options.kind, transcodes, options.auxiliary, float(weight), options.bandwidth),
        *(options.prefixes, options.relaxation, options.dead_after),
    )


def _grids(who: str, options: _Options) -> tuple[Grid, ...]:
    grids = []
    for width in options.num_units:
        if options.kind in KEEPING:
            limits = (max(1, width // 10),) if options.keep is None else options.keep
        else:
            limits = (1.0,) if options.penalty is None else options.penalty
        if options.kind in KEEPING:
            whole_numbers = options.kind in ("top_k", "archetypal")
            if whole_numbers and any(int(limit) != limit for limit in limits):
                raise ValueError(
                    f"{who}: keep must be whole for kind {options.kind!r}, which chooses row by "
                    f'row; got {limits}. "batch_top_k" keeps so many in the mean.'
                )
            if max(limits) > width:
                raise ValueError(
                    f"{who}: keep must be at most num_units, {width}; got {max(limits)}."
                )
        each = list(itertools.product(limits, range(options.num_seeds)))
        most = int(max(limits)) if options.kind in KEEPING else 0
        grids.append(Grid(width, most, tuple(float(k) for k, _ in each), tuple(s for _, s in each)))
    return tuple(grids)


def _moments(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of rows, and what makes their variance 1 a channel."""
    mean = a.mean(0)
    spread = jnp.sqrt(((a - mean[None]) ** 2).mean())
    return mean, 1 / jnp.maximum(spread, 1e-12)


def _points(who: str, options: _Options, rows: jax.Array, key: jax.Array) -> jax.Array | None:
    if options.kind != "archetypal":
        return None
    if options.points is None:
        count = min(len(rows), max(_MOST_POINTS, *options.num_units))
        return rows[jax.random.choice(key, len(rows), (count,), replace=False)]
    points = jnp.asarray(options.points, jnp.float32)
    if points.ndim != 2 or points.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{who}: points must be [P, {rows.shape[1]}], values of the layer; got {points.shape}."
        )
    return points


def _apart(stack: Dictionary) -> list[Dictionary]:
    """One by one; cut on the host, where no number of them is another program."""
    stack = jax.device_get(stack)
    each = [jax.tree.map(lambda a, n=n: a[n], stack) for n in range(len(stack.atoms))]
    return jax.device_put(each)


def _stability(dictionaries: list, settings: list) -> np.ndarray:
    found = np.full(len(settings), np.nan, np.float32)
    for n, (width, limit, seed) in enumerate(settings):
        others = [
            m for m, (w, k, s) in enumerate(settings) if (w, k) == (width, limit) and s != seed
        ]
        if others:
            each = [matched_atoms(dictionaries[n], dictionaries[m]).mean() for m in others]
            found[n] = np.mean(each)
    return found
