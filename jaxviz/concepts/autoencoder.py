"""Sparse autoencoders: many units for a layer, of which few are active at once."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.autoencoder_options import (
    ADAM,
    CHECKS,
    NOT_TOLD,
    Kind,
    Options,
    fixed_of,
    grids_of,
    points_of,
)
from jaxviz.concepts.autoencoder_training import Data, Measured, Recipe, learned, measured, trained
from jaxviz.concepts.dictionary import Dictionary
from jaxviz.concepts.matching import matched_atoms
from jaxviz.concepts.streaming import Rows, source
from jaxviz.engine.contract import program, same_when_batched


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


@public(**CHECKS, activations=source)
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
    options = Options(
        *(kind, num_units, keep, penalty, num_seeds, num_steps, batch_size, optimizer, auxiliary),
        *(auxiliary_weight, dead_after, bandwidth, tuple(prefixes), points, relaxation, validation),
        checkpoint,
    )
    return trained_together("sparse_autoencoder", (activations,), key, options)


def trained_together(
    who: str, given: tuple[Any, ...], key: jax.Array, options: Options
) -> SparseAutoencoders:
    """Those of all widths, sparsities and seeds; of a transcoder, what codes and what decodes."""
    key = same_when_batched(key)
    fixed = fixed_of(who, options, len(given) > 1 or who == "transcoder")
    grids = grids_of(who, options)
    rows = Rows(who, given, key, options.batch_size)
    first = rows.block(0)
    sizes = first[0].shape[1], first[-1].shape[1]
    moments = [program(_moments, (), False, False)(a) for a in first]
    mean, scale = zip(*[moments[0], moments[-1]], strict=True)
    points = points_of(who, options, first[-1], key)
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
        **{k: v for k, v in options._asdict().items() if k not in NOT_TOLD},
        **{"rows": rows.digest, "key": np.asarray(jax.random.key_data(key)).tolist()},
        "points": None if points is None else float(jnp.abs(points).sum()),
    }
    steps = options.num_steps
    state, numbers = trained(who, recipe, rows, data, steps, options.checkpoint, told)
    stacks = learned(recipe, state, data, steps)
    numbers_of = [measured(stack, validation) for stack in stacks]
    found = Measured(*map(np.concatenate, zip(*numbers_of, strict=True)))
    dictionaries = [one for stack in stacks for one in _apart(stack)]
    settings = [
        (grid.num_units, limit, seed)
        for grid in grids
        for limit, seed in zip(grid.limits, grid.seeds, strict=True)
    ]
    columns = [np.asarray(column) for column in zip(*settings, strict=True)]
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


def _moments(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean of rows, and what makes their variance 1 a channel."""
    mean = a.mean(0)
    spread = jnp.sqrt(((a - mean[None]) ** 2).mean())
    return mean, 1 / jnp.maximum(spread, 1e-12)


def _apart(stack: Dictionary) -> list[Dictionary]:
    """One by one; cut on the host, where no number of them is another program."""
    stack = jax.device_get(stack)
    each = [jax.tree.map(lambda a, n=n: a[n], stack) for n in range(len(stack.atoms))]
    return jax.device_put(each)


def _stability(dictionaries: list, settings: list) -> np.ndarray:
    """`[M]`; what one has with another is computed once for both."""
    found = np.full((len(settings), len(settings)), np.nan, np.float32)
    for one, other in itertools.combinations(range(len(settings)), 2):
        if settings[one][:2] == settings[other][:2]:
            both = matched_atoms(dictionaries[one].atoms, dictionaries[other].atoms).mean()
            found[one, other] = found[other, one] = both
    others = np.isfinite(found)
    with np.errstate(invalid="ignore"):  # of one seed alone there is nothing to say
        return np.where(others, found, 0).sum(1) / np.float32(others.sum(1))
