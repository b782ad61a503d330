"""What scores of training examples are worth: by what they predict of other training runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxviz.calls.arrays import numbers_list, rows
from jaxviz.calls.options import described, real, refused, several, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import same_when_batched
from jaxviz.influence.retraining import retrained
from jaxviz.influence.steps import Steps, checked

_SHARE = real(0, 1, above=True, below=True)
_SCORES = rows(2, "[K, N], test quantities by training examples")
_COUNTS = several(whole(1), "whole numbers, at least 1, such as (5, 10, 20)")


class SubsetRuns(NamedTuple):
    """Training runs that learned from some of the examples only.

    Attributes:
      kept: bool `[M, N]`: which training examples each run learned from.
      values: `[M, K]`: the test quantities that each run ended with.
      whole: `[K]`: those of the run with all examples.
    """

    kept: np.ndarray
    values: np.ndarray
    whole: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


class LeaveSomeOut(NamedTuple):
    """What leaving examples out was said to change, and what it changed.

    Attributes:
      predicted: `[M, K]`: minus the sum of the scores of what each run left out.
      actual: `[M, K]`: the test quantity without them, less that with all.
      explained: `[K]`: share of the actual changes' sum of squares that the predictions explain,
        `1 - sum((actual - predicted)^2) / sum(actual^2)`; 1 is perfect, 0 as good as predicting no
        change, NaN where nothing changed.
    """

    predicted: np.ndarray
    actual: np.ndarray
    explained: np.ndarray

    __repr__ = shown
    _repr_html_ = shown_html


class Detection(NamedTuple):
    """How well a ranking finds marked examples.

    Attributes:
      recall: `[N]`: share of the marked examples among the first 1, 2, ..., N.
      precision: `[N]`: share of the first 1, 2, ..., N that are marked.
      average_precision: Mean of the precision at each marked example: 1 where all come first.
    """

    recall: np.ndarray
    precision: np.ndarray
    average_precision: float

    __repr__ = shown
    _repr_html_ = shown_html


class Judged(NamedTuple):
    """What `judged` found of each method, by its name.

    Attributes:
      lds: Linear datamodeling score of each test quantity, `[K]`.
      removal: Change of each test quantity without its most helpful examples, `[K, C]`.
      counts: How many of them, `[C]`.
      detection: How well the method's suspicion finds the flipped labels.
      runs: The runs on random subsets.
    """

    lds: dict[str, np.ndarray]
    removal: dict[str, np.ndarray]
    counts: np.ndarray
    detection: dict[str, Detection]
    runs: SubsetRuns

    __repr__ = shown
    _repr_html_ = shown_html


@public(share=_SHARE, num_runs=whole(1))
def subset_runs(
    steps: Steps,
    test_fn: Callable[[Any], Any],
    *,
    key: jax.Array,
    num_runs: int = 64,
    share: float = 0.5,
    chunk_size: int | None = None,
) -> SubsetRuns:
    """Trains on random subsets of the examples, all at once: the truth that scores are judged by.

    Each run has the same start, order and draws; the examples outside of its subset have the
    weight 0 (`retrained` says what that means).

    Args:
      steps: The training run, such as `training.fit_steps` or `weighted_steps` makes.
      test_fn: Pure `state -> [K]`, the test quantities.
      key: PRNG key: the subsets come from it.
      num_runs: M, at least 1. Costs M + 1 training runs.
      share: Of the examples that each run learns from, between 0 and 1: `round(share * N)` of them.
      chunk_size: As for `retrained`.

    Returns:
      Which examples each run kept, its test quantities, and those of the run with all.

    Raises:
      ValueError: `test_fn` gives no `[K]`, or `share` leaves all or none of the examples.

    Example:
      >>> import optax
      >>> from jaxviz.influence import weighted_steps
      >>> loss = lambda w, batch: (batch - w) ** 2 / 2
      >>> steps = weighted_steps(loss, 0.0, np.arange(4, dtype=np.float32), [[0, 1, 2, 3]],
      ...                        optimizer=optax.sgd(1.0))
      >>> runs = subset_runs(steps, lambda state: state.params[None], key=jax.random.key(0),
      ...                    num_runs=3)
      >>> runs.kept.sum(1).tolist(), runs.whole.tolist()
      ([2, 2, 2], [1.5])
    """
    steps = checked("subset_runs", steps)
    num_examples = len(jax.tree.leaves(steps.data)[0])
    size = round(share * num_examples)
    if not 0 < size < num_examples:
        raise ValueError(
            f"subset_runs: share must keep some of the {num_examples} examples and leave some out; "
            f"{share} keeps {size}. Choose another, or give more examples."
        )
    draw = lambda key: jax.random.permutation(key, num_examples)
    keys = jax.random.split(same_when_batched(key), num_runs)
    ranks = np.asarray(jax.vmap(draw)(keys))
    kept = ranks < size
    weights = np.concatenate([np.ones((1, num_examples), bool), kept]).astype(np.float32)
    values = _values("subset_runs", steps, test_fn, weights, chunk_size)
    return SubsetRuns(kept, values[1:], values[0])


@public(scores=_SCORES)
def datamodeling_score(scores: Any, runs: SubsetRuns) -> np.ndarray:
    """The linear datamodeling score (LDS) of each test quantity: higher is better, at most 1.

    Spearman's correlation, over runs on random subsets, of what the scores predict (the sum of the
    kept examples' scores) and of what each run ended with.

    Args:
      scores: `[K, N]`: how much each training example raises each test quantity, of any method and
        in any unit.
      runs: From `subset_runs`, with the same K test quantities.

    Returns:
      `[K]`, -1 to 1. NaN where all predictions or all outcomes are equal, or one is not finite.
      With M runs a score that says nothing has about 0 ± 1 / sqrt(M - 1).

    Raises:
      ValueError: `scores` that are not `[K, N]` of the runs.

    Example:
      >>> runs = SubsetRuns(np.eye(3, dtype=bool), np.array([[1.0], [2.0], [4.0]]), np.zeros(1))
      >>> datamodeling_score([[0.1, 0.3, 0.2]], runs).tolist()
      [0.5]

    Reference:
      Park et al. 2023, arXiv:2303.14186, definition 2.4 (TRAK): halves, models averaged over
      seeds; here each subset is one run, and its order and draws are those of the whole run.
    """
    scores = _fitting("datamodeling_score", scores, runs)
    predicted = runs.kept.astype(np.float64) @ scores.T
    return np.array([_spearman(*pair) for pair in zip(predicted.T, runs.values.T, strict=True)])


@public(scores=_SCORES)
def leave_some_out(scores: Any, runs: SubsetRuns) -> LeaveSomeOut:
    """What leaving examples out was said to change, beside what it changed.

    Unlike ranks, this asks for the size of the change: of scores in the test quantities' units, as
    `magic` and influence functions have them. To first order it holds for few examples: take runs
    with a `share` near 1.

    Args:
      scores: `[K, N]`, in units of the test quantities.
      runs: From `subset_runs`, with the same K test quantities.

    Returns:
      Predicted and actual changes `[M, K]`, and the share of them that is explained.

    Raises:
      ValueError: `scores` that are not `[K, N]` of the runs.

    Example:
      >>> kept = np.array([[True, False], [False, True]])
      >>> runs = SubsetRuns(kept, np.array([[2.0], [4.0]]), np.array([5.0]))
      >>> found = leave_some_out([[1.0, 3.0]], runs)
      >>> found.predicted.tolist(), found.actual.tolist(), found.explained.tolist()
      ([[-3.0], [-1.0]], [[-3.0], [-1.0]], [1.0])
    """
    scores = _fitting("leave_some_out", scores, runs)
    predicted = -(~runs.kept).astype(np.float64) @ scores.T
    actual = np.asarray(runs.values, np.float64) - runs.whole
    total = (actual**2).sum(0)
    rest = ((actual - predicted) ** 2).sum(0)
    return LeaveSomeOut(predicted, actual, 1 - rest / np.where(total > 0, total, np.nan))


@public(scores=_SCORES, counts=_COUNTS)
def removal_curves(
    scores: Any,
    steps: Steps,
    test_fn: Callable[[Any], Any],
    *,
    counts: Sequence[int],
    chunk_size: int | None = None,
) -> np.ndarray:
    """What training without the most helpful examples of each test quantity does to it.

    The lower below 0, the better the scores found what the quantity stands on.

    Args:
      scores: `[K, N]`: how much each training example raises each test quantity.
      steps: The training run, such as `training.fit_steps` or `weighted_steps` makes.
      test_fn: Pure `state -> [K]`, the test quantities.
      counts: How many examples are left out, less than N each: C numbers.
      chunk_size: As for `retrained`.

    Returns:
      `[K, C]`: the quantity without its `counts[c]` most helpful examples, less that with all.
      Costs K * C + 1 training runs.

    Raises:
      ValueError: `scores` that are not `[K, N]`, or counts of N and more.

    Example:
      >>> import optax
      >>> from jaxviz.influence import weighted_steps
      >>> loss = lambda w, batch: (batch - w) ** 2 / 2
      >>> steps = weighted_steps(loss, 0.0, np.arange(4, dtype=np.float32), [[0, 1, 2, 3]],
      ...                        optimizer=optax.sgd(1.0))
      >>> removal_curves([[0, 1, 2, 3]], steps, lambda state: state.params[None],
      ...                counts=(1, 2)).tolist()
      [[-0.75, -1.25]]
    """
    steps = checked("removal_curves", steps)
    scores = np.asarray(scores, np.float64)
    num_examples = len(jax.tree.leaves(steps.data)[0])
    if scores.ndim != 2 or scores.shape[1] != num_examples:
        raise ValueError(
            f"removal_curves: scores must be [K, {num_examples}], a column for each training "
            f"example; got {scores.shape}. Give those of the same steps."
        )
    if max(counts) >= num_examples:
        raise ValueError(
            f"removal_curves: counts must be less than the {num_examples} examples; got "
            f"{max(counts)}. Keep some."
        )
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    kept = ranks[:, None] >= np.asarray(counts)[None, :, None]
    weights = np.concatenate([np.ones((1, num_examples)), kept.reshape(-1, num_examples)])
    weights = weights.astype(np.float32)
    values = _values("removal_curves", steps, test_fn, weights, chunk_size)
    if values.shape[1] != len(scores):
        raise ValueError(
            f"removal_curves: scores must have a row for each of the {values.shape[1]} test "
            f"quantities; got {scores.shape}. Give those of the same test_fn."
        )
    each = np.arange(len(scores))
    ends = values[1:].reshape(len(scores), len(counts), -1)[each, :, each]
    return ends - values[0][:, None]


@public(suspicion=rows(1, "[N], one number a training example"), flipped=numbers_list)
def mislabelled(suspicion: Any, flipped: Any) -> Detection:
    """How well a number for each training example finds those whose label is wrong.

    Self-influence is the usual suspicion: an example that raises its own log probability most is
    one that nothing else speaks for. It is the diagonal of the training examples' scores for
    themselves, `-loss` of example n by the weight of example n.

    Args:
      suspicion: `[N]`, higher is more suspicious. Equal ones count as found in their order.
      flipped: bool `[N]`: which labels are wrong, some of them and not all.

    Returns:
      Precision and recall along the ranking, and the average precision, which of a ranking by
      chance is about the share of flipped labels.

    Raises:
      ValueError: Lengths that differ, or no example of either kind.

    Example:
      >>> found = mislabelled([0.1, 0.9, 0.5, 0.2], [False, True, False, True])
      >>> found.recall.tolist(), round(found.average_precision, 3)
      ([0.5, 0.5, 1.0, 1.0], 0.833)
    """
    suspicion, flipped = np.asarray(suspicion, np.float64), np.asarray(flipped)
    if suspicion.ndim != 1 or flipped.shape != suspicion.shape or flipped.dtype != bool:
        raise ValueError(
            f"mislabelled: flipped must be True or False for each number of suspicion, [N]; got "
            f"{described(flipped)}, suspicion {suspicion.shape}. `labels != true_labels` makes it."
        )
    if flipped.all() or not flipped.any():
        raise ValueError(
            "mislabelled: flipped must be True of some examples and not of all; it is of "
            f"{int(flipped.sum())} of {len(flipped)}. There is nothing to find otherwise."
        )
    found = flipped[np.argsort(-suspicion, kind="stable")]
    hits = np.cumsum(found)
    precision = hits / np.arange(1, len(found) + 1)
    return Detection(hits / hits[-1], precision, float(precision[found].mean()))


def _suspicions(who, option, value):
    if not isinstance(value, Mapping):
        raise refused(who, option, 'a dictionary, such as {"magic": [0.1, 0.5]}', value)
    return {name: rows(1, "[N] for each name")(who, option, v) for name, v in value.items()}


def _methods(who, option, value):
    if not isinstance(value, Mapping) or not value:
        raise refused(who, option, 'a dictionary, such as {"magic": scores [K, N]}', value)
    return {str(name): _SCORES(who, option, v) for name, v in value.items()}


@public(
    methods=_methods,
    counts=several(whole(1), "whole numbers, at least 1, such as (5, 10, 20)", least=0),
    share=_SHARE,
    num_runs=whole(1),
    suspicions=lambda who, option, v: None if v is None else _suspicions(who, option, v),
)
def judged(
    methods: Mapping[str, Any],
    steps: Steps,
    test_fn: Callable[[Any], Any],
    *,
    key: jax.Array,
    num_runs: int = 64,
    share: float = 0.5,
    counts: Sequence[int] = (),
    suspicions: Mapping[str, Any] | None = None,
    flipped: Any = None,
    chunk_size: int | None = None,
) -> Judged:
    """Judges any methods' scores by what they predict of the same runs on other examples.

    Args:
      methods: Name -> scores `[K, N]`: how much each training example raises each test quantity.
      steps: The training run, such as `training.fit_steps` or `weighted_steps` makes.
      test_fn: Pure `state -> [K]`, the test quantities, such as minus the test losses.
      key: PRNG key: the subsets come from it.
      num_runs: Runs on random subsets, as for `subset_runs`; all methods share them.
      share: As for `subset_runs`.
      counts: As for `removal_curves`, for each method; () draws none.
      suspicions: Name -> `[N]`, as for `mislabelled`; with `flipped`.
      flipped: bool `[N]`, as for `mislabelled`; with `suspicions`.
      chunk_size: As for `retrained`.

    Returns:
      LDS, removal curves and detection by the methods' names, for `plot.data_attribution`. Costs
      `num_runs + 1` training runs, and `K * len(counts) + 1` for each method.

    Raises:
      ValueError: As for the functions of each part, or `flipped` without `suspicions`.

    Example:
      >>> import optax
      >>> from jaxviz.influence import weighted_steps
      >>> loss = lambda w, batch: (batch - w) ** 2 / 2
      >>> steps = weighted_steps(loss, 0.0, np.arange(4, dtype=np.float32), [[0, 1, 2, 3]],
      ...                        optimizer=optax.sgd(1.0))
      >>> found = judged({"value": [[0, 1, 2, 3]]}, steps, lambda state: state.params[None],
      ...                key=jax.random.key(0), num_runs=5)
      >>> found.lds["value"].round(6).tolist()
      [1.0]
    """
    if (suspicions is None) != (flipped is None):
        raise ValueError(
            "judged: suspicions and flipped must be given together; got one. Leave both out, or "
            "say which labels are wrong."
        )
    options = {"share": share, "num_runs": num_runs, "chunk_size": chunk_size}
    runs = subset_runs(steps, test_fn, key=key, **options)
    lds = {name: datamodeling_score(scores, runs) for name, scores in methods.items()}
    removal = {}
    if counts:
        again = {"counts": counts, "chunk_size": chunk_size}
        removal = {n: removal_curves(s, steps, test_fn, **again) for n, s in methods.items()}
    detection = {n: mislabelled(s, flipped) for n, s in (suspicions or {}).items()}
    return Judged(lds, removal, np.asarray(counts, np.int64), detection, runs)


def _values(who, steps, test_fn, weights, chunk_size):
    values = np.asarray(retrained(steps, test_fn, weights, chunk_size=chunk_size))
    if values.ndim != 2:
        raise ValueError(
            f"{who}: test_fn must return the test quantities, [K]; it returned shape "
            f"{values.shape[1:]}. One quantity is value[None]."
        )
    return values


def _fitting(who, scores, runs):
    scores = np.asarray(scores, np.float64)
    wanted = (runs.values.shape[1], runs.kept.shape[1])
    if scores.shape != wanted:
        raise ValueError(
            f"{who}: scores must be [{wanted[0]}, {wanted[1]}], test quantities by training "
            f"examples of the runs; got {scores.shape}. Give those of the same steps and test_fn."
        )
    return scores


def _spearman(a, b):
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.nan
    from scipy.stats import rankdata  # takes its time to import

    a, b = (rankdata(v) - (len(v) + 1) / 2 for v in (a, b))
    spread = np.sqrt((a @ a) * (b @ b))
    return a @ b / spread if spread > 0 else np.nan
