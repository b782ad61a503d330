"""Text and why: every token coloured by what it says for or against, as a figure or as HTML."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxviz.calls.options import maybe, real, several, title as any_text
from jaxviz.calls.public import public
from jaxviz.plot.colour import INK, NOT_A_NUMBER, QUIET, SIGNED
from jaxviz.plot.inputs import check_array, check_named, check_names
from jaxviz.plot.page import EDGE, fit, fitting_points, one_line, put_title, text_width, write

WIDTH, LEFT, LINE, SPACE, POINTS = 7.5, 1.6, 0.26, 0.07, 9.0  # inches, and points
_AFTER, _HEAD = 0.1, 0.24
_LIMIT = maybe(real(0, above=True))
_TEXTS = several(any_text, "texts, one an example")
# How tokenizers say that a word begins: by a mark, or that one goes on: by another.
_BEGINS, _GOES_ON = ("Ġ", "▁", " "), "##"


class Html(str):
    """A text of HTML, which notebooks show as what it means."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


@public(limit=_LIMIT, notes=maybe(_TEXTS))
def token_sheet(
    tokens: Any,
    maps: Mapping[str, Any],
    *,
    notes: Sequence[str] | None = None,
    limit: float | None = None,
    title: str | None = None,
) -> Figure:
    """Draws text coloured by what explains it: a block an example, in it a paragraph each map.

    Red speaks for what is explained, blue against it, white is zero; the stronger, the darker. The
    magnitude of the full colour is written beside each paragraph. Numbers that are not finite are
    green.

    Args:
      tokens: N lists of texts, one list an example, of any lengths: places past a list's end are
        padding and not drawn. Parts of one word stand together where the tokenizer marks them:
        `##` before what goes on, or `Ġ`, `▁` or a blank before what begins.
      maps: Title -> `[N, L]` or `[N, L, D]`, whose last axis is summed (of an embedding, say).
      notes: N texts, one above each example; None numbers them.
      limit: The magnitude of the full colour, one for all; None takes each paragraph's largest.
      title: Above everything; None leaves it out.

    Returns:
      A Figure for `savefig`. Nothing is shown.

    Raises:
      ValueError: A shape that does not fit.

    Example:
      >>> figure = token_sheet([["not", "bad"]], {"gradient": np.array([[-1.0, 0.5]])})
      >>> [text.get_text() for text in figure.texts]
      ['gradient', '±1', 'not', 'bad']
    """
    who = "token_sheet"
    words, values, notes = _read(who, tokens, maps, notes)
    room = WIDTH - LEFT - EDGE
    rows = {(n, name): _rows(words[n], room) for n in range(len(words)) for name in values}
    head = _HEAD if notes else 0.0
    tall = sum(head for _ in words) + sum(LINE * len(r) + _AFTER for r in rows.values())
    top = 0.52 if title else EDGE
    figure = Figure(figsize=(WIDTH, top + tall + EDGE), facecolor="white")
    if title:
        put_title(figure, title)
    at = tall + EDGE
    for n in range(len(words)):
        if notes:
            note = fit(notes[n], WIDTH - 2 * EDGE, 8.5)
            write(figure, EDGE, at - head / 2, note, fontsize=8.5, color=INK)
            at -= head
        for name, maps_of in values.items():
            colours, scale = coloured(maps_of[n, : len(words[n])], limit)
            lines = rows[n, name]
            middle = at - LINE / 2
            write(
                figure, EDGE, middle + 0.06, fit(name, LEFT - EDGE - 0.1, 8), fontsize=8, color=INK
            )
            write(figure, EDGE, middle - 0.07, scale, fontsize=6.5, color=QUIET)
            for line in lines:
                for place, left, width, text in line:
                    _box(figure, LEFT + left, at - LINE, width, text, colours[place])
                at -= LINE
            at -= _AFTER
    return figure


