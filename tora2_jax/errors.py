"""The errors that several rooms raise, and what is told of those of other libraries."""


class CheckpointError(ValueError):
    """A file or folder that cannot be used, with everything that is wrong with it."""


class TrainError(ValueError):
    """Something that the user has to change before a run can start or go on."""


def first_line(error: BaseException) -> str:
    """The first line of its message; its name and arguments if it has none."""
    return next(iter(str(error).strip().splitlines()), repr(error))
