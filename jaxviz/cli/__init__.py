"""The command `jaxviz`: its options (`command_line`), its work (`commands*`), what they share."""

from jaxviz.cli.command_line import main as main

__all__ = ["main"]
