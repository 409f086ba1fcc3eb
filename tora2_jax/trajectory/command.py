"""`python -m tora2_jax.trajectory FILE [FILE ...]`: checks, draws and converts paths.

One path is one entity; a file may hold several. The picture of `--plot` shows the paths on their
canvas over time (color is time), and beside it all frames of the flow clip in one: what the model
sees of them. `--to` writes them as other programs read them.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tora2_jax.media.video import VideoError, picture_format, write_image
from tora2_jax.system import limits
from tora2_jax.system.addresses import local_path
from tora2_jax.system.files import write_text
from tora2_jax.trajectory import formats
from tora2_jax.trajectory.files import load_paths, split_number
from tora2_jax.trajectory.flow_color import color_bytes, flow_map
from tora2_jax.trajectory.points import DEFAULT_CANVAS, Points, TrajectoryError, is_still, resample

_SIDE = 480  # pixels of the longer side of a panel
_MARGIN, _TOP, _BOTTOM = 40, 24, 44
# From the first frame to the last; dark to light, to be told apart in gray too.
_TIME_COLORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 190, 37]])


def main(arguments: list[str] | None = None) -> int:
    """Checks path files and draws them; returns the exit code, 2 if something is wrong."""
    options = _options(arguments)
    canvas = tuple(options.canvas)
    problems = _setting_problems(options)
    found = []
    for file in options.files:
        try:
            found += load_paths(file, canvas)
        except TrajectoryError as error:
            problems += error.problems
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 2
    names, paths = zip(*found, strict=True)
    if options.to and not _convert(paths, options):
        return 2
    width, height = options.size[1], options.size[0]
    resampled = [resample(points, options.frames, width, height, canvas) for points in paths]
    tracks, visible = (np.stack(part) for part in zip(*resampled, strict=True))
    if options.plot:
        picture = draw_paths(names, paths, tracks, visible, (height, width), canvas)
        try:
            write_image(options.plot, picture)
        except VideoError as error:
            print(error, file=sys.stderr)
            return 2
    for name, points, track, seen in zip(names, paths, tracks, visible, strict=True):
        length = np.linalg.norm(np.diff(track, axis=0), axis=-1).sum()
        print(
            f"{name}: {len(points.time)} points, {length:.0f} pixels long, "
            f"visible in {seen.sum()} of {len(track)} frames"
            + (", stands still: the flow picture does not show it" if is_still(points) else "")
        )
    return 0


def _convert(paths: Sequence[Points], options: argparse.Namespace) -> bool:
    """Writes the paths in another form; False, with a message, if they cannot be."""
    height, width = options.size
    drawn = formats.Drawn(tuple(options.canvas), options.frames, (width, height))
    try:
        contents = formats.written(paths, options.to, drawn)
        for file, content in zip(_outputs(options.output, len(contents)), contents, strict=True):
            write_text(file, content)
            print(f"written: {file}")
    except (TrajectoryError, OSError) as error:
        print(f"--to {options.to}: {error}", file=sys.stderr)
        return False
    return True


def _outputs(output: Path, count: int) -> list[Path]:
    """`NAME_1.txt`, `NAME_2.txt`, ... where a file holds one path."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}_{i}{output.suffix}") for i in range(1, count + 1)]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tora2_jax.trajectory",
        description="Check path files, draw what the model will see of them, convert them.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=local_path,
        metavar="FILE",
        help="x,y per line, a JSON list or .npy; NAME#2 is the second path in a file",
    )
    parser.add_argument("--plot", type=local_path, help="picture to write, such as out.png")
    parser.add_argument(
        "--to",
        choices=tuple(formats.SUFFIXES),
        help="write them as x,y lines of Tora, as this project's JSON or as ComfyUI's tracks",
    )
    parser.add_argument("--output", type=local_path, help="file to write with --to")
    parser.add_argument(
        "--canvas", type=int, nargs=2, default=DEFAULT_CANVAS, metavar=("WIDTH", "HEIGHT")
    )
    parser.add_argument("--frames", type=int, default=49, help="of the video")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 720), metavar=("HEIGHT", "WIDTH")
    )
    return parser.parse_args(arguments)


def _setting_problems(options: argparse.Namespace) -> list[str]:
    problems = [
        f"--{name}: {' '.join(map(str, values))} must be positive"
        for name, values in (
            ("canvas", options.canvas),
            ("frames", [options.frames]),
            ("size", options.size),
        )
        if min(values) < 1
    ]
    pixels = math.prod(options.size) * options.frames
    if not problems and pixels > limits.VIDEO_PIXELS:
        problems.append(
            f"--size, --frames: {options.size[0]} x {options.size[1]} x {options.frames} are "
            f"{pixels} pixels, more than fit into memory; take at most {limits.VIDEO_PIXELS}"
        )
    if (options.to is None) != (options.output is None):
        given, needed = ("--to", "--output") if options.to else ("--output", "--to")
        problems.append(f"{given}: give {needed} too")
    elif options.output:
        problems += _output_problems(options)
    if options.plot:
        if picture_format(options.plot) is None:
            problems.append(f"--plot: {options.plot} must end in a picture format such as .png")
        if options.plot.is_dir():
            problems.append(f"--plot: {options.plot} is a folder")
    return problems


def _output_problems(options: argparse.Namespace) -> list[str]:
    output, suffix = options.output, formats.SUFFIXES[options.to]
    if output.is_dir():
        return [f"--output: {output} is a folder; name a file"]
    if output.suffix.lower() != suffix:
        return [f"--output: {output} must end in {suffix}"]
    sources = [split_number(file)[0] for file in options.files]
    if output.exists() and any(output.samefile(file) for file in sources if file.exists()):
        return [f"--output: {output} is one of the files to read; name another"]
    return []


