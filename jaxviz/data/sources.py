"""Where files of data and weights are found: a given folder, $JAXVIZ_DATA, cache, network."""

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxviz.folders import cache_folder


class File(NamedTuple):
    """One file of a data set, or of weights.

    Attributes:
      names: Accepted names on disk; the first is the one a download gets.
      checksum: Published sum of the download, "md5:" or "sha256:" and all or the first of its
        hexadecimal digits; None where it is not published as a single file.
    """

    names: tuple[str, ...]
    checksum: str | None = None


class Source(NamedTuple):
    """A data set's files and the web folders that serve them.

    Attributes:
      files: Split name -> files; any one `bundle` stands for all of them.
      mirrors: Web folders, tried in order.
      bundle: An archive that holds every file, or None.
    """

    files: dict[str, tuple[File, ...]]
    mirrors: tuple[str, ...]
    bundle: File | None = None


def find(
    name: str, source: Source, split: str, folder: str | os.PathLike | None, download: bool
) -> list[Path]:
    """Paths of a split's files, or of the archive that holds them.

    Args:
      name: The data set's name, which is also its folder's below `$JAXVIZ_DATA` and the cache.
      source: Its files and mirrors.
      split: A key of `source.files`.
      folder: Where to look and nowhere else; None looks in `$JAXVIZ_DATA/name`, then the cache.
      download: Whether to download what was found nowhere (never with `folder`).

    Returns:
      One path for each file of the split, or the archive's path alone.

    Raises:
      FileNotFoundError: A file was found nowhere and was not to be downloaded.
      ConnectionError: No mirror gave it.

    Example:
      >>> source = Source({"train": (File(("no-such-file",)),)}, ())
      >>> find("mnist", source, "train", folder=".", download=True)
      Traceback (most recent call last):
      ...
      FileNotFoundError: load: mnist needs no-such-file in the folder given; not found in .. Put ...
    """
    files = source.files[split]
    if folder is not None:
        places = [Path(folder), Path(folder) / name]
    else:
        root = os.environ.get("JAXVIZ_DATA")
        places = ([Path(root) / name] if root else []) + [cache_folder() / name]
    for place in places:
        paths = [_present(place, file) for file in files]
        whole = [path for path in paths if path is not None]
        if len(whole) == len(files):
            return whole
        bundle = source.bundle and _present(place, source.bundle)
        if bundle:
            return [bundle]
    wanted = ", ".join(file.names[0] for file in files)
    if folder is not None:
        raise FileNotFoundError(
            f"load: {name} needs {wanted} in the folder given; not found in {folder}. Put the "
            "files "
            "there, or leave `folder` out to look in $JAXVIZ_DATA, the cache and the network."
        )
    if not download:
        raise FileNotFoundError(
            f"load: {name} needs {wanted}; not found in {', '.join(map(str, places))}. Allow the "
            "download, or put the files there."
        )
    target = cache_folder() / name
    if source.bundle:
        return [_download(source.bundle, source.mirrors, target)]
    return [_download(file, source.mirrors, target) for file in files]


def _present(place, file):
    for name in file.names:
        if (place / name).is_file():
            return place / name
    return None


def _download(file, mirrors, folder):
    """Fetches one file; pooch moves it into place only once it is there and `_checked`."""
    import pooch

    name, failures = file.names[0], []
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # Pooch announces each download; here a bar does, on terminals.
    try:
        for mirror in mirrors:
            try:
                with _Bar(name) as bar:
                    path = pooch.retrieve(
                        mirror + name,
                        known_hash=None,  # pooch knows whole sums only
                        fname=name,
                        path=folder,
                        downloader=_checked(file, bar),
                    )
                return Path(path)
            except (ValueError, OSError) as error:
                failures.append(f"{mirror + name}: {error}")
    finally:
        logger.setLevel(level)
    raise ConnectionError(
        f"load: {name} must come whole from one of its mirrors; got "
        f"{'; '.join(failures)}. Check the network, or put the file into {folder} yourself."
    )


def _checked(file, bar) -> Any:
    """A downloader that fails if what came has another checksum."""
    import pooch

    fetch: Any = pooch.HTTPDownloader(progressbar=bar, timeout=30)
    algorithm, digits = file.checksum.split(":")

    def download(url, output_file, pooch_object):
        fetch(url, output_file, pooch_object)
        came = pooch.file_hash(output_file, alg=algorithm)
        if not came.startswith(digits):
            raise ValueError(f"its {algorithm} must be {digits}; it is {came[: len(digits)]}")

    return download


class _Bar:
    """The four members that pooch asks of a progress bar, drawn by rich on terminals only."""

    def __init__(self, name):
        import rich.console
        import rich.progress

        console = rich.console.Console(stderr=True)
        columns = (
            *rich.progress.Progress.get_default_columns(),
            rich.progress.DownloadColumn(),
        )
        self.total = 0
        self._progress = rich.progress.Progress(
            *columns, console=console, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(name, total=None)

    def __enter__(self) -> Any:  # pooch's annotations know its own bar only
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def update(self, num_bytes):
        self._progress.update(self._task, advance=num_bytes, total=self.total or None)

    def reset(self):
        self._progress.reset(self._task)

    def close(self):
        """The bar closes with its `with` block."""
