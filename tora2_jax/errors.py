"""The errors that several rooms raise, and what is told of those of other libraries."""


def printable(text: str) -> str:
    """A message that quotes what others wrote: characters that steer a terminal as escapes."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


class MessageError(ValueError):
    """An error whose message is for a person, and may quote what others wrote."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class CheckpointError(MessageError):
    """A file or folder that cannot be used, with everything that is wrong with it."""


class TrainError(MessageError):
    """Something that the user has to change before a run can start or go on."""


def first_line(error: BaseException) -> str:
    """The first line of its message; its name and arguments if it has none."""
    return next(iter(str(error).strip().splitlines()), repr(error))
