"""From image files, masks and boxes to the pictures that the encoders read."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image, ImageChops

from tora2_jax.conditioning.references import prepare_entity, reference_arrays
from tora2_jax.config import ModelConfig, toy
from tora2_jax.media.image_file import load_image, load_mask
from tora2_jax.references.crops import Reference, cut_out, prepare, visible_box, with_mask
from tora2_jax.references.faces import FACE_TEMPLATE, Face

COLOR = (200, 120, 40)


def picture(mode: str, folder):
    """A file of that mode: `COLOR`, or its gray, above and black below."""
    path = folder / f"{mode.replace(';', '')}.png"
    rgb = np.zeros((8, 6, 3), np.uint8)
    rgb[:4] = COLOR
    image = Image.fromarray(rgb)
    if mode.startswith("I;16"):
        gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(gray).save(path, **({"transparency": 0} if "clear" in mode else {}))
    elif mode == "RGB;16":
        cv2.imwrite(str(path), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR).astype(np.uint16) * 257)
    elif mode.startswith("P"):
        image = image.quantize(4)
        black = image.getpixel((0, 7))
        image.save(path, **({"transparency": black} if "clear" in mode else {}))
    elif mode == "CMYK":
        path = path.with_suffix(".tiff")
        image.convert(mode).save(path)
    elif mode.startswith("CMYK"):
        path = path.with_suffix(".jpg")
        large = image.resize((60, 80), Image.Resampling.NEAREST).convert("CMYK")
        if mode == "CMYK marked":
            large.save(path, quality=100)
        else:  # Pillow writes inverted colors and marks them; here neither
            ImageChops.invert(large).save(path, quality=100)
            content = path.read_bytes()
            mark = content.index(b"\xff\xee\x00\x0eAdobe")
            path.write_bytes(content[:mark] + content[mark + 16 :])
    else:
        image.convert(mode, dither=Image.Dither.NONE).save(path)
    return path


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "P clear", "RGB", "RGBA", "I;16", "I;16 clear", "RGB;16", "CMYK",
     "CMYK marked", "CMYK plain"],
)  # fmt: skip
def test_images_of_every_mode_become_rgba(mode, tmp_path):
    image = load_image(picture(mode, tmp_path))
    assert image.dtype == np.uint8 and image.shape[2] == 4
    gray = int(np.dot(COLOR, (0.299, 0.587, 0.114)))
    grays = {"1": 255, "L": gray, "LA": gray, "I;16": gray, "I;16 clear": gray}
    np.testing.assert_allclose(image[1, 1, :3], grays.get(mode, COLOR), atol=3)
    np.testing.assert_allclose(image[-2, 1, :3], 0, atol=3)
    assert image[1, 1, 3] == 255 and image[-2, 1, 3] == (0 if "clear" in mode else 255)


def test_photos_are_upright_and_animations_stand(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn to the right to see it upright
    turned = Image.new("RGB", (20, 10), "white")
    turned.paste("red", (0, 0, 10, 10))
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    image = load_image(tmp_path / "turned.jpg")
    assert image.shape == (20, 10, 4)
    assert image[3, 5, 1] < 40 and image[16, 5, 1] > 220  # red is above
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "moving.gif")[0, 0].tolist() == [255, 0, 0, 255]


def test_unreadable_images_are_named(tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "int.tiff")
    Image.new("1", (33000, 1)).save(tmp_path / "long.png")
    Image.new("L", (64, 64)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in ("broken.png", "missing.png", "float.tiff", "int.tiff", "long.png", "huge.png"):
        with pytest.raises(ValueError, match=re.escape(name)):
            load_image(tmp_path / name)


def cat_picture():
    """A disc on a gradient, its mask and its box."""
    image = np.dstack([np.tile(np.arange(0, 200, 2, dtype=np.uint8), (60, 1))] * 3)
    cv2.ellipse(image, (40, 30), (20, 10), 0, 0, 360, COLOR, -1)
    mask = np.zeros((60, 100), np.uint8)
    cv2.ellipse(mask, (40, 30), (20, 10), 0, 0, 360, 255, -1)
    return image, mask, (20, 20, 61, 41)


def test_objects_are_cut_from_alpha_mask_or_box_onto_a_white_square():
    image, mask, box = cat_picture()
    model = ModelConfig()
    opaque = np.dstack([image, np.full_like(mask, 255)])
    cut = prepare(np.dstack([image, mask]), "object", model)
    assert visible_box(with_mask(opaque, mask)) == visible_box(opaque, box) == box
    np.testing.assert_array_equal(prepare(with_mask(opaque, mask), "object", model).dino, cut.dino)
    assert cut.object.shape == (224, 224, 3) and not cut.face.any() and cut.search is None
    np.testing.assert_allclose(cut.object[112, 112] * 255, COLOR, atol=1)
    assert (cut.object[[0, 223]] == 1).all()  # wider than high: bars above and below
    corner = (112 - 50, 3)
    assert (cut.object[corner] == 1).all()  # outside of the mask
    boxed = prepare(image, "object", model, box=box)
    np.testing.assert_allclose(boxed.object[corner] * 255, image[22, 20], atol=3)
    alone = prepare(opaque[20:41, 20:61], "object", model)
    np.testing.assert_array_equal(boxed.object, alone.object)
    whole = prepare(image, "object", model)
    np.testing.assert_allclose(whole.object[112, [0, -1], 0] * 255, [0, 198], atol=3)
    assert cut_out(opaque, (-5, -5, 10.5, 7.5)).shape == (8, 11, 4)
    with pytest.raises(ValueError, match="outside of the picture, which is 100 x 60"):
        visible_box(opaque, (100, 0, 120, 20))
    with pytest.raises(ValueError, match="nothing of the entity's mask"):
        visible_box(with_mask(opaque, mask), (0, 0, 10, 10))


def test_masks_are_brightness_alpha_or_labels(tmp_path):
    _, mask, _ = cat_picture()
    image = Image.fromarray(mask)
    labels = Image.fromarray((mask > 0).astype(np.uint8) * 3, "P")
    labels.putpalette([0, 0, 0, 9, 9, 9, 8, 8, 8, 128, 0, 0])
    alpha = Image.new("RGBA", image.size, "black")
    alpha.putalpha(image)
    for name, file in {"gray": image, "one": image.convert("1"), "labels": labels,
                       "alpha": alpha}.items():  # fmt: skip
        file.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(load_mask(tmp_path / f"{name}.png"), mask, name)
    opaque = np.full((60, 100, 4), 255, np.uint8)
    with pytest.raises(ValueError, match=r"white \(255\) must mark"):
        with_mask(opaque, (mask > 0).astype(np.uint8))
    with pytest.raises(ValueError, match="it has 100 x 59 pixels, its picture has 100 x 60"):
        with_mask(opaque, mask[1:])


def test_faces_are_aligned_in_the_whole_picture():
    """A box only says where to look; hair and chin outside of it stay."""
    model = ModelConfig()
    image = np.full((300, 400, 3), 90, np.uint8)
    landmarks = FACE_TEMPLATE * 1.3 + [150.0, 40.0]
    for x, y in landmarks:
        cv2.circle(image, (round(x), round(y)), 4, (255, 255, 255), -1)
    box = (190, 90, 260, 180)
    seen = []

    def detector(picture):
        seen.append(picture.shape)
        moved = landmarks - box[:2]
        return [Face(np.array([0, 0, 70, 90]), moved, 0.9)]

    ready = prepare(image, "human", model, detector, box=box)
    assert seen == [(90, 70, 3)]
    np.testing.assert_allclose(ready.search.landmarks, landmarks)
    rows, columns = np.nonzero(ready.face[..., 0] > 0.6)
    found = np.stack([columns, rows], -1)
    distance = np.linalg.norm(FACE_TEMPLATE[:, None] - found[None], axis=-1)
    assert distance.min(1).max() < 1 and distance.min(0).max() < 5
    assert ready.face.min() > 0.3  # nothing was cut off
    by_hand = prepare(image, "human", model, face=tuple(map(tuple, landmarks)))
    np.testing.assert_array_equal(by_hand.face, ready.face)
    nobody = prepare(image, "human", model, detector=lambda picture: [])
    assert not nobody.has_prior and not nobody.face.any() and nobody.dino.shape[0] == 224
    assert nobody.search.said == "no face was found"
    with pytest.raises(ValueError, match="face detector"):
        prepare(image, "human", model)


def test_object_images_need_not_be_square():
    """As networks for people read them; the aspect ratio is kept, on white."""
    model = toy()
    model.object.image_width = 32
    image = np.zeros((40, 40, 3), np.uint8)
    found = prepare_entity(model, "object", [Reference(image)])
    thing = found.references[0].object
    assert thing.shape == (64, 32, 3)
    np.testing.assert_array_equal(thing[:, 16, 0], np.repeat([1.0, 0.0, 1.0], [16, 32, 16]))
    assert reference_arrays(model, [found])["object_images"].shape == (4, 2, 64, 32, 3)
