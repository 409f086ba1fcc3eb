"""The first look at a folder of clips: what it takes for clips, and which of their frames."""

import os
import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_clip_folder import clip_examples, model
from tests.data.test_entity_clips import PLAIN, config, numbered
from tests.support.videos import gray, number_of, write
from tora2_jax.config.train import ClipFolderConfig
from tora2_jax.data import clip_folder, clip_look
from tora2_jax.data.clip_frames import frame_numbers
from tora2_jax.data.entity_clips import EntityClips, frame_tiers
from tora2_jax.errors import TrainError
from tora2_jax.media.video import VideoInfo, VideoReadError, write_video

GRAYS = [gray(number) for number in range(40)]


def label(folder: Path, name: str, text: str = "A dog.") -> None:
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / name).write_text(text)


def look(folder: Path, **settings):
    return clip_folder.look_through(ClipFolderConfig(folder=str(folder), **settings), model())


def info(times, **changes) -> VideoInfo:
    mean = (len(times) - 1) / times[-1]
    return VideoInfo(len(times), mean, 64, 96, tuple(times))._replace(**changes)


def test_frames_of_a_varying_rate_are_those_nearest_in_time():
    times = [k / 30 for k in range(30)] + [1 + k / 10 for k in range(30)]
    numbers, faults = frame_numbers(info(times), 17, 8, 0)
    assert not faults and numbers[0] == 0 and len(numbers) == 17
    wanted = np.arange(17) / 8
    errors = [min(abs(np.array(times) - moment)) for moment in wanted]
    np.testing.assert_allclose(np.abs(np.array(times)[list(numbers)] - wanted), errors)
    assert numbers[:9] == (0, 4, 7, 11, 15, 19, 22, 26, 30) and numbers[-1] == 40
    late, _ = frame_numbers(info(times), 17, 8, 3)
    assert late[:4] == (3, 7, 10, 14) and times[late[-1]] == pytest.approx(2.1)
    # Frames left out in front must not move the end beyond the clip's: the first are the longest.
    fast_end = [k / 8 for k in range(8)] + [1 + k / 30 for k in range(37)]
    numbers, faults = frame_numbers(info(fast_end), 17, 8, 3)
    assert not faults and numbers[0] == 1 and numbers[-1] == 8 + 34


def test_what_is_wrong_with_uneven_times_is_said():
    gap = [0, 0.1, 0.2, 1.4, 1.5, 1.6, 1.7, 1.8]
    _, (fault,) = frame_numbers(info(gap), 9, 8, 0)
    assert "in places so far apart that" in fault and "9 frames at 8 per second" in fault
    _, faults = frame_numbers(info(gap), 17, 8, 0)
    assert any("8 frames in 1.80 seconds; 17 frames at 8 per second take 2.00" in f for f in faults)


def test_frames_of_a_constant_rate_stay_what_they_were():
    clip = VideoInfo(60, 24.0, 64, 96)
    assert frame_numbers(clip, 9, 8, 3) == (tuple(range(3, 30, 3)), [])
    assert frame_numbers(clip, 20, 8, 3) == (tuple(range(1, 60, 3)), [])
    ntsc = VideoInfo(60, 30000 / 1001, 64, 96)
    assert frame_numbers(ntsc, 9, 8, 0)[0] == (0, 4, 7, 11, 15, 19, 22, 26, 30)


def test_a_clip_of_varying_rate_is_read_by_its_times(tmp_path):
    times = [33 * k for k in range(20)] + [660 + 100 * k for k in range(20)]
    write(tmp_path / "videos" / "phone.mp4", GRAYS, 30, times=times)
    label(tmp_path, "phone.txt")
    settings = ClipFolderConfig(folder=str(tmp_path), skip_frames=0)
    folder = clip_folder.ClipFolder(settings, model())
    video = folder.read(0)
    moments = [times[number_of(picture)] / 1000 for picture in video]
    np.testing.assert_allclose(moments, np.arange(9) / 8, atol=0.051)


