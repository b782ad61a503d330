"""Packages that import what they offer when it is first used (PEP 562).

What a package offers stands in the stub beside it, `__init__.pyi`: one list for type checkers,
editors, `dir` and the imports themselves. No module of the library is imported here, nor JAX.
"""

import ast
import difflib
import importlib
import importlib.util
import pkgutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


def offered(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package, from its stub.

    Modules of the package are attributes too, whether anybody imported them or not.

    Args:
      package: Its `__name__`.

    Example:
      >>> get, names, public = offered("jaxviz")
      >>> get("saliency").__name__, "plot" in names(), "plot" in public
      ('saliency', True, False)
      >>> get("gradcam")
      Traceback (most recent call last):
      AttributeError: jaxviz: there is no gradcam in it. Did you mean grad_cam?
    """
    module = sys.modules[package]
    places = _places(module)
    module.__class__ = _keeping({n for n, place in places.items() if place != (package, n)})

    def get(name: str) -> Any:
        if name in places:
            value = _imported(*places[name], package)
        elif name.startswith("_") or importlib.util.find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"{package}: there is no {name} in it.{_nearest(name, names())}")
        else:
            value = importlib.import_module(f"{package}.{name}")
        setattr(module, name, value)  # found without this function from now on
        return value

    def names() -> list[str]:
        below = (part.name for part in pkgutil.iter_modules(module.__path__))
        return sorted({*vars(module), *places, *(name for name in below if name[0] != "_")})

    return get, names, list(places)


def _places(module: Any) -> dict[str, tuple[str, str]]:
    """Where each name of a stub comes from: a module, and its name there."""
    path = str(Path(module.__path__[0]) / "__init__.pyi")
    text = module.__spec__.loader.get_data(path)  # as modules are read, from an archive too
    return {
        name.asname or name.name: (str(line.module), name.name)
        for line in ast.parse(text).body
        if isinstance(line, ast.ImportFrom)
        for name in line.names
    }


def _keeping(public: set[str]) -> type:
    """A class of packages whose public names are not hidden by modules of the same name.

    Python binds each module to its package once it is imported: `jaxviz.sweep` would be the folder
    from then on, not the function.
    """

    class Package(types.ModuleType):
        def __setattr__(self, name, value):
            if name in public and getattr(value, "__name__", "") == f"{self.__name__}.{name}":
                return
            super().__setattr__(name, value)

    return Package


def _imported(where: str, name: str, package: str) -> Any:
    found = None if where == package else importlib.import_module(where)
    if found is not None and hasattr(found, name):
        return getattr(found, name)
    return importlib.import_module(f"{where}.{name}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1) if name[0] != "_" else ()
    return f" Did you mean {near[0]}?" if near else ""
