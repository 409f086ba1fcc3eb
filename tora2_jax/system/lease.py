"""One program at a time in a folder: a lease that names its holder, on network file systems too.

The holder rewrites its file every few seconds. Whoever finds the file of another asks the system
whether that process still runs if it is one of this machine, and otherwise watches whether the file
changes: no two clocks are compared.
"""

import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tora2_jax.system import feedback

RENEWED_EVERY = 10.0  # seconds
WATCHED_FOR = 60.0  # seconds without a change after which a holder elsewhere is gone
_SETTLED_AFTER = 1.0  # seconds in which two that take over at once see each other
_NAME = "lease.json"


class LeaseError(RuntimeError):
    """Another program holds the folder; the message says which."""


class Lease:
    """Holds a folder while its context is open.

    Args:
        folder: Has to exist.
        wait: Whether to wait for another holder's end instead of raising.

    Raises:
        LeaseError: Another holds it (when the context opens).
        OSError: The folder cannot be written to.
    """

    def __init__(self, folder: str | Path, *, wait: bool = False):
        self._path, self._wait = Path(folder) / _NAME, wait
        self._own = _myself()
        self._ended = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self.lost: str | None = None  # who has taken the folder while this process stood still

    def __enter__(self) -> Self:
        while not self._taken():
            pass
        self._renewal.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._renewal.join()
        with suppress(OSError):  # the next holder will find out that this process has ended
            if _token(_read(self._path)) == self._own["token"]:
                self._path.unlink(missing_ok=True)

    def _taken(self) -> bool:
        """Tries to take the folder once."""
        content = _written(self._own, 0)
        try:
            with os.fdopen(
                os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb"
            ) as file:
                file.write(content)
            return True
        except FileExistsError:
            held = _read(self._path)
        if held is None or not self._is_gone(held):
            return False
        aside = self._path.with_name(f".{_NAME}.{self._own['token']}")
        aside.write_bytes(content)
        if _read(self._path) != held:  # another was faster
            aside.unlink()
            return False
        os.replace(aside, self._path)
        time.sleep(_SETTLED_AFTER)
        return _token(_read(self._path)) == self._own["token"]

    def _is_gone(self, held: bytes) -> bool:
        """Whether the holder has ended without giving the folder back; waits to see, if it must.

        Raises:
            LeaseError: It runs, and this program does not wait.
        """
        holder = _parsed(held)
        known = _runs_here(holder)
        if known is None:
            minute = f"at most {WATCHED_FOR:.0f} s"
            known = self._changes(held, f"to see whether {_named(holder)} still runs, {minute}")
        if not known:
            return True
        if not self._wait:
            raise LeaseError(f"{self._path.parent} is in use by {_named(holder)}")
        self._changes(held, f"for {_named(holder)}, which works in {self._path.parent}")
        return False

    def _changes(self, held: bytes, why: str) -> bool:
        """Whether the file changes or goes while it is watched."""
        end = time.monotonic() + WATCHED_FOR
        with feedback.working(f"waiting {why}"):
            while (left := end - time.monotonic()) > 0:
                if _read(self._path) != held:
                    return True
                time.sleep(min(0.5, left))
        return False

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(RENEWED_EVERY):
            count += 1
            try:
                with self._path.open("r+b") as file:
                    held = file.read()
                    if _token(held) not in (None, self._own["token"]):
                        self.lost = _named(_parsed(held))
                        return
                    file.seek(0)
                    file.write(_written(self._own, count))
            except OSError:  # such as a full disk or a server that is away for a moment
                continue


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "process": pid,
        "started": _start_time(pid),
        "machine": _machine(),
        "token": secrets.token_hex(8),
    }


def _machine() -> str:
    """The running system and the process numbers that are seen in it; containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """When a process began; None if there is none of that number, or the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _runs_here(holder: dict[str, Any]) -> bool | None:
    """Whether the holder runs on this machine; None if it is one of another."""
    if holder.get("machine") != _machine() or not isinstance(pid := holder.get("process"), int):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return holder.get("started") == _start_time(pid)  # or its number was given to another


def _written(holder: dict[str, Any], count: int) -> bytes:
    """Of the same length for every count, so that it can be written in place."""
    return (json.dumps({**holder, "renewed": f"{count:08}"}, indent=1) + "\n").encode()


def _read(path: Path) -> bytes | None:
    """The content of the file; None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parsed(held: bytes | None) -> dict[str, Any]:
    """What a file says of its holder; nothing if it is not written yet, or damaged."""
    try:
        found = json.loads(held or b"")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _token(held: bytes | None) -> str | None:
    return _parsed(held).get("token")


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another program"
    return f"process {holder.get('process')} on {holder.get('host')}"
