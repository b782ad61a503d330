"""The progress bar of a training: one line with loss and accuracy, on terminals only."""

from collections.abc import Sequence

import rich.console
import rich.progress


class EpochBar:
    """Counts epochs on standard error if it is a terminal; prints nothing otherwise.

    Args:
      num_epochs: How many epochs there will be at most.
      done: How many are done already.

    Example:
      >>> with EpochBar(1, 0) as bar:
      ...     bar.advance([0.5, 0.8, 0.4, 0.9, 1.0])
    """

    def __init__(self, num_epochs: int, done: int):
        console = rich.console.Console(stderr=True)
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("epoch {task.completed}/{task.total}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            rich.progress.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=num_epochs, completed=done, numbers="")

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *_):
        self._progress.stop()

    def advance(self, row: Sequence[float]) -> None:
        """One epoch more; `row` has its numbers in the order of `History`."""
        loss, accuracy, validation_loss, validation_accuracy = row[:4]
        numbers = f"loss {loss:.4f}  accuracy {accuracy:.2%}"
        if validation_loss == validation_loss:  # NaN where there is no validation set.
            numbers += f"  validation {validation_loss:.4f} {validation_accuracy:.2%}"
        self._progress.update(self._task, advance=1, numbers=numbers)
