"""From a folder of raw videos to annotated clips: none twice, none lost, a reason for each."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from configs.bold.vae import bold_world
from tests.data.curate.test_measures import texture
from tests.support.world_truth import middle_of
from tora2_jax.config.curate import CurateConfig
from tora2_jax.data.clip_look import look_through
from tora2_jax.data.curate import report, run, video
from tora2_jax.data.curate.annotate.language_model import LanguageModelError
from tora2_jax.data.curate.annotate.words import Subject
from tora2_jax.data.curate.names import composed, key_of
from tora2_jax.data.curate.output import numbered
from tora2_jax.media.image_file import load_mask
from tora2_jax.media.video import write_image, write_video
from tora2_jax.media.video_reading import read_video
from tora2_jax.world.clips import render_clip


def small() -> CurateConfig:
    config = CurateConfig(shots="none", text_finder="none")
    filters = config.filters
    filters.seconds, filters.lines, filters.flow = 0.5, 64, 0.05
    filters.zoom = filters.angle = filters.aesthetic = filters.text = None
    return config


def world(index: int):
    settings = dataclasses.replace(bold_world(79, frames=17, references=0), height=192, width=256)
    return render_clip(settings, index)


@pytest.fixture(scope="module")
def records():
    found = [world(index) for index in range(12)]
    return [one for one in found if len(one.entities) == 1][:3]


@pytest.fixture
def raw(tmp_path, records):
    """Three videos with captions, in folders and with names as people have them."""
    names = ["a.mp4", "holiday/b c.mp4", "holiday/é.mp4"]
    for name, record in zip(names, records, strict=True):
        path = tmp_path / "raw" / name
        write_video(path, record.video, 8)
        path.with_suffix(".txt").write_text(record.caption)
    return tmp_path / "raw"


def options(raw, **changes) -> run.Options:
    return run.Options(raw, raw.parent / "out", small())._replace(**changes)


@pytest.mark.long
def test_with_the_worlds_own_masks_every_entity_comes_out(tmp_path):
    """Words, spans and masks are those of the world, and paths within 3 pixels."""
    truths = [world(index) for index in range(10)]
    for index, record in enumerate(truths):
        write_video(tmp_path / "raw" / f"{index}.mp4", record.video, 8)
        (tmp_path / "raw" / f"{index}.txt").write_text(record.caption)
        for slot, entity in enumerate(sorted(record.entities, key=lambda one: one.span)):
            folder = tmp_path / "masks" / f"{key_of(f'{index}.mp4')}_0001" / f"{slot}-x"
            for frame, mask in enumerate(entity.mask):
                write_image(folder / f"{frame}.png", mask.astype(np.uint8) * 255)
    config = small()
    config.mask_finder, config.mask_folder = "files", str(tmp_path / "masks")
    found = run.run(options(tmp_path / "raw", config=config))
    far = []
    for record, truth in zip(found, truths, strict=True):
        (clip,) = record["clips"]
        entities = sorted(truth.entities, key=lambda one: one.span)
        assert [tuple(one["span"]) for one in clip["subjects"]] == [one.span for one in entities]
        assert clip["caption"] == truth.caption and clip["frames"] == [0, 17] and clip["kept"]
        file = tmp_path / "out" / "entities" / f"{clip['id']}.json"
        told = {one["word"]: one for one in json.loads(file.read_text())["entities"]}
        for slot, entity in enumerate(entities):
            marks = [mark for mark in (0, 8, 16) if entity.mask[mark].mean() >= 0.004]
            if not marks:
                continue
            own = told[numbered(truth.caption, Subject(entity.word, entity.span, False, "object"))]
            folder = tmp_path / "out" / own["frame_masks"]
            kept = [mark for mark in marks if (folder / f"{mark:06d}.png").is_file()]
            assert kept  # of the others much is hidden: they are fragmented
            for mark in kept:
                mask = load_mask(folder / f"{mark:06d}.png") > 127
                both, either = mask & entity.mask[mark], mask | entity.mask[mark]
                assert both.sum() / either.sum() > 0.95, slot
            far.append(missed_by(own["trajectory"], entity))
    assert len(far) >= 6 and np.mean(np.array(far) <= 3) >= 0.9


def missed_by(path: list, entity) -> float:
    """Pixels between a path and the truth, the median of the frames in which it is seen."""
    rows = zip(path, middle_of(entity), entity.visible, strict=True)
    shown = [(place, expected) for place, expected, seen in rows if place and seen]
    return np.median([np.linalg.norm(np.array(place) - expected) for place, expected in shown])


def test_offline_a_clip_of_one_entity_is_annotated(raw):
    found = run.run(options(raw))
    kept = [clip for record in found for clip in record["clips"] if clip["kept"]]
    assert len(kept) >= 2
    for record in found:
        (clip,) = record["clips"]
        if clip["kept"]:
            # The same bytes as the file that was given.
            written = raw.parent / "out" / "videos" / f"{clip['id']}.mp4"
            assert written.read_bytes() == (raw / record["source"]).read_bytes()


def test_the_output_is_a_folder_that_training_reads(raw):
    from tora2_jax.config import toy
    from tora2_jax.config.train import ClipFolderConfig, EntityClipConfig

    found = run.run(options(raw))
    kept = sum(clip["kept"] for record in found for clip in record["clips"])
    model = toy()
    model.frames, model.fps = 17, 8
    clips = ClipFolderConfig(
        folder=str(raw.parent / "out"), entities=EntityClipConfig(smallest_cut=8)
    )
    looked = look_through(clips, model)
    assert looked.problems(clips) == [] and len(looked.clips) == kept


def test_a_second_run_opens_nothing_and_a_killed_one_goes_on(raw, monkeypatch):
    first = run.run(options(raw))
    monkeypatch.setattr(run, "load_tools", lambda _: pytest.fail("nothing is to do"))
    assert run.run(options(raw)) == first
    monkeypatch.undo()
    # As if the last video had not been finished.
    out = raw.parent / "out"
    last = sorted((out / run.RECORDS).iterdir())[-1]
    kept = last.read_text()
    last.unlink()
    shutil.rmtree(out / "videos")
    assert run.run(options(raw)) == first and last.read_text() == kept


def test_other_settings_need_another_folder(raw):
    run.run(options(raw))
    changed = small()
    changed.filters.flow = 3.0
    with pytest.raises(run.CurateError, match=r"other settings \(filters.flow\)"):
        run.run(options(raw, config=changed))


def test_what_is_wrong_is_the_reason_and_the_others_go_on(raw):
    good = (raw / "a.mp4").read_bytes()
    (raw / "empty.mp4").write_bytes(b"")
    (raw / "cut.mp4").write_bytes(good[: len(good) // 2])
    (raw / "text.mkv").write_text("no video")
    (raw / "silent.MP4").write_bytes(good)  # no caption
    (raw / "plural.mov").write_bytes(good)
    (raw / "plural.txt").write_text("Two men in a meadow.")
    (raw / "nobody.mp4").write_bytes(good)
    (raw / "nobody.txt").write_text("It is raining.")
    (raw / ".hidden.mp4").write_bytes(good)
    write_video(raw / "still.mp4", np.stack([texture(128, 128)] * 9), 8)
    (raw / "still.txt").write_text("A dog.")
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    found = {record["source"]: record for record in run.run(options(raw))}
    assert len(found) == 10 and ".hidden.mp4" not in found
    for name in ("empty.mp4", "cut.mp4", "text.mkv"):
        assert found[name]["problem"].startswith("cannot be decoded: ") and not found[name]["clips"]
        assert str(raw) not in found[name]["problem"]
    told = {name: one["clips"][0]["dropped"] for name, one in found.items() if one["clips"]}
    assert told["silent.MP4"] == {"caption": "it has no caption"}
    assert told["plural.mov"] == {"plural": "the caption names subjects in the plural: men"}
    assert told["nobody.mp4"] == {"subject": "the caption names no subject"}
    assert "the flow score is" in told["still.mp4"]["flow"]
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before
    text = "\n".join(report.lines(list(found.values()), small(), {}))
    assert "10 videos, 7 clips" in text and "not used: 3 (cannot be decoded)" in text
    assert "dropped: 1 (plural)" in text and "off: zoom (switched off in the config)" in text
    counted = report.counts(list(found.values()))
    assert counted["kept"] + sum(counted["dropped"].values()) == counted["clips"]


def test_a_video_that_takes_too_long_leaves_nothing(raw, monkeypatch):
    config = small()
    config.seconds_per_video = 1e-9
    found = run.run(options(raw, config=config))
    assert {one["problem"] for one in found} == {"took more than 1e-09 s"}
    out = raw.parent / "out"
    assert not (out / "videos").exists() or not list((out / "videos").iterdir())


def test_a_library_that_fails_is_the_videos_problem_and_its_clips_are_removed(raw, monkeypatch):
    write = video.output.write_clips

    def fails(*arguments):
        write(*arguments)
        raise cv2.error("in a layer")

    monkeypatch.setattr(video.output, "write_clips", fails)
    found = run.run(options(raw))
    problems = [one["problem"] for one in found if one["problem"]]
    assert problems and all(one.startswith("failed: error: ") for one in problems)
    assert str(raw) not in json.dumps(found)
    assert not list((raw.parent / "out" / "videos").iterdir())


@pytest.mark.parametrize("fault", [LanguageModelError("no answer"), OSError(28, "disk full")])
def test_what_another_start_may_mend_ends_the_run_without_a_record(raw, monkeypatch, fault):
    def fails(*_):
        raise fault

    first = run.run(options(raw))
    out = raw.parent / "out"
    last = sorted((out / run.RECORDS).iterdir())[-1]
    last.unlink()
    monkeypatch.setattr(run, "curate", fails)
    with pytest.raises(run.CurateError, match="run it again to go on"):
        run.run(options(raw))
    assert not last.exists() and not list((out / run.RECORDS).glob(".*"))
    monkeypatch.undo()
    assert run.run(options(raw)) == first


def test_a_video_that_ends_its_process_is_passed_over_the_third_time(raw, monkeypatch):
    def dies(source, *_):
        if source.name == "a.mp4":
            raise KeyboardInterrupt  # as a segmentation fault: no record, no end
        return {"source": source.name, "problem": None, "clips": []}

    monkeypatch.setattr(run, "curate", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run.run(options(raw))
    found = run.run(options(raw))
    assert found[0]["problem"] == "has ended its process 2 times"
    assert [one["problem"] for one in found[1:]] == [None, None]


def test_odd_sizes_and_one_frame_are_written_as_training_reads_them(raw, records):
    shutil.rmtree(raw)
    record = records[0]
    odd = record.video[:, :191, :255]
    write_video(raw / "odd.mp4", odd, 8)
    (raw / "odd.mp4").rename(raw / "odd.mov")  # is written anew
    (raw / "odd.txt").write_text(record.caption)
    write_video(raw / "one.mp4", record.video[:1], 1)
    (raw / "one.txt").write_text(record.caption)
    config = small()
    config.filters.flow = None
    found = {one["source"]: one["clips"][0] for one in run.run(options(raw, config=config))}
    assert found["one.mp4"]["values"]["flow"] == 0 and found["one.mp4"]["values"]["angle"] is None
    if found["odd.mov"]["kept"]:
        out, clip = raw.parent / "out", found["odd.mov"]["id"]
        shape = read_video(out / "videos" / f"{clip}.mp4")[0].shape
        masks = list((out / "masks" / clip).rglob("*.png"))
        assert masks and all(load_mask(mask).shape == shape[1:3] for mask in masks)


def test_cuts_part_a_video_and_long_shots_are_parted(raw, records):
    joined = np.concatenate([one.video for one in records])
    write_video(raw / "joined.mp4", joined, 8)
    (raw / "cuts.csv").write_text("video,frame\njoined.mp4,17\njoined.mp4,34\n")
    (raw / "captions.csv").write_text(
        "video,caption\n"
        + "".join(f'joined.mp4#{n},"{one.caption}"\n' for n, one in enumerate(records, 1))
    )
    config = small()
    config.cuts, config.captions = str(raw / "cuts.csv"), "table"
    config.caption_table = str(raw / "captions.csv")
    found = {one["source"]: one for one in run.run(options(raw, config=config))}
    clips = found["joined.mp4"]["clips"]
    assert [clip["frames"] for clip in clips] == [[0, 17], [17, 34], [34, 51]]
    assert [clip["caption"] for clip in clips] == [one.caption for one in records]
    kept = next(index for index, clip in enumerate(clips) if clip["kept"])
    frames, fps = read_video(raw.parent / "out" / "videos" / f"{clips[kept]['id']}.mp4")
    assert frames.shape == records[kept].video.shape and fps == 8
    # Encoded twice, but the same pictures.
    assert np.abs(frames.astype(int) - records[kept].video).mean() < 3
    assert found["a.mp4"]["clips"][0]["dropped"] == {"caption": "it has no caption"}


def test_everything_that_the_config_names_and_is_not_there_is_told_at_once(raw):
    config = small()
    config.cuts, config.mask_finder, config.captions = "no.csv", "files", "table"
    config.language_model.key_variable = "NO_SUCH_KEY"
    with pytest.raises(run.MessageError) as refused:
        run.run(options(raw, config=config))
    for field in ("cuts: no.csv", "mask_folder:", "caption_table:", "NO_SUCH_KEY"):
        assert field in str(refused.value)
    assert not (raw.parent / "out" / run.RECORDS).exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workers": 0}, "--workers: 0"),
        ({"input": "nowhere"}, "is no folder"),
        ({"output": "raw"}, "must neither lie in the input nor hold it"),
        ({"output": "raw/out"}, "must neither lie in the input nor hold it"),
        ({"input": "raw/holiday", "output": "raw"}, "must neither"),
    ],
)
def test_a_run_that_cannot_begin(raw, changes, told):
    changes = {
        name: raw.parent / value if name != "workers" else value for name, value in changes.items()
    }
    with pytest.raises(run.CurateError, match=told):
        run.run(options(raw, **changes))


def test_keys_are_safe_and_of_one_video_only():
    bold = "".join(chr(0x1D400 + index % 26) for index in range(60))
    names = ["a/b.mp4", "a-b.mp4", "a/b.mov", "../x.mp4", "ü.mp4", "u\u0308.mp4", "  .mp4", bold]
    names += ["é" * 300, b"caf\xe9.mp4".decode("utf-8", "surrogateescape"), "a\\b.mp4"]
    keys = [key_of(name) for name in names]
    assert len(set(keys)) == len(names)
    for key in keys:
        assert "/" not in key and len(key.encode()) < 120 and not key.startswith(".")
    assert composed("u\u0308/x.mp4") == "ü/x.mp4"
    composed(names[-2]).encode()  # can be written


def test_a_word_that_stands_twice_is_numbered():
    caption = "A man, a Man and a manly man."
    spans = [(2, 5), (9, 12), (25, 28)]
    named = [numbered(caption, Subject("man", span, False, "human")) for span in spans]
    assert named == ["man", "man#2", "man#3"]
