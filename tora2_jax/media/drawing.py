"""Small pictures that a sheet is put together from: text, maps of values, bars. Pillow only."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, LINE, ABSENT = (32, 34, 38), (110, 114, 120), (198, 202, 208), (228, 228, 228)
ACCENT = (31, 94, 168)
# From nothing to everything; and from -1 over 0 to 1. Both can be told apart in gray.
MAGNITUDE = ((255, 255, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 36, 82))
SIGNED = ((178, 60, 40), (244, 190, 160), (250, 250, 250), (150, 190, 225), (25, 80, 150))
BODY, SMALL = 13, 12

Color = tuple[int, int, int]


@functools.cache
def font(size: int = BODY) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that a picture looks the same everywhere."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)  # the other kind has no sizes
    return found


def blank(width: float, height: float) -> Image.Image:
    """White paper."""
    return Image.new("RGB", (max(1, round(width)), max(1, round(height))), "white")


def text_width(text: str, size: int = BODY) -> int:
    """Pixels that a line takes."""
    return int(np.ceil(font(size).getlength(text)))


def wrapped(text: str, width: int, size: int = BODY) -> list[str]:
    """Lines no wider than `width`, broken at spaces; a single longer word stays whole."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def text_block(
    text: str, width: int, size: int = BODY, color: Color = INK, indent: int = 0
) -> Image.Image:
    """Wrapped text, as wide as its longest line."""
    lines, step = wrapped(text, width - indent, size), round(size * 1.4)
    block = blank(indent + max(text_width(line, size) for line in lines), step * len(lines))
    draw = ImageDraw.Draw(block)
    for index, line in enumerate(lines):
        draw.text((indent, index * step), line, fill=color, font=font(size))
    return block


