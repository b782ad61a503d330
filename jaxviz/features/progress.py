"""The progress bar of a long climb: one line, on terminals only."""

import rich.console
import rich.progress


def chunks(num_steps: int, first: int, size: int, what: str):
    """Spans (start, stop) of steps; on a terminal `size` long, with a bar; else all in one.

    Args:
      num_steps: Where the last one ends.
      first: Where the first one starts.
      size: Steps between two movements of the bar.
      what: Said beside the bar.

    Yields:
      Pairs of numbers of steps.
    """
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        if first < num_steps:
            yield first, num_steps
        return
    columns = (
        rich.progress.TextColumn(what + " {task.completed}/{task.total}"),
        rich.progress.BarColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=num_steps, completed=first)
        for start in range(first, num_steps, size):
            stop = min(start + size, num_steps)
            yield start, stop
            bar.update(task, completed=stop)
