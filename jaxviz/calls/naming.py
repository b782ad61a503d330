"""Whose call it is: errors begin with the public function that the user called.

Inside of the call the settings hold that the library needs (`jax.transfer_guard`).
"""

import re
import sys
import warnings
from contextvars import ContextVar
from typing import Any

import jax

from jaxviz.calls import refusals

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


def warn(message: str) -> None:
    """A warning at the line outside of this library that called it, however deep this is."""
    level, frame = 2, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "jaxviz":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def is_ours(error: BaseException) -> bool:
    """Whether an error is one of this library's sentences; its rules say NotImplementedError."""
    return (isinstance(error, NotImplementedError) and _is_raised_here(error)) or (
        _head(error) is not None
    )


def _is_raised_here(error):
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return trace is None or place.split(".")[0] == "jaxviz"


def _head(error):
    if len(error.args) != 1 or not isinstance(error.args[0], str):
        return None
    found = _HEAD.match(error.args[0])
    return found[0] if found and found[1] in _OURS else None


def _is_guarded() -> bool:
    """Whether the user has forbidden transfers that nobody asked for (or has them logged)."""
    config: Any = jax.config
    ways = config.jax_transfer_guard_host_to_device, config.jax_transfer_guard_device_to_host
    return any(level in ("disallow", "log") for level in ways)


# Where JAX begins to say in which of its own functions it was.
_PLACES = re.compile(r" The (?:error|problem) (?:occurred|arose)| This \w*Tracer| See http")
# Of what needs numbers and was given traced arrays.
TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _like(error):
    """The kind of error that a function of ours raises for another's."""
    kinds = TypeError, NotImplementedError
    return next((kind for kind in kinds if isinstance(error, kind)), ValueError)


class calling:
    """Within it, errors of ours begin with the outermost `calling(name)`.

    A user's `jax.transfer_guard` is for what he moves by mistake: the outermost one says whether
    there is one, by which his arrays are judged, and lifts it for our own options and labels, which
    have to get to the device. What forbids even what is asked for ("disallow_explicit") stays.
    """

    __slots__ = ("lifted", "name", "token")

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> bool:
        self.token = _outermost.set(self.name) if _outermost.get() is None else None
        guarded = self.token is not None and _is_guarded()
        self.lifted = jax.transfer_guard("allow") if guarded else None
        if self.lifted is not None:
            self.lifted.__enter__()
        return guarded

    def __exit__(self, kind, error, _) -> None:
        if self.token is None:
            return
        _outermost.reset(self.token)
        if self.lifted is not None:
            self.lifted.__exit__(None, None, None)
        if isinstance(error, TRACED):  # of what works on the host, or of a user's function
            words = _PLACES.split(" ".join(str(error).split()))[0][:160].rstrip(".")
            told = refusals.NO_NUMBERS.format(f": {words}")
            raise TypeError(f"{self.name}: {told}") from error
        if isinstance(error, Exception) and _head(error) is None:
            if meant := refusals.told(error):
                raise _like(error)(f"{self.name}: {meant}") from error
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
