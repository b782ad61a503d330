"""What of a graph matters: influence through all paths, and the nodes and edges that carry it."""

import jax
import jax.numpy as jnp


def influences(edges: jax.Array, start: jax.Array) -> jax.Array:
    """`start @ (A + A^2 + ...)`, A the sizes of the edges into each node as shares of their sum.

    Args:
      edges: `[V, V]`, from a node (column) to a later one (row): no way leads back.
      start: `[V]`.

    Returns:
      `[V]`.
    """
    shares = _shares(edges)

    def sums(ahead, start):
        """The total t of all ways, t = start + t A, for the way there or, A turned, back."""

        def further(state):
            total, here = state
            here = ahead(here)
            return total + here, here

        return jax.lax.while_loop(lambda s: jnp.any(jnp.abs(s[1]) > 0), further, (start, start))[0]

    # As a solution it has a gradient, which the loop has not.
    onward, turned = (lambda v: v @ shares), (lambda v: shares @ v)
    return jax.lax.custom_linear_solve(
        lambda v: v - onward(v),
        onward(start),
        lambda _, b: sums(onward, b),
        lambda _, b: sums(turned, b),
    )


def prune(
    edges: jax.Array, start: jax.Array, sources: jax.Array, node_threshold, edge_threshold
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The nodes and edges that carry most of the influence on where it starts.

    Args:
      edges: `[V, V]`.
      start: `[V]`, the weight of each explained number.
      sources: `[V]`, nodes that need nothing to come in (inputs, biases, errors).
      node_threshold: The part of all influence that nodes keep.
      edge_threshold: The part that edges between those keep.

    Returns:
      Influence `[V]`; whether a node is kept `[V]`, and an edge `[V, V]`.
    """
    influence = influences(edges, start)
    is_end = start > 0
    nodes = (influence >= _least(influence, node_threshold)) & (influence > 0) | is_end
    between = jnp.where(nodes[:, None] & nodes[None], edges, jnp.zeros_like(edges))
    weights = _shares(between) * (influences(between, start) + start)[:, None]
    kept = (weights >= _least(weights.ravel(), edge_threshold)) & (weights > 0)

    def again(state):
        nodes, kept, _ = state
        leads_on, is_led_to = kept.any(0) | is_end, kept.any(1) | sources
        fewer = nodes & leads_on & is_led_to | is_end
        return fewer, kept & fewer[:, None] & fewer[None], jnp.any(fewer != nodes)

    nodes, kept, _ = jax.lax.while_loop(lambda s: s[2], again, (nodes, kept, jnp.asarray(True)))
    return influence, nodes, kept


def _shares(edges: jax.Array) -> jax.Array:
    sizes = jnp.abs(edges)
    total = sizes.sum(1, keepdims=True)
    return jnp.where(total > 0, sizes / jnp.where(total > 0, total, 1), jnp.zeros_like(sizes))


def _least(scores: jax.Array, threshold) -> jax.Array:
    """The smallest of the largest scores that have this part of their sum together."""
    ordered = jnp.sort(scores)[::-1]
    reached = jnp.cumsum(ordered) >= jnp.asarray(threshold, scores.dtype) * ordered.sum()
    return ordered[jnp.where(reached.any(), jnp.argmax(reached), len(ordered) - 1)]
