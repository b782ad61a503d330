"""In-silico mutagenesis: every single substitution of a sequence, and what each does to a score."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import maybe, several, whole
from jaxviz.engine.contract import Target, explanation, select
from jaxviz.engine.copies import at_least_float32, check_one_array, is_floating
from jaxviz.parts.covered import Method, covered
from jaxviz.parts.regions import like_input
from jaxviz.rules.spans import span

_IDS = maybe(several(whole(0), "ids, two or more, each once", least=2))


@explanation(
    *("alphabet", "chunk_size", "method"), sweeps=True, places=True, integers=True, alphabet=_IDS
)
def in_silico_mutagenesis(
    apply_fn: Callable,
    params: Any,
    x: jax.Array,
    target: Target = None,
    *,
    alphabet: Sequence[int] | None = None,
    chunk_size: int | None = None,
    method: Method = "auto",
) -> jax.Array:
    """What the score gains by each single substitution: every letter at every place.

    f(x with letter a at place l) - f(x), for every l and a. Of DNA, RNA, proteins or words; where a
    convolution reads the sequence, only what a letter changes is evaluated anew.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, `[N, ...] -> [N, K]`. Compiled once per function.
      params: Any pytree, handed on untouched.
      x: Ids `[N, L]`, or one-hot letters `[N, L, A]` (`[N, A, L]` where a convolution takes these).
      target: Class index, indices `[N]`, `outputs -> [N]`, or None for each example's top class,
        which is chosen once, at `x`.
      alphabet: The A ids that may stand for one another, `range(4)` say; for one-hot letters None.
      chunk_size: Substitutions at once, for all N examples. None goes by `x` and the cores.
      method: As for `occlusion`.

    Returns:
      `[N, L, A]`, in units of the explained output; below zero where the letter would cost. The
      letter that stands there has 0. So has every letter at a place that holds none of the
      alphabet, which is left as it is: padding, a class token, a row of zeros, a base not known
      (0.25 each). One-hot letters in the shape of `x`. Costs L (A - 1) forward passes, or less.

    Raises:
      ValueError: Ids without an alphabet, letters with one, an id twice, or `x` of other axes.

    Example:
      >>> net = lambda w, ids: w[ids].sum(1)
      >>> w = jnp.array([[0.0], [1.0], [5.0]])
      >>> in_silico_mutagenesis(net, w, jnp.array([[1, 2]]), 0, alphabet=range(3)).tolist()
      [[[-1.0, 0.0, 4.0], [-5.0, -4.0, 0.0]]]

    Reference:
      Zhou and Troyanskaya 2015, DeepSEA, Nature Methods 12, "in silico saturated mutagenesis"
      (log2 of odds ratios there; differences of the score here: take `jaxviz.log_softmax`).
      fastISM (Nair et al. 2022, Bioinformatics 38) evaluates what changes in a Keras model.
      A place's importance is often read as minus the mean over its other letters:
      `-changes.sum(-1) / (A - 1)`.
    """
    name = "in_silico_mutagenesis"
    own, known, letter, count = _letters(name, x, alphabet)
    length, others = x.shape[1], count - 1

    def changed(k):
        return jnp.where(_wide(known, x), letter((own + 1 + k % others) % count), x)

    def mask(k):
        place = jnp.arange(length, dtype=jnp.int32) == k // others
        return place.reshape(1, length, *[1] * (x.ndim - 2))

    def spans(k):
        ones = np.ones(length, np.int64)
        return (None, span(np.arange(length), ones, length, k // others), *[None] * (x.ndim - 2))

    scores, clean = covered(
        name,
        apply_fn,
        params,
        x,
        changed,
        target,
        select,
        mask=mask,
        spans=spans,
        num=length * others,
        chunk_size=chunk_size,
        method=method,
    )
    wide = at_least_float32(scores)
    gained: Any = scores.T.astype(wide) - clean.astype(wide)[:, None]
    gained = gained.reshape(-1, length, others)
    # By the letter's distance from the one that stands there, itself first; then by letter.
    by_distance = jnp.concatenate([jnp.zeros_like(gained[..., :1]), gained], -1)
    every = jnp.arange(count, dtype=own.dtype).reshape(1, 1, -1)
    distance = (every - own[..., None]) % count
    by_letter = jnp.take_along_axis(by_distance, distance, -1)
    return like_input(jnp.where(known[..., None], by_letter, 0), x)


def _letters(name: str, x: Any, alphabet: Any) -> tuple[jax.Array, jax.Array, Callable, int]:
    """`[N, L]` indices of letters and where there is one; the letters of indices; their number."""
    check_one_array(name, x)
    ids = not is_floating(x) and x.ndim == 2
    if x.ndim not in (2, 3) or (x.ndim == 2 and not ids) or 0 in x.shape:
        raise ValueError(
            f"{name}: x must be ids [N, L] or one-hot letters [N, L, A]; got {x.dtype} {x.shape}. "
            "Give one sequence a batch axis: x[None]."
        )
    if ids != (alphabet is not None):
        must = "the ids that may stand for one another" if ids else "None for one-hot letters"
        raise ValueError(
            f"{name}: alphabet must be {must}; got {alphabet}, x {x.dtype} {x.shape}. "
            f"{'Pass range(4), say.' if ids else 'Leave it out.'}"
        )
    if ids:
        most = jnp.iinfo(x.dtype).max
        if len(set(alphabet)) < len(alphabet) or max(alphabet) > most:
            raise ValueError(
                f"{name}: alphabet must be ids, each once, at most {most}; got {alphabet}. Take "
                "each of them once."
            )
        letters = jnp.asarray(np.asarray(alphabet), x.dtype)
        same = x[..., None] == letters.reshape(1, 1, -1)
        own = jnp.argmax(same, -1).astype(jnp.int32)
        return own, same.any(-1), lambda index: letters[index], len(alphabet)
    count = x.shape[-1]
    if count < 2:
        raise ValueError(f"{name}: x must have two letters or more; got {x.shape}. Letters last.")
    own = jnp.argmax(x, -1).astype(jnp.int32)
    letter = lambda index: jax.nn.one_hot(index, count, dtype=x.dtype)
    return own, (x == letter(own)).all(-1), letter, count


def _wide(known, x):
    return known.reshape(*known.shape, *[1] * (x.ndim - 2))
