"""What an autoencoder may be told, and what of it shapes the program."""

import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxviz.calls.arrays import rows as finite_rows
from jaxviz.calls.options import instance, maybe, path, real, several, whole
from jaxviz.concepts.autoencoder_losses import KEEPING, Fixed
from jaxviz.concepts.autoencoder_training import Grid

# SAELens' rate and clipping.
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-4))
_MOST_POINTS = 1_024  # archetypes drawn from the data, where none are given

Kind = Literal[
    "top_k", "batch_top_k", "matryoshka", "archetypal", "standard", "gated", "jump_relu"
]  # fmt: skip


def _one_or_several(check, what):
    many = several(check, what)

    def checked(who, option, value):
        if isinstance(value, (list, tuple, range)) or np.ndim(value) == 1:
            return many(who, option, tuple(value) if isinstance(value, range) else value)
        return (check(who, option, value),)

    return checked


CHECKS = {
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


class Options(NamedTuple):
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


# What may differ when a training goes on, or is told otherwise.
NOT_TOLD = {"num_steps", "optimizer", "validation", "checkpoint", "points"}


def fixed_of(who: str, options: Options, transcodes: bool) -> Fixed:
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


def grids_of(who: str, options: Options) -> tuple[Grid, ...]:
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


def points_of(who: str, options: Options, rows: jax.Array, key: jax.Array) -> jax.Array | None:
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
