"""What `evaluate` leaves: scores, their means, the ranks of methods and how far metrics agree."""

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxviz.calls.shown import else_by, html_picture, html_table, shown, shown_html
from jaxviz.sweep.results import Sweep

_WIDTH = 100  # columns of a table
_MARKS = {"higher": "↑", "lower": "↓"}


class Evaluation(NamedTuple):
    """How M methods did by K metrics on N examples; shows itself as a table.

    A score that is NaN or infinite, or of a map that is not finite, is left out of its mean.

    Attributes:
      methods: M labels.
      metrics: K labels.
      better: K words, "higher" or "lower": which score is better.
      scores: float32 `[M, K, N]`; NaN where the map was not finite.
      mean: `[M, K]`, over the examples that have a score.
      standard_error: `[M, K]`, of the mean; NaN of one example.
      rank: `[M, K]`, of the mean among methods, 1 the best; equal ones share the mean of theirs;
        NaN where there is no mean.
      mean_rank: `[M]`, over the metrics in which a method has a rank.
      missing: `[M, K]`, how many scores of finite maps are NaN or infinite.
      skipped: `[M]`, how many maps were not finite.
      agreement: `[K, K]`, Kendall's tau-b of the order of methods by two metrics, better first: 1
        the same, -1 the reverse; NaN where one of them knows no order.
      concordance: `[K]`, Kendall's W, corrected for ties: how far the examples agree on the order
        of methods by a metric, 1 all, 0 not at all. Of examples that every method has a score of.
      curves: Metric -> float32 `[M, N, points]`, of the metrics that have one.
      about: What it was made with, as of `Sweep`.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    better: tuple[str, ...]
    scores: np.ndarray
    mean: np.ndarray
    standard_error: np.ndarray
    rank: np.ndarray
    mean_rank: np.ndarray
    missing: np.ndarray
    skipped: np.ndarray
    agreement: np.ndarray
    concordance: np.ndarray
    curves: dict[str, np.ndarray]
    about: dict[str, Any]

    def table(self) -> str:
        """Methods by mean rank, best first: mean, standard error and rank of each metric.

        At most 100 columns wide; more metrics than fit stand in further blocks. Under it what
        examples and metrics agree on, and what was left out.
        """
        order = self.best_first()
        names = [_cut(self.methods[m], 30) for m in order]
        first = ["method", *names]
        ranks = ["mean rank", *(f"{self.mean_rank[m]:.1f}" for m in order)]
        columns = []
        for k in range(len(self.metrics)):
            cells = [self._cell(m, k) for m in order]
            wide = max(map(len, cells))
            head = _stacked(f"{self.metrics[k]} {_MARKS[self.better[k]]}", max(wide, 12))
            columns.append([head, *cells])
        lines = [self._caption()]
        while columns:
            block = [[[c] if i == 0 else c for i, c in enumerate(col)] for col in (first, ranks)]
            while columns and (len(block) < 3 or _width([*block, columns[0]]) <= _WIDTH):
                block.append(columns.pop(0))
            lines += ["", *_laid_out(block)]
        return "\n".join([*lines, "", *self._notes()])

    def best_first(self) -> np.ndarray:
        """The methods by their mean rank, those without one last."""
        ranks = np.where(np.isnan(self.mean_rank), np.inf, self.mean_rank)
        return np.argsort(ranks, kind="stable")

    def _caption(self) -> str:
        return (
            f"{len(self.methods)} methods, {len(self.metrics)} metrics, "
            f"{self.scores.shape[2]} examples: mean ± standard error, rank; ↑ more is better"
        )

    def _cell(self, m: int, k: int) -> str:
        mean, error, rank = (a[m, k] for a in (self.mean, self.standard_error, self.rank))
        if np.isnan(mean):
            return "-"
        told = f"{mean:.3g}" + ("" if np.isnan(error) else f" ±{error:.1g}")
        return f"{told} {f'{rank:g}':>4}"

    def _notes(self) -> list[str]:
        known = zip(self.metrics, self.concordance, strict=True)
        pairs = [f"{n} {w:.2f}" for n, w in known if np.isfinite(w)]  # of one method there is none
        told = "Agreement of the examples on the order of methods (Kendall's W): "
        notes = [told + ", ".join(pairs)] if pairs else []
        above = np.triu_indices(len(self.metrics), 1)
        taus = self.agreement[above]
        if np.isfinite(taus).any():
            least, most = (int(pick(taus)) for pick in (np.nanargmin, np.nanargmax))
            pair = lambda i: f"{self.metrics[above[0][i]]} and {self.metrics[above[1][i]]}"
            notes.append(
                f"Agreement of the metrics (Kendall's tau-b): mean {np.nanmean(taus):.2f}; least "
                f"{taus[least]:.2f}, {pair(least)}; most {taus[most]:.2f}, {pair(most)}"
            )
        alike = (self.missing == self.missing[:1]).all(0) & (len(self.methods) > 1)
        lost = [
            f"{self.metrics[k]} of {'every method' if alike[k] else self.methods[m]} {count}"
            for (m, k), count in np.ndenumerate(self.missing)
            if count and (m == 0 or not alike[k])
        ]
        if lost:
            notes.append("No finite score: " + ", ".join(lost))
        if self.skipped.any():
            bad = zip(self.methods, self.skipped, strict=True)
            notes.append("Maps not finite, skipped: " + ", ".join(f"{n} {c}" for n, c in bad if c))
        return [line for note in notes for line in _wrapped(note)]

    def figure(self, metric: str | None = None) -> Any:
        """The ranks as a heat map; of a metric with curves its curves. A matplotlib Figure."""
        from jaxviz import plot  # matplotlib takes its time to import

        if metric is None:
            return plot.ranks(self.rank, self.methods, self.metrics, means=self.mean)
        if metric not in self.curves:
            raise ValueError(
                f"figure: metric must be one with curves; got {metric!r}. There are: "
                f"{', '.join(self.curves) or 'none'}."
            )
        drawn = dict(zip(self.methods, self.curves[metric], strict=True))
        return plot.curves(drawn, title=metric)

    @else_by(shown)
    def __repr__(self) -> str:
        return self.table()

    @else_by(shown_html)
    def _repr_html_(self) -> str:
        heads = [f"{k} {_MARKS[b]}" for k, b in zip(self.metrics, self.better, strict=True)]
        rows = [
            (
                self.methods[m],
                f"{self.mean_rank[m]:.1f}",
                *(self._cell(m, k) for k in range(len(heads))),
            )
            for m in self.best_first()
        ]
        text = html_table(
            self._caption(), ["method", "mean rank", *heads], rows, more=" ".join(self._notes())
        )
        return text + html_picture(self.figure(), "ranks")


def collected(swept: Sweep, methods: tuple[str, ...], better: Mapping[str, str]) -> Evaluation:
    """The `Evaluation` of what was kept, by method and metric."""
    metrics = tuple(better)
    read = lambda *words: np.asarray(swept.maps[".".join(words)])
    finite = np.stack([read(m, "finite") for m in methods])
    scores = np.stack([[read(m, "of", k, "score") for k in metrics] for m in methods])
    scores = np.where(finite[:, None], scores, np.float32(np.nan))
    curves = {
        k: np.stack([read(m, "of", k, "curve") for m in methods])
        for k in metrics
        if all(f"{m}.of.{k}.curve" in swept.maps for m in methods)
    }
    return judged(methods, metrics, tuple(better.values()), scores, finite, curves, swept.about)


def judged(methods, metrics, better, scores, finite, curves, about) -> Evaluation:
    """Means, ranks and agreement of scores `[M, K, N]`."""
    signs = np.array([1.0 if word == "lower" else -1.0 for word in better])
    there = np.isfinite(scores)
    count = there.sum(-1)
    wide = np.where(there, scores, 0).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = wide.sum(-1) / np.where(count, count, np.nan)
        away = np.where(there, wide - mean[..., None], 0)
        variance = (away**2).sum(-1) / np.where(count > 1, count - 1, np.nan)
        error = np.sqrt(variance / count)
    rank = _ranks(mean * signs, 0)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(rank)
        total = np.where(known, rank, 0).sum(1)
        mean_rank = total / np.where(known.any(1), known.sum(1), np.nan)
    return Evaluation(
        methods=methods,
        metrics=metrics,
        better=better,
        scores=scores,
        mean=mean,
        standard_error=error,
        rank=rank,
        mean_rank=mean_rank,
        missing=(~there & finite[:, None]).sum(-1),
        skipped=(~finite).sum(-1),
        agreement=_taus(rank),
        concordance=np.array(
            [
                _concordance(s.T * sign)
                for s, sign in zip(scores.swapaxes(0, 1).astype(np.float64), signs, strict=True)
            ]
        ),
        curves=curves,
        about=about,
    )


def _ranks(values: np.ndarray, axis: int) -> np.ndarray:
    """Ranks along an axis, 1 the least; equal ones share the mean of theirs, NaN has none."""
    from scipy.stats import rankdata  # takes its time to import

    return rankdata(values, axis=axis, nan_policy="omit")


def _taus(rank: np.ndarray) -> np.ndarray:
    """Kendall's tau-b `[K, K]` of ranks `[M, K]`, of the methods that have both."""
    order = np.sign(rank[:, None] - rank[None])  # [M, M, K]; NaN where one has no rank
    out = np.full((rank.shape[1],) * 2, np.nan)
    for i, j in np.ndindex(*out.shape):
        both = np.isfinite(order[..., i]) & np.isfinite(order[..., j])
        a, b = order[..., i][both], order[..., j][both]
        if (norm := np.sqrt((a**2).sum() * (b**2).sum())) > 0:
            out[i, j] = (a * b).sum() / norm
    return out


