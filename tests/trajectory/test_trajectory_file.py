"""Paths as other programs write them: read as what they mean, or refused in one line."""

import json

import numpy as np
import pytest

from tora2_jax.request import RequestError, load_request
from tora2_jax.trajectory import command
from tora2_jax.trajectory.files import load_paths, load_points
from tora2_jax.trajectory.points import TrajectoryError, parse_points

POINTS = [[20.0, 30.0], [24.5, 32.0], [200.0, 131.25]]
OBJECTS = [{"x": x, "y": y} for x, y in POINTS]
ROWS = ["20,30", "24.5,32", "200,131.25"]


def lines(*rows: str) -> str:
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(POINTS),
        json.dumps(OBJECTS),
        str(OBJECTS),
        str([tuple(point) for point in POINTS]),
        json.dumps([OBJECTS]),
        json.dumps([POINTS]),
        json.dumps([json.dumps(OBJECTS)]),
        json.dumps(str(OBJECTS)),
        str([json.dumps(OBJECTS)]),
        lines(*ROWS),
        lines("x,y", *ROWS),
        lines("# of the cat", "X, Y", *ROWS),
        lines(*(row.replace(",", " ") for row in ROWS)),
        lines(*(row.replace(",", "\t") for row in ROWS)),
        lines(*(row + "," for row in ROWS)),
        lines(*(row.replace(",", ";").replace(".", ",") for row in ROWS)),
        lines('"y","x"', '"30","20"', '"32","24.5"', '"131.25","200"'),
        lines("frame,x,y", *(f"{index},{row}" for index, row in enumerate(ROWS, 1))),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_one_path_in_many_forms(tmp_path, text, encoding):
    (tmp_path / "path").write_text(text, encoding)
    points = load_points(tmp_path / "path")
    assert points.position.tolist() == POINTS and points.visible.all()
    assert points.time.tolist() == [0, 0.5, 1]


def test_times_and_visibility_by_their_names(tmp_path):
    table = tmp_path / "path.csv"
    table.write_text(lines("x,y,t", "1,2,0", "3,4,0.25", "5,6,1"))
    assert load_points(table).time.tolist() == [0, 0.25, 1]
    table.write_text(lines("frame,x,y,visible", "0,1,2,1", "8,3,4,1", "24,5,6,0", "32,7,8,1"))
    points = load_points(table)
    assert points.visible.tolist() == [True, True, False, True]
    assert points.time[[0, 1, 3]].tolist() == [0, 0.25, 1]
    table.write_text(lines("x,y,visibility", "1,2,True", "3,4,False"))
    assert load_points(table).visible.tolist() == [True, False]
    table.write_text(lines("frame,x,y", "5,1,2"))
    assert load_points(table).time.tolist() == [0]
    entries = [{"x": 1, "y": 2, "time": 0}, {"x": 0, "y": 0, "visible": 0}]
    points = parse_points([*entries, {"x": 5, "y": 6, "time": 1, "visible": True}])
    assert points.visible.tolist() == [True, False, True] and points.time.tolist() == [0, 0.5, 1]


def test_tracks_of_numpy_with_their_visibility(tmp_path):
    tracks = np.stack([np.array(POINTS), np.array(POINTS)[::-1]], 1)  # [frames, paths, 2]
    file = tmp_path / "cat_tracks.npy"
    np.save(tmp_path / "one.npy", np.array(POINTS, np.float32))
    assert load_points(tmp_path / "one.npy").position.tolist() == POINTS
    visible = np.ones((3, 2), bool)
    visible[1, 1] = False
    np.save(tmp_path / "cat_visibility.npy", visible[None])
    tracks[1, 1] = [-50, 900]  # outside, and nobody sees it
    for shape in ((3, 2, 2), (1, 3, 2, 2)):
        np.save(file, np.asfortranarray(tracks.reshape(shape)))
        (first, one), (second, two) = load_paths(file)
        assert [first.name, second.name] == ["cat_tracks.npy#1", "cat_tracks.npy#2"]
        assert one.position.tolist() == POINTS and one.visible.all()
        assert two.visible.tolist() == [True, False, True]
        assert two.position[[0, 2]].tolist() == [POINTS[2], POINTS[0]]
    for other in (visible[:2], visible.T, visible.ravel()):  # the latter two have as many numbers
        np.save(tmp_path / "cat_visibility.npy", other)
        with pytest.raises(TrajectoryError, match=r"\[3, 2\] points, but cat_visibility.npy holds"):
            load_paths(file)
    np.save(tmp_path / "gap.npy", [POINTS[0], [np.nan, 3], POINTS[2]])
    assert load_points(tmp_path / "gap.npy").visible.tolist() == [True, False, True]


