"""What a run writes about itself reaches its files whole, whatever the disk does meanwhile."""

import errno
import json
import logging

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from tests.support import tiny_stage
from tora2_jax.system import appended_file
from tora2_jax.system.appended_file import AppendedFile
from tora2_jax.train import loop, state
from tora2_jax.train.runs import log as metric_log


class FullDisk:
    """Takes a few bytes of every write and then refuses, as long as `full` is set."""

    full = False

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, data):
        if not FullDisk.full:
            return self._file.write(data)
        if len(data) < 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(bytes(data[:7])) and self._refuse()

    def _refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def disk(monkeypatch):
    class Path(type(appended_file.Path())):
        def open(self, *arguments, **options):
            return FullDisk(super().open(*arguments, **options))

    monkeypatch.setattr(appended_file, "Path", Path)
    monkeypatch.setattr(FullDisk, "full", False)
    return FullDisk


def steps_of(folder) -> list[int]:
    return [json.loads(row)["step"] for row in (folder / "losses.jsonl").read_text().splitlines()]


def events_of(folder) -> list[Event]:
    """Every record, its checksums compared."""
    (path,) = folder.glob("events.out.tfevents.*")
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        parts = data[:8], data[12 : 12 + size]
        sums = data[8:12], data[12 + size : 16 + size]
        for part, checksum in zip(parts, sums, strict=True):
            assert int.from_bytes(checksum, "little") == masked_crc32c(part)
        found.append(Event.FromString(parts[1]))
        data = data[16 + size :]
    return found


def test_rows_wait_for_the_disk_and_none_is_cut(tmp_path, disk):
    path = tmp_path / "rows"
    file = AppendedFile(path)
    file.add(b"first row\n")
    file.flush()
    disk.full = True
    file.add(b"second row\n")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            file.flush()
        assert path.read_bytes() == b"first row\n"
    disk.full = False
    file.add(b"third row\n")
    file.flush()
    file.flush()
    assert path.read_bytes() == b"first row\nsecond row\nthird row\n"


def test_a_write_that_is_cut_short_goes_on(tmp_path, disk, monkeypatch):
    path = tmp_path / "rows"
    monkeypatch.setattr(disk, "write", lambda self, data: self._file.write(bytes(data[:4])))
    file = AppendedFile(path)
    file.add(b"123456789")
    file.flush()
    assert path.read_bytes() == b"123456789"


def test_metrics_of_a_full_disk_are_written_later(tmp_path, disk, caplog):
    with caplog.at_level(logging.WARNING), metric_log.MetricLog(tmp_path, 3) as log:
        for step in range(4, 8):
            disk.full = step in (5, 6)
            log.add(step, {"loss": step / 2, "skipped": 0})
            if step == 5:
                log.add_skipped({"step": 5, "why": "it"})
            log.write()
    assert steps_of(tmp_path) == [4, 5, 6, 7]
    assert json.loads((tmp_path / "skipped.jsonl").read_text()) == {"step": 5, "why": "it"}
    version, start, *scalars = events_of(tmp_path)
    assert version.file_version == "brain.Event:2" and start.step == 3
    assert start.session_log.status == start.session_log.START
    losses = {
        event.step: event.summary.value[0].simple_value
        for event in scalars
        if event.summary.value[0].tag == "loss"
    }
    assert losses == {4: 2.0, 5: 2.5, 6: 3.0, 7: 3.5}
    assert len([record for record in caplog.records if "metrics cannot" in record.message]) == 1


def test_a_run_outlives_a_full_disk_at_a_log_write(tmp_path, disk, monkeypatch):
    monkeypatch.setitem(state.STAGES, "base", "tests.support.tiny_stage")
    write = metric_log.MetricLog.write

    def full_for_a_while(log):
        disk.full = log._pending[-1][0] in (2, 3, 4)
        return write(log)

    monkeypatch.setattr(metric_log.MetricLog, "write", full_for_a_while)
    loop.train(tiny_stage._config(steps=6, log_every=1, checkpoint_every=6), tmp_path)
    assert steps_of(tmp_path / "metrics") == [1, 2, 3, 4, 5, 6]
