"""How results show themselves: names, shapes and types in a few lines, instead of all numbers."""

import base64
import dataclasses
import functools
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

_WIDTH, _LINES = 100, 24  # of what is shown: one screen


class Text(str):
    """A text that shows itself with its lines, as the last value in a notebook's cell or a shell.

    Attributes:
      html: What a notebook shows in its place; None shows the text.

    Example:
      >>> Text("two\\nlines")
      two
      lines
    """

    html: str | None = None

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html or f"<pre>{html.escape(self)}</pre>"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """The same lines where treescope shows results: of a text it takes that for one line."""
        from treescope import rendering_parts as parts  # the caller's, who has it

        lines = parts.indented_children([parts.text(line) for line in self.splitlines()])
        return parts.build_custom_foldable_tree_node(
            label=parts.text(type(self).__name__),
            contents=parts.fold_condition(collapsed=parts.text("(...)"), expanded=lines),
            path=path,
            expand_state=parts.ExpandState.EXPANDED,
        )


def html_table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], *, more: str = ""
) -> str:
    """A plain table for a notebook: no style, no script, every word as text; two screens at most.

    Example:
      >>> html_table("nets", ["name"], [["<b>"]])
      '<table><caption>nets</caption><tr><th>name</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    cells = lambda kind, words: "".join(f"<{kind}>{html.escape(str(w))}</{kind}>" for w in words)
    lines = [cells("td", row) for row in rows]
    if len(lines) > 2 * _LINES:
        left = len(lines) - _LINES
        lines = [*lines[:_LINES], f'<td colspan="{len(heads)}">... {left} more</td>']
    told = [f"<caption>{html.escape(caption)}</caption>", f"<tr>{cells('th', heads)}</tr>"]
    body = "".join([*told, *(f"<tr>{line}</tr>" for line in lines)])
    return f"<table>{body}</table>" + (f"<p>{html.escape(more)}</p>" if more else "")


def html_picture(figure: Any, alt: str) -> str:
    """A matplotlib Figure for a notebook, inside the text."""
    file = io.BytesIO()
    figure.savefig(file, dpi=80, format="png")
    drawn = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{drawn}">'


def shown_html(self: Any) -> str:
    """The `_repr_html_` of a NamedTuple or dataclass of arrays: what `shown` says, as a table."""
    rows = [
        (field if first == 0 else "", row)
        for field, value in _fields(self)
        for first, row in enumerate(_rows(value))
    ]
    return html_table(type(self).__name__, ["field", "holds"], rows)


def shown(self: Any) -> str:
    """The `__repr__` of a NamedTuple or dataclass of arrays: a line a field.

    Example:
      >>> from typing import NamedTuple
      >>> import numpy as np
      >>> class Scores(NamedTuple):
      ...     values: np.ndarray
      ...     by_method: dict
      ...     note: str = "clean"
      ...     __repr__ = shown
      >>> Scores(np.zeros((2, 3)), {"saliency": np.zeros((2, 8, 8), np.float32)})
      Scores
        values     float64 [2, 3]
        by_method  'saliency': float32 [2, 8, 8]
        note       'clean'
    """
    fields = _fields(self)
    wide = max(len(field) for field, _ in fields)
    lines = []
    for field, value in fields:
        for row in _rows(value):
            lines.append(f"  {field:{wide}}  {row}")
            field = ""
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"  ... {len(lines) - _LINES + 1} more lines"]
    return "\n".join([type(self).__name__, *(_cut(line.rstrip(), _WIDTH) for line in lines)])


def else_by(plain: Callable) -> Callable:
    """Makes a method that shows what a result says; one of other contents is shown by `plain`.

    `jax.tree.map` and `jit` keep a result's type and put into it what they like: None, shapes,
    words, values under trace. Whoever looks at that has no use for an error of a table.

    Example:
      >>> from typing import NamedTuple
      >>> class Mean(NamedTuple):
      ...     value: float
      ...     __repr__ = else_by(shown)(lambda self: f"a mean of {self.value:.1f}")
      >>> Mean(1.0), jax.tree.map(lambda a: None, Mean(1.0))
      (a mean of 1.0, Mean
        value  None)
    """

    def decorate(own: Callable) -> Callable:
        @functools.wraps(own)
        def told(self: Any) -> str:
            try:
                return own(self)
            except Exception:  # of whatever kind: nothing of it is a fault of the reader's
                return plain(self)

        return told

    return decorate


def _fields(result: Any) -> list[tuple[str, Any]]:
    """The fields of a NamedTuple or a dataclass, with what they hold."""
    names = getattr(result, "_fields", None) or [f.name for f in dataclasses.fields(result)]
    return [(name, getattr(result, name)) for name in names]


def _rows(value: Any) -> list[str]:
    """A value's lines: a dict of arrays has one for each, all else one."""
    if isinstance(value, Mapping) and value and all(map(_is_flat, value.values())):
        return [f"{_cut(repr(name), 40)}: {_line(each)}" for name, each in value.items()]
    return [_line(value)]


def _is_flat(value: Any) -> bool:
    return _is_array(value) or (hasattr(value, "_fields") and all(map(_is_array, value)))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _line(value: Any) -> str:
    if _is_array(value):
        if value.shape == ():
            try:
                return f"{value.item():.6g} ({value.dtype})"
            except (AttributeError, TypeError, ValueError):  # traced, a shape, a key
                pass
        return f"{value.dtype} [{', '.join(map(str, value.shape))}]"
    if hasattr(value, "_fields"):
        parts = [f"{name} {_line(each)}" for name, each in zip(value._fields, value, strict=True)]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, (Mapping, list, tuple)) and value:
        arrays = [leaf for leaf in jax.tree.leaves(value) if _is_array(leaf)]
        held = f" of {len(arrays)} arrays, {sum(map(_size, arrays)):,} numbers" if arrays else ""
        if isinstance(value, Mapping):
            return f"{type(value).__name__}{held}: {', '.join(map(str, value))}"
        if held or len(repr(value)) > _WIDTH:
            return f"{type(value).__name__} of {len(value)}{held and ',' + held}"
    return " ".join(repr(value).split())


def _size(array: Any) -> int:
    count = 1
    for length in array.shape:
        count *= length
    return count


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
