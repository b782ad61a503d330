"""The command `jaxviz`."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    raise NotImplementedError("the command line comes with the first release")
