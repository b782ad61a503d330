"""A sweep at the terminal: its progress bar, and Ctrl-C that waits for the chunk in work."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import rich.console
import rich.progress


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """`asked()`: whether Ctrl-C was pressed, which within this is only noted; a second one acts.

    Signals are the main thread's business: in another one nothing is changed.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_):
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def progress_bar(show: bool, total: int | None, processes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error where that is a terminal: `advance(examples)`."""
    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.completed:.0f} examples"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(show_speed=True),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not (show and console.is_terminal),
    )
    with bar:
        task = bar.add_task("", total=None if total is None else -(-total // processes))
        yield lambda examples: bar.update(task, advance=examples)