@public(limit=_LIMIT, notes=maybe(_TEXTS))
def token_html(
    tokens: Any,
    maps: Mapping[str, Any],
    *,
    notes: Sequence[str] | None = None,
    limit: float | None = None,
    title: str | None = None,
) -> Html:
    """`token_sheet` as HTML: text that can be copied, searched, and asked for its numbers.

    Args:
      tokens, maps, notes, limit, title: As for `token_sheet`. All texts are escaped.

    Returns:
      A text that notebooks show (`_repr_html_`) and `Path.write_text` keeps: one `<div>`, its
      styles inline, nothing loaded from elsewhere. Resting on a token shows its number.

    Raises:
      ValueError: A shape that does not fit.

    Example:
      >>> page = token_html([["a<b"]], {"gradient": np.array([[1.0]])})
      >>> "a&lt;b" in page, "a<b" in page
      (True, False)
    """
    words, values, notes = _read("token_html", tokens, maps, notes)
    ink, quiet = f"color:{INK}", f"color:{QUIET}"
    parts = [f'<div style="font-family:sans-serif;line-height:1.9;background:#fff;{ink}">']
    if title:
        parts.append(f"<p><b>{html.escape(title)}</b></p>")
    for n, example in enumerate(words):
        if notes:
            parts.append(f'<p style="margin:0.6em 0 0">{html.escape(notes[n])}</p>')
        for name, maps_of in values.items():
            given = maps_of[n, : len(example)]
            colours, scale = coloured(given, limit)
            small = f"display:block;line-height:1.2;font-size:80%;{quiet}"
            told = f'{html.escape(name)}<span style="{small}">{scale}</span>'
            spans = [
                f"{'' if glued else ' '}"
                f'<span style="background:{back};color:{front};padding:0.15em 0.1em"'
                f' title="{number:.3g}">{html.escape(shown_token(text))}</span>'
                for (glued, text), (back, front), number in zip(
                    pieces(example), colours, given, strict=True
                )
            ]
            parts.append(
                f'<div style="display:flex;gap:1em;margin:0.2em 0"><div style="flex:0 0 9em">{told}'
                f'</div><div style="flex:1">{"".join(spans).lstrip(" ")}</div></div>'
            )
    return Html("\n".join([*parts, "</div>"]))


def _read(who, tokens, maps, notes):
    """Checked: lists of texts, `[N, L]` by name, and notes (none for a single example)."""
    words = token_lists(who, tokens)
    count, longest = len(words), max(map(len, words))
    values = {}
    for name, given in check_named(who, "maps", maps, "{'gradient': gradient}").items():
        given = check_array(who, f"map {name!r}", given)
        fits = given.ndim in (2, 3) and len(given) == count and given.shape[1] >= longest
        if not fits or 0 in given.shape:
            raise ValueError(
                f"{who}: map {name!r} must be [{count}, L] or [{count}, L, D] with L >= {longest}, "
                f"a number for each token; got {given.shape}. One example is map[None], [tokens]."
            )
        given = given.astype(np.float64)
        values[name] = given if given.ndim == 2 else given.sum(-1)
    if notes is not None:
        notes = check_names(who, notes, count, "notes", " examples")
    elif count > 1:
        notes = [f"example {n}" for n in range(count)]
    return words, values, notes


def token_lists(who: str, tokens: Any) -> list[list[str]]:
    """N lists of texts."""
    listed = lambda v: isinstance(v, (Sequence, np.ndarray)) and not isinstance(v, (str, bytes))
    several_texts = listed(tokens) and all(map(listed, tokens))
    if not several_texts or not all(isinstance(t, str) for words in tokens for t in words):
        raise TypeError(
            f"{who}: tokens must be a list of texts for each example; got "
            f"{type(tokens).__name__}{_of(tokens)}. One example is [tokens]; ids are turned into "
            "texts by their tokenizer."
        )
    words = [[str(text) for text in example] for example in tokens]
    if not words or not all(words):
        raise ValueError(
            f"{who}: tokens must be one list or more, each with a token; got {len(words)}, the "
            f"shortest of {min(map(len, words), default=0)}."
        )
    return words


