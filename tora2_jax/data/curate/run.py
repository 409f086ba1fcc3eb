"""Many videos: each once, resumable, on the cores of a machine or on a cluster by Ray Data.

A video with a record is done. Records hold no path of a machine and no time, so one worker and many
write the same ones; a video that was half done when a worker died is begun anew.
"""

import copy
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tora2_jax.config.curate import CurateConfig
from tora2_jax.config.model import to_dict
from tora2_jax.data.clip_files import VIDEO_SUFFIXES
from tora2_jax.data.curate import output
from tora2_jax.data.curate.annotate.language_model import LanguageModelError
from tora2_jax.data.curate.looked_at import Deadline, TooLong
from tora2_jax.data.curate.names import composed, key_of
from tora2_jax.data.curate.tools import Tools, load_tools
from tora2_jax.data.curate.video import Source, curate
from tora2_jax.errors import MessageError
from tora2_jax.media.video_reading import VideoError, VideoReadError
from tora2_jax.system.files import write_text

RECORDS = "curated"  # folder of the records, beside videos, labels, entities and masks
SETTINGS = "curate.json"  # what the records were made with
_TRIES = 2  # of a video that ends its process
_AGAIN = "The videos before it are done; run it again to go on."


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
        CurateError: the folders cannot be used, the output was made with other settings, or it
            cannot be written; or a disk, a network or the language model fails: run again later.
        ToolError: the config names what is not there.
    """
    listed = _check(options)[: options.at_most]
    _check_settings(options)
    todo = [one for one in listed if not record_path(options.output, one).is_file()]
    if todo:
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
                found.append((path, path.relative_to(folder).as_posix()))
    stems = Counter(composed(path.stem) for path, _ in found)
    return sorted(
        Source(path.absolute(), composed(name), key_of(name), stems[composed(path.stem)] == 1)
        for path, name in found
    )


def record_path(target: Path, source: Source) -> Path:
    """Where the record of a video is."""
    return target / RECORDS / f"{source.key}.json"


def read_records(target: Path, listed: Iterable[Source]) -> list[dict[str, Any]]:
    """The records of videos, in their order."""
    return [json.loads(record_path(target, one).read_text(encoding="utf-8")) for one in listed]


def one_video(source: Source, target: Path, config: CurateConfig, tools: Tools) -> None:
    """Curates a video and writes its record; a fault of its own is its problem, not the run's.

    Raises:
        VideoReadError: see `video.curate`; also of the next two. There is no record then.
        LanguageModelError: the service does not answer.
        OSError: the output cannot be written.
    """
    begun = target / RECORDS / f".{source.key}.begun"
    output.remove(target, source.key)  # of a time before
    if _begun_before(begun) >= _TRIES:
        reason = f"has ended its process {_TRIES} times"
        record = {"source": source.name, "problem": reason, "clips": []}
    else:
        try:
            record = _record(source, target, config, tools)
        except Exception:  # it is begun anew; only what ends the process counts
            begun.unlink(missing_ok=True)
            raise
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_text(record_path(target, source), f"{text}\n")
    begun.unlink(missing_ok=True)


def _record(source: Source, target: Path, config: CurateConfig, tools: Tools) -> dict[str, Any]:
    try:
        return curate(source, target, config, tools, Deadline(config.seconds_per_video))
    except TooLong as error:
        problem = str(error)
    except (VideoReadError, LanguageModelError, MemoryError, OSError):
        raise
    except VideoError as error:
        if isinstance(error.__cause__, OSError):  # of what is written
            raise
        problem = f"failed: {error}"
    except Exception as error:  # a network or a library; the others go on
        problem = f"failed: {type(error).__name__}: {error}"
    output.remove(target, source.key)
    told = problem.replace(str(source.path), source.name).replace(str(target), "the output")
    return {"source": source.name, "problem": told[:500], "clips": []}


def _begun_before(begun: Path) -> int:
    """How often a video was begun and neither finished nor given up; counts this time."""
    try:
        count = int(begun.read_text())
    except (OSError, ValueError):
        count = 0
    write_text(begun, f"{count + 1}")
    return count


def _alone(options: Options, todo: list[Source]) -> Iterator[str]:
    tools = load_tools(options.config)
    for source in todo:
        try:
            one_video(source, options.output, options.config, tools)
        except (VideoError, LanguageModelError, OSError) as error:
            raise CurateError(f"{source.name}: {error}\n{_AGAIN}") from error
        yield source.name


class Worker:
    """An actor of Ray Data: loads the tools once, then takes one video after another."""

    def __init__(self, target: str, config: CurateConfig):
        self._target, self._config = Path(target), config
        self._tools = load_tools(config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Curates the video of a row; gives its name back, and why the run has to end."""
        source = Source(Path(row["path"]), row["name"], row["key"], row["alone"])
        told = ""
        if not record_path(self._target, source).is_file():  # a repeated task
            try:
                one_video(source, self._target, self._config, self._tools)
            except (VideoError, LanguageModelError, OSError) as error:
                told = str(error)
        return {"name": row["name"], "failed": told}


def _by_ray(options: Options, todo: list[Source]) -> Iterator[str]:
    try:
        import ray
    except ImportError as error:
        raise CurateError(
            "several workers need Ray: pip install -e '.[curate]'; or take --workers 1"
        ) from error
    load_tools(options.config)  # what is missing is told here, once
    ray.init(address=os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True, log_to_driver=False)
    rows = [one._asdict() | {"path": str(one.path)} for one in todo]
    # One video a block: what a dying worker takes along is one video.
    videos = ray.data.from_items(rows, override_num_blocks=len(rows))
    given = {"target": str(options.output.absolute()), "config": _with_absolute_paths(options)}
    actor: Any = Worker  # a class, whose objects are called
    done = videos.map(actor, fn_constructor_kwargs=given, concurrency=options.workers)
    for row in done.iter_rows():
        if row["failed"]:
            raise CurateError(f"{row['name']}: {row['failed']}\n{_AGAIN}")
        yield row["name"]


def _with_absolute_paths(options: Options) -> CurateConfig:
    """The config of workers, which run in another folder."""
    config = copy.deepcopy(options.config)
    for name in ("cuts", "caption_table", "mask_folder"):
        if value := getattr(config, name):
            setattr(config, name, str(Path(value).absolute()))
    return config


def _check(options: Options) -> list[Source]:
    """The videos of the input, if the folders can be used."""
    problems, listed = [], []
    if not options.input.is_dir():
        problems.append(f"--input: {options.input} is no folder")
    else:
        listed = list_sources(options.input)
        if not listed:
            suffixes = ", ".join(VIDEO_SUFFIXES)
            problems.append(f"--input: there is no video below {options.input} ({suffixes})")
        twins = Counter(one.key for one in listed)
        problems += [f"--input: {one.name} is there twice" for one in listed if twins[one.key] > 1]
    if options.output.exists() and not options.output.is_dir():
        problems.append(f"--output: {options.output} is no folder")
    inside, outside = options.input.resolve(), options.output.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        problems.append("--output: must neither lie in the input nor hold it")
    if options.workers < 1:
        problems.append(f"--workers: {options.workers} is not at least 1")
    if problems:
        raise CurateError("\n".join(problems))
    return listed


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
