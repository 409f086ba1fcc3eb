"""Small videos of the kinds that people bring, made with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def gray(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A picture that tells its number by its brightness."""
    return np.full((height, width, 3), 20 + 4 * number, np.uint8)


def number_of(picture: np.ndarray) -> int:
    """The number that a picture of `gray` tells."""
    return round((float(picture.mean()) - 20) / 4)


def quadrants(height: int = 64, width: int = 96) -> np.ndarray:
    """Red at the left top, green at the right top, blue at the left bottom, else white."""
    picture = np.full((height, width, 3), 235, np.uint8)
    rows, columns = height // 2, width // 2
    picture[:rows, :columns] = (220, 30, 30)
    picture[:rows, columns:] = (30, 200, 30)
    picture[rows:, :columns] = (30, 30, 220)
    return picture


def write(
    path: Path,
    pictures: Sequence[np.ndarray],
    fps: int = 8,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    space: str = "itu601",
    color_range: int = 1,
    change=lambda stream: None,
) -> Path:
    """Writes a video.

    Args:
        path: Its suffix says the container.
        pictures: RGB.
        fps: Frames per second.
        codec: PyAV's name.
        pixels: Format of the pixels.
        options: Of the codec.
        times: When each is shown, in milliseconds; None: at a constant rate.
        space: Matrix of the colors; it is not told to the file.
        color_range: 1: 16 to 235; 2: 0 to 255.
        change: Is given the stream, to tell the file more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        change(stream)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=pixels, dst_colorspace=space, dst_color_range=color_range)
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut_without_encoding(source: Path, target: Path, start: float, end: float = 1e9) -> Path:
    """As `ffmpeg -ss START -to END -i SOURCE -c copy TARGET`: an edit list hides the lead-in."""
    with (
        av.open(str(source)) as read,
        av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as written,
    ):
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        offset, last = round(start / stream.time_base), end / stream.time_base
        read.seek(offset, stream=stream)
        for packet in read.demux(stream):
            if packet.dts is not None and packet.dts <= last:
                packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
                packet.stream = copy
                written.mux(packet)
    return target