def draw_paths(
    names: Sequence[Path],
    paths: Sequence[Points],
    tracks: np.ndarray,
    visible: np.ndarray,
    size: tuple[int, int],
    canvas: tuple[int, int] = DEFAULT_CANVAS,
) -> np.ndarray:
    """Paths over time on their canvas, and the flow picture at the same scale beside them.

    Args:
        names: of the paths, for their labels.
        paths: the points as given, drawn as small dots.
        tracks: `[e, f, 2]` in pixels.
        visible: bool `[e, f]`; where it is False the line has a gap.
        size: height and width in pixels.
        canvas: width and height of the canvas.

    Returns:
        uint8 `[height, width, 3]`.
    """
    height, width = size
    scale = _SIDE / max(size)
    panel = (max(round(width * scale), 1), max(round(height * scale), 1))
    sheet = Image.new(
        "RGB", (2 * panel[0] + 3 * _MARGIN, panel[1] + _TOP + _BOTTOM), (255, 255, 255)
    )
    left, right = (_MARGIN, _TOP), (2 * _MARGIN + panel[0], _TOP)
    sheet.paste(_strongest_flow(tracks, visible, size).resize(panel), right)
    draw = ImageDraw.Draw(sheet)
    for corner, title in (
        (left, f"paths, {len(tracks[0])} frames"),
        (right, f"flow picture, {width} x {height} pixels"),
    ):
        edge = (corner[0] - 1, corner[1] - 1, corner[0] + panel[0], corner[1] + panel[1])
        draw.rectangle(edge, outline=(120, 120, 120))
        draw.text((corner[0], 4), title, fill="black", font=ImageFont.load_default(13))
    _draw_scale(draw, left, panel, canvas, len(tracks[0]))
    for name, points, track, seen in zip(names, paths, tracks, visible, strict=True):
        draw_track(draw, left, track * scale, seen)
        known = points.position[points.visible] * (np.array(panel) / canvas)
        for x, y in known + left:
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill="black")
        _draw_ends(draw, left, track * scale, seen, _label(name), panel)
    return np.asarray(sheet)


def _label(name: Path) -> str:
    """The name of a path without the suffix of its file."""
    file, mark, number = name.name.rpartition("#")
    return f"{Path(file).stem}#{number}" if mark else name.stem


def time_color(fraction: float) -> tuple[int, int, int]:
    """The color of a time between 0, the first frame, and 1, the last."""
    place = np.linspace(0, 1, len(_TIME_COLORS))
    return tuple(round(np.interp(fraction, place, channel)) for channel in _TIME_COLORS.T)


def _strongest_flow(tracks: np.ndarray, visible: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """All frames of the flow clip in one picture, the strongest color on top."""
    flow = flow_map(tracks, visible, *size)
    strongest = np.square(flow).sum(-1).argmax(0)
    rows, columns = np.indices(strongest.shape)
    return Image.fromarray(color_bytes(flow)[strongest, rows, columns])


def _draw_scale(draw, corner, panel, canvas, frames: int) -> None:
    """The canvas's coordinates at its edges, and the colors of time below."""
    font = ImageFont.load_default(11)
    x, y = corner
    draw.text((x - 4, y - 2), "0", fill="gray", font=font, anchor="ra")
    draw.text((x - 4, y + panel[1]), f"{canvas[1]}", fill="gray", font=font, anchor="rd")
    draw.text((x + panel[0], y + panel[1] + 3), f"{canvas[0]}", fill="gray", font=font, anchor="ra")
    bar = y + panel[1] + 22
    for column in range(panel[0] // 2):
        color = time_color(column / max(panel[0] // 2 - 1, 1))
        draw.line((x + column, bar, x + column, bar + 8), fill=color)
    draw.text((x, bar + 9), "first frame", fill="gray", font=font)
    draw.text((x + panel[0] // 2, bar + 9), f"frame {frames}", fill="gray", font=font, anchor="ra")


def draw_track(draw, corner, track: np.ndarray, seen: np.ndarray) -> None:
    """A path in the colors of time, from `track` `[f, 2]` in pixels; a gap where it is unseen."""
    frames = len(track)
    for frame in np.flatnonzero(seen[:-1] & seen[1:]):
        step = (track[frame : frame + 2] + corner).ravel().tolist()
        draw.line(step, fill=time_color(frame / max(frames - 2, 1)), width=3)


def _draw_ends(draw, corner, track: np.ndarray, seen: np.ndarray, name: str, panel) -> None:
    """A green ring where the path is first seen, a red square where it is last seen."""
    font = ImageFont.load_default(11)
    shown = np.flatnonzero(seen)
    if not shown.size:
        return
    x, y = track[shown[0]] + corner
    draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline=(0, 140, 60), width=2)
    room = corner[0] + panel[0] - draw.textlength(f"start {name}", font=font)
    place = (max(corner[0], min(x + 7, room)), max(corner[1], y - 14))
    draw.text(place, f"start {name}", fill=(0, 110, 50), font=font)
    x, y = track[shown[-1]] + corner
    draw.rectangle((x - 4, y - 4, x + 4, y + 4), outline=(200, 30, 30), width=2)
    room = corner[0] + panel[0] - draw.textlength("end", font=font)
    place = (max(corner[0], min(x + 7, room)), min(y + 2, corner[1] + panel[1] - 14))
    draw.text(place, "end", fill=(170, 20, 20), font=font)
