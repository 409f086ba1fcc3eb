"""Which frames of a clip a model sees: those that are shown nearest to its own times."""

import numpy as np

from tora2_jax.media.video import VideoInfo


def frame_numbers(
    video: VideoInfo, frames: int, fps: int, skip: int
) -> tuple[tuple[int, ...], list[str]]:
    """Numbers of the frames in the file, rising, and what keeps the clip from being used.

    Args:
        video: The clip.
        frames: How many a model sees, at least 1.
        fps: Per second, at least 1.
        skip: Frames that are left out at each end, as far as the clip is longer than needed.
    """
    if video.times is None:
        numbers, spare, length = _even(video, frames, fps, skip)
    else:
        numbers, spare, length = _uneven(video, frames, fps, skip)
    faults = []
    if repeated := int((np.diff(numbers) < 1).sum()):
        faults.append(
            f"shows {video.fps:g} frames per second, fewer than {fps}"
            if video.times is None
            else f"shows frames at uneven times, in places so far apart that {repeated} of "
            f"{frames} frames at {fps} per second would repeat the one before"
        )
    if spare < 0:
        faults.append(
            f"has {video.frames} frames {length}; {frames} frames at {fps} per second take "
            + (f"{numbers[-1] + 1}" if video.times is None else f"{(frames - 1) / fps:.2f} seconds")
        )
    return tuple(numbers.tolist()), faults


def _even(video: VideoInfo, frames: int, fps: int, skip: int) -> tuple[np.ndarray, int, str]:
    """The numbers, how many frames are left over, and how long the clip is, in words."""
    numbers = np.round(np.arange(frames) * (video.fps / fps)).astype(int)
    spare = int(video.frames - 1 - numbers[-1])
    return numbers + min(skip, spare // 2), spare, f"at {video.fps:g} per second"


def _uneven(video: VideoInfo, frames: int, fps: int, skip: int) -> tuple[np.ndarray, int, str]:
    """As `_even`, of a clip whose rate varies."""
    times = np.array(video.times)
    wanted = np.arange(frames) / fps
    end = times[-1] + 0.5 / video.fps  # half a frame later the last one is still the nearest

    def from_frame(start: int) -> np.ndarray:
        moments = times[start] + wanted
        after = np.clip(np.searchsorted(times, moments), 1, len(times) - 1)
        earlier = moments - times[after - 1] <= times[after] - moments
        return np.maximum(np.where(earlier, after - 1, after), start)

    numbers = from_frame(0)
    spare = int(video.frames - 1 - numbers[-1]) if wanted[-1] <= end else -1
    start = max(0, min(skip, spare // 2))
    while start and times[start] + wanted[-1] > end:
        start -= 1
    return from_frame(start), spare, f"in {times[-1]:.2f} seconds"
