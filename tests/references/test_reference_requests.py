"""The references of a request: kinds, chosen faces, and what of them is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from scripts.make_tokenizer import build, save
from tests.references.test_faces import people
from tests.support import tiny_detector
from tora2_jax import conditioning
from tora2_jax.conditioning.references import load_references, prepare_entity, prepare_request
from tora2_jax.config import ModelConfig, toy
from tora2_jax.config.train import TrainConfig
from tora2_jax.media.image_file import load_image
from tora2_jax.references.crops import Reference, cut_out
from tora2_jax.references.faces import FACE_TEMPLATE, InsightFaceDetector
from tora2_jax.references.kinds import kind_of_word
from tora2_jax.request import RequestError, load_request, parse_request, validate
from tora2_jax.sampling import command
from tora2_jax.text import load_tokenizer
from tora2_jax.train.stages import diffusion

PROMPT = "A man walks on the grass with a cat."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with no, one and three faces, their masks, and face models."""
    folder = tmp_path_factory.mktemp("references")
    faces = [(480, 240, 20), (80, 240, 40), (280, 240, 90)]
    for name, shown in {"none": [], "one": faces[:1], "three": faces}.items():
        Image.fromarray(people(*shown)).save(folder / f"{name}.png")
    mask = np.zeros((480, 640), np.uint8)
    mask[100:300, 10:200] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:300]).save(folder / "small.png")
    tiny_detector.save(folder / "models" / "det_10g.onnx")
    save(build([PROMPT]), folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def detector(folder):
    return InsightFaceDetector(folder / "models")


def real_model():
    """The toy's sizes with faces found as on photos."""
    model = toy()
    model.face_detector = "insightface"
    return model


def man(**fields):
    return {"prompt": PROMPT, "entities": [{"word": "man", **fields}]}


def prepared(folder, detector, **fields):
    request = parse_request(man(**fields), folder, real_model())
    (entity,) = prepare_request(real_model(), request, detector)
    return entity


def test_auto_decides_by_a_face_and_says_so(folder, detector):
    tokenizer = load_tokenizer(folder / "tokenizer")
    model, said = real_model(), []
    entities = [{"word": "man", "images": ["none.png", "three.png"]},
                {"word": "cat", "kind": "auto", "images": ["none.png"]},
                {"word": "grass", "trajectory": [[1, 2], [30, 40]]}]  # fmt: skip
    request = parse_request({"prompt": PROMPT, "entities": entities}, folder, model, tokenizer)
    inputs = conditioning.request_inputs(model, tokenizer, request, detector, said.append)
    assert inputs.is_human.tolist() == [True, False, False, False]
    assert inputs.prior_mask[:2].tolist() == [[False, True], [True, False]]
    assert inputs.reference_mask[:3].tolist() == [[True, True], [True, False], [False, False]]
    assert inputs.face_images[0, 1].any() and inputs.object_images[1, 0].any()
    assert said == [
        'entities[0] "man": taken as human, for the face in images[1]',
        'entities[0] "man": images[0]: no face was found; only its DINO tokens are used',
        'entities[0] "man": images[1]: 3 faces were found, the largest is number 2 from the left',
        'entities[1] "cat": taken as object, for no face was found',
    ]


def test_the_face_is_the_largest_or_the_one_that_was_chosen(folder, detector):
    def middle(**fields):
        search = prepared(folder, detector, kind="human", **fields).references[0].search
        return search.chosen, np.round(search.faces[search.chosen].box.reshape(2, 2).mean(0))

    for fields, index, place in [
        ({"images": ["three.png"]}, 1, (280, 240)),
        ({"images": ["three.png"], "faces": [3]}, 2, (480, 240)),
        ({"images": ["three.png"], "faces": [[85, 250]]}, 0, (80, 240)),
        ({"images": ["three.png"], "boxes": [[0, 0, 639, 480]]}, 1, (280, 240)),
    ]:
        chosen, found = middle(**fields)
        assert chosen == index
        np.testing.assert_allclose(found, place, atol=1)
    with pytest.raises(RequestError) as error:
        prepared(folder, detector, images=["one.png", "one.png"], faces=[2, [1, 1]])
    assert [problem[:46] for problem in error.value.problems] == [
        "entities[0].faces[0]: there is no face 2 from ",
        "entities[0].faces[1]: no face is at [1, 1]: 1 ",
    ]


def test_a_human_whose_face_is_given_needs_no_models(folder):
    points = np.round(FACE_TEMPLATE * 2, 1).tolist()
    for kind in ("human", "auto"):
        entity = prepared(folder, None, kind=kind, images=["three.png"], faces=[points])
        assert entity.kind == "human" and entity.references[0].has_prior
    thing = prepared(folder, None, kind="object", images=["one.png"])
    assert thing.kind == "object" and thing.references[0].search is None and thing.notes == ()


def test_without_face_models_the_word_decides_an_open_kind(folder):
    person = prepared(folder, None, images=["one.png"])
    assert person.kind == "human" and not person.references[0].has_prior
    assert person.notes == (
        'taken as human, for its word; "kind" says it otherwise',
        "images[0]: there are no face models to look for one; only its DINO tokens are used",
    )
    cat = man(word="cat", images=["one.png"])
    (thing,) = prepare_request(real_model(), parse_request(cat, folder, real_model()))
    assert thing.kind == "object" and thing.references[0].has_prior
    assert thing.notes == ('taken as object, for its word; "kind" says it otherwise',)
    points = np.round(FACE_TEMPLATE * 2, 1).tolist()
    mixed = prepared(folder, None, images=["three.png", "one.png"], faces=[points, None])
    assert [reference.has_prior for reference in mixed.references] == [True, False]
    toy_model = toy()
    (drawn,) = prepare_request(toy_model, parse_request(man(images=["one.png"]), folder, toy_model))
    assert drawn.kind == "human" and drawn.references[0].has_prior and len(drawn.notes) == 1


@pytest.mark.parametrize(
    ("word", "kind"),
    [("man", "human"), ("Old Women#2", "human"), ("man's hat", "object"), ("kite", "object")],
)
def test_the_last_word_of_a_phrase_names_the_kind(word, kind):
    assert kind_of_word(word) == kind


def test_without_face_models_the_error_says_what_to_fetch(folder, tmp_path):
    with pytest.raises(RequestError) as error:
        prepared(folder, None, kind="human", images=["one.png"])
    kind, models = error.value.problems
    assert kind.startswith("entities[0].kind: there are no face models to find the face")
    for part in (
        "antelopev2",
        "buffalo_l",
        "--face-models",
        "non-commercial",
        '"kind"',
        '"faces"',
    ):
        assert part in models
    with pytest.raises(RequestError, match="no face models to find the chosen face"):
        prepared(folder, None, images=["one.png"], faces=[1])
    options = command.Options(folder, folder / "none.json", tmp_path / "a.mp4")
    with pytest.raises(command.SamplingError) as error:
        command.prepare(options._replace(face_models=tmp_path / "nowhere"))
    told = [text for text in error.value.problems if text.startswith("--face-models: there is no")]
    assert len(told) == 1 and len(error.value.problems) > 1


def test_trainings_that_look_for_faces_name_their_models(folder, tmp_path):
    config = TrainConfig(model=real_model())
    (needed,) = diffusion.face_model_problems(config)
    assert needed.startswith("config.face_models: is needed; fetch antelopev2")
    config.face_models = str(tmp_path)
    (useless,) = diffusion.face_model_problems(config)
    assert "holds no face detector" in useless
    config.face_models = str(folder / "models")
    assert diffusion.face_model_problems(config) == []
    config.face_models, config.model.face_detector = None, "mask_top"
    assert diffusion.face_model_problems(config) == []


def test_every_reference_counts(folder):
    model = real_model()
    images = [Reference(load_image(folder / "one.png"))] * 3
    with pytest.raises(RequestError, match="images: 3 are too many; toy takes at most 2"):
        prepare_entity(model, "object", images)
    assert len(prepare_entity(model, "object", images[:2]).references) == 2


def test_masks_boxes_and_faces_are_read(folder):
    fields = {
        "images": ["three.png", "one.png"],
        "masks": ["mask.png", None],
        "boxes": [None, [10, 20.5, 300, 400]],
        "faces": [[100, 200], None],
    }
    (folder / "request.json").write_text(json.dumps(man(**fields)))
    entity = load_request(folder / "request.json", real_model()).entities[0]
    assert entity.masks == (folder / "mask.png", None)
    assert entity.boxes == (None, (10, 20.5, 300, 400)) and entity.faces == ((100, 200), None)
    first, second = load_references(entity)
    assert cut_out(*first[:2]).shape == (200, 190, 4)
    assert cut_out(*second[:2]).shape == (380, 290, 4)


def test_all_problems_of_references_at_once(folder):
    one, two = ["one.png"], ["one.png", "one.png"]
    points = FACE_TEMPLATE.tolist()
    entities = [
        {"images": two, "masks": ["mask.png"], "boxes": "left", "faces": [None]},
        {"images": two, "masks": ["lost.png", "small.png"]},
        {"images": two, "boxes": [[1, 2, 3], [5, 5, 5, 9]], "faces": [0, True]},
        {"images": two, "boxes": [[700, 0, 800, 9], None], "faces": ["left", [1, 2, 3]]},
        {"images": one, "masks": ["mask.png"], "boxes": [[300, 300, 400, 400]]},
        {"images": two, "faces": [[700, 2], points[:4]], "kind": "human"},
        {"images": two, "faces": [[points[i] for i in (1, 0, 2, 4, 3)], points[:4] + points[:1]]},
        {"images": one, "faces": [1], "kind": "object", "mask": "mask.png"},
        {"trajectory": [[1, 2]], "boxes": [[1, 2, 3, 4]]},
    ]
    expected = [
        "entities[0].masks: 1 for 2 images; give one for each image",
        "entities[0].boxes: must be a list, one for each image",
        "entities[0].faces: 1 for 2 images",
        'entities[1].masks[0]: there is no file "lost.png"',
        "entities[1].masks[1]: it has 640 x 300 pixels, its picture has 640 x 480",
        "entities[2].boxes[0]: must be [left, top, right, bottom]",
        "entities[2].boxes[1]: [5, 5, 5, 9] is empty",
        "entities[2].faces[0]: must be a number (1 is the face at the left), a point",
        "entities[2].faces[1]: must be a number",
        "entities[3].boxes[0]: the box is outside of the picture, which is 640 x 480",
        "entities[3].faces[0]: must be a number",
        "entities[3].faces[1]: must be a number",
        "entities[4].boxes[0]: nothing of the entity's mask is inside",
        "entities[5].faces[0]: [700, 2] is outside of the picture, which is 640 x 480",
        "entities[5].faces[1]: must be a number",
        "entities[6].faces[0]: left and right are exchanged",
        "entities[6].faces[1]: two of the five points are the same",
        'entities[7].mask: unknown field; did you mean "masks"?',
        "entities[7].faces: an object has no face",
        "entities[8].boxes: 1 for 0 images",
    ]
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i"]
    content = [{"word": word, **entity} for word, entity in zip(words, entities, strict=True)]
    with pytest.raises(RequestError) as error:
        parse_request({"prompt": " ".join(words), "entities": content}, folder)
    found = error.value.problems
    for text in expected:
        assert any(problem.startswith(text) for problem in found), (text, found)
    assert len(found) == len(expected), found


def test_transparent_images_are_named_with_their_field(folder):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(folder / "empty.png")
    with pytest.raises(RequestError, match=r"entities\[0\].images\[0\]: .*transparent everywhere"):
        parse_request(man(images=["empty.png"]), folder)


def test_the_toy_world_takes_heads_from_the_mask(folder):
    request = parse_request(man(kind="human", images=["one.png"], faces=[1]), folder)
    with pytest.raises(RequestError, match=r"faces: toy takes heads from the mask; remove it"):
        validate(request, toy())
    uneven = request._replace(entities=(request.entities[0]._replace(boxes=(None, None)),))
    with pytest.raises(RequestError, match=r"entities\[0\].boxes: 2 for 1 images"):
        validate(uneven, real_model())


def test_photos_go_through(tmp_path):
    """A face with landmarks by hand and a cat with a mask, as docs/references.png shows them."""
    from scripts.make_reference_picture import request_of_photos

    request = load_request(request_of_photos(tmp_path), ModelConfig())
    astronaut, cat = prepare_request(ModelConfig(), request)
    assert (astronaut.kind, cat.kind) == ("human", "object")
    face = astronaut.references[0].face * 255
    skin, hair = face[70:90, 45:67].mean((0, 1)), face[:12, 40:70].mean((0, 1))
    assert skin[0] > 1.15 * skin[2] and skin.mean() > hair.mean() + 30
    middle = cat.references[0].object[108:117, 108:117].mean((0, 1)) * 255
    np.testing.assert_allclose(middle, data.chelsea()[142:158, 193:209].mean((0, 1)), atol=8)
    assert (cat.references[0].object[60, -10] == 1).all()  # the background is white
