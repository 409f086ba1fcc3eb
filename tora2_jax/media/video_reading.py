"""Reading of videos, so that frames are what players show.

Frames are uint8 `[f, height, width, 3]`, RGB: upright, with square pixels, without those that the
file hides, in the order in which they are shown. PyAV is imported when a video is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from tora2_jax.system.unusable_file import why_unusable

Frames = UInt8[np.ndarray, "f height width 3"]

_UNSPECIFIED = 2  # FFmpeg's number of an unknown color matrix
_HDR = {16: "PQ", 18: "HLG"}  # FFmpeg's numbers of transfer functions
_TONE_MAPPED = (
    "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=hable:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)
_UNEVEN = 0.1  # of a frame: deviation from a constant rate that is rounding of the container
_LEAN = 0.02  # sine of the angle to which a picture counts as upright; players do the same
_STRETCH = 4  # largest ratio of the sides of a pixel that is believed
_HEAD = 4096  # bytes in which a container says how long it is
_PART = 1 << 24  # bytes read at once


class VideoError(ValueError):
    """A video or picture that cannot be read or written; says which file and why."""


class VideoReadError(VideoError, OSError):
    """A file that cannot be read; that is no fault of what it holds. Its cause is the reason."""


class VideoInfo(NamedTuple):
    """What is known of a video without decoding all of it."""

    frames: int
    fps: float  # where the rate varies: the mean
    height: int  # pixels, as it is shown
    width: int
    times: tuple[float, ...] | None = None  # seconds after the first frame, where the rate varies
    # What of it is shown in another way than it is stored: "turned", "stretched", "BT.709".
    changed: tuple[str, ...] = ()

    def position(self, frame: int) -> float:
        """Which frame it would be at the mean rate; at a constant rate the number itself."""
        return frame if self.times is None else self.times[frame] * self.fps


def is_hd(height: int, width: int) -> bool:
    """Whether players take a picture without a color matrix for BT.709, not for BT.601."""
    return height > 576 or width >= 1280


def local_url(path: Path) -> str:
    """How FFmpeg has to be told a path: what stands before a colon could be a protocol."""
    return f"file:{path}"


def read_video(path: str | Path) -> tuple[Frames, float]:
    """All frames of a video, and how many it shows per second (in the mean, if that varies).

    Raises:
        VideoError: there is no such file, it is no video, it is cut off, or it is of a kind that
            would be shown wrongly (HDR, interlaced); the message says what to do.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        packets = _Packets()
        frames: list[np.ndarray] = []
        for packet in container.demux(stream):
            packets.add(packet)
            for frame in packet.decode():
                if not frames:
                    _check_shown(path, frame, stream)
                    first, size = frame.pts, _size(frame)
                _check_size(path, len(frames), frame, size)
                frames.append(_as_shown(frame, stream))
        packets.check(path, container, stream)
        if not frames:
            raise VideoError(f"{path}: holds no frame that can be decoded")
        fps, _ = _rate(path, packets.times_from(first), stream)
    return np.stack(frames), fps


def video_info(path: str | Path) -> VideoInfo:
    """Length, speed and size of a video; of its frames only the first is decoded.

    Raises:
        VideoError: as `read_video`, as far as it can be told without decoding.
    """
    path = Path(path)
    with _opened(path) as (container, stream):
        stream.codec_context.thread_count = 1  # more would make more than one frame
        packets, first = _Packets(), None
        for packet in container.demux(stream):
            packets.add(packet)
            if first is None:
                first = next(iter(packet.decode()), None)
        packets.check(path, container, stream)
        if first is None:
            raise VideoError(f"{path}: holds no frame that can be decoded")
        _check_shown(path, first, stream)
        times = packets.times_from(first.pts)
        fps, seconds = _rate(path, times, stream)
        height, width = _as_shown(first, stream).shape[:2]
        return VideoInfo(len(times), fps, height, width, seconds, _changes(first, stream))


