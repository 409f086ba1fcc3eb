"""Arrays of one orbax item, read by each process for itself."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tora2_jax.errors import first_line


class _Patient(ocp.type_handlers.TypeHandler):
    """Lets the other reads of an item end when one fails.

    Orbax closes the event loop at the first error; each read that ends later prints a traceback.
    """

    async def deserialize(self, *arguments: Any, **options: Any) -> Any:
        before = asyncio.all_tasks()
        try:
            return await super().deserialize(*arguments, **options)
        except BaseException:
            if others := asyncio.all_tasks() - before:
                await asyncio.wait(others)
            raise


class _Arrays(_Patient, ocp.type_handlers.ArrayHandler):
    pass


class _HostArrays(_Patient, ocp.type_handlers.NumpyHandler):
    pass


_READERS = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, _HostArrays()), (jax.Array, _Arrays())
)


def read(
    location: str | PathLike[str],
    wanted: Mapping[str, jax.ShapeDtypeStruct],
    arguments: Mapping[str, ocp.RestoreArgs],
) -> dict[str, Any]:
    """Some arrays of an item. No process waits for another, so one of several may fail alone.

    Args:
        location: The item's folder.
        wanted: Shapes and types by name.
        arguments: Of the same names; see `ocp.checkpoint_utils.construct_restore_args`.

    Raises:
        ValueError: it cannot be read; why, in one line.
    """
    place = epath.Path(Path(location).absolute())
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=_READERS)
    with _one_line(place):
        return handler.restore(
            place,
            args=ocp.args.PyTreeRestore(
                item=dict(wanted), restore_args=dict(arguments), partial_restore=True
            ),
        )


def read_all(location: str | Path) -> dict[str, Any]:
    """All arrays of an item in host memory, on whatever devices it was made.

    Args:
        location: The item's folder.

    Raises:
        ValueError: it cannot be read; why, in one line.
    """
    place = epath.Path(Path(location).absolute())
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=_READERS)
    with _one_line(place):
        stored = handler.metadata(place).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


@contextmanager
def _one_line(place: epath.Path) -> Iterator[None]:
    """Raises ValueError for what reading a damaged item raises."""
    try:
        yield
    except Exception as error:  # orbax wraps what a read raises in a bare Exception
        cause = error.__cause__ if type(error) is Exception else error
        if not isinstance(cause, ValueError | KeyError | OSError):
            raise
        raise ValueError(f"{place} cannot be read: {first_line(cause)}") from error
