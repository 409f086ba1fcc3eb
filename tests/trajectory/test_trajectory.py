"""The rasterizer: the released pixels in compat mode, and hand-computed cases of our own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tora2_jax.trajectory import command as trajectory_command
from tora2_jax.trajectory import points as trajectory
from tora2_jax.trajectory.files import load_points
from tora2_jax.trajectory.flow_color import color_bytes
from tora2_jax.trajectory.points import TrajectoryError, parse_points, resample, splat

GOLDEN = Path(__file__).parents[1] / "golden" / "tora_trajectory.npz"


@pytest.mark.parametrize("case", range(4))
def test_compat_is_the_released_path_in_every_pixel(case):
    golden = np.load(GOLDEN)
    frames, height, width = golden[f"case{case}_size"].tolist()
    paths = json.loads(str(golden[f"case{case}_raw"]))
    tracks = np.stack(
        [resample(parse_points(path), frames, width, height, compat=True)[0] for path in paths]
    )
    assert np.array_equal(tracks, golden[f"case{case}_points"])
    visible = np.ones(tracks.shape[:2], bool)
    expected = golden[f"case{case}_rgb"].transpose(0, 2, 3, 1)
    flow = trajectory.flow_map(tracks, visible, height, width, compat=True)
    assert np.array_equal(color_bytes(flow), expected)
    video = trajectory.flow_video(tracks, visible, height, width, compat=True)
    assert np.array_equal(video, (expected / 127.5 - 1).astype(np.float32))


def test_compat_overwrites_and_the_default_adds():
    tracks = np.array([[[20, 20], [26, 20]], [[20, 20], [20, 16]]], np.float32)
    visible = np.ones((2, 2), bool)
    added = trajectory.flow_map(tracks, visible, 48, 64)
    assert added[1, 20, 20].tolist() == [6, -4]
    assert not added[0].any()
    replaced = trajectory.flow_map(tracks, visible, 48, 64, compat=True)
    np.testing.assert_allclose(replaced[1, 20, 20], [0, -4], rtol=1e-3)


def test_the_spread_is_a_gaussian_around_the_old_position():
    tracks = np.array([[[30.7, 40.2], [31.95, 40.2]]])
    flow = trajectory.flow_map(tracks, np.ones((1, 2), bool), 96, 80)[1]
    rows, columns = np.mgrid[:96, :80]
    squared = (rows - 40) ** 2 + (columns - 30) ** 2
    near = np.maximum(abs(rows - 40), abs(columns - 30)) <= 10
    expected = 1.25 * np.exp(-squared / (2 * 2.0**2)) * near
    np.testing.assert_allclose(flow[..., 0], expected, atol=2e-6)
    assert not flow[..., 1].any()


@pytest.mark.parametrize("corner", [(0, 0), (64, 48), (64, 0), (0, 48)])
@pytest.mark.parametrize("compat", [False, True])
def test_points_on_the_edge_are_drawn(corner, compat):
    points = parse_points([list(corner), [30, 30]], (64, 48))
    track, visible = resample(points, 5, 64, 48, (64, 48), compat)
    flow = trajectory.flow_map(track[None], visible[None], 48, 64, compat)
    x, y = (min(corner[0], 63), min(corner[1], 47))
    np.testing.assert_allclose(flow[1, y, x], track[1] - track[0], rtol=1e-3, atol=1e-4)


def test_steps_to_or_from_an_invisible_frame_are_not_drawn():
    tracks = np.stack([np.arange(5) * 4.0 + 10, np.full(5, 20.0)], -1)[None]
    visible = np.array([[True, True, False, True, True]])
    flow = trajectory.flow_map(tracks, visible, 48, 48)
    assert flow.any((1, 2, 3)).tolist() == [False, True, False, False, True]


def test_the_order_of_entities_does_not_matter():
    tracks = np.random.default_rng(0).uniform(10, 50, (3, 9, 2))
    visible = np.ones((3, 9), bool)
    first = trajectory.flow_map(tracks, visible, 64, 64)
    second = trajectory.flow_map(tracks[::-1], visible, 64, 64)
    np.testing.assert_allclose(first, second, atol=1e-4)
    difference = trajectory.color_flow(first) - trajectory.color_flow(second)
    assert np.abs(difference).max() <= 1.01 / 127.5


def test_colors():
    still = trajectory.color_flow(np.zeros((2, 3, 4, 2)))
    assert still.dtype == np.float32 and (still == 1).all()
    directions = np.array([[1, 0], [-1, 0], [0.5, 0], [0, 0]], np.float32).reshape(1, 1, 4, 2)
    right, left, half, rest = color_bytes(directions)[0, 0].astype(int)
    assert right.tolist() == [255, 0, 0]  # the wheel starts with red, to the right
    assert left[0] == 0 and left[2] == 255  # blue with some green
    np.testing.assert_allclose(half, (255 + right) / 2, atol=1)
    assert rest.tolist() == [255, 255, 255]
    assert np.array_equal(color_bytes(directions * 7), color_bytes(directions))


def test_resampling_keeps_ends_and_parts_of_pixels():
    track, visible = resample(parse_points([[0, 0], [256, 128]]), 5, 64, 32)
    assert track.dtype == np.float32 and visible.all()
    assert track.tolist() == [[0, 0], [16, 4], [32, 8], [48, 12], [64, 16]]
    slow, _ = resample(parse_points([[10, 10], [11, 10]]), 9, 64, 64)
    np.testing.assert_allclose(np.diff(slow[:, 0]), 0.25 / 8, rtol=1e-4)


def test_times_and_single_points():
    timed = parse_points([[0, 0, 0], [100, 0, 0.25], [100, 0, 1]], (100, 100))
    track, _ = resample(timed, 5, 100, 100, (100, 100))
    assert track[:, 0].tolist() == [0, 100, 100, 100, 100]
    late = parse_points([[0, 0, 0.5], [50, 0, 0.75]], (100, 100))
    assert resample(late, 5, 100, 100, (100, 100))[0][:, 0].tolist() == [0, 0, 0, 50, 50]
    still, visible = resample(parse_points([[128, 64]]), 3, 96, 96)
    assert still.tolist() == [[48, 24]] * 3 and visible.all()


def test_a_path_that_stays_in_one_place_is_still():
    for value in ([[5, 5]], [[5, 5], [5, 5]], [[5, 5], None, [5, 5]]):
        assert trajectory.is_still(parse_points(value))
    assert not trajectory.is_still(parse_points([[5, 5], [5, 6], [5, 5]]))


def test_null_points_hide_frames():
    points = parse_points([[0, 0], None, [64, 64], [80, 64], None])
    track, visible = resample(points, 5, 256, 256)
    assert visible.tolist() == [True, False, True, True, False]
    assert track[1].tolist() == [32, 32] and track[4].tolist() == [80, 64]
    assert resample(points, 9, 256, 256)[1].tolist() == [1, 1, 0, 1, 1, 1, 1, 1, 0]
    timed = parse_points([None, [8, 8, 0.5], None, [9, 9, 1.0]])
    assert timed.time.tolist() == [0.25, 0.5, 0.75, 1.0]
    with pytest.raises(TrajectoryError, match="compat"):
        resample(points, 5, 256, 256, compat=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], ["no points"]),
        ("circle", ["no points"]),
        ([None, None], ["no point is visible"]),
        ([[1, "a"], [300, 5], [1]], ["point 1 holds text", "point 2 is at (300, 5)", "point 3"]),
        ([[1], [2, 3, 4, 5], [], 7], ["point 1 is a list of 1 (2 more are like it)", "point 4"]),
        ([[float("nan"), 1], [True, 2]], ["finite", "true or false"]),
        ([[10**400, 1]], ["finite"]),
        ([[-1, 5], [5, 256.5]], ["point 1 is at (-1, 5), outside the canvas of 256 x 256 (1 more"]),
        ([[1, 1, 0.5], [2, 2, 0.5], [3, 3, 0.2]], ["0.5 follows 0.5 (1 more is like it)"]),
        ([[1, 1, -0.5], [2, 2, 1.5]], ["third numbers run from -0.5 to 1.5"]),
        ([[9, 9, 1], [8, 8, 1], [7, 7, 0]], ["all 0 or 1"]),
        ([[9, 9, index] for index in range(49)], ["third numbers run from 0 to 48"]),
        ([[index / 256, 0.5] for index in range(49)], ["fractions of the picture"]),
        ([[9, 9]] * 100_001, ["at most 100000"]),
        ([[1, 1, 0], [2, 2]], ["for all or for none"]),
    ],
)
def test_all_problems_of_a_path_are_reported(value, words):
    with pytest.raises(TrajectoryError) as caught:
        parse_points(value)
    assert len(caught.value.problems) == len(words)
    for problem, word in zip(caught.value.problems, words, strict=True):
        assert word in problem


def test_both_edges_are_inside():
    assert parse_points([[0, 0], [256, 256]]).visible.all()


def test_files(tmp_path):
    text, listing = tmp_path / "path.txt", tmp_path / "path.json"
    text.write_text("10,20\n\n30, 40.5")
    listing.write_text("[[10, 20], null, [30, 40.5]]")
    read = load_points(text)
    assert read.position.tolist() == [[10, 20], [30, 40.5]]
    assert load_points(str(listing)).visible.tolist() == [True, False, True]
    text.write_bytes(b"\xef\xbb\xbf10,20\r\n30, 40\r\n")  # as some editors save it
    assert load_points(text).position.tolist() == [[10, 20], [30, 40]]
    text.write_text("\n".join(f"{index}, 7" for index in range(205)))
    track, _ = resample(load_points(text), 49, 256, 256)
    assert track[0].tolist() == [0, 7] and track[-1].tolist() == [204, 7]
    for content in ("", "10,x\n", "10\n", "[[1,", "[1, 2]", "10,nan"):
        text.write_text(content)
        with pytest.raises(TrajectoryError, match=r"path\.txt"):
            load_points(text)
    text.write_bytes(b"\xff\xfe\x00")
    for unreadable in (text, tmp_path / "absent.txt", tmp_path):
        with pytest.raises(TrajectoryError, match="cannot be read"):
            load_points(unreadable)


def test_splat_of_a_still_point_is_a_gaussian_on_the_token_grid():
    tracks = np.full((1, 5, 2), [40.0, 24.0])  # token column 2, row 1
    result = splat(tracks, np.ones((1, 5), bool), (2, 4, 6))
    assert result.map.shape == (1, 2, 4, 6) and result.map.dtype == np.float32
    rows, columns = np.mgrid[:4, :6]
    expected = np.exp(-((rows - 1) ** 2 + (columns - 2) ** 2) / 2)
    np.testing.assert_allclose(result.map[0], np.stack([expected] * 2), rtol=1e-5)
    np.testing.assert_allclose(result.path[0], [[40 / 96, 24 / 64, 0, 0]] * 2, rtol=1e-6)


def test_splat_takes_the_largest_of_the_frames_that_see_the_point():
    tracks = np.zeros((2, 9, 2))
    tracks[0, :, 0] = [8, 8, 24, 8, 40, 200, 8, 8, 8]
    tracks[0, :, 1] = 8
    tracks[1] = np.nan
    visible = np.zeros((2, 9), bool)
    visible[0, [1, 2, 4, 5]] = True  # frame 5 lies outside the 64 x 32 frame
    result = splat(tracks, visible, (3, 2, 4))
    assert result.on.tolist() == [[False, True, False], [False] * 3]
    columns = np.arange(4)
    seen = [np.exp(-((columns - column) ** 2) / 2) for column in (0, 1, 2)]
    np.testing.assert_allclose(result.map[0, 1, 0], np.max(seen, 0), rtol=1e-5)
    assert not result.map[0, [0, 2]].any() and not result.map[1].any()
    np.testing.assert_allclose(result.path[0, 1], [24 / 64, 8 / 32, 0, 0], rtol=1e-6)
    assert not result.path[0, [0, 2]].any() and not result.path[1].any()


def test_path_features_are_means_and_their_change():
    tracks = np.zeros((1, 9, 2))
    tracks[0, :, 0] = [10, 11, 12, 13, 14, 20, 20, 30, 30]
    tracks[0, :, 1] = 16
    result = splat(tracks, np.ones((1, 9), bool), (3, 2, 4))
    expected_x = np.array([10, 12.5, 25]) / 64
    np.testing.assert_allclose(result.path[0, :, 0], expected_x, rtol=1e-6)
    np.testing.assert_allclose(result.path[0, :, 2], [0, 2.5 / 64, 12.5 / 64], rtol=1e-5)
    np.testing.assert_allclose(result.path[0, :, 1], 0.5)


def test_temporal_patches_hold_the_latents_behind_the_padding():
    tracks = np.zeros((1, 9, 2))  # three latents: [pad, 0], [1, 2]
    tracks[0, :, 0] = [0, 8, 8, 8, 8, 16, 16, 16, 16]
    result = splat(tracks, np.ones((1, 9), bool), (2, 2, 2), temporal_patch=2)
    np.testing.assert_allclose(result.path[0, :, 0], [0, 12 / 32])
    even = splat(tracks[:, :5], np.ones((1, 5), bool), (1, 2, 2), temporal_patch=2)
    np.testing.assert_allclose(even.path[0, :, 0], [32 / 5 / 32])
    with pytest.raises(ValueError, match="2 token frames"):
        splat(tracks, np.ones((1, 9), bool), (3, 2, 2), temporal_patch=2)


def test_no_entities_are_a_still_clip():
    nothing, unseen = np.zeros((0, 5, 2)), np.zeros((0, 5), bool)
    assert (trajectory.flow_video(nothing, unseen, 32, 48) == 1).all()
    assert splat(nothing, unseen, (2, 2, 3)).map.shape == (0, 2, 2, 3)


def test_unseen_positions_are_never_read():
    tracks, visible = np.full((1, 5, 2), np.nan), np.zeros((1, 5), bool)
    assert not trajectory.flow_map(tracks, visible, 32, 48).any()


def _command(*arguments) -> int:
    return trajectory_command.main([str(argument) for argument in arguments])


def test_the_command_plots_several_paths_with_their_gaps(tmp_path, capsys):
    line, gap = tmp_path / "line.txt", tmp_path / "gap.json"
    line.write_text("10,10\n200,100\n")
    gap.write_text("[[0, 128], null, [256, 128], [256, 200]]")
    still = tmp_path / "still.txt"
    still.write_text("128,200")
    plot = tmp_path / "plots" / "paths.png"
    sizes = ["--frames", 5, "--size", 48, "64"]
    assert _command(line, gap, still, "--plot", plot, *sizes) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [row.split(": ")[0] for row in printed] == [str(line), str(gap), str(still)]
    assert "visible in 5 of 5" in printed[0] and "visible in 4 of 5" in printed[1]
    assert "stands still" in printed[2]
    picture = np.asarray(Image.open(plot)).astype(int)
    assert picture.shape == (360 + 24 + 44, 2 * 480 + 3 * 40, 3)
    # The gap's middle is white on the canvas; the line's is not.
    assert (picture[24 + 180, 40 + 240] == 255).all()
    around = picture[24 + 77 - 3 : 24 + 77 + 4, 40 + 197 - 3 : 40 + 197 + 4]
    assert (np.ptp(around, axis=-1) > 40).any()
    right = picture[24:384, 2 * 40 + 480 : 2 * 40 + 960]
    assert (np.ptp(right, axis=-1) > 40).sum() > 500  # the flow picture has colors


def test_the_command_names_all_problems_and_writes_nothing(tmp_path, capsys):
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("10,10\n200,100\n")
    bad.write_text("10,10\n300,100\n5,x\n")
    absent, plot = tmp_path / "absent.txt", tmp_path / "plot.png"
    assert _command(good, bad, absent, "--plot", plot, "--frames", 0) == 2
    message = capsys.readouterr().err
    parts = ("bad.txt: point 2", "bad.txt: point 3", "absent.txt: cannot be read", "--frames: 0")
    for part in parts:
        assert part in message
    assert not plot.exists()
    for name in ("plot.xyz", "plot.psd"):  # unknown, and read only
        assert _command(good, "--plot", tmp_path / name) == 2
        assert "picture format" in capsys.readouterr().err
    assert _command(good, "--plot", plot, "--size", 10**6, 10**6) == 2
    assert "--size, --frames: 1000000 x 1000000 x 49" in capsys.readouterr().err


def test_the_module_runs_as_a_program(tmp_path):
    (tmp_path / "path.txt").write_text("10,10")
    command = [sys.executable, "-m", "tora2_jax.trajectory", str(tmp_path / "path.txt")]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 points" in done.stdout