def test_several_paths_are_offered_by_number(tmp_path, capsys):
    file = tmp_path / "two.json"
    file.write_text(json.dumps([OBJECTS, OBJECTS[::-1]]))
    with pytest.raises(TrajectoryError, match='name one of them, such as "two'):
        load_points(file)
    assert load_points(file, number=2).position.tolist() == POINTS[::-1]
    assert command.main([str(file), f"{file}#2"]) == 0
    told = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == [f"{file}#1", f"{file}#2", f"{file}#2"]
    assert command.main([f"{file}#3", f"{file}#0"]) == 2
    told = capsys.readouterr().err
    assert "holds 2 paths; there is no number 3" in told and "no number 0" in told
    entity = {"word": "cat", "trajectory": "two.json#2"}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"prompt": "A cat.", "entities": [entity]}))
    assert load_request(request).entities[0].points.position.tolist() == POINTS[::-1]
    (tmp_path / "two.json#2").write_text("7,8")  # a file of that very name comes first
    assert load_request(request).entities[0].points.position.tolist() == [[7, 8]]
    for value, told in (("two.json", 'such as "two.json#1"'), ([POINTS, POINTS], "holds 2 paths")):
        entity["trajectory"] = value
        request.write_text(json.dumps({"prompt": "A cat.", "entities": [entity]}))
        with pytest.raises(RequestError, match=told) as error:
            load_request(request)
        assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"root:x:0:0:secret:/root:/bin/bash\nadmin,secret\n", "is no list of points"),
        (b'{"password": "secret"}', "is a JSON object"),
        (b'["secret", {"password": "secret"}]', "is not valid JSON"),
        (b'[{"x": 1, "y": 2, "password": "secret"}]', "is an object without x and y"),
        (b'[[5, "secret"]]', "point 1 holds text where a number belongs"),
        (b"5,6\n7,secret\n", "point 2 holds text where a number belongs"),
        (b"x,y,secret\n5,6,7\n", "its columns must be x, y, time, frame, visible"),
        (b"x,y\n5,6\n7,8,9\n", "line 3 has not the 2 columns x,y"),
        (b"x,y\n", "the path has no points"),
        (b"PK\x03\x04secret", "it is an archive"),
        (b"\x00\x01\xfe\xffsecret", "it holds no text"),
        (b"\x93NUMPY\x01\x00secret", "cannot be read"),
        (b"(" * 5000, "is no list of points"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"5,6\n" * 100_001, "has 100001 lines"),
        (b" " * (2**23 + 1), "it is larger than 8 MiB"),
    ],
)
def test_no_other_file_is_read_or_shown(tmp_path, content, told):
    (tmp_path / "path").write_bytes(content)
    with pytest.raises(TrajectoryError) as error:
        load_points(tmp_path / "path")
    (problem,) = error.value.problems
    assert problem.startswith(f"{tmp_path / 'path'}: ") and told in problem
    assert "secret" not in problem


def test_arrays_of_other_shapes_are_refused(tmp_path):
    for array, told in (
        (np.zeros((3, 4)), r"holds float64 \[3, 4\]"),
        (np.zeros((2, 3, 4, 2)), r"\[2, 3, 4, 2\]"),
        (np.array([["a", "b"]]), "holds <U1"),
        (np.array([[{}, 2]], object), "Object arrays cannot be loaded"),
    ):
        np.save(tmp_path / "path.npy", array)
        with pytest.raises(TrajectoryError, match=told):
            load_points(tmp_path / "path.npy")
    head = np.lib.format
    with (tmp_path / "path.npy").open("wb") as file:  # claims eight terabytes
        head.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (2**39, 2)}
        )
    with pytest.raises(TrajectoryError, match="larger than 8 MiB"):
        load_points(tmp_path / "path.npy")


def test_fractions_are_paths_on_a_canvas_of_one(tmp_path):
    file = tmp_path / "path.json"
    file.write_text(json.dumps([[x / 256, y / 256] for x, y in POINTS]))
    with pytest.raises(TrajectoryError, match="set the canvas to 1 x 1") as error:
        load_points(file)
    assert len(error.value.problems) == 1
    assert load_points(file, (1, 1)).position[2].tolist() == [200 / 256, 131.25 / 256]
    assert parse_points([[0, 0]]).visible.all()  # the same place on every canvas


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS"),
        ("<!DOCTYPE html><title>404</title>", "is a web page"),
    ],
)
def test_files_that_stand_for_others_are_recognized(tmp_path, content, told):
    for name, load in (("path.txt", load_points), ("request.json", load_request)):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises((TrajectoryError, RequestError), match=rf"{name}: {told}"):
            load(path)


def test_a_file_of_many_faulty_paths_is_told_in_twenty_lines(tmp_path):
    path = tmp_path / "paths.json"
    path.write_text(json.dumps([[[1, 2], [9999, 3]]] * 100))
    with pytest.raises(TrajectoryError) as error:
        load_paths(path)
    assert len(error.value.problems) == 21
    assert error.value.problems[-1] == f"{path}: and 80 more problems."
