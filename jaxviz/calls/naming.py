"""Whose call it is: errors begin with the public function that the user called."""

import re
from contextvars import ContextVar

_outermost: ContextVar[str | None] = ContextVar("outermost", default=None)

# What an error of ours may begin with. Public functions add themselves; these are parts of some.
_OURS = {"apply_fn", "target", "objective", "read_pth", "run folder"}
_HEAD = re.compile(r"([A-Za-z_][\w. ]*)(?:\([^:]*\))?: ")


def ours(name: str) -> None:
    """Makes `name: ` a beginning of our own errors."""
    _OURS.add(name.split("(")[0])


def caller(otherwise: str) -> str:
    """The public function that the user called."""
    return _outermost.get() or otherwise


def is_ours(error: BaseException) -> bool:
    """Whether an error is one of this library's sentences; rules say NotImplementedError."""
    return isinstance(error, NotImplementedError) or _head(error) is not None


def _head(error):
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return None
    found = _HEAD.match(error.args[0])
    return found[0] if found and found[1] in _OURS else None


class calling:
    """Within it, errors of ours begin with the outermost `calling(name)`."""

    __slots__ = ("name", "token")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        self.token = _outermost.set(self.name) if _outermost.get() is None else None

    def __exit__(self, kind, error, _) -> None:
        if self.token is None:
            return
        _outermost.reset(self.token)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            # Of a file: the system's words lack who asked for it.
            told = f"{self.name}: cannot use {error.filename}: {error.strerror}. Check the path."
            raise type(error)(told) from error
        if isinstance(error, NotImplementedError) and not str(error).startswith(f"{self.name}: "):
            error.args = (f"{self.name}: {error}",)  # of a rule, whose own name says which
        elif error is not None and (head := _head(error)) is not None:
            error.args = (f"{self.name}: {error.args[0].removeprefix(head)}",)
        elif error is not None and "RESOURCE_EXHAUSTED" in str(error):  # XLA's, of any device
            error.add_note(
                f"{self.name}: memory ran out. Pass a smaller chunk_size, where the method takes "
                "it, or fewer examples at a time."
            )
