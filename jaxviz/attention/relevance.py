"""Relevance carried by attentions, within one kind of token and from one kind to another."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.attention.blocks import ways
from jaxviz.attention.found import Attention
from jaxviz.attention.gradients import by_examples, reduced_gradients, weights_shape
from jaxviz.attention.laid import laid_out, map_of, over_tokens, row_of, told
from jaxviz.attention.late import attended
from jaxviz.attention.maps import chosen
from jaxviz.calls.options import layer_list, maybe, whole
from jaxviz.engine.contract import Target, explanation
from jaxviz.graph.axes import axes
from jaxviz.graph.axis_labels import Tokens
from jaxviz.graph.trace import Traced
from jaxviz.parts.feature_maps import Resize


@explanation(
    "layers", "query", "resize", "chunk_size",
    integers=True, layers=maybe(layer_list), query=maybe(whole()),
)  # fmt: skip
def attention_relevance(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    layers: Sequence[str] | None = None,
    query: int | None = None,
    resize: Resize = True,
    chunk_size: int | None = None,
) -> Any:
    """Which tokens speak for the explained number, through self- and cross-attention.

    R = I for each kind of token s, 0 between kinds; for each attention, in order, with
    A+ = mean_heads(relu(A * d f / d A)): within a kind, R_st <- R_st + A+ R_st for all t; from
    queries s to keys t, R_st <- R_st + N(R_ss)^T A+ N(R_tt) and R_ss <- R_ss + A+ R_ts, where N
    divides the rows of R - I by their sums. Two that do not see each other take the same R.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree, handed on untouched.
      x: `[N, ...]` or a pytree of such; token ids too.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      layers: Names of `attentions` to take; None takes all. Windows, and so a Swin, are refused.
      query: The token that is read (-1: the last), of the kind that asks in the last attention on
        the way to the outputs; None reads the first where the model shows that it is none of an
        image's (a class token), and else the mean over tokens.
      resize: For images, whether to scale the map to their size, or to which.
      chunk_size: Examples at once; None takes all.

    Returns:
      `[N, H, W]` for an image whose patches the model shows to be the tokens, `[N, rows, columns]`
      with `resize=False`; else `[N, tokens]`. Where attentions read several leaves of `x`, such as
      an image and a question, a pytree like `x` of such maps, 0 for a leaf that none reads.
      Non-negative, at least float32. R's own I is taken off, so what no attention carries is 0.
      Costs one forward and one backward pass; where weights are very many, one more forward.

    Raises:
      ValueError: The model has no attention; or which tokens those taken ask and read, and where
        these are in `x`, is not plain from the model.

    Example:
      >>> net = lambda w, x: (jax.nn.softmax(x @ x.mT) @ x).sum(1)
      >>> x = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> [round(float(r), 3) for r in attention_relevance(net, None, x, 0, query=0)[0]]
      [0.731, 0.0]

    Reference:
      Chefer, Gur and Wolf 2021, arXiv:2103.15679, equations 5 to 11; the class token's row of R
      less I is read there too. Kinds are told apart by the axes of `x` that queries and keys are;
      learned queries are a kind of their own. A row of R - I that is 0 stays so in N, where the
      authors' code gives NaN or 0, from model to model.
    """
    name = "attention_relevance"

    def some(x, target):
        traced = attended(apply_fn, params, x)
        taken = over_tokens(name, traced, chosen(name, traced, layers))
        speaks = lambda a, g, w: jax.nn.relu(a * g).mean(1)
        steps, _ = reduced_gradients(traced, taken, params, x, target, speaks)
        kinds = _kinds(name, traced, taken)
        if len({kind for pair in kinds for kind in pair}) == 1:
            total: Any = None
            for group in _together(ways(traced), taken):
                # R less I, so that small relevance is no difference of large numbers.
                step = sum(steps[i] for i in group)
                total = step if total is None else total + step + step @ total
            return map_of(name, taken[-1], total, x, query, resize)
        return _across(name, traced, taken, kinds, steps, x, query, resize)

    return by_examples(name, some, x, target, chunk_size)


class _Kind(NamedTuple):
    """Tokens of one kind: the axis of `x` that they are, or None where no input shows; how many."""

    label: Any
    size: int

    @property
    def leaf(self) -> int | None:
        if isinstance(self.label, Tokens):
            return self.label.axes[0][0]
        return self.label[0] if self.label is not None else None


def _kinds(name: str, traced: Traced, taken: Sequence[Attention]) -> list[tuple[_Kind, _Kind]]:
    """Of each attention the kinds of its queries and its keys."""
    pairs = []
    for one in taken:
        labels = axes(traced).labels.get(one.value) or (None,) * len(one.order)
        labels = [a if isinstance(a, (tuple, Tokens)) else None for a in labels]
        asked = None if one.one_query else labels[one.order[-2]]
        _, _, queries, keys = weights_shape(traced, one)
        pairs.append((_Kind(asked, queries), _Kind(labels[one.order[-1]], keys)))
    every = {kind for pair in pairs for kind in pair}
    known = {kind for kind in every if kind.label is not None}
    if len({kind.size for kind in every}) == 1 and len(known) <= 1:
        return [(_Kind(None, 0), _Kind(None, 0))] * len(pairs)
    leaves = [kind.leaf for kind in known]
    if len(set(leaves)) < len(leaves) or not (known or len(every) == 2):
        raise ValueError(
            f"{name}: the attentions taken must show which tokens ask and which are read, one kind "
            f"for each part of x; got {told(traced, taken)}. Pass `layers`, names of those over "
            "the same tokens."
        )
    return pairs


def _across(name, traced, taken, kinds, steps, x, query, resize) -> Any:
    """Equations 6 to 11, R_ss being kept less I."""
    known = ways(traced)
    every = list(dict.fromkeys(kind for pair in kinds for kind in pair))
    count, dtype = len(steps[0]), steps[0].dtype
    total = {(s, t): jnp.zeros((count, s.size, t.size), dtype) for s in every for t in every}
    for group in _together(known, taken):
        before = dict(total)
        for i in group:
            (s, t), step = kinds[i], steps[i]
            if s == t:
                for other in every:
                    own = step if other == s else 0
                    total[s, other] = total[s, other] + own + step @ before[s, other]
                continue
            ours, theirs = _normal(before[s, s]), _normal(before[t, t])
            total[s, t] = total[s, t] + ours.mT @ step @ theirs
            for other in every:
                if other != t:
                    total[s, other] = total[s, other] + step @ before[t, other]
    ends = [i for i, one in enumerate(taken) if known.made[one.value] in known.meets]
    last = (ends or [len(taken) - 1])[-1]
    asked = kinds[last][0]
    tokens = asked.label if isinstance(asked.label, Tokens) else None
    reader = taken[last]._replace(tokens=tokens)
    read = {t: row_of(name, reader, total[asked, t], query) for t in every}
    labelled = [kind for kind in every if kind.label is not None]
    if not labelled:  # two kinds
        return read[next(kind for kind in every if kind != asked)]
    grid = lambda kind: kind.label if isinstance(kind.label, Tokens) else None
    leaves, structure = jax.tree.flatten(x)
    found = {
        kind.leaf: laid_out(name, grid(kind), read[kind], leaves[kind.leaf], resize)
        for kind in labelled
    }
    if len(found) == 1:
        return next(iter(found.values()))
    nothing = lambda leaf: jnp.zeros(jnp.shape(leaf)[:2], dtype)
    rows = [found.get(i, nothing(leaf)) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, rows)


def _together(known, taken: Sequence[Attention]) -> list[list[int]]:
    """Runs of attentions of which none has a part in another."""
    groups: list[list[int]] = []
    for i, one in enumerate(taken):
        if groups and not any(known.follows(taken[j], one) for j in groups[-1]):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _normal(less: jax.Array) -> jax.Array:
    """R less I with rows that sum to 1, and I."""
    sums = less.sum(-1, keepdims=True)
    rows = less / jnp.where(sums == 0, 1, sums)
    return rows + jnp.eye(less.shape[-1], dtype=less.dtype)[None]