def _concordance(scores: np.ndarray) -> float:
    """Kendall's W of N judges' scores of M things, `[N, M]`; NaN where all are equal, or none."""
    scores = scores[np.isfinite(scores).all(1)]
    judges, things = scores.shape
    if not judges or things < 2:
        return float("nan")
    ranks = _ranks(scores, 1)
    equal = np.stack([(scores == column[:, None]).sum(1) for column in scores.T], 1)
    ties = (equal.astype(np.float64) ** 2 - 1).sum()  # sum over groups of t^3 - t
    spread = ((ranks.sum(0) - judges * (things + 1) / 2) ** 2).sum()
    norm = judges**2 * (things**3 - things) - judges * ties
    return float(12 * spread / norm) if norm > 0 else float("nan")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _stacked(name: str, wide: int) -> list[str]:
    """A heading in lines of at most `wide`, broken behind underscores and blanks."""
    lines = [""]
    for word in name.replace("_", "_ ").split(" "):
        glue = "" if lines[-1].endswith("_") or not lines[-1] else " "
        if len(lines[-1]) + len(glue) + len(word) > wide and lines[-1]:
            lines.append(word)
        else:
            lines[-1] += glue + word
    return [_cut(line, wide) for line in lines]


def _width(block: list) -> int:
    widths = [max(map(len, [*column[0], *column[1:]])) for column in block]
    return sum(widths) + 2 * (len(block) - 1)


def _laid_out(block: list) -> list[str]:
    height = max(len(column[0]) for column in block)
    columns = [[*[""] * (height - len(c[0])), *c[0], *c[1:]] for c in block]
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