def stacked(parts: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Below each other, at the left edge."""
    height = sum(part.height for part in parts) + gap * (len(parts) - 1)
    sheet, y = blank(max(part.width for part in parts), height), 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height + gap
    return sheet


def beside(parts: Sequence[Image.Image], gap: int = 14) -> Image.Image:
    """Next to each other, at the upper edge."""
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    sheet, x = blank(width, max(part.height for part in parts)), 0
    for part in parts:
        sheet.paste(part, (x, 0))
        x += part.width + gap
    return sheet


def flowing(parts: Sequence[Image.Image], width: int, gap: int = 10) -> Image.Image:
    """Row by row, as many parts to a row as fit."""
    return stacked([beside(row, gap) for row in in_rows(parts, width, gap)], gap)


def in_rows(parts: Sequence[Image.Image], width: int, gap: int) -> list[list[Image.Image]]:
    """In their order, as many to a row as fit."""
    rows: list[list[Image.Image]] = [[]]
    for part in parts:
        used = sum(other.width + gap for other in rows[-1])
        if rows[-1] and used + part.width > width:
            rows.append([])
        rows[-1].append(part)
    return rows


def captioned(picture: Image.Image, above: str = "", below: str = "") -> Image.Image:
    """A picture with a small line over and under it."""
    parts = [picture]
    width = max(picture.width, 90)
    if above:
        parts.insert(0, text_block(above, width, SMALL, INK))
    if below:
        parts.append(text_block(below, width, SMALL, SOFT))
    return stacked(parts, 3)


def colors_of(values: np.ndarray, low: float, high: float, scale=MAGNITUDE) -> np.ndarray:
    """uint8 `[..., 3]`; NaN is gray."""
    place = np.linspace(low, high if high > low else low + 1, len(scale))
    filled = np.nan_to_num(np.asarray(values, np.float64))
    channels = [np.interp(filled, place, channel) for channel in np.array(scale).T]
    colors = np.stack(channels, -1).round().astype(np.uint8)
    colors[np.isnan(values)] = ABSENT
    return colors


def color_bar(low: float, high: float, width: int, label: str, scale=MAGNITUDE) -> Image.Image:
    """What the colors of a map mean."""
    left, right = f"{low:.3g}", f"{high:.3g}"
    bar = max(40, min(110, width - text_width(left, SMALL) - text_width(right, SMALL) - 12))
    picture = blank(bar + text_width(left, SMALL) + text_width(right, SMALL) + 10, 14)
    draw, x = ImageDraw.Draw(picture), text_width(left, SMALL) + 5
    draw.text((0, 0), left, fill=SOFT, font=font(SMALL))
    row = colors_of(np.linspace(low, high, bar)[None], low, high, scale)
    picture.paste(Image.fromarray(row.repeat(10, 0)), (x, 2))
    draw.rectangle((x - 1, 1, x + bar, 12), outline=LINE)
    draw.text((x + bar + 5, 0), right, fill=SOFT, font=font(SMALL))
    room = max(width - picture.width - 8, 140)
    return flowing([picture, text_block(label, room, SMALL, SOFT)], max(width, 160), 8)


def heat_map(
    values: np.ndarray,
    cell: tuple[int, int],
    limits: tuple[float, float],
    *,
    scale=MAGNITUDE,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    write: bool = False,
    separators: tuple[Sequence[int], Sequence[int]] = ((), ()),
    axis: bool = False,
) -> Image.Image:
    """A table of values as colors.

    Args:
        values: `[rows, columns]`; NaN is gray: nothing is there.
        cell: width and height of a cell in pixels.
        limits: what the ends of the scale stand for.
        scale: colors from low to high.
        rows: labels at the left; fewer than there are rows: each stands for an equal part.
        columns: labels above, likewise.
        write: the numbers too.
        separators: rows and columns before which a line is drawn.
        axis: the column labels are places on an axis from the left to the right edge.
    """
    count = values.shape
    pixels = colors_of(values, *limits, scale).repeat(cell[1], 0).repeat(cell[0], 1)
    left = max((text_width(label, SMALL) + 6 for label in rows), default=1)
    top = 16 if columns else 1
    width, height = pixels.shape[1], pixels.shape[0]
    overhang = max((text_width(label, SMALL) for label in columns), default=0) // 2
    picture = blank(left + width + 1 + overhang, top + height + 1)
    picture.paste(Image.fromarray(pixels), (left, top))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=LINE)
    for row in separators[0]:
        y = top + row * cell[1]
        draw.line((left, y, left + width, y), fill=INK)
    for column in separators[1]:
        x = left + column * cell[0]
        draw.line((x, top, x, top + height), fill=INK)
    _labels(draw, (left, top, width, height), rows, columns, axis)
    for row, column in np.ndindex(count) if write else ():
        place = (left + (column + 0.5) * cell[0], top + (row + 0.5) * cell[1])
        _number(draw, place, float(values[row, column]), pixels[row * cell[1], column * cell[0]])
    return picture


def _labels(draw: ImageDraw.ImageDraw, area, rows, columns, axis: bool) -> None:
    """Beside and above a map."""
    left, top, width, height = area
    for index, label in enumerate(rows):
        y = top + height * (index + 0.5) / len(rows)
        draw.text((left - 5, y), label, fill=INK, font=font(SMALL), anchor="rm")
    for index, label in enumerate(columns):
        part = index / (len(columns) - 1) if axis else (index + 0.5) / len(columns)
        x = left + width * part
        draw.text((x, top - 4), label, fill=INK, font=font(SMALL), anchor="ms")


def _number(draw: ImageDraw.ImageDraw, place, value: float, background) -> None:
    text = "-" if np.isnan(value) else f"{value:.2f}"
    color = "white" if np.mean(background) < 130 else INK
    draw.text(place, text, fill=color, font=font(SMALL), anchor="mm")


def bars(
    values: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[Color],
    *,
    most: float | None = None,
    size: tuple[int, int] = (300, 110),
    marks: np.ndarray | None = None,
    unit: str = "{:.3g}",
) -> Image.Image:
    """Upright bars, stacked where `values` has several rows.

    Args:
        values: `[stack, bars]`, none below 0.
        labels: under the bars; thinned out where there is no room.
        colors: one per row of `values`.
        most: upper end of the axis; None: the highest bar or mark.
        size: of the area of the bars, in pixels.
        marks: a short dark line for each bar, such as a second measurement.
        unit: format of the axis.
    """
    tops = [values.sum(0).max(), 0 if marks is None else np.nan_to_num(marks).max()]
    most = most or (max(tops) or 1.0)
    width, height = size
    left = text_width(unit.format(most), SMALL) + 6
    picture = blank(left + width + 2, height + 24)
    draw, step = ImageDraw.Draw(picture), width / values.shape[1]
    draw.text((left - 5, 6), unit.format(most), fill=SOFT, font=font(SMALL), anchor="rm")
    draw.text((left - 5, 6 + height), "0", fill=SOFT, font=font(SMALL), anchor="rm")
    every = -(-max(text_width(label, SMALL) + 6 for label in labels) // max(1, int(step)))
    for index, column in enumerate(values.T):
        x, base = left + index * step, 6 + height
        for value, color in zip(column, colors, strict=True):
            top = base - height * value / most
            if base - top >= 0.5:
                draw.rectangle((x + 1, round(top), x + step - 2, round(base) - 1), fill=color)
            base = top
        if marks is not None and np.isfinite(marks[index]):
            y = 6 + height - height * marks[index] / most
            draw.line((x, y, x + step - 1, y), fill=INK, width=2)
        if index % every == 0:
            place = (x + step / 2, 6 + height + 4)
            draw.text(place, labels[index], fill=INK, font=font(SMALL), anchor="mt")
    draw.line((left, 6, left, 6 + height, left + width, 6 + height), fill=LINE)
    return picture


def legend(names: Iterable[str], colors: Iterable[Color], width: int) -> Image.Image:
    """Which color is whose."""
    parts = []
    for name, color in zip(names, colors, strict=True):
        part = blank(text_width(name, SMALL) + 16, 14)
        draw = ImageDraw.Draw(part)
        draw.rectangle((0, 2, 10, 12), fill=color)
        draw.text((15, 0), name, fill=INK, font=font(SMALL))
        parts.append(part)
    return flowing(parts, width, 12)


def nothing(width: int, height: int, reason: str) -> Image.Image:
    """In place of a picture that there is not, and why."""
    picture = Image.new("RGB", (width, height), (246, 246, 246))
    draw = ImageDraw.Draw(picture)
    for x in range(-height, width, 9):
        draw.line((x, height, x + height, 0), fill=(232, 232, 232))
    draw.rectangle((0, 0, width - 1, height - 1), outline=LINE)
    lines = wrapped(reason, width - 12, SMALL)
    for index, line in enumerate(lines):
        y = height / 2 + (index - (len(lines) - 1) / 2) * 15
        draw.text((width / 2, y), line, fill=SOFT, font=font(SMALL), anchor="mm")
    return picture


def thumbnail(image: np.ndarray, side: int) -> Image.Image:
    """An array in [0, 1] or uint8 RGB at a longer side of `side`; enlarged pixels stay squares."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    picture = picture.resize((width, height), method)
    ImageDraw.Draw(picture).rectangle((0, 0, width - 1, height - 1), outline=LINE)
    return picture


def stretched(panels: Sequence[Image.Image], gap: int = 10) -> Image.Image:
    """Panels next to each other, their frames equally high."""
    height = max(part.height for part in panels)
    taller = []
    for part in panels:
        sheet = blank(part.width, height)
        sheet.paste(part.crop((0, 0, part.width, part.height - 1)))
        ImageDraw.Draw(sheet).rectangle((0, 0, part.width - 1, height - 1), outline=LINE)
        taller.append(sheet)
    return beside(taller, gap)


def panel(title: str, explanation: str, content: Image.Image, least: int = 200) -> Image.Image:
    """A titled frame; the explanation is wrapped to the content's width."""
    width = max(content.width, least, text_width(title, BODY + 1))
    lines = [content]
    if explanation:
        lines.append(text_block(explanation, width, SMALL, SOFT))
    body = stacked(lines)
    sheet = blank(width + 24, body.height + 50)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, sheet.width - 1, sheet.height - 1), outline=LINE)
    draw.rectangle((1, 1, sheet.width - 2, 26), fill=(240, 243, 247))
    draw.text((12, 14), title, fill=ACCENT, font=font(BODY + 1), anchor="lm")
    sheet.paste(body, (12, 38))
    return sheet