def test_far_is_a_matter_of_time(tmp_path):
    """The second frame shown is a second away from the first, the frames before it are near."""
    clip = info([0, 0.5, 1, 1.1, 1.2, 1.3, 3.0])  # 2 frames per second in the mean
    tiers = frame_tiers(range(7), [2, 3], 1 * clip.fps, clip.position)
    assert tiers == [[0, 6], [], [1, 3, 4, 5], [2]]
    assert frame_tiers(range(7), [2, 3], 2)[0] == [0, 5, 6]


def test_annotations_of_a_varying_rate_follow_the_frames_of_the_file(tmp_path):
    numbered(tmp_path)
    pictures = [np.full((64, 64, 3), 5 * number, np.uint8) for number in range(45)]
    times = [50 * k for k in range(20)] + [1000 + 100 * k for k in range(25)]
    write(tmp_path / "videos" / "numbered.mp4", pictures, 20, times=times)
    settings = config(tmp_path, PLAIN, skip_frames=0)
    clips = EntityClips(settings, model())
    record, clip = clips.record(0), clips.folder.clips[0]
    shown = [round(float(picture.mean()) / 5) for picture in record.video]
    assert shown == list(clip.frames) and np.ptp(np.diff(shown)) > 0
    assert record.entities[0].visible.all() and record.entities[0].mask.any((1, 2)).all()


