"""What may be wrong with annotated clips, and what becomes of those that are."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from scripts import world_to_clips
from tests.data.test_entity_clips import (
    PLAIN,
    WORLD,
    assert_same_inputs,
    config,
    model,
    numbered,
    tokenizer,
)
from tora2_jax.config import cogvideox_5b, to_dict
from tora2_jax.config.train import differences, problems
from tora2_jax.data import clip_folder
from tora2_jax.data.entity_clips import EntityClips, EntityExamples
from tora2_jax.data.loader import example_or_next
from tora2_jax.data.record_files import write_record
from tora2_jax.errors import TrainError
from tora2_jax.media.video import write_image, write_video
from tora2_jax.world.clips import render_clip

ENTITY = {"word": "dog", "kind": "object", "trajectory": [[5, 5]] * 9}


def one(**fields) -> list[dict]:
    """A list of one entity, which has some other fields."""
    return [ENTITY | fields]


FAULTS = {
    "entities": ([], "entities: must be a list of at least one"),
    "list": (["dog"], "entities[0]: must be an object"),
    "field": (one(trajectoy=1), 'trajectoy: unknown field; did you mean "trajectory"?'),
    "faces": (one(faces=[1]), "faces: unknown field"),
    "word": (one(word="cat"), 'word: "cat" is not in the caption'),
    "twice": ([ENTITY, ENTITY], 'entities[1].word: "dog" is the word of entities[0] too'),
    "second": (one(word="dog#3"), 'there is no "dog#3"'),
    "kind": (one(kind="auto"), 'kind: must be "human" or "object", not "auto"'),
    "nothing": ([{"word": "dog", "kind": "object"}], "has none of images, trajectory, frame_masks"),
    "image": (one(images=["no.png"]), 'images[0]: there is no file "no.png"'),
    "short": (one(trajectory=[[5, 5]]), "has 1 entries; the clip has 9 frames"),
    "outside": (one(trajectory=[[5, 5], [65, 5]]), "point 2 is at (65, 5), outside"),
    "times": (one(trajectory=[[5, 5, k**2 / 64] for k in range(9)]), "holds times"),
    "unseen": (one(trajectory=[None] * 9), "trajectory: no point is visible"),
    "file": (one(trajectory="no.txt"), 'trajectory: there is no file "no.txt"'),
    "folder": (one(frame_masks="masks/no"), 'frame_masks: there is no folder "masks/no"'),
    "path": (one(frame_masks=3), "frame_masks: must be the path of a folder, not 3"),
    "empty": (one(frame_masks="masks/empty"), "holds no *.png"),
    "size": (one(frame_masks="masks/small"), "000000.png and 1 more: not as large as the"),
    "name": (one(frame_masks="masks/names"), "000009.png and 1 more: not named after one"),
    "broken": (one(frame_masks="masks/broken"), "000003.png: damaged or no picture"),
    "cut off": (one(frame_masks="masks/cut"), "000003.png: image file is truncated"),
    "boxes": (one(frame_boxes=[[1, 2, 3, 4]]), "frame_boxes: has 1 entries; the clip has 9"),
    "box": (one(frame_boxes=[[9, 2, 3, 4]] * 9), "frame_boxes[0]: is [9, 2, 3, 4]; so are 8 more"),
    "boxfile": (one(frame_boxes="no.json"), 'frame_boxes: there is no file "no.json"'),
    "no box": (one(frame_boxes=[None] * 9), "frame_boxes: holds no box"),
    "small box": (one(frame_boxes=[[1, 1, 5, 5]] * 9), "is nowhere 8 pixels wide or high"),
    "both": (
        one(frame_boxes=[[1, 2, 30, 40]] * 9, frame_masks="masks/good"),
        "frame_boxes: must be left out where there are frame_masks",
    ),
}


def write_masks(folder: Path) -> None:
    solid = np.full((64, 64), 255, np.uint8)
    (folder / "masks" / "empty").mkdir(parents=True)
    for frame in range(2):
        write_image(folder / "masks" / "small" / f"{frame:06d}.png", solid[:32])
        write_image(folder / "masks" / "good" / f"{frame}.png", solid)
    for name in ("000009", "first"):
        write_image(folder / "masks" / "names" / f"{name}.png", solid)
    for name in ("broken", "cut"):
        path = folder / "masks" / name / "000003.png"
        noise = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
        write_image(path, noise)
        path.write_bytes(b"no picture" if name == "broken" else path.read_bytes()[:1000])


@pytest.fixture
def faulty(tmp_path):
    """A folder with one good clip and one for every fault; the clip "all" has many at once."""
    video = np.zeros((9, 64, 64, 3), np.uint8)
    write_masks(tmp_path)
    for name in ("labels", "entities"):
        (tmp_path / name).mkdir()
    many = [entities[0] for entities, _ in FAULTS.values() if entities]
    clips = {name: entities for name, (entities, _) in FAULTS.items()}
    for name, entities in (clips | {"all": many, "good": [ENTITY], "missing": []}).items():
        write_video(tmp_path / "videos" / f"{name}.mp4", video)
        (tmp_path / "labels" / f"{name}.txt").write_text("A dog sees a dog.")
        text = json.dumps({"entities": entities})
        (tmp_path / "entities" / f"{name}.json").write_text(text)
    (tmp_path / "entities" / "missing.json").unlink()
    (tmp_path / "entities" / "lonely.json").write_text("{}")
    (tmp_path / "entities" / "good.json").write_text(
        json.dumps({"entities": [ENTITY | {"frame_masks": "masks/good"}]})
    )
    return tmp_path


def test_every_fault_is_named_with_file_and_field(faulty):
    found = clip_folder.problems(config(faulty).clips, model())
    for name, (_, words) in FAULTS.items():
        lines = [line for line in found if f"entities/{name}.json: " in line]
        assert len(lines) == 1 and words in lines[0], (name, lines)
    assert any("lonely.json: has no clip videos/lonely.mp4" in line for line in found)
    assert any("missing.json: is missing" in line for line in found)
    assert not any("good" in line for line in found if "all.json" not in line)
    many = [line for line in found if "entities/all.json: " in line]
    for words in ("kind: must", "word: ", "masks: there", "boxes[0]: is", "images[0]: there"):
        assert any(words in line for line in many), words
    assert len(many) > 15
    for text, words in (("[]", "content: must be an object"), ("{", "is not valid JSON")):
        (faulty / "entities" / "all.json").write_text(text)
        found = clip_folder.problems(config(faulty).clips, model())
        assert any("all.json" in line and words in line for line in found)


def test_faulty_clips_are_refused_or_skipped_and_counted(faulty, monkeypatch):
    told = []
    monkeypatch.setattr(
        clip_folder.logging, "warning", lambda text, *values: told.append(text % values)
    )
    with pytest.raises(TrainError, match=r"(?s)kind\.json.*\n.*lonely"):
        EntityClips(config(faulty), model())
    settings = config(faulty, faulty="skip")
    assert not clip_folder.problems(settings.clips, model())
    examples = EntityExamples(settings, model(), tokenizer(), None)
    examples.warn()
    assert len(examples) == 1 and len(told) == 1
    count = len(FAULTS) + 3
    assert told[0].startswith(f"{count} of {count + 1} clips are skipped:\n")
    assert "all.json" in told[0] and "more" in told[0]
    (faulty / "videos" / "good.mp4").unlink()
    assert clip_folder.problems(settings.clips, model())
    with pytest.raises(TrainError, match="is missing"):
        EntityClips(settings, model())


def test_the_next_clip_stands_in_for_one_that_is_damaged_inside(tmp_path, caplog):
    for index in range(3):
        write_record(tmp_path, render_clip(WORLD, index))

    def examples(**changes) -> EntityExamples:
        return EntityExamples(config(tmp_path, **changes), model(), tokenizer(), None)

    strict, skipping = examples(), examples(faulty="skip")
    whole = strict[2][0]
    path = next((tmp_path / "references" / "world-5-1").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainError, match=path.name):
        strict[1]
    example, used = example_or_next(skipping, 1)
    assert used == 2
    assert_same_inputs(example[0], whole, 0)
    assert "example 1 cannot be made (ExampleError: " in caplog.text and path.name in caplog.text
    assert skipping.describe(1) == {"clip": "world-5-1", "draw": 0}


def test_masks_and_boxes_of_own_images_are_read_as_in_a_request(tmp_path):
    numbered(tmp_path)
    image = np.full((60, 80, 3), 250, np.uint8)
    write_image(tmp_path / "own.png", image)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 20:70] = 255
    write_image(tmp_path / "mask.png", mask)
    path = tmp_path / "entities" / "numbered.json"
    data = json.loads(path.read_text())
    own = {"images": ["own.png"] * 2, "masks": ["mask.png"] * 2, "boxes": [None, [30, 0, 80, 60]]}
    data["entities"][0] |= own
    path.write_text(json.dumps(data))
    images = EntityClips(config(tmp_path), model()).record(0).entities[0].images
    np.testing.assert_array_equal(images[0][..., 3], mask)
    assert images[1].shape == (40, 40, 4) and (images[1] == (250, 250, 250, 255)).all()
    clips = EntityClips(config(tmp_path, PLAIN), model(max_references=4))
    sizes = {
        image.shape[:2] for draw in range(20) for image in clips.record(0, draw).entities[0].images
    }
    assert sizes == {(48, 32), (40, 50), (40, 40)}  # a frame's, the mask's and the box's


@pytest.mark.parametrize(("word", "kind"), [("dog", "object"), ("woman", "human")])
def test_the_word_decides_a_kind_that_is_left_out(tmp_path, word, kind):
    numbered(tmp_path)
    (tmp_path / "labels" / "numbered.txt").write_text(f"A {word}.")
    path = tmp_path / "entities" / "numbered.json"
    data = json.loads(path.read_text())
    data["entities"][0]["word"] = word
    del data["entities"][0]["kind"]
    path.write_text(json.dumps(data))
    assert EntityClips(config(tmp_path), model()).record(0).entities[0].kind == kind


def test_words_beyond_the_text_are_counted(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "tora2_jax.data.entity_clips.logging.warning",
        lambda text, *values: told.append(text % values),
    )
    write_record(tmp_path, render_clip(WORLD, 0))
    sizes = model()
    sizes.transformer.max_text_length = 4
    EntityExamples(config(tmp_path), sizes, tokenizer(), None).warn()
    assert "after the first 3 tokens" in told[0] and "world-5-0: " in told[0]


def test_settings_that_do_not_fit_are_named(tmp_path):
    settings = config(tmp_path)
    assert not problems(settings)
    settings.clips.entities.smallest_cut = 0
    assert any("clips.entities.smallest_cut must" in fault for fault in problems(settings))
    settings.clips.entities = None
    faults = "\n".join(problems(settings))
    assert "config.clips.entities is needed" in faults
    assert "config.model.personalization must be None" in faults
    motion = dataclasses.replace(config(tmp_path), stage="motion")
    assert not problems(motion)


def test_runs_that_began_before_these_settings_go_on(tmp_path):
    new = to_dict(config(tmp_path))
    new["clips"]["entities"] = None
    old = copy.deepcopy(new)
    del old["reference_guards"], old["clips"]["entities"], old["clips"]["faulty"]
    assert not differences(old, new)
    new["reference_guards"] = to_dict(PLAIN)
    assert any("reference_guards.flip" in line for line in differences(old, new))


def test_the_script_writes_clips_that_can_be_read(tmp_path, capsys):
    folder = str(tmp_path / "clips")
    sizes = ["--frames=9", "--height=64", "--width=64"]
    assert world_to_clips.main(["--output", folder, "--clips=2", *sizes]) == 0
    clips = EntityClips(config(Path(folder)), model())
    assert len(clips.folder) == 2 and all(one.mask.any() for one in clips.record(1).entities)
    assert world_to_clips.main(["--output", folder, "--height=33"]) == 2
    (tmp_path / "file").touch()
    assert world_to_clips.main(["--output", str(tmp_path / "file"), "--clips=1", *sizes]) == 2
    assert "--height: 33" in capsys.readouterr().err


def test_full_size_settings_take_annotated_clips(tmp_path):
    settings = dataclasses.replace(config(tmp_path), model=cogvideox_5b())
    assert not problems(settings)
