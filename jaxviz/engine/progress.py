"""The progress bar of one long call: one line, on terminals only."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, as_completed
from typing import Any

_SOON = 0.5  # seconds; what is over by then needs no bar


@contextlib.contextmanager
def progress_bar(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], None] | None]:
    """`move(done)`, which moves a bar on standard error; None where that is no terminal.

    Args:
      what: Said beside the bar.
      total: Where it ends.
      done: Where it begins.
    """
    import rich.console  # takes its time to import, for long calls alone
    import rich.progress

    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        rich.progress.TextColumn(what + " {task.completed}/{task.total}"),
        rich.progress.BarColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda done: bar.update(task, completed=done)


def spans(num_steps: int, first: int, size: int, what: str) -> Iterator[tuple[int, int]]:
    """Spans (start, stop) of steps, with a bar on a terminal; between them Ctrl-C stops the work.

    What is under way cannot be stopped: XLA goes on with it after an interrupt, and a process that
    ends waits for it. So spans are short everywhere: half as long as the one before where that took
    its time, twice as long where it was over soon, for many small steps are few calls.

    Args:
      num_steps: Where the last one ends.
      first: Where the first one starts.
      size: Steps of the first one.
      what: Said beside the bar.

    Yields:
      Pairs of numbers of steps.
    """
    with progress_bar(what, num_steps, first) as move:
        start = first
        while start < num_steps:
            begun, stop = time.monotonic(), min(start + size, num_steps)
            yield start, stop
            if move:
                move(stop)
            start = stop
            took = time.monotonic() - begun
            if took < _SOON / 2:
                size *= 2
            elif took > _SOON:
                size = max(1, size // 2)


def in_turns(
    threads: Executor, function: Callable[[Any], Any], given: Iterable[Any], what: str
) -> list[Any]:
    """`[function(one) for one in given]` on threads; a bar on a terminal, once it takes long.

    Ctrl-C, or an error of one: those that have not begun never do.
    """
    begun = time.monotonic()
    turns = [threads.submit(function, one) for one in given]
    with contextlib.ExitStack() as stack:
        move = None
        try:
            for done, turn in enumerate(as_completed(turns), 1):
                turn.result()
                if done == len(turns):
                    break
                if move is None and time.monotonic() - begun > _SOON:
                    move = stack.enter_context(progress_bar(what, len(turns))) or (lambda _: None)
                if move:
                    move(done)
        except BaseException:
            for turn in turns:
                turn.cancel()
            raise
    return [turn.result() for turn in turns]
