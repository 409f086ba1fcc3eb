"""Many videos: each once, resumable, on the cores of a machine or on a cluster by Ray Data.

A video with a record is done. Records hold no path of a machine and no time, so one worker and many
write the same ones; a video that was half done when a worker died is begun anew.
"""

import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tora2_jax.config.curate import CurateConfig
from tora2_jax.config.model import to_dict
from tora2_jax.data.clip_files import VIDEO_SUFFIXES
from tora2_jax.data.curate import output
from tora2_jax.data.curate.tools import Tools, load_tools
from tora2_jax.data.curate.video import Source, curate
from tora2_jax.errors import MessageError
from tora2_jax.system.files import write_text

RECORDS = "curated"  # folder of the records, beside videos, labels, entities and masks
SETTINGS = "curate.json"  # what the records were made with


class CurateError(MessageError):
    """A run that cannot begin."""


class Options(NamedTuple):
    """The command line of `scripts/curate.py run`."""

    input: Path
    output: Path
    config: CurateConfig
    workers: int = 1  # processes; more than one needs Ray
    at_most: int | None = None  # videos, for a look at what thresholds do


def run(options: Options) -> list[dict[str, Any]]:
    """Curates every video of the input that has no record yet; the records of all.

    Raises:
        CurateError: the folders cannot be used, or the output was made with other settings.
        ToolError: the config names what is not there.
    """
    _check(options)
    listed = list_sources(options.input)[: options.at_most]
    todo = [one for one in listed if not record_path(options.output, one).is_file()]
    if todo:
        _check_settings(options)
        done = _alone(options, todo) if options.workers == 1 else _by_ray(options, todo)
        told = f"curating ({len(listed) - len(todo)} of {len(listed)} are done)"
        for _ in tqdm(done, total=len(todo), desc=told, unit="video"):
            pass
    return read_records(options.output, listed)


def list_sources(folder: Path) -> list[Source]:
    """The videos below a folder in the order of their names; hidden ones are passed over."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            path = Path(place) / file
            if not file.startswith(".") and path.suffix.lower() in VIDEO_SUFFIXES:
                name = path.relative_to(folder).as_posix()
                found.append(Source(path, output.composed(name), output.key_of(name)))
    return sorted(found, key=lambda one: one.name)


def record_path(target: Path, source: Source) -> Path:
    """Where the record of a video is."""
    return target / RECORDS / f"{source.key}.json"


def read_records(target: Path, listed: Iterable[Source]) -> list[dict[str, Any]]:
    """The records of videos, in their order."""
    return [json.loads(record_path(target, one).read_text(encoding="utf-8")) for one in listed]


def one_video(source: Source, target: Path, config: CurateConfig, tools: Tools) -> None:
    """Curates a video and writes its record; what fails is its problem and not the run's."""
    try:
        with _given_up_after(config.seconds_per_video):
            record = curate(source, target, config, tools)
    except TimeoutError:
        reason = f"took more than {config.seconds_per_video:g} s"
        record = {"source": source.name, "problem": reason, "clips": []}
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"failed: {type(error).__name__}: {error}"
        record = {"source": source.name, "problem": reason[:500], "clips": []}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_text(record_path(target, source), f"{text}\n")


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after a time; works in the main thread of a process."""

    def give_up(*_) -> None:
        raise TimeoutError

    try:
        before = signal.signal(signal.SIGALRM, give_up)
    except ValueError:  # not the main thread
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _alone(options: Options, todo: list[Source]) -> Iterator[str]:
    tools = load_tools(options.config)
    for source in todo:
        one_video(source, options.output, options.config, tools)
        yield source.name


class Worker:
    """An actor of Ray Data: loads the tools once, then takes one video after another."""

    def __init__(self, target: str, config: CurateConfig):
        self._target, self._config = Path(target), config
        self._tools = load_tools(config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Curates the video of a row; gives its name back."""
        source = Source(Path(row["path"]), row["name"], row["key"])
        if not record_path(self._target, source).is_file():  # a repeated task
            one_video(source, self._target, self._config, self._tools)
        return {"name": row["name"]}


def _by_ray(options: Options, todo: list[Source]) -> Iterator[str]:
    try:
        import ray
    except ImportError as error:
        raise CurateError(
            "several workers need Ray: pip install -e '.[curate]'; or take --workers 1"
        ) from error
    load_tools(options.config)  # what is missing is told here, once
    ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True, log_to_driver=False)
    rows = [{"path": str(one.path), "name": one.name, "key": one.key} for one in todo]
    # One video a block: what a dying worker takes along is one video.
    videos = ray.data.from_items(rows, override_num_blocks=len(rows))
    given = {"target": str(options.output.resolve()), "config": options.config}
    done = videos.map(Worker, fn_constructor_kwargs=given, concurrency=options.workers)
    for row in done.iter_rows():
        yield row["name"]


def _check(options: Options) -> None:
    problems = []
    if not options.input.is_dir():
        problems.append(f"--input: {options.input} is no folder")
    elif not list_sources(options.input):
        suffixes = ", ".join(VIDEO_SUFFIXES)
        problems.append(f"--input: there is no video below {options.input} ({suffixes})")
    if options.output.exists() and not options.output.is_dir():
        problems.append(f"--output: {options.output} is no folder")
    if options.input.resolve() == options.output.resolve():
        problems.append("--output: must not be the input")
    if options.workers < 1:
        problems.append(f"--workers: {options.workers} is not at least 1")
    if problems:
        raise CurateError("\n".join(problems))


def _check_settings(options: Options) -> None:
    """Records of one folder are made with one config; the first run keeps it there."""
    path, wanted = options.output / SETTINGS, json.dumps(to_dict(options.config), indent=1)
    if not path.is_file():
        write_text(path, f"{wanted}\n")
        return
    kept = path.read_text(encoding="utf-8")
    if json.loads(kept) != json.loads(wanted):
        changed = _changed(json.loads(kept), json.loads(wanted))
        raise CurateError(
            f"--output: {options.output} was made with other settings ({', '.join(changed)}); take "
            f"another folder, or remove {RECORDS}/ and {SETTINGS} there"
        )


def _changed(kept: dict, wanted: dict, prefix: str = "") -> list[str]:
    found: list[str] = []
    for name in sorted(kept.keys() | wanted.keys()):
        one, other = kept.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _changed(one, other, f"{prefix}{name}.")
        elif one != other:
            found.append(f"{prefix}{name}")
    return found
