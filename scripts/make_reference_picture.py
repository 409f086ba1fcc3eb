"""Draws docs/references.png: two photos, and what the encoders of the full-size model read of them.

python scripts/make_reference_picture.py --output docs/references.png

The photos are scikit-image's `astronaut` and `chelsea`. The landmarks of the face and the outline
of the cat were found by eye, because the weights of a face detector may not be shipped; everything
after that is what a request goes through.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from tora2_jax.conditioning.references import PreparedEntity, prepare_request
from tora2_jax.config import ModelConfig
from tora2_jax.request import Request, load_request
from tora2_jax.system.addresses import local_path

LANDMARKS = [[202.9, 100.9], [246.6, 102.9], [225.4, 126.2], [204.6, 140.4], [242.9, 141.6]]
OUTLINE = [(38, 0), (33, 95), (8, 140), (0, 180), (0, 299), (300, 299), (330, 250), (347, 200),
           (362, 160), (360, 72), (395, 12), (400, 0)]  # fmt: skip
SIDE, GAP, TEXT = 224, 12, 16
TITLES = ("the photo, and what was given by hand", "as DINOv2 reads it", "as its prior reads it")


def request_of_photos(folder: Path) -> Path:
    """Writes both photos, the cat's mask and a request that names them; returns its path."""
    cat = Image.fromarray(data.chelsea())
    mask = Image.new("1", cat.size)
    ImageDraw.Draw(mask).polygon(OUTLINE, fill=1)
    pictures = {"astronaut": Image.fromarray(data.astronaut()), "cat": cat, "cat_mask": mask}
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")
    entities = [
        {"word": "astronaut", "images": ["astronaut.png"], "faces": [LANDMARKS]},
        {"word": "cat", "kind": "object", "images": ["cat.png"], "masks": ["cat_mask.png"]},
    ]
    path = folder / "request.json"
    path.write_text(json.dumps({"prompt": "An astronaut and a cat.", "entities": entities}))
    return path


def draw(request: Request, entities: list[PreparedEntity]) -> Image.Image:
    """One row per entity: photo, DINOv2's picture, the face or the object."""
    row_height = SIDE + GAP
    canvas = Image.new("RGB", (3 * (SIDE + GAP) + GAP, TEXT + 2 * row_height + GAP), "#888")
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(TITLES):
        pen.text((GAP + column * (SIDE + GAP), 4), title, fill="white")
    for row, (wanted, entity) in enumerate(zip(request.entities, entities, strict=True)):
        reference = entity.references[0]
        shown = [_photo(wanted.images[0], row), reference.dino]
        shown.append(reference.face if entity.kind == "human" else reference.object)
        for column, picture in enumerate(shown):
            if isinstance(picture, np.ndarray):
                picture = Image.fromarray(np.round(picture * 255).astype(np.uint8))
            left, top = GAP + column * (SIDE + GAP), TEXT + GAP + row * row_height
            canvas.paste(picture, (left + (SIDE - picture.width) // 2, top))
    return canvas


def _photo(path: Path, row: int) -> Image.Image:
    """The photo with landmarks or outline, as large as one panel."""
    photo = Image.open(path).convert("RGB")
    pen = ImageDraw.Draw(photo)
    if row == 0:
        for x, y in LANDMARKS:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill="#0f0")
    else:
        pen.line([*OUTLINE, OUTLINE[0]], fill="#0f0", width=3)
    photo.thumbnail((SIDE, SIDE))
    return photo


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw what the encoders read of two photos.")
    parser.add_argument("--output", type=local_path, required=True, help="picture to write")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        model = ModelConfig()
        request = load_request(request_of_photos(Path(folder)), model)
        picture = draw(request, prepare_request(model, request))
    picture.quantize(256, kmeans=3, dither=Image.Dither.FLOYDSTEINBERG).save(output, optimize=True)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
