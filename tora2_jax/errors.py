"""What is told of an error that another library has raised."""


def first_line(error: BaseException) -> str:
    """The first line of its message; its name and arguments if it has none."""
    return next(iter(str(error).strip().splitlines()), repr(error))
