"""What was found out about clips: kept between starts, and found out again when it must be."""

import json
import os
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.data.test_clip_folder import model
from tests.data.test_entity_clips import config, numbered
from tests.support.videos import gray, write
from tora2_jax.config.train import ClipFolderConfig
from tora2_jax.data import clip_look, kept_findings
from tora2_jax.data.kept_findings import KeptFindings
from tora2_jax.media.video import VideoError, VideoReadError, write_image

NAMES = ["a", "b", "c", "d"]


@pytest.fixture
def clips(tmp_path) -> Path:
    """Four clips: the rate of "b" varies, "c" is cut off."""
    folder = tmp_path / "clips"
    (folder / "labels").mkdir(parents=True)
    times = {"b": [33 * k for k in range(20)] + [660 + 100 * k for k in range(20)]}
    for name in NAMES:
        path = folder / "videos" / f"{name}.mp4"
        write(path, [gray(number) for number in range(40)], 8, times=times.get(name))
        (folder / "labels" / f"{name}.txt").write_text("A dog.")
    data = path.with_name("c.mp4").read_bytes()
    path.with_name("c.mp4").write_bytes(data[: len(data) // 2])
    return folder


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the clips that are opened."""
    names, real = [], av.open

    def counted(file, *rest, **settings):
        names.append(Path(file).name)
        return real(file, *rest, **settings)

    monkeypatch.setattr(av, "open", counted)
    return names


def look(folder: Path, **settings):
    clips = ClipFolderConfig(folder=str(folder), faulty="skip")
    return clip_look.look_through(clips, model(), str(folder.parent / "cache"), **settings)


def cache_file(folder: Path) -> Path:
    (file,) = (folder.parent / "cache").iterdir()
    return file


def test_a_restart_opens_no_clip(clips, opened, tmp_path):
    first = look(clips)
    assert sorted(opened) == [f"{name}.mp4" for name in NAMES]  # each once
    opened.clear()
    again = look(clips)
    assert not opened and again == first
    assert [clip.name for clip in again.clips] == ["a", "b", "d"] and again.clips[1].info.times
    assert "c.mp4: is damaged" in again.faulty["c"][0]
    # By another way to the same folder, too.
    (tmp_path / "link").symlink_to(clips)
    (fault,) = look(tmp_path / "link").faulty["c"]
    assert not opened and fault.startswith(f"{tmp_path}/link/videos/c.mp4: is damaged")
    clip_look.look_through(ClipFolderConfig(folder=str(clips)), model())  # nothing is kept
    assert len(opened) == 4


def test_clips_that_have_changed_are_opened_again(clips, opened):
    look(clips)
    path = clips / "videos" / "c.mp4"
    write(path, [gray(number) for number in range(40)])
    stat = (clips / "videos" / "a.mp4").stat()
    os.utime(clips / "videos" / "a.mp4", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    write(clips / "videos" / "e.mp4", [gray(0)] * 20)
    opened.clear()
    found = look(clips)
    assert sorted(opened) == ["a.mp4", "c.mp4", "e.mp4"] and "c" not in found.faulty
    opened.clear()
    look(clips)
    assert not opened


def test_other_sizes_open_nothing(clips, opened):
    look(clips)
    opened.clear()
    settings = ClipFolderConfig(folder=str(clips), skip_frames=0, faulty="skip")
    found = clip_look.look_through(
        settings, model(frames=17, fps=4, height=64), str(clips.parent / "cache")
    )
    assert not opened and found.clips[0].frames == tuple(range(0, 34, 2))


def test_an_interrupted_look_goes_on(clips, opened, monkeypatch):
    real = kept_findings.video_info

    def stopped(path):
        if path.stem == "c":
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(kept_findings, "video_info", stopped)
    monkeypatch.setattr(clip_look, "_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        look(clips)
    monkeypatch.undo()
    assert {"a.mp4", "b.mp4"} <= json.loads(cache_file(clips).read_text())["videos"].keys()


def test_a_look_that_is_killed_has_saved_now_and_then(clips, monkeypatch):
    monkeypatch.setattr(kept_findings, "_PAUSE", 0)
    monkeypatch.setattr(clip_look, "_GROUP", 2)
    known = []
    real = KeptFindings.video

    def video(self, path):
        if path.stem == "d":
            known.extend(json.loads(cache_file(clips).read_text())["videos"])
        return real(self, path)

    monkeypatch.setattr(KeptFindings, "video", video)
    look(clips)
    assert sorted(known) == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 0}', b"\xff\xfe", b"null"])
def test_a_damaged_file_is_made_anew(clips, opened, content):
    look(clips)
    path = cache_file(clips)
    whole = path.read_bytes()
    path.write_bytes(content)
    opened.clear()
    look(clips)
    assert len(opened) == 4 and json.loads(path.read_bytes()) == json.loads(whole)


def test_findings_that_cannot_be_kept_are_told_once(clips, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(
        kept_findings.logging, "warning", lambda text, *values: told.append(text % values)
    )
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(kept_findings, "_PAUSE", 0)
    monkeypatch.setattr(clip_look, "_GROUP", 1)
    assert len(look(clips).clips) == 3
    assert len(told) == 1 and "cannot be kept in" in told[0]


def test_clips_of_a_folder_that_may_only_be_read_are_kept_elsewhere(clips, opened):
    before = sorted(clips.rglob("*"))
    look(clips)
    assert sorted(clips.rglob("*")) == before


def test_processes_take_in_what_others_have_kept(clips, opened):
    cache = clips.parent / "cache"
    mine, other = KeptFindings(cache, clips), KeptFindings(cache, clips)
    mine.video(clips / "videos" / "a.mp4")
    other.video(clips / "videos" / "b.mp4")
    mine.save()
    other.save()
    mine.video(clips / "videos" / "d.mp4")
    mine.save()
    assert not list(cache.glob(".*"))
    opened.clear()
    last = KeptFindings(cache, clips)
    for name in ("a", "b", "d"):
        last.video(clips / "videos" / f"{name}.mp4")
    assert not opened
    state = cache_file(clips).stat().st_mtime_ns
    last.save()  # nothing is new
    assert cache_file(clips).stat().st_mtime_ns == state


def test_what_was_found_later_is_kept(clips, opened):
    cache, path = clips.parent / "cache", clips / "videos" / "a.mp4"
    mine, other = KeptFindings(cache, clips), KeptFindings(cache, clips)
    assert mine.video(path).frames == 40
    mine.save()
    write(path, [gray(number) for number in range(20)])
    assert other.video(path).frames == 20
    other.save()
    opened.clear()
    assert KeptFindings(cache, clips).video(path).frames == 20 and not opened


def test_another_version_of_the_reader_looks_at_faults_again(clips, opened, monkeypatch):
    look(clips)
    monkeypatch.setattr(kept_findings, "version", lambda name: "99")
    opened.clear()
    look(clips)
    assert opened == ["c.mp4"]


def test_failures_of_the_disk_are_not_kept(clips, monkeypatch):
    def fail(path):
        raise VideoReadError(f"{path}: cannot be read") from PermissionError()

    monkeypatch.setattr(kept_findings, "video_info", fail)
    assert len(look(clips).faulty) == 4
    monkeypatch.undo()
    assert len(look(clips).clips) == 3
    kept = KeptFindings(None, clips)
    with pytest.raises(VideoReadError, match=r"no\.mp4: cannot be read"):
        kept.video(clips / "videos" / "no.mp4")


def test_several_clips_are_looked_at_together(clips, monkeypatch):
    waiting = []

    def slow(path):
        waiting.append(path)
        until = time.monotonic() + 5
        while len(waiting) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        raise VideoError(f"{path}: {len(waiting)} at once")

    monkeypatch.setattr(kept_findings, "video_info", slow)
    assert [fault[0][-9:] for fault in look(clips).faulty.values()] == ["4 at once"] * 4


@pytest.fixture
def pictures(monkeypatch) -> list[str]:
    """The names of the pictures that are opened."""
    names, real = [], Image.open

    def counted(file, *rest, **settings):
        names.append(Path(file).name)
        return real(file, *rest, **settings)

    monkeypatch.setattr(Image, "open", counted)
    return names


def test_pictures_of_faultless_annotations_are_opened_once(tmp_path, opened, pictures):
    folder = tmp_path / "clips"
    numbered(folder)
    path = folder / "entities" / "numbered.json"
    data = json.loads(path.read_text())
    write_image(folder / "own.png", np.full((60, 80, 3), 250, np.uint8))
    data["entities"][0]["images"] = ["own.png"]
    path.write_text(json.dumps(data))

    def entities(**changes):
        clips = config(folder, **changes).clips
        found = clip_look.look_through(clips, model(), str(tmp_path / "cache"))
        opened.clear()
        return found

    first = entities()
    assert not first.faulty and len(set(pictures)) == 46
    pictures.clear()
    again = entities()
    assert not pictures and [e.fingerprint for e in again.clips[0].entities] == [
        e.fingerprint for e in first.clips[0].entities
    ]
    mask = next((folder / "masks").rglob("000007.png"))
    mask.write_bytes(mask.read_bytes()[:20])
    (fault,) = entities().faulty["numbered"]
    assert "000007.png: damaged or no picture" in fault
    (fault,) = entities().faulty["numbered"]  # faults are not kept
    assert "000007.png" in fault
    mask.unlink()
    pictures.clear()
    assert not entities().faulty and len(set(pictures)) == 45
    (folder / "labels" / "numbered.txt").write_text("A cat.")
    (fault,) = entities().faulty["numbered"]
    assert 'word: "dog" is not in the caption' in fault
