"""Panels of what an entity brings along: references, word and path."""

import numpy as np
from PIL import Image, ImageDraw

from tora2_jax.inspection.views import EntityView, Inspection
from tora2_jax.media import drawing
from tora2_jax.media.drawing import INK, LINE, SMALL, SOFT
from tora2_jax.media.video import COLORS
from tora2_jax.references.crops import PreparedReference, Reference, visible_box
from tora2_jax.trajectory.command import draw_track, time_color

_SIDE = 150  # pixels of a reference's pictures
_CANVAS = 330  # of the longer side of the path's picture
_FACE = (214, 40, 40)


def references(inspection: Inspection, entity: EntityView) -> Image.Image:
    """Per reference image: the picture, and what each encoder sees of it."""
    model, kind = inspection.model, entity.prepared.kind
    rows = [
        drawing.beside(
            [
                drawing.captioned(_picture(source, prepared), name[:26], _found(source)),
                _crop(prepared.dino, "DINO"),
                _prior(prepared, kind == "human", "face"),
                _prior(prepared, kind == "object", "object"),
            ]
        )
        for name, source, prepared in zip(
            entity.names, entity.references, entity.prepared.references, strict=True
        )
    ]
    for column in range(len(rows), int(entity.reference_mask.sum())):
        prior = "with prior tokens" if entity.prior_mask[column] else "prior tokens masked"
        reason = f"features from a file: no pixels ({prior})"
        rows.append(drawing.nothing(4 * _SIDE, 60, reason))
    if not rows:
        reason = "no reference" if model.personalization else f"{model.name} takes no references"
        rows = [drawing.nothing(4 * _SIDE, 60, reason)]
    explanation = (
        "Left, the picture with what is cut out (blue) and the face that is taken (red); then what "
        "each encoder reads, enlarged pixel by pixel."
    )
    kinds = kind if entity.requested == kind else f"{kind} (asked for: {entity.requested})"
    return drawing.panel(f"references, taken as {kinds}", explanation, drawing.stacked(rows, 12))


def _picture(source: Reference, prepared: PreparedReference) -> Image.Image:
    """The whole picture on white, the cut and the faces drawn on it."""
    image = source.image
    alpha = image[..., 3:] / 255
    shown = drawing.thumbnail(image[..., :3] / 255 * alpha + 1 - alpha, _SIDE)
    draw, scale = ImageDraw.Draw(shown), _SIDE / max(image.shape[:2])
    left, top, right, bottom = (edge * scale for edge in visible_box(image, source.box))
    draw.rectangle((left, top, right - 1, bottom - 1), outline=drawing.ACCENT, width=2)
    search = prepared.search
    if search is not None:
        for index, face in enumerate(search.faces):
            chosen = index == search.chosen
            box = [float(edge) * scale for edge in face.box]
            draw.rectangle(box, outline=_FACE if chosen else SOFT, width=2 if chosen else 1)
        for x, y in [] if search.landmarks is None else search.landmarks * scale:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_FACE)
    return shown


def _found(source: Reference) -> str:
    height, width = source.image.shape[:2]
    left, top, right, bottom = visible_box(source.image, source.box)
    return f"{width} x {height}, cut {right - left} x {bottom - top}"


def _crop(pixels: np.ndarray, name: str) -> Image.Image:
    size = f"{pixels.shape[1]} x {pixels.shape[0]}"
    return drawing.captioned(drawing.thumbnail(pixels, _SIDE), name, size)


def _prior(prepared: PreparedReference, used: bool, name: str) -> Image.Image:
    if used and prepared.has_prior:
        return _crop(getattr(prepared, name), f"{name}, aligned" if name == "face" else name)
    reason = "not used for this kind"
    if used:
        reason = "none found: prior masked, DINO tokens remain"
        if prepared.search is not None:
            reason = f"{prepared.search.said}: prior masked, DINO tokens remain"
    return drawing.captioned(drawing.nothing(_SIDE, _SIDE, reason), name)


def words(entity: EntityView, width: int) -> Image.Image:
    """The prompt in the text encoder's pieces; those of the word stand out."""
    word, boxes = entity.word_tokens, []
    for position, piece in enumerate(word.pieces):
        boxes.append(_piece(position, piece, word))
    filled = len(word.kept)
    slots = drawing.text_block(
        f"binder's word slots: {filled} of {word.slots} filled"
        + (f" by tokens {', '.join(map(str, word.kept))}" if filled else ", all masked"),
        width,
        SMALL,
    )
    explanation = (
        "T5's pieces with their positions (_ is a space). Blue: read by the binder. Outlined: part "
        "of the word, but not read. Crossed out: cut off, the model never sees it."
    )
    content = drawing.stacked([drawing.flowing(boxes, width, 5), slots])
    return drawing.panel("word in the prompt", explanation, content, 320)


