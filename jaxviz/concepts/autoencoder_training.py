"""Trains many sparse autoencoders on the same batches, in one program, and goes on where it was."""

import functools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy

from jaxviz.concepts.autoencoder_losses import (
    OVER_BATCH,
    THRESHOLD_MEMENTO,
    Fixed,
    Weights,
    finished,
    first_weights,
    kept_within,
    losses,
)
from jaxviz.concepts.dictionary import Dictionary, encode
from jaxviz.concepts.streaming import Rows
from jaxviz.engine.contract import program, shared_program
from jaxviz.engine.progress import spans
from jaxviz.engine.shares import shared_rows

SPAN = 128  # steps whose numbers wait on the device; a checkpoint is written after each so many
_MEASURED = 65_536  # rows, at most, on which what was learned is measured
_AT_ONCE = 2_048  # of them


class Grid(NamedTuple):
    """The autoencoders of one width: static parts of the program, and what differs, `[M]`."""

    num_units: int
    most: int
    limits: tuple[float, ...]
    seeds: tuple[int, ...]


class Recipe(NamedTuple):
    """What shapes the program."""

    fixed: Fixed
    grids: tuple[Grid, ...]
    sizes: tuple[int, int]  # channels that are coded, and decoded to
    batch_size: int
    optimizer: optax.GradientTransformation


class Trained(NamedTuple):
    """What a step changes, of the autoencoders of one width: arrays `[M, ...]`."""

    weights: Weights
    optimizer: Any
    idle: jax.Array  # [M, K], steps since a unit was active
    running: jax.Array  # [M], of the threshold of BatchTopK, from 0
    numbers: jax.Array  # [M, SPAN, 4], of the steps of a span: see `History`


class Data(NamedTuple):
    """What a step reads."""

    key: jax.Array
    block: tuple[jax.Array, ...]
    mean: tuple[jax.Array, jax.Array]
    scale: tuple[jax.Array, jax.Array]
    points: jax.Array | None


def started(recipe: Recipe, key: jax.Array, points: jax.Array | None) -> tuple[Trained, ...]:
    """Before the first step. A seed's draws are the same whichever others are trained beside it."""
    return program(_started, (0,), False, False)(recipe, key, points)


def _started(recipe, key, points):
    size, out = recipe.sizes

    def one(grid):
        each = [jax.random.fold_in(key, seed) for seed in grid.seeds]
        first = lambda k: first_weights(recipe.fixed, k, grid.num_units, size, out, points)
        weights = jax.vmap(first)(jnp.stack(each))
        count = len(grid.limits)
        return Trained(
            weights,
            jax.vmap(recipe.optimizer.init)(weights),
            jnp.zeros((count, grid.num_units), jnp.int32),
            jnp.zeros(count, jnp.float32),
            jnp.zeros((count, SPAN, 4), jnp.float32),
        )

    return tuple(map(one, recipe.grids))


def _span(recipe, state, data, base, first, last):
    """Steps `first` to `last` of a span that began at `base`."""
    # The choice of the largest codes is all reductions: with the options for gradients of nets a
    # step takes twice as long.
    limits = [jnp.asarray(grid.limits, jnp.float32) for grid in recipe.grids]
    every = state, tuple(limits)
    # The rows of all steps are drawn at once, for all.
    each = jax.vmap(functools.partial(jax.random.fold_in, data.key))(base + jnp.arange(SPAN))
    sizes = (recipe.batch_size,), 0, len(data.block[0]), jnp.int32
    places = jax.vmap(lambda key: jax.random.randint(key, *sizes))(each)
    some = functools.partial(_steps, recipe, data, places, (base, first, last))
    if jax.default_backend() != "cpu":
        return some(every)
    # A core trains one of each width at a time, which takes half the time: they stay in its caches.
    in_turn = functools.partial(jax.lax.map, functools.partial(_of_one, some))
    return shared_rows(in_turn, every)


def _of_one(function, row):
    found = function(jax.tree.map(lambda a: a[None], row))
    return jax.tree.map(lambda a: a[0], found)


