"""The direct effects of a graph's nodes on one another, for one example."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.concepts.held import run_held
from jaxviz.concepts.sites import (
    INPUT,
    SCORE,
    Site,
    Units,
    made_by,
    of_value,
    sites,
    slopes_of,
    units_of,
)
from jaxviz.engine.contract import select
from jaxviz.engine.copies import at_least_float32, is_floating, stacked
from jaxviz.graph.changed import run
from jaxviz.graph.trace import model

UNIT, REST, ERROR, BIAS, SCORED = "unit", "rest", "error", "bias", "score"


@dataclasses.dataclass
class Nodes:
    """The nodes of a graph in order: of which layer each is, and of what kind."""

    layers: tuple[str, ...]
    num_inputs: int
    layer_of: list[int] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)

    def add(self, layer_index: int, kind: str, count: int = 1) -> None:
        self.layer_of += [layer_index] * count
        self.kinds += [kind] * count

    @property
    def are_sources(self) -> list[bool]:
        """Whether nothing need come into a node."""
        pairs = zip(self.layer_of, self.kinds, strict=True)
        return [i < self.num_inputs or kind in (BIAS, ERROR) for i, kind in pairs]


class _Chosen(NamedTuple):
    """Which units of a site are nodes, and the others of it."""

    index: jax.Array
    others: jax.Array | None

    @property
    def count(self) -> int:
        return len(self.index) + (self.others is not None)

    def parts(self, a: jax.Array) -> jax.Array:
        """`[count]`, of a number for each unit."""
        if self.others is None:
            return a[self.index]
        return jnp.append(a[self.index], (a * self.others.astype(a.dtype)).sum())

    def part(self, k: jax.Array, size: int, dtype: Any) -> jax.Array:
        """`[units]`: 1 for those of the k-th node."""
        here = jnp.arange(size) == self.index[jnp.minimum(k, len(self.index) - 1)]
        if self.others is not None:
            here = jnp.where(k == len(self.index), self.others, here)
        return here.astype(dtype)


def _chosen(relevance: jax.Array, num_units: int | None) -> _Chosen:
    size = len(relevance)
    if num_units is None or size <= num_units:
        return _Chosen(jnp.arange(size), None)
    index = jnp.argsort(-jnp.abs(relevance), stable=True)[:num_units]
    return _Chosen(index, jnp.ones(size, bool).at[index].set(False))


class Wiring:
    """One example's net, linear between the layers of a graph."""

    def __init__(self, who, apply_fn, params, x, layers, by, dictionaries, moves):
        self.who, self.traced = who, model(apply_fn, params, x).flat
        self.sites = sites(who, self.traced, layers, dictionaries)
        self.arguments = jax.tree.leaves((params, x))
        first = len(self.arguments) - len(jax.tree.leaves(x))
        self.moving = [i for i, a in enumerate(self.arguments) if i >= first and is_floating(a)]
        wanted = [p.value for site in self.sites for p in (site.read, site.written)]
        env = run(self.traced, self.arguments, {}, wanted)
        inputs = [self.arguments[i] for i in self.moving]
        self.values = inputs + [site.written.read(env[site.written.value]) for site in self.sites]
        axes = [None if moves is None else moves[i - first] for i in self.moving]
        self.units = [_input_units(a, axis, by) for a, axis in zip(inputs, axes, strict=True)]
        self.units += [
            units_of(site, by, site.read.read(env[site.read.value]), value)
            for site, value in zip(self.sites, self.values[len(inputs) :], strict=True)
        ]
        names = [f"{INPUT}{i}" if i else INPUT for i in range(len(inputs))]
        self.names = (*names, *(site.name for site in self.sites), SCORE)

    def site(self, i: int) -> Site | None:
        """Of the i-th layer, None for an input."""
        first = len(self.moving)
        return None if i < first else self.sites[i - first]

    def outputs(self, values, one, target):
        """What each site reads, and the score, of the layers' values and the constants' factor."""
        first = len(self.moving)
        arguments = list(self.arguments)
        for i, value in zip(self.moving, values[:first], strict=True):
            arguments[i] = value
        seen: dict[int, jax.Array] = {}
        change: dict[int, Callable] = {}
        for value in {p.value for site in self.sites for p in (site.read, site.written)}:
            change[value] = self._changed(value, values[first:], seen)
        env = run_held(self.traced, arguments, one, change)
        for i, site in enumerate(self.sites):
            if i not in seen:
                raise ValueError(
                    f"{self.who}: layers must be apart from activations; {site.read.name!r} is "
                    "inside of one, which is one step here. Take what it gives."
                )
        outputs = jax.tree.map(lambda v: env[v], self.traced.outputs)
        return [seen[i] for i in range(len(self.sites))], select(outputs, target)

    def _changed(self, value, replaced, seen):
        def change(a):
            for i, site in enumerate(self.sites):
                if site.read.value == value:
                    seen[i] = site.read.read(a)
            for site, new in zip(self.sites, replaced, strict=True):
                if site.written.value == value:
                    a = site.written.written(new, a)
            return a

        return change

    def graph(self, target, num_units, chunk_size):
        """Its arrays, and its nodes."""
        first, one = len(self.moving), jnp.ones(())
        (_, score), linear = jax.linearize(
            lambda values, one: self.outputs(values, one, target), self.values, one
        )

        def pulling(read):
            return jax.linear_transpose(lambda v, o: read(linear(v, o)), self.values, one)

        to_score = pulling(lambda out: out[1])
        to_site = [pulling(lambda out, i=i: out[0][i]) for i in range(len(self.sites))]
        # Slopes of the score, from the last layer to the first.
        by_score = to_score(jnp.ones_like(score))
        total, slopes = list(by_score[0]), dict[int, jax.Array]()
        for i in reversed(range(len(self.values))):
            slopes[i] = self.slopes(i, total[i])
            if i >= first:
                back, _ = made_by(self.sites[i - first], self.units[i], slopes[i])
                added = to_site[i - first](back)[0]
                total = [a + b for a, b in zip(total, added, strict=True)]
        flows = [u.summed(u.values * s) for u, s in zip(self.units, _in_order(slopes), strict=True)]
        chosen = [_chosen(flow, num_units) for flow in flows]
        nodes = self.nodes(chosen)
        size = len(nodes.kinds)
        bias_at = {nodes.layer_of[v]: v for v in range(size) if nodes.kinds[v] == BIAS}

        kind = at_least_float32(score)

        def row(gradients, constant, layer_index):
            """What comes into a node from all others: `[V]`."""
            parts = []
            for i, gradient in enumerate(gradients):
                units, site = self.units[i], self.site(i)
                if site is not None:
                    parts.append(jnp.zeros(1, kind))
                parts.append(chosen[i].parts(units.summed(units.values * self.slopes(i, gradient))))
                if site is not None and units.left is not None and units.constant is not None:
                    parts.append(of_value(site, gradient, units.left)[None])
                    constant = constant + of_value(site, gradient, units.constant)
            parts.append(jnp.zeros(2, parts[-1].dtype))
            found = jnp.concatenate([p.astype(kind) for p in parts])
            return found.at[bias_at[layer_index]].set(constant.astype(kind))

        blocks = []
        nothing = lambda count: jnp.zeros((count, size), kind)
        for i in range(len(self.units)):
            if i < first:
                blocks.append(nothing(chosen[i].count))
                continue
            into = self.rows(i, chosen[i], slopes[i], to_site[i - first], row, chunk_size)
            blocks += [nothing(1), into, nothing(int(self.units[i].left is not None))]
        last = row(by_score[0], by_score[1], len(self.units))[None]
        edges = jnp.concatenate([*blocks, nothing(1), last])
        return self.arrays(nodes, edges, chosen, flows, score[0].astype(kind)), nodes

    def slopes(self, i: int, gradient: jax.Array) -> jax.Array:
        """Of the i-th layer's units, from the gradient by its value."""
        site = self.site(i)
        return (
            gradient.astype(at_least_float32(gradient))
            if site is None
            else slopes_of(site, gradient)
        )

    def rows(self, i, chosen, slopes, pull, row, chunk_size):
        """What comes into each node of a layer: `[nodes, V]`."""
        site, units = self.sites[i - len(self.moving)], self.units[i]

        def term(k):
            part = units.spread(chosen.part(k, units.count, slopes.dtype))
            back, constant = made_by(site, units, slopes * part)
            gradients, by_one = pull(back)
            return row(gradients, by_one + constant.astype(by_one.dtype), i)

        return stacked(self.who, term, chosen.count, chunk_size, self.values)

    def nodes(self, chosen: Sequence[_Chosen]) -> Nodes:
        found = Nodes(self.names, len(self.moving))
        for i, (units, one) in enumerate(zip(self.units, chosen, strict=True)):
            found.add(i, BIAS, int(i >= len(self.moving)))
            found.add(i, UNIT, len(one.index))
            found.add(i, REST, int(one.others is not None))
            found.add(i, ERROR, int(units.left is not None))
        found.add(len(self.units), BIAS)
        found.add(len(self.units), SCORED)
        return found

    def arrays(self, nodes, edges, chosen, flows, score) -> dict[str, jax.Array]:
        """What a graph has for each node."""
        given, ones, no_unit = edges.sum(0), jnp.ones(1), jnp.full(1, -1)
        bias_at = [v for v, kind in enumerate(nodes.kinds) if kind == BIAS]
        relevance, activation, index = [], [], []
        for i, (units, one, flow) in enumerate(zip(self.units, chosen, flows, strict=True)):
            if i >= len(self.moving):
                at = bias_at[i - len(self.moving)]
                relevance.append(given[at : at + 1])
                activation.append(ones)
                index.append(no_unit)
            relevance.append(one.parts(flow))
            activation.append(one.parts(units.summed(units.values)))
            index += [one.index, *([no_unit] if one.others is not None else [])]
            if units.left is not None:
                at = sum(map(len, relevance))
                relevance.append(given[at : at + 1])
                activation.append(units.left.sum()[None])
                index.append(no_unit)
        relevance += [given[-2:-1], score[None]]
        activation += [ones, score[None]]
        index += [no_unit, no_unit]
        join = lambda parts: jnp.concatenate([a.astype(edges.dtype) for a in parts])
        found = {"edges": edges, "relevance": join(relevance), "activation": join(activation)}
        is_made = jnp.asarray([not source for source in nodes.are_sources])
        gap = jnp.where(is_made, found["relevance"] - edges.sum(1), 0)
        return found | {"units": jnp.concatenate(index), "gap": gap}


def _in_order(found: dict[int, jax.Array]) -> list[jax.Array]:
    return [found[i] for i in range(len(found))]


def _input_units(a: jax.Array, axis: int | None, by: str) -> Units:
    wide = a.astype(at_least_float32(a))
    last = wide.ndim - 1 if axis is None else axis
    return Units(wide, last if by == "channel" else None)
