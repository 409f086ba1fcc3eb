"""Videos and pictures: writing, and drawing on them what was asked for; reading is beside it.

Frames are uint8 `[f, height, width, 3]`, RGB. PyAV is imported when a video is read or written.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Real, UInt8
from PIL import Image, ImageDraw, ImageFont

from tora2_jax.media.video_reading import (
    Frames,
    VideoError,
    VideoInfo,
    VideoReadError,
    frames_at,
    is_hd,
    local_url,
    read_video,
    video_info,
)
from tora2_jax.system.files import written_whole

__all__ = [
    "COLORS",
    "Frames",
    "VideoError",
    "VideoInfo",
    "VideoReadError",
    "contact_sheet",
    "frames_at",
    "overlay",
    "picture_format",
    "read_video",
    "video_info",
    "write_image",
    "write_video",
]

COLORS = (
    (230, 57, 70),
    (42, 157, 244),
    (255, 183, 3),
    (56, 176, 80),
    (173, 92, 214),
    (0, 180, 170),
    (240, 110, 170),
    (140, 100, 60),
)
_READABLE = 384  # pixels of the shorter side, below which labels cannot be read
_GAP = 4
# PyAV's name of a color matrix, and FFmpeg's number of it, its primaries and its transfer function.
_BT709, _BT601 = ("itu709", 1), ("itu601", 6)
_LIMITED = 1  # FFmpeg's number of the range 16 to 235


def write_video(path: str | Path, frames: np.ndarray, fps: float = 8) -> None:
    """Writes an mp4 (H.264, yuv420p; BT.709 if it is HD, else BT.601) that every player shows.

    The file appears only when it is complete. Odd sizes are padded by repeating the last row or
    column, because the format needs even ones.

    Args:
        path: must end in `.mp4`; its folder is made if needed.
        frames: uint8 `[f, height, width, 3]`, at least one.
        fps: frames per second.

    Raises:
        VideoError: wrong frames, fps or name, or the file cannot be written.
    """
    path = Path(path)
    frames = _checked(frames, path)
    if path.suffix.lower() != ".mp4":
        raise VideoError(f"{path}: the name of a video must end in .mp4")
    if not 0 < fps < 1000:
        raise VideoError(f"{path}: {fps} frames per second is not possible")
    stream_video(path, frames, frames.shape[1:3], fps)


def stream_video(
    path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float
) -> None:
    """As `write_video`, with one frame after another, so that none but this one is held.

    Args:
        path: see there.
        frames: uint8 `[height, width, 3]` each.
        size: their height and width.
        fps: see there.

    Raises:
        VideoError: the file cannot be written.
    """
    _write(path, lambda aside: _encode(aside, frames, size, fps))


def _encode(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: float) -> None:
    import av

    options = {"crf": "16", "preset": "medium"}
    rate = Fraction(fps).limit_denominator(1001)
    movie = {"movflags": "faststart"}
    with av.open(local_url(path), "w", format="mp4", options=movie) as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        height, width = size
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        space, number = _BT709 if is_hd(stream.height, stream.width) else _BT601
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, number)
        stream.codec_context.color_range = _LIMITED
        for frame in frames:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            coded = picture.reformat(
                format="yuv420p", dst_colorspace=space, dst_color_range=_LIMITED
            )
            container.mux(stream.encode(coded))
        container.mux(stream.encode())


def write_image(path: str | Path, image: UInt8[np.ndarray, "height width *channels"]) -> None:
    """Writes a picture (gray, RGB or RGBA) in the format that its name ends in.

    Raises:
        VideoError: not a picture, or the file cannot be written.
    """
    path, image = Path(path), np.asarray(image)
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise VideoError(f"{path}: {image.dtype} {image.shape} is not a picture")
    picture = Image.fromarray(image[..., 0] if image.ndim == 3 and channels == 1 else image)
    file_format = picture_format(path)
    if file_format is None:
        raise VideoError(f"{path}: the name must end in a picture format such as .png")
    _write(path, lambda aside: picture.save(aside, format=file_format))


def picture_format(path: str | Path) -> str | None:
    """The format that a picture of this name is written in; None if it can be read only or less."""
    name = Image.registered_extensions().get(Path(path).suffix.lower())
    return name if name in Image.SAVE else None


def _write(path: Path, fill: Callable[[Path], None]) -> None:
    try:
        with written_whole(path) as aside:
            fill(aside)
    except (OSError, ValueError) as error:
        raise VideoError(f"{path}: cannot be written ({error})") from error


def _checked(frames: np.ndarray, where: object) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise VideoError(
            f"{where}: frames are {frames.dtype} {frames.shape}; "
            "they must be uint8 [frames, height, width, 3]"
        )
    return frames


def overlay(
    frames: Frames,
    tracks: Real[np.ndarray, "e f 2"],
    visible: Bool[np.ndarray, "e f"],
    labels: Sequence[str],
    thumbnails: Sequence[Sequence[np.ndarray]] = (),
) -> UInt8[np.ndarray, "f high wide 3"]:
    """Draws every entity's path, where it should be now, its word and its reference images.

    Small videos are enlarged by a whole factor until the words can be read.

    Args:
        frames: the video.
        tracks: (x, y) in pixels of the video.
        visible: whether the entity has a path there; all False draws nothing but its images.
        labels: one word per entity.
        thumbnails: reference images per entity (RGB or RGBA); shown in a column on the right.

    Returns:
        The frames, enlarged and, with thumbnails, wider.
    """
    frames = _checked(frames, "overlay")
    tracks, visible = np.asarray(tracks, np.float32), np.asarray(visible, bool)
    expected = (len(labels), len(frames))
    if tracks.shape != (*expected, 2) or visible.shape != expected:
        raise VideoError(
            f"overlay: {len(labels)} labels and {len(frames)} frames need tracks {(*expected, 2)} "
            f"and visible {expected}, not {tracks.shape} and {visible.shape}"
        )
    factor = max(1, -(-_READABLE // min(frames.shape[1:3])))
    height = frames.shape[1] * factor
    panel = _panel(labels, thumbnails, height) if any(map(len, thumbnails)) else None
    drawn = []
    for index, frame in enumerate(frames):
        picture = Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1))
        for entity, label in enumerate(labels):
            _draw_path(picture, tracks[entity] * factor, visible[entity], index, label, entity)
        pixels = np.asarray(picture)
        drawn.append(pixels if panel is None else np.concatenate([pixels, panel], 1))
    return np.stack(drawn)


def _draw_path(picture: Image.Image, track, visible, now: int, label: str, entity: int) -> None:
    """The whole path thin, the part until `now` thick, a dot and the word at `now`."""
    draw = ImageDraw.Draw(picture)
    color = COLORS[entity % len(COLORS)]
    unit = min(picture.size) / 200
    for frame in range(1, len(track)):
        if visible[frame - 1] and visible[frame]:
            width = round(unit * (2 if frame <= now else 1))
            draw.line([tuple(track[frame - 1]), tuple(track[frame])], fill=color, width=width)
    if not visible[now]:
        return
    x, y = track[now]
    radius = 3 * unit
    box = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(box, fill=color, outline="white", width=round(unit))
    _write_label(draw, (x + 2 * radius, y - 3 * radius), label, color, picture.size)


def _write_label(draw: ImageDraw.ImageDraw, place, label: str, color, size) -> None:
    """White text on the entity's color, moved so that it stays inside the picture."""
    font = ImageFont.load_default(max(12, min(size) // 24))
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    x = min(max(place[0], 2), max(size[0] - (right - left) - 6, 2))
    y = min(max(place[1], 2), max(size[1] - (bottom - top) - 6, 2))
    draw.rectangle((x - 2, y - 2, x + right - left + 4, y + bottom - top + 4), fill=color)
    draw.text((x + 1 - left, y + 1 - top), label, fill="white", font=font)


def _panel(labels, thumbnails, height: int) -> np.ndarray:
    """The column of reference images, `[height, *, 3]`: one row per entity."""
    rows = max(len(labels), 1)
    side = max(16, min(height // rows, height // 4) - _GAP)
    columns = max(map(len, thumbnails))
    width = columns * (side + _GAP) + _GAP
    picture = Image.new("RGB", (width + width % 2, height), "white")
    draw = ImageDraw.Draw(picture)
    for row, (label, images) in enumerate(zip(labels, thumbnails, strict=False)):
        color = COLORS[row % len(COLORS)]
        y = row * (side + _GAP) + _GAP // 2
        for column, image in enumerate(images):
            x = _GAP + column * (side + _GAP)
            small = Image.fromarray(np.asarray(image)).convert("RGBA")
            small.thumbnail((side, side))
            if max(small.size) < side:
                scale = side / max(small.size)
                small = small.resize([max(1, round(length * scale)) for length in small.size])
            picture.paste(small, (x, y), small)
            draw.rectangle((x - 1, y - 1, x + side, y + side), outline=color, width=2)
        if images:
            place = (_GAP + 3, y + side - max(12, side // 6))
            _write_label(draw, place, label, color, picture.size)
    return np.asarray(picture)


def contact_sheet(
    frames: Frames, columns: int = 4, count: int | None = None
) -> UInt8[np.ndarray, "high wide 3"]:
    """Frames side by side, row by row, on white.

    Args:
        frames: the video, for instance from `overlay`.
        columns: frames per row.
        count: how many frames, evenly spaced from first to last; None for all.
    """
    frames = _checked(frames, "contact_sheet")
    if columns < 1 or (count is not None and count < 1):
        raise VideoError("contact_sheet: columns and count must be at least 1")
    if count is not None and count < len(frames):
        frames = frames[np.linspace(0, len(frames) - 1, count).round().astype(int)]
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    height, width = frames.shape[1:3]
    sheet = np.full(
        (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8
    )
    for index, frame in enumerate(frames):
        row, column = divmod(index, columns)
        y, x = row * (height + _GAP), column * (width + _GAP)
        sheet[y : y + height, x : x + width] = frame
    return sheet