def _steps(recipe, data, places, numbers, some):
    (base, first, last), (state, limits) = numbers, some

    def step(number, state):
        rows = places[number - base]
        a = _like_trained(data.block[0][rows], data.mean[0], data.scale[0])
        target = a
        if recipe.fixed.transcodes:
            target = _like_trained(data.block[1][rows], data.mean[1], data.scale[1])
        spread = target - target.mean(0, keepdims=True)
        batch = a, target, jnp.maximum((spread * spread).sum(-1).mean(), 1e-12)
        each = zip(recipe.grids, state, limits, strict=True)
        return tuple(_step(recipe, *one, batch, data.points, number - base) for one in each)

    return jax.lax.fori_loop(first, last, step, state)


def _like_trained(a, mean, scale):
    return (a - mean[None]) * scale


def _step(recipe, grid, state, limits, batch, points, column):
    a, target, variance = batch
    fixed = recipe.fixed
    dead = state.idle > fixed.dead_after
    any_dead = dead.any()

    def one(weights, optimizer, idle, running, dead, limit):
        def loss(weights):
            found, *more = losses(
                fixed, weights, a, target, limit, grid.most, dead, any_dead, points
            )
            return found.total(), (found, *more)

        weights = kept_within(fixed, weights)
        slope, (found, codes, often) = jax.grad(loss, has_aux=True)(weights)
        # optax is not written for strict promotion, which a user may have set.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, optimizer = recipe.optimizer.update(slope, optimizer, weights)
        idle = jnp.where(often > 0, 0, idle + 1)
        if fixed.kind in OVER_BATCH:
            least = jnp.where(codes > 0, codes, jnp.inf).min()
            moved = THRESHOLD_MEMENTO * running + (1 - THRESHOLD_MEMENTO) * least
            running = jnp.where(jnp.isfinite(least), moved, running)
        numbers = jnp.stack([
            found.total(),
            1 - found.reconstruction / variance,
            often.sum() / len(a),
            (idle > fixed.dead_after).astype(a.dtype).mean(),
        ])  # fmt: skip
        moved: Any = optax.apply_updates(weights, updates)  # type: ignore[arg-type]
        return moved, optimizer, idle, running, numbers

    weights, optimizer, idle, running, numbers = jax.vmap(one)(
        state.weights, state.optimizer, state.idle, state.running, dead, limits
    )
    return Trained(weights, optimizer, idle, running, state.numbers.at[:, column].set(numbers))


def trained(
    who: str,
    recipe: Recipe,
    rows: Rows,
    data: Data,
    num_steps: int,
    checkpoint: Any,
    told: dict[str, Any],
) -> tuple[tuple[Trained, ...], list[np.ndarray]]:
    """The state after all steps, and the numbers of each width's steps, `[M, num_steps, 4]`."""
    state, run = started(recipe, data.key, data.points), shared_program(_span, (0,))
    history = [np.zeros((len(grid.limits), num_steps, 4), np.float32) for grid in recipe.grids]
    done = 0
    if checkpoint is not None and Path(checkpoint).is_file():
        state, done = _read(who, Path(checkpoint), told, state, history, num_steps)
    for begin, end in spans(num_steps, done, SPAN, who):
        first = begin
        while first < end:
            base = first // SPAN * SPAN
            last = min(end, base + SPAN, rows.until(first))
            here = data._replace(block=rows.at(first))
            state = run(recipe, state, here, base, first, last)
            for of_grid, one in zip(history, state, strict=True):
                of_grid[:, first:last] = one.numbers[:, first - base : last - base]
            if checkpoint is not None and (last % SPAN == 0 or last == num_steps):
                _write(Path(checkpoint), told, state, history, last)
            first = last
    return state, history


def learned(recipe: Recipe, state: tuple[Trained, ...], data: Data, done: int) -> list[Dictionary]:
    """Each width's dictionaries, stacked `[M, ...]`."""
    seen = 1 - THRESHOLD_MEMENTO**done  # running thresholds are means over the steps, from 0
    moments, points = (data.mean, data.scale), data.points
    return program(_learned, (0,), False, False)(recipe, state, moments, points, seen)


