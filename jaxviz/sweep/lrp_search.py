"""Which numbers of LRP's rules a metric likes best: all candidates in one program."""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.attribution.propagation import lrp
from jaxviz.calls.options import described, function, real, several
from jaxviz.calls.public import public
from jaxviz.calls.shown import else_by, shown
from jaxviz.chosen import label_of
from jaxviz.engine.contract import Target, explanation
from jaxviz.engine.copies import chunk_length, default_chunk, fixed_target, rows_of
from jaxviz.rules.lrp_composites import attn_lrp
from jaxviz.sweep.evaluate import better, score_of

_NUMBERS = several(real(), "numbers")


class LrpSearch(NamedTuple):
    """What `lrp_search` found of M candidates on N examples.

    Attributes:
      candidates: From a number's name to its value in each candidate, `[M]`.
      scores: `[M, N]`, in the metric's units.
      mean: `[M]`, over the examples. NaN where one has a NaN.
      error: `[M]`, the standard error of that mean; NaN for one example.
      best: From a number's name to its value in the candidate of the best mean, `[]`: what `rules`
        takes. NaN if every mean is.
    """

    candidates: dict[str, jax.Array]
    scores: jax.Array
    mean: jax.Array
    error: jax.Array
    best: dict[str, jax.Array]

    @else_by(shown)
    def __repr__(self) -> str:
        names = list(self.candidates)
        wide = [max(len(name), 8) for name in names]
        lines = ["  ".join(f"{n:>{w}}" for n, w in zip(names, wide, strict=True))]
        lines[0] += "        mean       error"
        best = [float(self.best[name]) for name in names]
        columns = (*(self.candidates[name] for name in names), self.mean, self.error)
        for *row, mean, error in zip(*(np.asarray(a, float) for a in columns), strict=True):
            told = "  ".join(f"{v:>{w}.4g}" for v, w in zip(row, wide, strict=True))
            lines.append(f"{told}  {mean:10.4g}  {error:10.2g}{'  best' if row == best else ''}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def _table(who: str, option: str, value: Any) -> dict[str, tuple[float, ...]]:
    if not isinstance(value, Mapping) or not value:
        raise TypeError(
            f"{who}: {option} must be a table from a number's name to its values; got "
            f'{described(value)}. Pass {{"gamma": [0, 0.1], "epsilon": [0, 0.01]}}, say.'
        )
    return {name: _NUMBERS(who, f"{option}: {name}", values) for name, values in value.items()}


@public(candidates=_table, metric=function, rules=function)
def lrp_search(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    candidates: Mapping[str, Sequence[float]],
    metric: Callable,
    rules: Callable = attn_lrp,
    method: Callable = lrp,
    lower_is_better: bool | None = None,
    chunk_size: int | None = None,
) -> LrpSearch:
    """Which gamma, epsilon and the like give the LRP that a metric of faithfulness likes best.

    Every combination of the numbers is tried. The numbers are traced, so that all candidates are
    one program, compiled once; other candidates of the same number compile nothing.

    What is best on these examples is best on these: choose on some, report on others. A gamma of 0
    among the candidates is the gamma rule at 0, which gives the epsilon rule's numbers.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: `[N, ...]`, as `method` takes it.
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class.
      candidates: From a parameter of `rules` to the values to try, such as
        `{"gamma": [0, 0.05, 0.25], "epsilon": [0, 0.01]}`. What is not named keeps its default.
      metric: `(apply_fn, params, x, attribution, target) -> [N]`, or a NamedTuple with such an
        `area`: `metrics.srg`, `functools.partial(metrics.deletion, num_steps=10)`, or your own.
        Compiled once per function, so keep it.
      rules: `(**numbers) -> rules` as `lrp` takes them: `rules.attn_lrp`, `rules.cp_lrp`,
        `rules.epsilon_plus`, or a function of yours that puts its arguments in rules of
        `rules.lrp`.
      method: What takes `rules`: `lrp`, or `at_layer(lrp, "embed")` in a function that sums over
        the embedding, for token ids.
      lower_is_better: Whether the least mean is best; None goes by the metric, if it is one of
        `jaxviz.metrics`, and is False else.
      chunk_size: Candidates at once, for all N examples. Memory is linear in it; None goes by `x`.

    Returns:
      An `LrpSearch`, which shows itself as a table. Costs, for each candidate, an `lrp` and the
      metric; the forward pass of a chunk's candidates is one.

    Raises:
      ValueError: A number that its rule refuses, or a metric that gives no number an example.
      TypeError: `candidates` is no table of numbers, or names what `rules` does not take.

    Example:
      >>> import functools
      >>> from jaxviz import metrics
      >>> w = {"a": jnp.array([[1.0, -1.0], [-2.0, 1.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> net = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
      >>> judge = functools.partial(metrics.insertion, num_steps=2)
      >>> lrp_search(net, w, jnp.array([[3.0, 1.0]]), 0, metric=judge,
      ...            candidates={"gamma": [0.0, 1.0]}).scores.tolist()
      [[1.75], [1.75]]

    Reference:
      Pahde et al. 2023, arXiv:2211.17174, search rules and their numbers so, a program
      each; gamma for vision transformers: Achtibat et al. 2024, arXiv:2402.05602, appendix A.2.3.
    """
    grid = list(itertools.product(*candidates.values()))
    for row in grid:  # what the rules refuse, they refuse by name
        given = dict(zip(candidates, row, strict=True))
        try:
            rules(**given)
        except TypeError as error:
            raise TypeError(
                f"lrp_search: candidates must name numbers that rules takes; "
                f"{label_of(rules)}(**{given}) says: {error}"
            ) from None
    numbers = jnp.asarray(np.array(grid), jnp.result_type(float))
    chunk = chunk_length("lrp_search", len(grid), chunk_size or default_chunk(x))
    scores = _scores(apply_fn, params, x, target, numbers=numbers, names=tuple(candidates),
                     metric=metric, rules=rules, method=method, chunk=chunk)  # fmt: skip
    mean = scores.mean(1)
    count = scores.shape[1]
    error = jnp.std(scores, axis=1, ddof=1) / count**0.5 if count > 1 else mean * jnp.nan
    lower = better(metric) == "lower" if lower_is_better is None else lower_is_better
    gain = -mean if lower else mean
    lost = jnp.isnan(gain)
    top = jnp.argmax(jnp.where(lost, -jnp.inf, gain))
    columns = {name: numbers[:, i] for i, name in enumerate(candidates)}
    best = {name: jnp.where(lost.all(), jnp.nan, a[top]) for name, a in columns.items()}
    return LrpSearch(columns, scores, mean, error, best)


def _search(
    apply_fn: Callable,
    params: Any,
    x: Any,
    target: Target = None,
    *,
    numbers: jax.Array,
    names: tuple[str, ...],
    metric: Callable,
    rules: Callable,
    method: Callable,
    chunk: int,
) -> jax.Array:
    target = fixed_target(apply_fn, params, x, target)

    def one(row):
        found = rules(**dict(zip(names, row, strict=True)))
        attribution = method(apply_fn, params, x, target, rules=found)
        judged = metric(apply_fn, params, x, attribution, target)
        return score_of("lrp_search", label_of(metric), judged, rows_of(x))["score"]

    count = len(numbers)
    more = jnp.broadcast_to(numbers[-1], (-count % chunk, len(names)))  # fills the last chunk
    rows = jnp.concatenate([numbers, more]).reshape(-1, chunk, len(names))
    return jax.lax.map(jax.vmap(one), rows).reshape(-1, rows_of(x))[:count]


_search.__name__ = "lrp_search"  # the name that its errors begin with
_scores = explanation("names", "metric", "rules", "method", "chunk", integers=True)(_search)
