"""Folders: the user's cache, and those for results, tried before work is done for them."""

import argparse
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache, where downloads and compiled programs are kept.

    Example:
      >>> cache_folder().name
      'jaxviz'
    """
    import pooch  # takes its time to import, for this and downloads alone

    return Path(pooch.os_cache("jaxviz"))


def why_not(folder: Path) -> str:
    """Makes a folder; says why nothing can be written into it, or "" if something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def out_folder(text: str) -> Path:
    """An argument `--out` of a script, as `type` of `argparse`: a folder that can be written to.

    Example:
      >>> parser = argparse.ArgumentParser(exit_on_error=False)
      >>> action = parser.add_argument("--out", type=out_folder)
      >>> parser.parse_args(["--out", "/dev/null/pictures"])
      Traceback (most recent call last):
      argparse.ArgumentError: argument --out: cannot write to /dev/null/pictures: Not a directory
    """
    if why := why_not(folder := Path(text)):
        raise argparse.ArgumentTypeError(f"cannot write to {folder}: {why}")
    return folder