def test_clips_of_other_suffixes_are_read_and_the_rest_is_named(tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    for name in ("a.MP4", "b.mov", "c.MKV", "d.avi", "e.M4v"):
        write(videos / name.lower(), GRAYS).rename(videos / name)
        label(tmp_path, f"{name[0]}.{'TXT' if name[0] == 'a' else 'txt'}")
    write(videos / "f.webm", GRAYS, codec="libvpx-vp9", options={"b": "9M"})
    label(tmp_path, "f.txt")
    (videos / "old.wmv").write_bytes(b"x")
    (videos / "part2").mkdir()
    label(tmp_path, "readme.md")
    # What macOS leaves on disks of others, and what a copy in progress is called.
    for name in ("._a.MP4", ".DS_Store", ".b.mov.partial"):
        (videos / name).write_bytes(b"\0")
    label(tmp_path, "._a.txt", "\0")
    found = look(tmp_path)
    assert not found.faulty and not found.faults
    assert [clip.video.name[0] for clip in found.clips] == list("abcdef")
    told = []
    monkeypatch.setattr(
        clip_folder.logging, "warning", lambda text, *values: told.append(text % values)
    )
    examples = clip_examples(tmp_path, model())
    examples.warn()
    assert told == [
        "3 files are passed over, for their names are not those of clips: videos/old.wmv, "
        "videos/part2, labels/readme.md"
    ]
    assert examples.describe(1) == {"clip": "b", "draw": 0}


def test_a_folder_without_clips_names_what_it_holds(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "old.wmv").write_bytes(b"x")
    (fault,) = look(tmp_path).faults
    assert "videos holds no *.mp4, *.m4v, *.mov, *.mkv, *.webm, *.avi, but old.wmv" in fault
    (tmp_path / "more" / "videos").mkdir(parents=True)
    write(tmp_path / "more" / "videos" / "a.mov", GRAYS)
    (fault,) = look(tmp_path / "more").faulty["a"]
    assert fault.endswith("labels/a.txt: is missing; its first line is the caption of a.mov")


def test_names_are_compared_as_they_are_read(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert composed != decomposed
    numbered(tmp_path)
    for part, suffix in (("videos", "mp4"), ("labels", "txt"), ("entities", "json")):
        name = composed if part == "videos" else decomposed
        (tmp_path / part / f"numbered.{suffix}").rename(tmp_path / part / f"{name}.{suffix}")
    (tmp_path / "labels" / f"{decomposed}.txt").write_text(f"A dog in a {decomposed}.")
    entities = tmp_path / "entities" / f"{decomposed}.json"
    entities.write_text(entities.read_text().replace('"dog"', f'"{composed}"'))
    (clip,) = EntityClips(config(tmp_path), model()).folder.clips
    assert clip.name == composed and clip.caption[slice(*clip.entities[0].asked.span)] == composed
    # The same files from a disk that decomposes names are the same examples.
    (tmp_path / "videos" / f"{composed}.mp4").rename(tmp_path / "videos" / f"{decomposed}.mp4")
    again = EntityClips(config(tmp_path), model()).folder.clips[0]
    assert clip_folder._clip_identity(again) == clip_folder._clip_identity(
        again._replace(video=tmp_path / "videos" / f"{decomposed}.mp4")
    )
    assert again.name == composed


def test_two_clips_of_one_name_are_told_apart_by_no_label(tmp_path):
    for name in ("a.mp4", "a.mov"):
        write(tmp_path / "videos" / name, GRAYS)
    label(tmp_path, "a.txt")
    (fault,) = look(tmp_path).faulty["a"]
    assert fault.endswith("a.mp4: has the name of a.mov beside it; rename one of them")


def test_masks_may_lie_beside_hidden_files(tmp_path):
    numbered(tmp_path)
    (masks,) = (tmp_path / "masks" / "numbered").iterdir()
    (masks / "._000000.png").write_bytes(b"\0")
    assert len(EntityClips(config(tmp_path), model()).folder) == 1


def test_annotations_of_pixels_that_are_not_square_are_refused(tmp_path):
    def stretch(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    numbered(tmp_path)
    pictures = [np.full((64, 64, 3), number, np.uint8) for number in range(45)]
    write(tmp_path / "videos" / "numbered.mp4", pictures, change=stretch)
    with pytest.raises(TrainError, match=r"numbered\.json: the pixels of its clip are not square"):
        EntityClips(config(tmp_path), model())
    settings = ClipFolderConfig(folder=str(tmp_path))  # without annotations it is shown as it is
    assert clip_folder.look_through(settings, model()).clips[0].info.width == 85


def test_what_is_shown_otherwise_than_stored_is_encoded_again(tmp_path):
    pictures = np.stack([gray(number, 720, 96) for number in range(20)])
    write_video(tmp_path / "videos" / "a.mp4", pictures)
    label(tmp_path, "a.txt")
    (clip,) = look(tmp_path).clips
    known = clip_folder._clip_identity(clip)
    assert len(known) == 5
    changed = clip._replace(info=clip.info._replace(changed=("BT.709",)))
    assert clip_folder._clip_identity(changed) == [*known, ("BT.709",)]


def test_a_disk_that_fails_leaves_no_clip_out(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / "videos" / f"{name}.mp4", GRAYS)
        label(tmp_path, f"{name}.txt")

    def fail(self, path):
        reason = PermissionError(13, "Permission denied") if lasting else OSError(5, "I/O error")
        raise VideoReadError(f"{path}: cannot be read") from reason

    monkeypatch.setattr(clip_look.KeptFindings, "video", fail)
    lasting = True
    assert sorted(look(tmp_path, faulty="skip").faulty) == ["a", "b"]
    lasting = False
    with pytest.raises(OSError, match="cannot be read"):
        look(tmp_path, faulty="skip")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "videos").mkdir(mode=0)
    (fault,) = look(tmp_path).faults
    assert "Permission denied" in fault


def test_a_look_may_end_after_some_clips(tmp_path):
    for name in "abcd":
        write(tmp_path / "videos" / f"{name}.mp4", GRAYS)
        label(tmp_path, f"{name}.txt", "" if name == "a" else "A dog.")
    settings = ClipFolderConfig(folder=str(tmp_path), faulty="skip")
    found = clip_folder.look_through(settings, model(), most=2)
    assert [clip.name for clip in found.clips] == ["b", "c"] and list(found.faulty) == ["a"]