def _of(tokens):
    first = next(iter(tokens), None) if isinstance(tokens, (Sequence, np.ndarray)) else None
    return (
        "" if first is None or isinstance(tokens, (str, bytes)) else f" of {type(first).__name__}"
    )


def pieces(tokens: Sequence[str]) -> list[tuple[bool, str]]:
    """Whether each token belongs to the word before it, and its text without the mark of that.

    Example:
      >>> pieces(["un", "##bear", "able"])
      [(False, 'un'), (True, 'bear'), (False, 'able')]
      >>> pieces(["▁un", "bear", "▁able"])
      [(False, 'un'), (True, 'bear'), (False, 'able')]
    """
    if any(t.startswith(_GOES_ON) and len(t) > 2 for t in tokens):
        goes_on = [t.startswith(_GOES_ON) and len(t) > 2 for t in tokens]
        return [(on, t[2:] if on else t) for on, t in zip(goes_on, tokens, strict=True)]
    if any(t.startswith(_BEGINS) and len(t) > 1 for t in tokens):
        begins = [t.startswith(_BEGINS) for t in tokens]
        return [
            (not new, t[1:] or "␣" if new else t) for new, t in zip(begins, tokens, strict=True)
        ]
    return [(False, t or "␣") for t in tokens]


def shown_token(text: str) -> str:
    """A token as it can be seen: nothing in it moves to another line or vanishes."""
    for mark, sign in (("\n", "↵"), ("\t", "→"), ("Ċ", "↵"), ("ĉ", "→")):
        text = text.replace(mark, sign)
    return one_line(text) if text.strip() else "␣" * max(len(text), 1)


def _rows(tokens, room):
    """Lines of `(place, left, width, text)`, in inches, none wider than there is room."""
    lines, line, at = [], [], 0.0
    for place, (glued, text) in enumerate(pieces(tokens)):
        text = fit(shown_token(text), room - 0.08, POINTS)
        width = text_width(text, POINTS) + 0.06
        left = at + (0.0 if glued or not line else SPACE)
        if line and left + width > room:
            lines.append(line)
            line, left = [], 0.0
        line.append((place, left, width, text))
        at = left + width
    return [*lines, line]


def _box(figure, left, bottom, width, text, colours):
    across, down = figure.get_size_inches()
    back, front = colours
    figure.add_artist(
        Rectangle(
            (left / across, (bottom + 0.02) / down), width / across, (LINE - 0.04) / down,
            facecolor=back, edgecolor="none", transform=figure.transFigure,
        )
    )  # fmt: skip
    points = fitting_points(text, width, POINTS)
    write(
        figure, left + width / 2, bottom + LINE / 2, text,
        ha="center", fontsize=points, color=front,
    )  # fmt: skip


def coloured(values: np.ndarray, limit: float | None) -> tuple[list[tuple[str, str]], str]:
    """Background and text colour of each number, centred at zero, and their scale in words.

    Example:
      >>> coloured(np.array([0.0, 2.0]), None)[0][0][0], coloured(np.array([0.0, 2.0]), None)[1]
      ('#f7f6f6', '±2')
    """
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    full = limit or largest
    scaled = np.clip(np.where(np.isfinite(values), values, 0) / (full or 1.0), -1, 1)
    backs = SIGNED((scaled + 1) / 2)
    backs[~np.isfinite(values)] = NOT_A_NUMBER
    dark = backs[:, :3] @ (0.2126, 0.7152, 0.0722) < 0.5
    fronts = np.where(dark, "#ffffff", INK)
    words = f"±{full:.2g}" if finite.size else "not finite"
    pairs = [(to_hex(b), str(f)) for b, f in zip(backs, fronts, strict=True)]
    return pairs, words if full or not finite.size else "zero everywhere"
