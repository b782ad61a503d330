"""Keeps compiled programs in a folder, where the next process finds them."""

import contextlib
import os
from pathlib import Path

import jax

from jaxviz.calls.naming import warn
from jaxviz.calls.options import whole
from jaxviz.calls.public import public
from jaxviz.folders import cache_folder, why_not

_VARIABLE = "JAXVIZ_CACHE"
_OFF, _ON = ("0", "off", "no", "false"), ("1", "on", "yes", "true")
_ENTRY = "*-cache"  # how JAX calls its files there


@public(max_size=whole(0))
def keep_compiled(folder: str | os.PathLike | None = None, *, max_size: int = 2**30) -> Path | None:
    """Keeps the programs that this process compiles, for later processes, in a folder.

    The first call of an explanation waits for XLA, mostly; in the next process it need not. This
    sets JAX's persistent compilation cache for the whole process, programs that are not this
    library's included, which is why no other function does it. Small programs are kept too: a call
    has dozens, and reading one takes a tenth of the time that compiling it takes. A program is
    found again for the same versions of JAX, the same kind of machine and the same flags of XLA;
    the numbers are the same ones. Tracing is not spared.

    Call it once, at the start. A user decides from outside: `JAXVIZ_CACHE` is the folder where the
    call names none, and `JAXVIZ_CACHE=0` keeps nothing. A folder that JAX was given before
    (`JAX_COMPILATION_CACHE_DIR`, or an earlier call) stays as it is, with its own limits.

    Args:
      folder: Where they are kept, made if it is not there; None is `compiled` in the user's cache,
        beside this library's downloads (`$XDG_CACHE_HOME/jaxviz`, on Linux). Whoever can write to
        it can make this process run what he likes.
      max_size: Bytes that may lie there from earlier; what was not used for longest goes first.
        What this process adds is counted by the next one.

    Returns:
      The folder in use, or None where nothing is kept: it was switched off, or the folder cannot be
      written to, which is a warning. So is a file in it that is damaged: it is compiled anew.

    Example:
      >>> kept = keep_compiled()  # doctest: +SKIP

    Reference:
      JAX, persistent compilation cache, https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
    """
    wish = os.environ.get(_VARIABLE, "")
    wish = "" if wish.lower() in _ON else wish
    config = jax.config
    if wish.lower() in _OFF or not config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    given = config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given:
        return Path(given)
    place = Path(folder or wish or _users_cache()).expanduser().absolute()
    if why := why_not(place):
        warn(
            f"keep_compiled: folder must be one that can be written to; {place}: {why}. Programs "
            f"are compiled and not kept. Name another in {_VARIABLE}, or set {_VARIABLE}=0.",
        )
        return None
    _trim(place, max_size)
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_compilation_cache_dir", str(place))
    return place


def _users_cache() -> Path:
    return cache_folder() / "compiled"


def _trim(folder: Path, max_size: int) -> None:
    """Removes the programs that were not used for longest.

    JAX has a limit of its own, which needs one more package, and looks at every file for each
    program that it adds.
    """
    found = []
    for path in folder.glob(_ENTRY):
        with contextlib.suppress(OSError):  # another process has removed it
            told = path.stat()
            found.append((max(told.st_atime, told.st_mtime), told.st_size, path))
    size = 0
    for _, nbytes, path in sorted(found, reverse=True):
        size += nbytes
        if size > max_size:
            with contextlib.suppress(OSError):
                path.unlink()