def _learned(recipe, state, moments, points, seen):
    before, after = zip(*moments, strict=True)

    def one(weights, running, limit):
        weights = kept_within(recipe.fixed, weights)
        return finished(recipe.fixed, weights, limit, running / seen, before, after, points)

    each = zip(recipe.grids, state, strict=True)
    limits = [jnp.asarray(grid.limits, jnp.float32) for grid in recipe.grids]
    return [
        jax.vmap(one)(trained.weights, trained.running, some)
        for (_, trained), some in zip(each, limits, strict=True)
    ]


class Measured(NamedTuple):
    """Of autoencoders as they are used, each `[M]`."""

    explained_variance: np.ndarray
    l0: np.ndarray
    dead: np.ndarray


def measured(dictionaries: Dictionary, rows: tuple[jax.Array, ...]) -> Measured:
    """How well stacked dictionaries write some rows, and with how many codes."""
    a, target = rows[0][:_MEASURED], rows[-1][:_MEASURED]
    count = len(a)
    variance = float(np.var(np.asarray(target), 0).sum())
    run = program(_sums, (0,), False, False)
    off, codes, active = np.zeros(()), np.zeros(()), np.zeros((), bool)
    for at in range(0, count, _AT_ONCE):
        few = [np.asarray(rows_of[at : at + _AT_ONCE]) for rows_of in (a, target)]
        spare = _AT_ONCE - len(few[0])
        there = np.arange(_AT_ONCE) < len(few[0])
        few = [np.pad(one, ((0, spare), (0, 0))) for one in few]
        here = [np.asarray(v) for v in run(len(rows) > 1, dictionaries, *few, there)]
        off, codes, active = off + here[0], codes + here[1], active | here[2]
    return Measured(
        (1 - off / count / max(variance, 1e-12)).astype(np.float32),
        (codes / count).astype(np.float32),
        (1 - active.mean(-1)).astype(np.float32),
    )


def _sums(transcodes, dictionaries, a, target, there):
    def one(dictionary):
        reader = dictionary
        if transcodes:
            reader = dictionary._replace(atoms=dictionary.encoder.T, bias=None)
        codes = jnp.where(there[:, None], encode(reader, a), 0)
        off = codes @ dictionary.atoms + dictionary.bias[None] - target
        active = codes != 0
        squares = jnp.where(there, (off * off).sum(-1), 0)
        return squares.sum(), active.sum().astype(a.dtype), active.any(0)

    return jax.lax.map(one, dictionaries)


def _write(path: Path, told: dict[str, Any], state: Any, history: list, done: int) -> None:
    """The whole state, in one move: a killed process leaves the one before."""
    arrays = {f"state/{n:03}": np.asarray(a) for n, a in enumerate(jax.tree.leaves(state))}
    arrays |= {f"history/{n:03}": of_grid[:, :done] for n, of_grid in enumerate(history)}
    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    partial = path.with_name(f".{path.name}.partial")
    metadata = {"told": json.dumps(told, sort_keys=True), "done": str(done)}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(arrays, partial, metadata)
    os.replace(partial, path)


def _read(who, path, told, like, history, num_steps):
    try:
        with safetensors.safe_open(path, "numpy") as file:
            notes = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        done, before = int(notes["done"]), json.loads(notes["told"])
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{who}: checkpoint must be a file that this function wrote; {path}: {error}. "
            "Remove it, or name another."
        ) from None
    wanted = json.loads(json.dumps(told))
    if before != wanted:
        other = sorted(k for k in before.keys() | wanted if before.get(k) != wanted.get(k))
        raise ValueError(
            f"{who}: checkpoint must be of the same training; that in {path} has another "
            f"{', '.join(other)}. Pass what it had, or name another file."
        )
    if done > num_steps:
        raise ValueError(
            f"{who}: num_steps must be at least {done}, the steps that {path} has seen; got "
            f"{num_steps}."
        )
    leaves, structure = jax.tree.flatten(like)
    state = [jnp.asarray(arrays[f"state/{n:03}"]) for n in range(len(leaves))]
    for n, of_grid in enumerate(history):
        of_grid[:, :done] = arrays[f"history/{n:03}"]
    return jax.tree.unflatten(structure, state), done
