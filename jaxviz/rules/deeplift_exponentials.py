"""DeepLIFT through quotients and logarithms of sums of exponentials, however they are spelled.

A softmax behind a mask, over the segments of a graph, with a sink or a number in its denominator,
divided after it weighed something. Exponents are taken as they are before a maximum was taken off,
so that it has no share, and exponentials in a frame that both ends have in common, where none is
above 1. There e changes by its logarithmic mean times the change of the exponent, less than 1 in
all, and y = a / b by the product y b = a: complete at any distance.

Where each exponential is divided by the sum of its own row, the numbers are those of `softmax`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxviz.graph.quotients import BESIDE, OWN, RESTORED, SHIFTED
from jaxviz.graph.rewrite import Op
from jaxviz.rules.deeplift_origins import MOVING
from jaxviz.rules.deeplift_softmax import less_the_mean, log_mean
from jaxviz.rules.differences import along, column, divided, finite, gap, halfway, shrink, wide

_CLIPPING = frozenset({"max", "min", "clamp"})
_ADDING = frozenset("add sub concatenate dynamic_update_slice pad select_n scatter-add".split())


class _Exponential(NamedTuple):
    """One kind of exponentials: e' as the net has it, and log e without the maximum."""

    here: jax.Array  # log e' at the input, at the baseline
    there: jax.Array
    run: jax.Array  # of log e from baseline to input
    carried: jax.Array
    shift: jax.Array  # how much more was taken off at the input, and what that carries
    shift_carried: jax.Array

    def frame(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """e at both ends in their common frame, and the logarithmic mean of both."""
        e = jnp.exp(self.here + jnp.minimum(self.shift, 0))
        e0 = jnp.exp(self.there - jnp.maximum(self.shift, 0))
        return e, e0, jnp.maximum(e, e0) * shrink(self.run)


class Sums:
    """What a group makes of its exponentials: a top and a bottom, linear in them."""

    def __init__(self, op: Op):
        self.op = op
        self.first = len(op.inputs)
        members = list(enumerate(op.members, self.first))
        self.places = {i: m for i, (m, _) in members if m.primitive in ("exp", "exp2")}
        self.shifted = any(m.kind == SHIFTED for m, _ in op.members)
        made, turned = set(self.places), set[int]()
        self.adds = self.clips = logged = False
        for i, (m, reads) in members[:-1]:
            if made.isdisjoint(reads):
                continue
            made.add(i)
            given = [isinstance(o, int) and reads[o] in made for o in m.operands]
            reciprocal = m.options.get("y") == -1 or (m.primitive == "div" and not given[0])
            if reciprocal or not turned.isdisjoint(reads):
                turned.add(i)
            logged |= m.primitive == "log"
            self.adds |= m.primitive in _ADDING and not logged and not all(given)
            self.clips |= m.primitive in _CLIPPING
        end, reads = op.members[-1]
        self.how = end.primitive
        one, other = (reads[o] for o in end.operands if isinstance(o, int))
        if self.how == "mul":
            below = one in turned
        else:
            below = self.how in ("add", "sub") and one in made and (other not in made)
        self.top, self.bottom = (other, one) if below else (one, other)
        self.sign = -1 if below and self.how == "sub" else 1  # a log-sum-exp less one of its own

    def row(self) -> tuple[int, int, int]:
        """The exponential that is divided, the value that is, and what of it is summed."""
        members = list(enumerate(self.op.members, self.first))
        if self.how == "sub":
            marked = [i for i, m in self.places.items() if m.kind == OWN]
            (own,) = marked or (i for i in self.places if self.exponent(i) == self.top)
            top = own
        else:
            top = self.top
            before = {top}
            for i, (_, reads) in reversed(members):
                if i in before and i not in self.places:
                    before.update(reads)
            (own,) = before.intersection(self.places)
        after = {top}
        for i, (m, reads) in members:
            found = [r for r in reads if r in after]
            if found and m.primitive in ("reduce_sum", "scatter-add"):
                return own, top, found[0]
            if found:
                after.add(i)
        return own, top, top

    def values(
        self,
        inputs: Sequence[jax.Array],
        fixed: Mapping[int, jax.Array],
        bare: bool = False,
        restored: bool = True,
    ) -> list[jax.Array]:
        """All values of the group, some `fixed`.

        Where `bare` no maximum is taken off, unless `restored` none is added back.
        """
        values = list(inputs)
        for i, (m, reads) in enumerate(self.op.members, self.first):
            given = [values[r] for r in reads]
            if bare and m.kind == SHIFTED:
                less = m.operands[-1]
                given[less] = jnp.zeros_like(given[less])  # type: ignore[index]
            if m.kind == RESTORED and not restored:
                more = next(k for k, r in enumerate(reads) if r < self.first)
                given[more] = jnp.zeros_like(given[more])
            values.append(fixed[i] if i in fixed else m.evaluate(*given))
        return values

    def exponentials(self, inputs: Sequence[Any]) -> dict[int, _Exponential]:
        reads = {i: self.exponent(i) for i in self.places}
        unit = {i: math.log(2) if m.primitive == "exp2" else 1 for i, m in self.places.items()}

        def exponents(bare, inputs):
            values = self.values(inputs, {}, bare)
            return [wide(values[reads[i]]) * unit[i] for i in self.places]

        ends = [column(inputs, k) for k in (0, 1)]
        (here, there), (one, other) = (
            [exponents(bare, end) for end in ends] for bare in (False, True)
        )
        carried = along(lambda *a: exponents(True, a), inputs, ends[0])[1]
        less = {r[m.operands[-1]] for m, r in self.op.members if m.kind == SHIFTED}  # type: ignore[index]
        tops = [v if i in less else column([v], 0)[0] for i, v in enumerate(inputs)]
        runs = [
            (*v[:2], gap(*v[:2]).astype(v[0].dtype)) if isinstance(v, tuple) else v for v in tops
        ]
        shift, shift_carried = (
            along(lambda *a: exponents(False, a), given, ends[0])[1] for given in (runs, tops)
        )
        rows = zip(here, there, one, other, carried, shift, shift_carried, strict=True)
        return {
            i: _Exponential(h, t, finite(gap(a, b)), finite(c), -s, -sc)
            for i, (h, t, a, b, c, s, sc) in zip(self.places, rows, strict=True)
        }

    def lowered(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """The inputs, more taken off where an exponent is above 0, of a sink in no maximum.

        What is taken off cancels, so it may be any number; not where constants are added after it.
        """
        less = {r[m.operands[-1]] for m, r in self.op.members if m.kind == SHIFTED}  # type: ignore[index]
        if not less or self.adds or self.clips or max(less) >= self.first:
            return inputs
        shapes = [self.op.inputs[v].shape for v in less]
        lowered = [list(inputs[v]) if isinstance(inputs[v], tuple) else None for v in less]
        if None in lowered:
            return inputs
        for k in (0, 1):
            values = self.values(column(inputs, k), {})
            over = [values[self.exponent(i)] for i in self.places]
            over = [a for a in over if all(_fits(a.shape, shape) for shape in shapes)]
            for a in over[1:]:
                over[0] = jnp.maximum(over[0], a)
            for shape, bundle in zip(shapes, lowered, strict=True):
                if over:
                    more = jnp.broadcast_to(jnp.maximum(over[0], 0), shape)
                    bundle[k] = bundle[k] + more.astype(bundle[k].dtype)  # type: ignore[index]
        told = {v: tuple(b) for v, b in zip(less, lowered, strict=True)}  # type: ignore[arg-type]
        return [told.get(i, v) for i, v in enumerate(inputs)]

    def exponent(self, i: int) -> int:
        """Where an exponential reads its exponent."""
        return self.op.members[i - self.first][1][0]

    def relative(self, inputs: Sequence[jax.Array], tangents: Sequence[Any]) -> tuple[dict, dict]:
        """Each exponent without and with the maximum; and relative tangents of the latter."""
        along = [i for i, t in enumerate(tangents) if t is not None]

        def bare(*some):
            given = dict(zip(along, some, strict=True))
            values = self.values([given.get(i, a) for i, a in enumerate(inputs)], {}, True)
            return {i: wide(values[self.exponent(i)]) for i in self.places}

        values, at = self.values(inputs, {}), [inputs[i] for i in along]
        here = {i: wide(values[self.exponent(i)]) for i in self.places}
        whole, moved = jax.jvp(bare, at, [tangents[i] for i in along])
        _, scales = jax.jvp(bare, at, list(map(jnp.ones_like, at)))
        exponents = {i: (here[i], whole[i]) for i in self.places}
        return exponents, {i: divided(moved[i], scales[i]) for i in self.places}

    def ends(self, inputs: Sequence[jax.Array], given: Mapping[int, jax.Array]) -> tuple:
        """The top and the bottom as sums, of such exponentials."""
        made = lambda i: self.op.members[i - self.first][0].outputs[0]
        fixed = {i: a.astype(made(i).dtype) for i, a in given.items()}
        values = self.values(inputs, fixed, restored=False)
        turn = {"mul": lambda a: 1 / a, "sub": jnp.exp, "add": jnp.exp, "div": lambda a: a}
        return wide(values[self.top]), turn[self.how](wide(values[self.bottom]))


def in_sums(op: Op) -> Callable:
    """A quotient of sums of exponentials, or the logarithm of one."""
    sums = Sums(op)
    order, count = list(sums.places), len(sums.places)

    def replaced(*inputs):
        of = lambda *a: sums.ends(a[count:], dict(zip(order, a[:count], strict=True)))
        here, there = (sums.values(column(inputs, k), {})[-1] for k in (0, 1))
        inputs = sums.lowered(inputs)
        known = list(sums.exponentials(inputs).values())
        frames = [e.frame() for e in known]
        bundles = [
            *((e, e0, mean * k.carried) for (e, e0, mean), k in zip(frames, known, strict=True)),
            *inputs,
        ]
        middle, carried = along(of, bundles, halfway(bundles))
        bottoms = [of(*column(bundles, k))[1] for k in (0, 1)]
        shift = jnp.zeros_like(bottoms[0])
        if sums.shifted:
            own = [jnp.exp(k.here) for k in known], [jnp.exp(k.there) for k in known]
            mean = lambda name: _mean_over(of, own[0], [getattr(k, name) for k in known], inputs)
            shift = mean("shift")
            if sums.adds or sums.clips:
                # What is added to e' is less beside e the more was taken off.
                scales = jnp.exp(jnp.minimum(shift, 0)), jnp.exp(-jnp.maximum(shift, 0))
                by = shrink(shift) * mean("shift_carried")
                added = _added(of, own[0], column(inputs, 0), sums.clips)
                part = lambda a, c, scale: a + jnp.where(c == 0, 0, c * scale)
                half = scales[0] / 2 + scales[1] / 2 - 1
                middle = [part(a, c, half) for a, c in zip(middle, added, strict=True)]
                carried = [part(a, c, by) for a, c in zip(carried, added, strict=True)]
                bottoms = [part(a, added[1], s - 1) for a, s in zip(bottoms, scales, strict=True)]
        if sums.how in ("div", "mul"):
            y, y0 = wide(here), wide(there)
            moved = (carried[0] - carried[1] * (y / 2 + y0 / 2)) / middle[1]
        else:
            own = [[jnp.exp(getattr(k, end)) for k in known] for end in ("here", "there")]
            logs = [jnp.log(of(*e, *column(inputs, k))[1]) for k, e in enumerate(own)]
            mean = jnp.maximum(*bottoms) * shrink(finite(gap(*logs)) + shift)
            moved = -carried[1] / mean
            if sums.how == "add":
                moved = -moved
            else:
                moved = sums.sign * (known[0].carried + moved)
        return here, there, finite(moved).astype(here.dtype)

    return replaced


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array is broadcast to a shape without moving its axes."""
    alike = len(shape) == len(whole)
    return alike and all(n in (1, m) for n, m in zip(shape, whole, strict=True))


def _mean_over(of: Callable, e: Sequence[jax.Array], a: Sequence[jax.Array], inputs: Any):
    """The mean of a over the exponentials of each sum, weighed by them."""
    rest = column(inputs, 0)
    total = lambda *e: of(*e, *rest)[1]
    tangents = [e, [jnp.where(e == 0, 0, e * a) for e, a in zip(e, a, strict=True)]]
    whole, part = (jax.jvp(total, tuple(e), tuple(t))[1] for t in tangents)
    return divided(part, whole)


def _added(of: Callable, e: Sequence[jax.Array], rest: Sequence[jax.Array], clips: bool):
    """What of the top and the bottom is no exponential."""
    if not clips:
        return of(*map(jnp.zeros_like, e), *rest)
    sums = lambda *e: of(*e, *rest)
    whole, linear = jax.jvp(sums, tuple(e), tuple(e))
    return [a - b for a, b in zip(whole, linear, strict=True)]


def in_rows(op: Op) -> Callable:
    """e / (sum of its row + what else there is), or the logarithm of that, as in `softmax`."""
    sums = Sums(op)
    own, top, summed = sums.row()
    order = list(sums.places)
    others = [i for i in order if i != own]
    kinds = {i: m.kind for i, (m, _) in enumerate(op.members, sums.first)}
    beside = [i for i in others if kinds[i] == BESIDE]
    axes = [
        m.options["axes"]
        for m, reads in op.members
        if m.primitive == "reduce_sum" and reads[0] == own
    ]
    bare = bool(axes) and not others and not sums.shifted  # may be beyond what a float holds
    dtype = op.members[top - sums.first][0].outputs[0].dtype

    def replaced(*inputs):
        here, there = (sums.values(column(inputs, k), {})[-1] for k in (0, 1))
        inputs = sums.lowered(inputs)
        ends = [column(inputs, k) for k in (0, 1)]
        known = sums.exponentials(inputs)
        e, shift = known[own], known[own].shift
        left = [{i: jnp.exp(getattr(known[i], end)) for i in others} for end in ("here", "there")]

        def bottom(value, k, left):
            return sums.ends(ends[k], {top: value, **left})[1]

        def derivative(at):  # of what is at a place, or of what is made of the numerator
            given = ones if at == top else left[0][at]
            rest = left[0] if at == top else {i: a for i, a in left[0].items() if i != at}
            of = lambda v: bottom(v, 0, rest) if at == top else bottom(ones, 0, {**rest, at: v})
            return jax.vjp(of, given)[1], lambda a: jax.jvp(of, (given,), (a,))[1]

        ones = jnp.ones(e.here.shape, wide(jnp.zeros((), dtype)).dtype)
        none = jnp.zeros_like(ones)
        total = derivative(top)[1]
        weight = wide(sums.values(ends[0], {own: ones.astype(dtype)})[top])  # of the numerator
        in_sum = lambda t: wide(sums.values(ends[0], {top: t.astype(dtype)})[summed])
        counted = jax.jvp(in_sum, (ones,), (ones,))[1]  # how often it is in the sum
        logs = [e.here, e.there]
        taken = [jnp.maximum(a.max(axes[0], keepdims=True), 0) if bare else none for a in logs]
        logs = [a - less for a, less in zip(logs, taken, strict=True)]
        tops = [jnp.exp(log) * weight for log in logs]
        nothing = {i: jnp.zeros_like(a) for i, a in left[0].items()}
        added = bottom(none, 0, nothing) if sums.adds else none
        rows = {i: derivative(i) for i in beside}
        wholes, losses, besides = [], [], []
        of_others: dict[int, list] = {i: [] for i in beside}
        for k, log in enumerate(logs):
            whole = bottom(tops[k], k, left[k])
            most_left = bottom(none, k, left[k]) if others or sums.adds else 0
            here_added = added
            if bare and sums.adds:
                here_added = most_left = added * jnp.exp(-taken[k])
                whole += here_added - added
            rest = lambda most, k=k, left=most_left: total(jnp.where(most, 0, tops[k])) + left
            near = _loss(tops[k] * counted, log + jnp.log(weight), whole, rest, counted == 1)
            wholes.append(whole)
            losses.append(near)
            still = {i: jnp.zeros_like(a) if i in beside else a for i, a in left[k].items()}
            of_still = bottom(none, k, still) - added if others else none
            besides.append((of_still / whole, here_added / whole))
            for i, (back, _) in rows.items():
                (count,) = back(ones)
                spread = lambda a, back=back, count=count: divided(back(a)[0], count)
                log_i = (known[i].here, known[i].there)[k] + jnp.log(count)
                rest = lambda most, k=k, i=i, spread=spread: spread(
                    bottom(tops[k], k, left[k] | {i: jnp.where(most, 0, left[k][i])})
                )
                of_others[i].append(_loss(left[k][i] * count, log_i, spread(whole), rest))
        fell = gap(*map(jnp.log, wholes))  # what is added to e', of the whole
        fell += jnp.where(taken[0] == taken[1], 0, taken[0] - taken[1])
        rise = shift + fell
        still, fixed = (
            jnp.where(jnp.abs(a) > jnp.abs(b), a, b) * shrink(run)
            for a, b, run in zip(*besides, (rise, fell), strict=True)
        )
        mean = log_mean(*losses)
        of = e.carried
        if sums.how == "sub" and sums.top < sums.first:  # what is not in the sum has one as well
            of = finite(wide(inputs[sums.top][2]))
        # What is added to e' is less beside e the more was taken off.
        others_mean, others_carry = still + fixed, fixed * e.shift_carried
        for i, (back, along_i) in rows.items():
            mean_i = divided(log_mean(*of_others[i]), back(ones)[0])
            others_mean += along_i(mean_i)
            others_carry += along_i(mean_i * known[i].carried)
        carried = less_the_mean(of, mean, total, counted, (others_mean, others_carry))
        carried = sums.sign * carried
        if sums.how != "sub":
            carried = mean * carried
        return here, there, finite(carried).astype(here.dtype)

    return replaced


def _loss(part, log, whole, rest: Callable, alone: Any = True) -> jax.Array:
    """-log (part / whole) with all digits where it is small, from what `rest` is beside most."""
    most = part > whole / 2
    near = jnp.log1p(rest(most) / jnp.where(most, part, 1))
    return jnp.where(most & alone, near, gap(jnp.log(whole), log))


def in_part(op: Op) -> Callable:
    """Some of an array less the log-sum-exp of some of it: each of all less that, and then some.

    Where some of it was picked in other ways than by slices, a number for each row goes those ways
    as well, so that it is seen which of it has the log-sum-exp of its own row taken off.
    """
    sums = Sums(op)
    (own,) = sums.places
    made = {own}
    for i, (_, reads) in enumerate(op.members, sums.first):
        if not made.isdisjoint(reads):
            made.add(i)
    summed_at, summed, axes = next(
        (i, reads[0], m.options["axes"])
        for i, (m, reads) in enumerate(op.members, sums.first)
        if m.primitive == "reduce_sum" and i in made
    )
    shape = op.inputs[0].shape
    kept = [n for i, n in enumerate(shape) if i not in axes]
    way, at = set[str](), sums.top
    while at >= sums.first:
        member, reads = op.members[at - sums.first]
        way.add(member.primitive)
        at = reads[member.depends.index(True)]
    less_total = 1 if sums.how == "add" else -1  # as the log-sum-exp is added, or taken off
    picked = not MOVING.isdisjoint(way - {"slice", "squeeze"})

    def replaced(*inputs):
        x, d = (wide(inputs[0][k]) for k in (0, 2))  # what all of it is of
        ends = [column(inputs, k) for k in (0, 1)]
        values = [sums.values(end, {}) for end in ends]

        def moved(which):  # from the array to those in the sum, or to those it is taken off
            like = inputs[0][0].dtype
            return lambda a: wide(sums.values([a.astype(like), *ends[0][1:]], {}, True)[which])

        _, back = jax.vjp(moved(sums.exponent(own)), x)
        into = lambda a: jax.jvp(moved(sums.exponent(own)), (x,), (a,))[1]
        ones = jnp.ones_like(values[0][own])
        weight = sums.values(ends[0], {own: ones})[summed]  # of each in the sum
        total = lambda a: a.sum(axes, keepdims=True)
        losses = []
        for known in values:
            log = wide(known[sums.exponent(own)]) + jnp.log(wide(weight))
            e = jnp.exp(log)
            rest = lambda most, e=e: total(jnp.where(most, 0, e))
            losses.append(_loss(e, log, total(e), rest))
        (mean,) = back(log_mean(*losses))
        less = less_the_mean(d, mean, lambda a: total(into(a)))
        top = lambda a: jax.jvp(moved(sums.top), (x,), (a,))[1]
        carried = top(less)
        of_rows = total(into(mean * d)) / total(into(mean))
        if "reduce_sum" in way:  # weights, of which the sum may be other than 1
            rest = top(jnp.ones_like(d)) + less_total
            carried += jnp.where(rest == 0, 0, rest * jnp.squeeze(of_rows, axes))
        if picked:
            rows = jnp.arange(math.prod(kept), dtype=jnp.float32).reshape(kept)
            every = jnp.broadcast_to(jnp.expand_dims(rows, axes), shape)
            mine = _numbered(op, {0: every}, values[0])[sums.top]
            theirs = _numbered(op, {summed_at: rows}, values[0])[sums.bottom]
            apart = top(d) + less_total * of_rows.reshape(-1)[theirs.astype(jnp.int32)]
            carried = jnp.where(mine == theirs, carried, apart)
        here, there = (v[-1].astype(op.outputs[0].dtype) for v in values)
        return here, there, finite(sums.sign * carried).astype(here.dtype)

    return replaced


def _numbered(op: Op, numbers: dict[int, jax.Array], values: Sequence[Any]) -> dict:
    """The numbers of places of one value wherever these are moved by a group's members."""
    for i, (m, reads) in enumerate(op.members, len(op.inputs)):
        at = next((k for k, r in enumerate(reads) if r in numbers), None)
        if at is None or i in numbers:
            continue
        if m.primitive in MOVING:
            given = [numbers[r] if k == at else values[r] for k, r in enumerate(reads)]
            numbers[i] = m.evaluate(*given)
        elif m.outputs[0].shape == numbers[reads[at]].shape:
            numbers[i] = numbers[reads[at]]
    return numbers


def in_stretches(op: Op) -> Callable:
    """Some exponentials over the sum of some of them: each over that sum, and then some."""
    sums = Sums(op)
    (own,) = sums.places
    if sums.adds:  # with constants in the sum: some numbers may be there by themselves
        return in_sums(op)

    def replaced(*inputs):
        ends = [column(inputs, k) for k in (0, 1)]
        known = sums.exponentials(inputs)[own]
        logs = known.here, known.there
        e = [jnp.exp(log) for log in logs]
        of = lambda e: tuple(jnp.broadcast_arrays(*sums.ends(ends[0], {own: e})))
        (top, bottom), back = jax.vjp(of, e[0])
        parts = lambda a: jax.jvp(of, (e[0],), (a,))[1]
        none, ones = ([f(a) for a in (top, bottom)] for f in (jnp.zeros_like, jnp.ones_like))
        in_top, in_sum = back((ones[0], none[1]))[0], back((none[0], ones[1]))[0]

        def spread(a):
            """What each place's row has."""
            by_sum, by_top = back((none[0], a))[0], back((a, none[1]))[0]
            return jnp.where(in_sum > 0, divided(by_sum, in_sum), divided(by_top, in_top))

        total = lambda a: spread(parts(a)[1])
        losses = []
        for log, part in zip(logs, e, strict=True):
            whole = total(part)
            most = (in_sum > 0) & (part > whole / 2)
            rest, big = total(jnp.where(most, 0, part)), total(jnp.where(most, part, 0))
            near = jnp.log1p(divided(rest, big))
            losses.append(jnp.where(most & (big == part), near, gap(jnp.log(whole), log)))
        mean = jnp.where(in_sum + in_top > 0, log_mean(*losses), 0)
        less = less_the_mean(known.carried, mean, total, (in_sum > 0).astype(mean.dtype))
        here, there = (sums.values(end, {})[-1] for end in ends)
        carried = parts(jnp.where(mean == 0, 0, mean * less))[0]
        return here, there, finite(jnp.broadcast_to(carried, here.shape)).astype(here.dtype)

    return replaced
