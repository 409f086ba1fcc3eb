"""One picture per entity: everything that an inspection found, and what it means."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from tora2_jax.inspection import panels_inputs, panels_model
from tora2_jax.inspection.diagnosis import Level, Note, diagnose
from tora2_jax.inspection.views import EntityView, Inspection
from tora2_jax.media import drawing

WIDTH = 1460  # pixels that panels are laid out in
_MARGIN = 16
_DIAGNOSIS = 560
_LONG_PROMPT = 60  # pieces; a longer one has a row of its own
_MARKS: dict[Level, tuple[int, int, int]] = {
    "problem": (200, 40, 40),
    "note": (226, 158, 20),
    "fine": (46, 150, 84),
}


def draw_entity(inspection: Inspection, entity: EntityView) -> UInt8[np.ndarray, "height width 3"]:
    """The sheet of one entity, as wide as its panels need."""
    notes = _diagnosis(diagnose(inspection, entity))
    long = len(entity.word_tokens.pieces) > _LONG_PROMPT
    word = panels_inputs.words(entity, WIDTH - 60 if long else _DIAGNOSIS)
    left = notes if long else drawing.stacked([notes, word], 10)
    retrieval = panels_model.retrieval(inspection, entity)
    groups = [
        [left, panels_inputs.references(inspection, entity)],
        [word] if long else [],
        [panels_inputs.path(inspection, entity)],
        panels_model.binding(inspection, entity),
        [*panels_model.blocks(inspection, entity), *([] if retrieval is None else [retrieval])],
    ]
    rows = [row for group in groups if group for row in drawing.in_rows(group, WIDTH, 10)]
    body = [drawing.beside(rows[0], 10), *(drawing.stretched(row) for row in rows[1:])]
    content = drawing.stacked([_head(inspection, entity), *body], 10)
    sheet = drawing.blank(content.width + 2 * _MARGIN, content.height + 2 * _MARGIN)
    sheet.paste(content, (_MARGIN, _MARGIN))
    return np.asarray(sheet)


def _head(inspection: Inspection, entity: EntityView) -> Image.Image:
    request = inspection.request
    title = drawing.text_block(f'entities[{entity.index}] "{entity.word}"', WIDTH, 22)
    size = f"{request.frames} frames of {request.height} x {request.width}"
    facts = f"{inspection.name}, {size}, model {inspection.model.name} in {inspection.checkpoint}"
    draw = ImageDraw.Draw(title)
    draw.line((0, title.height - 2, title.width, title.height - 2), width=3)
    color = panels_inputs.entity_color(entity.index)
    draw.line((0, title.height - 2, title.width, title.height - 2), fill=color, width=3)
    return drawing.stacked([title, drawing.text_block(facts, WIDTH, color=drawing.SOFT)], 4)


def _diagnosis(notes: list[Note]) -> Image.Image:
    """Problems first, each line with a dot in the color of its level."""
    order = list(_MARKS)
    lines = []
    for note in sorted(notes, key=lambda note: order.index(note.level)):
        line = drawing.text_block(note.text, _DIAGNOSIS, indent=18)
        ImageDraw.Draw(line).ellipse((2, 3, 12, 13), fill=_MARKS[note.level])
        lines.append(line)
    keys = drawing.legend(
        ("cannot act or is drowned", "worth knowing", "fine"), _MARKS.values(), _DIAGNOSIS
    )
    return drawing.panel("diagnosis", "", drawing.stacked([*lines, keys], 7), 480)
