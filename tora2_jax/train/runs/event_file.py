"""The file of metrics that TensorBoard reads."""

import struct
import time
from pathlib import Path

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from tora2_jax.system.appended_file import AppendedFile


class EventFile(AppendedFile):
    """TensorBoard's records. Its usual writer does it in a thread, which an error would end."""

    def __init__(self, path: Path, start: int):
        super().__init__(path)
        self._add(Event(file_version="brain.Event:2"))
        # Hides what an earlier start has written of steps that are done again.
        self._add(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """A number of a step."""
        self._add(Event(step=step, summary=summary.scalar(name, value)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        for part in (struct.pack("<Q", len(data)), data):
            self.add(part + struct.pack("<I", masked_crc32c(part)))
