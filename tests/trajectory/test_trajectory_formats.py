"""Paths written as other programs read them, read back, and against hand-made files."""

import json

import numpy as np
import pytest

from tora2_jax.trajectory import command, formats
from tora2_jax.trajectory.files import load_paths
from tora2_jax.trajectory.points import TrajectoryError, parse_points, resample

CANVAS, SIZE, FRAMES = (128, 64), (96, 48), 9
DRAWN = formats.Drawn(CANVAS, FRAMES, SIZE)
EVEN = [[8, 16], [64.5, 16], [64.5, 48], [128, 64]]
TIMED = [[8, 16, 0.1], [64, 16, 0.5], [64, 16, 0.75], [100, 60, 1]]
HIDDEN = [None, [8, 16], [64, 16], None, [64, 48]]


def parsed(*paths: list) -> list:
    return [parse_points(path, CANVAS) for path in paths]


def read_back(tmp_path, text: str, suffix: str, canvas) -> list:
    file = tmp_path / f"paths{suffix}"
    file.write_text(text)
    return [points for _, points in load_paths(file, canvas)]


def test_points_as_a_request_has_them():
    for path in (EVEN, TIMED, HIDDEN, [[5, 5]]):
        assert formats.point_list(parse_points(path, CANVAS)) == path


@pytest.mark.parametrize("paths", [[EVEN], [EVEN, TIMED, HIDDEN]])
def test_json_is_read_back_as_it_was(tmp_path, paths):
    (text,) = formats.written(parsed(*paths), "json", DRAWN)
    for points, expected in zip(
        read_back(tmp_path, text, ".json", CANVAS), parsed(*paths), strict=True
    ):
        np.testing.assert_array_equal(points.visible, expected.visible)
        np.testing.assert_allclose(points.position, expected.position)
        np.testing.assert_allclose(points.time, expected.time)


def test_tora_has_lines_on_its_own_canvas(tmp_path):
    even, timed = formats.written(parsed(EVEN, TIMED), "tora", DRAWN)
    assert even == "16,64\n129,64\n129,192\n256,256\n"
    assert len(timed.splitlines()) == FRAMES
    (points,) = read_back(tmp_path, timed, ".txt", (256, 256))
    track, _ = resample(points, FRAMES, *SIZE)
    expected, _ = resample(parse_points(TIMED, CANVAS), FRAMES, *SIZE, CANVAS)
    np.testing.assert_allclose(track, expected, atol=1e-3)


def test_tora_cannot_say_what_is_out_of_sight():
    with pytest.raises(TrajectoryError, match=r"path 2: Tora's form cannot say"):
        formats.written(parsed(EVEN, HIDDEN), "tora", DRAWN)


def test_comfyui_has_a_position_in_pixels_for_every_frame(tmp_path):
    (text,) = formats.written(parsed(EVEN, HIDDEN), "comfyui", DRAWN)
    tracks = json.loads(text)
    assert [len(track) for track in tracks] == [FRAMES, FRAMES]
    assert tracks[0][0] == {"x": 6, "y": 12} and tracks[0][-1] == {"x": 96, "y": 48}
    assert all(isinstance(p["x"], int | float) for track in tracks for p in track)
    back = read_back(tmp_path, text, ".json", SIZE)
    for points, expected in zip(back, parsed(EVEN, HIDDEN), strict=True):
        track, visible = resample(points, FRAMES, *SIZE, SIZE)
        wanted, seen = resample(expected, FRAMES, *SIZE, CANVAS)
        np.testing.assert_array_equal(visible, seen)
        np.testing.assert_allclose(track[seen], wanted[seen], atol=1e-3)


def convert(*arguments) -> int:
    return command.main([*map(str, arguments), "--canvas", "128", "64", "--size", "48", "96"])


def test_the_command_converts(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([EVEN, TIMED]))
    (tmp_path / "b.json").write_text(json.dumps(HIDDEN))
    sources = (tmp_path / "a.json", tmp_path / "b.json")
    assert convert(*sources, "--to", "comfyui", "--output", tmp_path / "c.json") == 0
    assert len(json.loads((tmp_path / "c.json").read_text())) == 3
    assert convert(sources[0], "--to", "tora", "--output", tmp_path / "t.txt") == 0
    assert (tmp_path / "t_1.txt").read_text().startswith("16,64\n")
    assert (tmp_path / "t_2.txt").exists() and not (tmp_path / "t.txt").exists()
    assert f"written: {tmp_path / 't_2.txt'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--to", "json"), "--to: give --output too"),
        (("--output", "x.json"), "--output: give --to too"),
        (("--to", "tora", "--output", "x.json"), "--output: x.json must end in .txt"),
        (("--to", "json", "--output", "."), "--output: . is a folder; name a file"),
        (("--to", "json", "--output", "a.json"), "--output: a.json is one of the files to read"),
        (("--to", "tora", "--output", "x.txt"), "--to tora: path 2: Tora's form cannot say"),
    ],
)
def test_what_cannot_be_converted_is_told(tmp_path, monkeypatch, capsys, options, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([EVEN, HIDDEN]))
    assert convert("a.json", *options) == 2
    assert capsys.readouterr().err.startswith(told)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