def _piece(position: int, piece: str, word) -> Image.Image:
    text = piece.replace("\u2581", "_")
    box = drawing.blank(max(drawing.text_width(text), 16) + 10, 36)
    draw = ImageDraw.Draw(box)
    kept = position in word.kept
    edge = drawing.ACCENT if position in word.spelled else LINE
    fill = drawing.ACCENT if kept else "white"
    draw.rectangle((0, 0, box.width - 1, 20), fill=fill, outline=edge, width=1)
    middle = box.width / 2
    gone = position >= word.room
    color = "white" if kept else (SOFT if gone else INK)
    draw.text((middle, 10), text, fill=color, font=drawing.font(), anchor="mm")
    if gone:
        draw.line((2, 10, box.width - 3, 10), fill=SOFT)
    draw.text((middle, 29), str(position), fill=SOFT, font=drawing.font(SMALL), anchor="mm")
    return box


def path(inspection: Inspection, entity: EntityView) -> Image.Image:
    """The path on the frame, the flow picture, and the splat of every token frame."""
    if inspection.model.motion is None:
        reason = f"{inspection.model.name} takes no trajectories"
        return drawing.panel("path", "", drawing.nothing(3 * _CANVAS, 50, reason))
    parts = [drawing.captioned(_canvas(inspection, entity), "path", _path_words(entity))]
    if inspection.flow is not None:
        flow = drawing.thumbnail(inspection.flow, _CANVAS)
        parts.append(drawing.captioned(flow, "flow picture of all entities", "all frames in one"))
    parts.append(splats(entity))
    explanation = (
        "Color is time, dark to light; dots are the mean place in a token frame, with its number; "
        "gray are the other entities, the fine grid is the token grid. A splat says where a token "
        "frame reads and writes the motion map."
    )
    return drawing.panel("path", explanation, drawing.beside(parts))


def _path_words(entity: EntityView) -> str:
    path = entity.path
    if not path.visible.any():
        return "no path"
    seen, frames = int(path.visible.sum()), len(path.visible)
    return f"visible in {seen} of {frames} frames" + (", stands still" if entity.still else "")


def _canvas(inspection: Inspection, entity: EntityView) -> Image.Image:
    request, path = inspection.request, entity.path
    scale = _CANVAS / max(request.width, request.height)
    sheet = drawing.blank(request.width * scale, request.height * scale)
    draw = ImageDraw.Draw(sheet)
    token = inspection.model.spatial_multiple * scale
    for x in np.arange(0, sheet.width, token):
        draw.line((x, 0, x, sheet.height), fill=(240, 240, 240))
    for y in np.arange(0, sheet.height, token):
        draw.line((0, y, sheet.width, y), fill=(240, 240, 240))
    for other in inspection.entities:
        seen, track = other.path.visible, other.path.track * scale
        if other.index != entity.index:
            for frame in np.flatnonzero(seen[:-1] & seen[1:]):
                draw.line([tuple(point) for point in track[frame : frame + 2]], fill=LINE, width=2)
            if seen.any():
                place = track[seen.argmax()] + 3
                draw.text(tuple(place), other.word, fill=SOFT, font=drawing.font(SMALL))
    draw_track(draw, (0, 0), path.track * scale, path.visible)
    _token_places(draw, entity, sheet.size)
    draw.rectangle((0, 0, sheet.width - 1, sheet.height - 1), outline=LINE)
    return sheet


def _token_places(draw: ImageDraw.ImageDraw, entity: EntityView, size: tuple[int, int]) -> None:
    """A dot for every token frame, with its number unless the last one stands there."""
    path, last = entity.path, np.full(2, -np.inf)
    for frame in np.flatnonzero(path.on):
        x, y = path.path[frame, :2] * size
        color = time_color(frame / max(len(path.on) - 1, 1))
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color, outline="white")
        place = np.array([min(x + 6, size[0] - 16), max(y - 8, 8)])
        if np.abs(place - last).max() > 10:
            draw.text(tuple(place), str(frame), fill=INK, font=drawing.font(SMALL), anchor="lm")
            last = place


def splats(entity: EntityView) -> Image.Image:
    """The splat of every token frame, absent ones hatched."""
    rows, columns = entity.path.splat.shape[1:]
    cell = cell_of(rows, columns)
    frames = []
    for frame, (values, on) in enumerate(zip(entity.path.splat, entity.path.on, strict=True)):
        picture = drawing.heat_map(values, (cell, cell), (0, 1))
        if not on:
            picture = drawing.nothing(columns * cell + 2, rows * cell + 2, "masked")
        frames.append(drawing.captioned(picture, f"token frame {frame}"))
    bar = drawing.color_bar(0, 1, 300, "splat")
    return drawing.stacked([drawing.flowing(frames, frames_width(frames)), bar])


def cell_of(rows: int, columns: int) -> int:
    """Pixels of a token in a small map of a token frame."""
    return max(3, 96 // max(rows, columns))


def frames_width(frames: list[Image.Image]) -> int:
    """Room for three or more token frames in a row, four rows at most for the usual 13."""
    columns = max(3, -(-len(frames) // 4))
    return columns * (frames[0].width + 10)


def entity_color(index: int) -> tuple[int, int, int]:
    """The color of an entity in all panels, as in overlays."""
    return COLORS[index % len(COLORS)]
