"""A few examples that stand for all, and a few that none of these stands for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from jaxviz.calls.arrays import rows
from jaxviz.calls.options import maybe, real, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html

_AT_ONCE = 1_024  # rows of the kernel's matrix, which is never whole


class Prototypes(NamedTuple):
    """Which rows stand for all.

    Attributes:
      indices: `[P]`, prototypes in the order in which they were chosen.
      weights: `[P]`, how much each stands for; of `mmd_critic` 1 / P each.
      criticisms: `[Q]`, rows that the prototypes stand for least; none of `proto_dash`.
      discrepancy: `[P]`, the squared maximum mean discrepancy between all rows and the first p
        prototypes, so weighted; lower is better.
    """

    indices: np.ndarray
    weights: np.ndarray
    criticisms: np.ndarray
    discrepancy: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


_CHECKS = {
    "features": rows(2, "[N, ...], rows"),
    "num_prototypes": whole(1),
    "num_criticisms": whole(0),
    "gamma": maybe(real(0, above=True)),
}


@public(**_CHECKS)
def mmd_critic(
    features: jax.Array,
    *,
    num_prototypes: int,
    num_criticisms: int = 0,
    gamma: float | None = None,
) -> Prototypes:
    """Prototypes, chosen one by one to bring their distribution nearest to that of all rows.

    With k(a, b) = exp(-gamma |a - b|^2) each next prototype makes the discrepancy `mean k(all, all)
    - 2 mean k(all, S) + mean k(S, S)` smallest. Criticisms make
    `sum over c of |mean k(all, c) - mean k(S, c)| + log det k(C, C)` large: rows where the two
    distributions differ, and that differ from each other.

    Args:
      features: `[N, ...]`, finite: examples, or a layer's values of them (`jv.activations`).
      num_prototypes: P, at most N.
      num_criticisms: Q; P + Q at most N.
      gamma: Of the kernel; None is 1 / (numbers of a row x variance of all numbers).

    Returns:
      `Prototypes`. Costs N^2 distances once, and N for each choice; memory is linear in N.

    Raises:
      ValueError: More are wanted than there are rows.

    Example:
      >>> rows = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [9.0]])
      >>> found = mmd_critic(rows, num_prototypes=2, num_criticisms=1, gamma=1.0)
      >>> sorted(found.indices.tolist()), found.criticisms.tolist()
      ([1, 4], [6])

    Reference:
      Kim et al. 2016, "Examples are not enough, learn to criticize!", eq. 3, 7 and 8; xplique's
      MMDCritic has gamma = 1 / numbers of a row.
    """
    who = "mmd_critic"
    kernel = _Kernel(who, features, gamma, num_prototypes, num_criticisms)
    count = len(kernel.mean)
    chosen: list[int] = []
    inside, within = np.zeros(count), 0.0  # sums of k with the chosen ones, and among them
    discrepancy = []
    for size in range(1, num_prototypes + 1):
        gained = 2 * (kernel.mean[chosen].sum() + kernel.mean) / size
        gained -= (within + 2 * inside + 1) / size**2
        gained[chosen] = -np.inf
        best = int(np.argmax(gained))
        within += 2 * inside[best] + 1
        inside += kernel.column(best)
        chosen.append(best)
        discrepancy.append(kernel.whole - gained[best])
    witness = np.abs(kernel.mean - inside / num_prototypes)
    criticisms = _criticisms(kernel, witness, chosen, num_criticisms)
    weights = np.full(num_prototypes, 1 / num_prototypes, np.float32)
    return Prototypes(np.array(chosen), weights, criticisms, np.array(discrepancy, np.float32))


@public(**_CHECKS)
def proto_dash(
    features: jax.Array, *, num_prototypes: int, gamma: float | None = None
) -> Prototypes:
    """Prototypes with weights that are not negative, chosen by where the objective is steepest.

    With the kernel of `mmd_critic`, `mu = mean k(all, .)`: maximise `w mu - w K w / 2` over w >= 0
    with P numbers that are not 0: the row of the largest slope `mu - K w` is added, then all
    weights are solved for again.

    Args:
      features: `[N, ...]`, finite.
      num_prototypes: P, at most N. Fewer are returned where no row has a slope above 0.
      gamma: As for `mmd_critic`.

    Returns:
      `Prototypes`, without criticisms.

    Raises:
      ValueError: More are wanted than there are rows.

    Example:
      >>> rows = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [9.0]])
      >>> sorted(proto_dash(rows, num_prototypes=2, gamma=1.0).indices.tolist())
      [1, 4]

    Reference:
      Gurumoorthy et al. 2019, arXiv:1707.01212, algorithm 1.
    """
    kernel = _Kernel("proto_dash", features, gamma, num_prototypes, 0)
    chosen: list[int] = []
    columns: list[np.ndarray] = []
    weights, slope, discrepancy = np.zeros(0), kernel.mean.copy(), []
    while len(chosen) < num_prototypes:
        slope[chosen] = -np.inf
        best = int(np.argmax(slope))
        if slope[best] <= 1e-12:
            break
        chosen.append(best)
        columns.append(kernel.column(best))
        small = np.stack([column[chosen] for column in columns])
        root = cholesky(small + 1e-9 * np.eye(len(chosen)), lower=True)
        weights, _ = nnls(root.T, solve_triangular(root, kernel.mean[chosen], lower=True))
        slope = kernel.mean - weights @ np.stack(columns)
        gained = 2 * weights @ kernel.mean[chosen] - weights @ small @ weights
        discrepancy.append(kernel.whole - gained)
    none = np.zeros(0, int)
    return Prototypes(
        np.array(chosen), weights.astype(np.float32), none, np.array(discrepancy, np.float32)
    )


def _criticisms(kernel: "_Kernel", witness: np.ndarray, taken: list[int], count: int) -> np.ndarray:
    """Greedy: what a row adds to log det is the variance that the rows before leave of it."""
    left, factors, chosen = np.ones(len(witness)), [], []
    for _ in range(count):
        value = witness + np.log(np.maximum(left, 1e-12))
        value[[*taken, *chosen]] = -np.inf
        best = int(np.argmax(value))
        row = kernel.column(best)
        for factor in factors:
            row = row - factor[best] * factor
        row = row / np.sqrt(max(left[best], 1e-12))
        factors.append(row)
        left = left - row * row
        chosen.append(best)
    return np.array(chosen, int)


class _Kernel:
    """k of rows, by columns: its mean over all rows, and that over all pairs."""

    def __init__(self, who, features, gamma, num_prototypes: int, num_criticisms: int):
        rows = jnp.asarray(features)
        rows = rows.reshape(len(rows), -1).astype(jnp.float32)
        if num_prototypes + num_criticisms > len(rows):
            option = "num_prototypes" if num_prototypes > len(rows) else "num_criticisms"
            raise ValueError(
                f"{who}: {option} must be at most what {len(rows)} rows leave; got "
                f"{num_prototypes} prototypes and {num_criticisms} criticisms."
            )
        self._rows = rows - rows.mean(0, keepdims=True)
        spread = float(self._rows.var()) * rows.shape[1]
        self._gamma = jnp.float32(gamma if gamma is not None else 1 / max(spread, 1e-12))
        parts = [
            np.asarray(_columns(self._gamma, self._rows, self._rows[at : at + _AT_ONCE]).mean(0))
            for at in range(0, len(rows), _AT_ONCE)
        ]
        self.mean = np.concatenate(parts).astype(np.float64)
        self.whole = self.mean.mean()

    def column(self, index: int) -> np.ndarray:
        found = _columns(self._gamma, self._rows, self._rows[index : index + 1])
        return np.asarray(found[:, 0], np.float64)


@jax.jit
def _columns(gamma, rows, some):
    """`[N, S]`."""
    squares = lambda a: (a * a).sum(1)
    away = squares(rows)[:, None] + squares(some)[None] - 2 * rows @ some.T
    return jnp.exp(-gamma * jnp.maximum(away, 0))