def frames_at(
    path: str | Path, indices: Sequence[int]
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Some frames of a video, one after another, without holding the others.

    Args:
        path: the video.
        indices: rising, from 0.

    Raises:
        VideoError: as `read_video`; also if a frame is damaged or the video ends before the last.
    """
    path = Path(path)
    wanted = iter(indices)
    index = next(wanted, None)
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number == 0:
                _check_shown(path, frame, stream)
                size = _size(frame)
            if number == index:
                _check_size(path, number, frame, size)
                if frame.is_corrupt:
                    raise VideoError(f"{path}: is damaged at frame {number}")
                yield _as_shown(frame, stream)
                index = next(wanted, None)
            if index is None:
                return
    if index is not None:
        raise VideoError(f"{path}: is cut off; it has no frame {index}")


@contextmanager
def _opened(path: Path):
    """The container and its video stream; what goes wrong inside becomes a VideoError."""
    import av

    if not path.is_file():
        raise VideoError(f"{path}: there is no such file")
    try:
        # Titles in other encodings than UTF-8 are no reason to refuse a video.
        with av.open(local_url(path), metadata_errors="replace") as container:
            cover = av.stream.Disposition.attached_pic
            streams = [one for one in container.streams.video if not one.disposition & cover]
            if not streams:
                raise VideoError(f"{path}: holds no video")
            # Thumbnails are a stream of one picture; of most containers the number is not known.
            stream = next((one for one in streams if one.frames != 1), streams[0])
            if stream.codec_context is None:
                raise VideoError(f"{path}: is in a format that FFmpeg here cannot decode")
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        if isinstance(error, OSError):  # FFmpeg calls some damage an input error, too
            _check_readable(path)
        if unusable := why_unusable(path):
            raise VideoError(f"{path}: {unusable}") from error
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path}: is damaged or no video ({reason})") from error


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            while file.read(_PART):
                pass
    except OSError as error:
        raise VideoReadError(f"{path}: cannot be read ({error.strerror})") from error


class _Packets:
    """What the packets of a stream say of its frames before they are decoded."""

    def __init__(self):
        self._number, self._broken = 0, False
        self._times: list[int | None] = []

    def add(self, packet) -> None:
        if not packet.size:
            return
        self._number += 1
        self._broken |= packet.is_corrupt
        # Cuts made without encoding begin with frames that only serve to decode others.
        if not packet.is_discard:
            self._times.append(packet.dts if packet.pts is None else packet.pts)

    def check(self, path: Path, container, stream) -> None:
        """Raises VideoError if the file is cut off, which decodes without an error."""
        # The count in the header knows nothing of edit lists, and AVI's is not exact.
        indexed = len(stream.index_entries) if container.format.name.startswith("mov") else 0
        if not self._number or self._number < indexed:
            raise VideoError(f"{path}: is cut off; it holds {self._number} of {indexed} frames")
        with path.open("rb") as file:
            told = _told_length(file.read(_HEAD))
        if self._broken or path.stat().st_size < told:
            raise VideoError(f"{path}: is cut off; its end is missing")

    def times_from(self, first: int | None) -> list[int | None]:
        """When frames are shown, rising, if the file says it; those before the first that can be
        decoded (their key frame was cut away) are never shown."""
        told = [time for time in self._times if time is not None]
        if first is None or len(told) < len(self._times):
            return self._times
        return [time for time in sorted(told) if time >= first]


def _told_length(head: bytes) -> int:
    """Bytes of a file by its own account, if it is Matroska (WebM) or AVI; else 0."""
    if head.startswith(b"RIFF"):
        told = int.from_bytes(head[4:8], "little")
        return 0 if told == 2**32 - 1 else told + 8
    place = head.find(b"\x18\x53\x80\x67") + 4  # of the segment, which holds all the rest
    if not head.startswith(b"\x1a\x45\xdf\xa3") or place < 4 or place + 8 > len(head):
        return 0
    length = 9 - head[place].bit_length()
    bits = 7 * length
    told = int.from_bytes(head[place : place + length], "big") & ((1 << bits) - 1)
    return 0 if told == (1 << bits) - 1 else place + length + told


def _rate(path: Path, times: list[int | None], stream) -> tuple[float, tuple[float, ...] | None]:
    """Frames per second; and where that varies, the time of each frame, in seconds."""
    rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if None in times or len(times) == 1:
        if not rates:
            raise VideoError(f"{path}: does not say how many frames it shows per second")
        return rates[0], None
    seconds = (np.array(times) - times[0]) * float(stream.time_base)
    if not seconds[-1]:
        raise VideoError(f"{path}: shows all its frames at the same time")
    mean = (len(times) - 1) / float(seconds[-1])
    numbers = np.arange(len(times))
    for rate in (*rates, mean):
        if np.abs(seconds * rate - numbers).max() <= _UNEVEN:
            return rate, None
    return mean, tuple(seconds.round(6).tolist())


def _check_shown(path: Path, frame, stream) -> None:
    """Raises VideoError if frames would not look as in a player."""
    faults = []
    if frame.color_trc in _HDR:
        faults.append(
            f"is HDR ({_HDR[frame.color_trc]}), whose colors would come out pale; convert it with "
            f"`ffmpeg -i IN -vf {_TONE_MAPPED} OUT`"
        )
    if frame.interlaced_frame:
        faults.append("is interlaced; convert it with `ffmpeg -i IN -vf bwdif=mode=send_frame OUT`")
    aspect = _pixel_aspect(stream)
    if not 1 / _STRETCH <= aspect <= _STRETCH:
        faults.append(f"says that its pixels are {aspect} times as wide as they are high")
    if _turn(frame) is None:
        faults.append(
            f"is shown turned by about {frame.rotation} degrees; encode it again so that it stands"
        )
    if faults:
        raise VideoError(f"{path}: " + "; ".join(faults))


def _size(frame) -> tuple[int, int]:
    return frame.height, frame.width


def _check_size(path: Path, number: int, frame, size: tuple[int, int]) -> None:
    """Raises VideoError if a frame is not as large as the first, as in recordings of calls."""
    if _size(frame) != size:
        old, new = (f"{height} x {width}" for height, width in (size, _size(frame)))
        raise VideoError(
            f"{path}: changes its size from {old} to {new} at frame {number}; convert it with "
            f"`ffmpeg -i IN -vf scale={size[1]}:{size[0]} OUT`"
        )


def _pixel_aspect(stream) -> Fraction:
    """Width by height of a pixel."""
    return Fraction(stream.sample_aspect_ratio or 1)


def _turn(frame) -> tuple[bool, bool, bool] | None:
    """Whether rows and columns change places, then which of them run backwards; None: it leans.

    The matrix is QuickTime's: (x, y) is shown at (a x + c y, b x + d y).
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    if abs(b) <= _LEAN * abs(a) and abs(c) <= _LEAN * abs(d):
        return False, d < 0, a < 0
    if abs(a) <= _LEAN * abs(b) and abs(d) <= _LEAN * abs(c):
        return True, b < 0, c < 0
    return None


def _takes_bt709(frame) -> bool:
    untold = frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb
    return untold and is_hd(frame.height, frame.width)


def _as_shown(frame, stream) -> UInt8[np.ndarray, "height width 3"]:
    """A frame as players show it."""
    settings = {"src_colorspace": "itu709"} if _takes_bt709(frame) else {}
    width = max(1, round(frame.width * _pixel_aspect(stream)))
    if width != frame.width:
        settings |= {"width": width, "interpolation": "BICUBIC"}
    picture = frame.to_ndarray(format="rgb24", **settings)
    across, rows, columns = _turn(frame) or (False, False, False)
    if across:
        picture = picture.transpose(1, 0, 2)
    return np.ascontiguousarray(picture[:: -1 if rows else 1, :: -1 if columns else 1])


def _changes(frame, stream) -> tuple[str, ...]:
    found = {
        "turned": any(_turn(frame) or ()),
        "stretched": round(frame.width * _pixel_aspect(stream)) != frame.width,
        "BT.709": _takes_bt709(frame),
    }
    return tuple(name for name, holds in found.items() if holds)
