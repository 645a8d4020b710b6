"""Readers of labelled faces: what they take, what they refuse and how they say it; holding out; the check."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lineament.landmarks.schema import IBUG68, WFLW98, ibug68_from_wflw98
from lineament.landmarks.types import F32, LineamentError
from lineament.train import data
from lineament.train.data import group_of, hold_out, read, shift_of_each
from lineament.train.formats import LISTS
from lineament.train.sample import Problem
from tests.labelled import mean_face, sample, write_wflw

K = len(WFLW98)


def picture(path: Path, side: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((side, side, 3), 128, np.uint8))
    return path


def wflw(root: Path, text: str, split: str = "train") -> Path:
    """An official folder with that list, and the picture that line() names."""
    path = root / LISTS.format(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    picture(root / "WFLW_images" / "0--Parade" / "a.jpg")
    return root


def line(flags: str = "0 0 0 0 0 0", name: str = "0--Parade/a.jpg", n: int = 196, rect: str = "10 20 30 40") -> str:
    return " ".join([*(f"{i}.5" for i in range(n)), rect, flags, name]) + "\n"


def jsonl(root: Path, *rows: Any, name: str = "train.jsonl") -> Path:
    picture(root / "a.png")
    (root / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return root / name


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "points": mean_face().tolist(), **changes}


def csv_file(path: Path, *rows: str, extra: str = "") -> Path:
    picture(path.parent / "a.png")
    header = ",".join(["image", *(f"{axis}{i}" for i in range(K) for axis in "xy")])
    path.write_text("\n".join([header + extra, *rows]) + "\n")
    return path


def csv_row(points: F32, extra: str = "") -> str:
    return ",".join(["a.png", *(f"{value:.3f}" for value in points.ravel())]) + extra


def pts(path: Path, points: F32, suffix: str = ".jpg") -> None:
    picture(path.with_suffix(suffix))
    lines = "\n".join(f"{x:.3f} {y:.3f}" for x, y in points)
    path.write_text(f"version: 1\nn_points:  {len(points)}\n{{\n{lines}\n}}\n")


def refused(path: Path, split: Any = "train", schema: Any = WFLW98) -> Problem:
    """The only problem of a data set, which read() raises with its line in the text."""
    problems: list[Problem] = []
    read(path, split, schema, problems)
    (problem,) = problems
    with pytest.raises(LineamentError) as raised:
        read(path, split, schema)
    assert str(problem) in str(raised.value)
    return problem


# ---- WFLW as it is distributed


def test_a_line_becomes_points_rect_attributes_and_a_path(tmp_path: Path) -> None:
    (face,) = read(wflw(tmp_path, line("1 0 0 0 0 1")), "train")
    assert face.points.shape == (98, 2) and face.points.dtype == np.float32
    np.testing.assert_array_equal(face.points[1], (2.5, 3.5))
    np.testing.assert_array_equal(face.rect_xyxy, (10, 20, 30, 40))
    assert face.attributes == {"pose", "blur"} and face.weight == 1
    assert face.image_path == tmp_path / "WFLW_images" / "0--Parade" / "a.jpg"
    assert face.bgr().shape == (100, 100, 3)


def test_faces_of_one_picture_stay_apart_and_in_order(tmp_path: Path) -> None:
    faces = read(wflw(tmp_path, line() + line("0 1 0 0 0 0") + "\n"), "train")
    assert [face.attributes for face in faces] == [frozenset(), frozenset({"expression"})]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["Linux", "Windows", "old Mac"])
def test_lists_of_any_system_are_read_alike(tmp_path: Path, end: str) -> None:
    text = (line() + line("0 1 0 0 0 0")).replace("\n", end)
    path = wflw(tmp_path / "wflw", "") / LISTS.format(split="train")
    path.write_bytes(text.encode())
    assert [face.name for face in read(tmp_path / "wflw", "train")] == ["0--Parade/a.jpg"] * 2
    listed = jsonl(tmp_path, row(), row(weight=0.5))
    listed.write_bytes(listed.read_bytes().replace(b"\n", end.encode()))
    assert [face.weight for face in read(listed, "train")] == [1, 0.5]


def test_a_name_may_hold_spaces_and_numbers_may_stand_apart(tmp_path: Path) -> None:
    picture(tmp_path / "WFLW_images" / "my faces" / "a b.jpg")
    (face,) = read(wflw(tmp_path, line(name="my faces/a b.jpg").replace(" 10 20", "  10\t20")), "train")
    assert face.name == "my faces/a b.jpg" and face.rect_xyxy[1] == 20


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        (line(n=195), "wrong count", "205 numbers before the name, expected 206"),
        (line(flags="0 0 x 0 0 0"), "bad number", "'x'"),
        (line(rect="10 20 nan 40"), "bad number", "'nan'"),
        ("hello\n", "wrong count", "0 numbers before the name, expected 206"),
        (line(rect="30 20 10 40"), "empty box", "30.0, 20.0, 10.0, 40.0"),
        (line(name="gone.jpg"), "missing picture", "gone.jpg"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_the_rest_loads_on_request(
    tmp_path: Path, bad: str, kind: str, says: str
) -> None:
    root = wflw(tmp_path, line() + bad + line())
    problem = refused(root)
    assert (problem.file, problem.line, problem.kind) == ("list_98pt_rect_attr_train.txt", 2, kind)
    assert says in problem.what and problem.next
    assert len(read(root, "train", problems=[])) == 2


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        LineamentError,
        match=r"list_98pt_rect_attr_test\.txt.*csv or \.pts files; .*wywu\.github\.io.*WFLW_images\.tar\.gz",
    ):
        read(tmp_path, "test")
    with pytest.raises(
        LineamentError, match=r"which does not exist: .*csv, packs of `python -m train\.pack` or \.pts files; WFLW is"
    ):
        read(tmp_path / "gone", "train")
    path = tmp_path / "set" / LISTS.format(split="train")
    path.parent.mkdir(parents=True)
    path.write_text(line())
    with pytest.raises(LineamentError, match=r"no WFLW_images.*WFLW_annotations\.tar\.gz"):
        read(tmp_path / "set", "train")
    with pytest.raises(LineamentError, match=r"no list at .*_test\.txt"):
        read(tmp_path / "set", "test")
    with pytest.raises(LineamentError, match=r"pass the folder within it: .*set"):
        read(tmp_path, "train")


def test_a_picture_that_went_away_is_named(tmp_path: Path) -> None:
    (face,) = read(wflw(tmp_path, line()), "train")
    face.image_path.unlink()
    with pytest.raises(LineamentError, match=r"a\.jpg"):
        face.bgr()


def test_wflw_is_read_as_68_points_too(tmp_path: Path) -> None:
    root = wflw(tmp_path, line())
    (face98,), (face68,) = read(root, "train"), read(root, "train", IBUG68)
    np.testing.assert_array_equal(face68.points, ibug68_from_wflw98(face98.points))


def test_wflw_mini_is_whole(shared: Path) -> None:
    for split, count in (("train", 300), ("test", 200)):
        faces = read(shared / "data" / "wflw-mini", split)  # type: ignore[arg-type]
        assert len(faces) == count
        np.testing.assert_allclose(faces[0].rect_xyxy[:2], faces[0].points.min(0), atol=1.5)
        assert faces[0].bgr().shape == (112, 112, 3)


# ---- JSONL


def test_a_row_of_json_may_say_box_attributes_and_weight(tmp_path: Path) -> None:
    full = row(box_xyxy=[1, 2, 3, 4], attributes=["pose"], weight=0.5, disagreement=3.2)
    plain, said = read(jsonl(tmp_path, row(), "", full), "train")
    np.testing.assert_allclose(plain.points, mean_face(), rtol=1e-6)
    np.testing.assert_allclose(plain.rect_xyxy, [*mean_face().min(0), *mean_face().max(0)], rtol=1e-6)
    assert (plain.weight, plain.attributes) == (1, frozenset())
    np.testing.assert_array_equal(said.rect_xyxy, (1, 2, 3, 4))
    assert (said.weight, said.attributes) == (0.5, {"pose"})


def test_a_row_of_json_may_weigh_each_point(tmp_path: Path) -> None:
    weights = [0.5] * 49 + [1.5] * 49
    plain, said = read(jsonl(tmp_path, row(), row(point_weights=weights)), "train")
    assert plain.point_weights is None and said.point_weights is not None
    np.testing.assert_array_equal(said.point_weights, np.float32(weights))


def test_pictures_lie_beside_the_list_or_anywhere(tmp_path: Path) -> None:
    far = picture(tmp_path / "far" / "b.png")
    (tmp_path / "set").mkdir()
    near, absolute = read(jsonl(tmp_path / "set", row(), row(image=str(far))), "train")
    assert near.image_path == tmp_path / "set" / "a.png" and absolute.image_path == far


def test_points_null_say_that_no_face_is_there(tmp_path: Path) -> None:
    (face,) = read(jsonl(tmp_path, row(points=None, box_xyxy=[1, 2, 30, 40])), "train")
    assert face.points.shape == (K, 2) and np.isnan(face.points).all()


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ({"image": "a.png"}, "malformed"),
        (row(image=3), "malformed"),
        (row(points=None), "malformed"),
        (row(points=[[1, 2], [3]]), "malformed"),
        (row(points=[["x", "y"]] * K), "malformed"),
        (row(weight="much"), "malformed"),
        (row(points=[[1, 2]] * 97), "wrong count"),
        (row(points=[]), "wrong count"),
        (row(box_xyxy=[1, 2, 3]), "wrong count"),
        (row(box_xyxy="abc"), "wrong count"),
        (row(point_weights=[1.0]), "wrong count"),
        (row(point_weights=[-1.0] * K), "wrong count"),
        (row(point_weights="abc"), "malformed"),
        (row(points=[[1, None]] * K), "bad number"),
        (row(points=[[1, 1e300]] * K), "bad number"),
        (row(weight=float("nan")), "bad number"),
        (row(box_xyxy=[1, 2, float("inf"), 4]), "bad number"),
        (row(weight=-1), "weight"),
        (row(attributes=["posed"]), "attribute"),
        (row(box_xyxy=[3, 3, 3, 3]), "empty box"),
        (row(points=[[5, 5]] * K), "flat"),
        (row(image="gone.png"), "missing picture"),
    ],
)
def test_a_bad_row_of_json_is_refused_by_its_number(tmp_path: Path, bad: Any, kind: str) -> None:
    problem = refused(jsonl(tmp_path, row(), "", bad, row()))
    assert (problem.file, problem.line, problem.kind) == ("train.jsonl", 3, kind)


def test_a_folder_of_lists_has_splits_and_a_list_by_itself_serves_as_either(tmp_path: Path) -> None:
    train = jsonl(tmp_path, row(), row(weight=0.5))
    jsonl(tmp_path, row(), name="test.jsonl")
    assert [len(read(tmp_path, split)) for split in ("train", "test")] == [2, 1]  # type: ignore[arg-type]
    assert [len(read(train, split)) for split in ("train", "test")] == [2, 2]  # type: ignore[arg-type]
    csv_file(tmp_path / "test.csv")
    with pytest.raises(LineamentError, match=r"both test\.jsonl and test\.csv"):
        read(tmp_path, "test")


# ---- CSV


def test_a_row_of_csv_is_the_same_face(tmp_path: Path) -> None:
    extra = ",left,top,right,bottom,weight,attributes,id"
    points = mean_face().round(3)
    path = csv_file(tmp_path / "faces.csv", csv_row(points, ",1,2,3,4,0.5,pose blur,7"), extra=extra)
    (face,) = read(path, "train")
    np.testing.assert_allclose(face.points, points, rtol=1e-6)
    np.testing.assert_array_equal(face.rect_xyxy, (1, 2, 3, 4))
    assert (face.name, face.weight, face.attributes) == ("a.png", 0.5, {"pose", "blur"})


def test_csv_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "faces.csv", csv_row(mean_face(), ",,,,,"), extra=",left,top,right,bottom,weight")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    (face,) = read(path, "test")
    assert face.weight == 1
    np.testing.assert_allclose(face.rect_xyxy[:2], mean_face().min(0), atol=1e-3)


@pytest.mark.parametrize(
    ("bad", "kind", "says"),
    [
        (csv_row(mean_face()) + ",1", "wrong count", "has 198 columns, the header 197"),
        ("a.png,1,2,3", "wrong count", "has 4 columns, the header 197"),
        (csv_row(mean_face()).replace("a.png,", "a.png,?"), "bad number", "'?"),
        ("gone" + csv_row(mean_face()), "missing picture", "gonea.png"),
    ],
)
def test_a_bad_row_of_csv_is_refused_by_its_number(tmp_path: Path, bad: str, kind: str, says: str) -> None:
    problem = refused(csv_file(tmp_path / "faces.csv", csv_row(mean_face()), bad, csv_row(mean_face())))
    assert (problem.line, problem.kind) == (3, kind) and says in problem.what


def test_a_header_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = csv_file(tmp_path / "faces.csv", csv_row(mean_face()))
    problem = refused(path, schema=IBUG68)
    assert problem.line == 1 and "x68: more points than the 68 of ibug68" in problem.what
    path.write_text("image,x0,y0\n")
    assert "lacks x1, y1, x2, y2 ..." in refused(path).what


# ---- .pts


def test_pts_files_count_from_one_and_their_folders_say_which_split(tmp_path: Path) -> None:
    points = mean_face()[:68]
    pts(tmp_path / "helen" / "trainset" / "a.pts", points + 1)
    pts(tmp_path / "helen" / "testset" / "b.pts", points + 1, ".PNG")
    pts(tmp_path / "ibug" / "c.pts", points + 1)
    pts(tmp_path / "afw" / "d.pts", points + 1)
    train, test = read(tmp_path, "train", IBUG68), read(tmp_path, "test", IBUG68)
    assert [face.name for face in train] == ["afw/d.jpg", "helen/trainset/a.jpg"]
    assert [face.name for face in test] == ["helen/testset/b.PNG", "ibug/c.jpg"]
    np.testing.assert_allclose(train[0].points, points, atol=1e-3)
    np.testing.assert_allclose(train[0].rect_xyxy, [*points.min(0), *points.max(0)], atol=1e-3)
    assert [face.name for face in read(tmp_path / "ibug", "test", IBUG68)] == ["c.jpg"]


def test_a_bad_pts_file_is_refused_by_its_name(tmp_path: Path) -> None:
    points = mean_face()[:68]
    pts(tmp_path / "a.pts", points)
    pts(tmp_path / "b.pts", points[:67])
    problem = refused(tmp_path, schema=IBUG68)
    assert (problem.file, problem.kind) == ("b.pts", "wrong count") and "134 numbers" in problem.what
    (tmp_path / "b.pts").write_text((tmp_path / "a.pts").read_text().replace("{\n", "{\nx", 1))
    assert refused(tmp_path, schema=IBUG68).kind == "bad number"


# ---- holding out


def test_a_label_shift_is_one_for_all_sets_or_one_for_each() -> None:
    roots = [Path("a"), Path("b"), Path("c")]
    assert shift_of_each((0.5,), roots) == (0.5, 0.5, 0.5)
    assert shift_of_each((0, 0.5, 1), roots) == (0, 0.5, 1)
    with pytest.raises(ValueError, match="2 numbers for 3 data sets; give one, or one a set"):
        shift_of_each((0, 0.5), roots)


def test_held_out_faces_share_no_picture_with_the_rest_and_none_is_lost() -> None:
    faces = [sample(mean_face(), f"{i // 3}x.png") for i in range(90)]
    kept, held = hold_out(faces, 0.2, seed=1)
    assert not {face.name for face in kept} & {face.name for face in held}
    assert len(held) == 18 and len(kept) + len(held) == 90
    place = {id(face): i for i, face in enumerate(faces)}
    for part in (kept, held):
        assert [place[id(face)] for face in part] == sorted(place[id(face)] for face in part)


def test_the_same_seed_holds_out_the_same_and_another_seed_others() -> None:
    faces = [sample(mean_face(), f"{i}x.png") for i in range(60)]
    names = [[face.name for face in hold_out(faces, 0.1, seed)[1]] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_a_small_set_still_holds_out_a_picture_unless_it_has_only_one() -> None:
    faces = [sample(mean_face(), f"{i}x.png") for i in range(3)]
    assert [len(part) for part in hold_out(faces, 0.1, 0)] == [2, 1]
    assert [len(part) for part in hold_out(faces, 0.0, 0)] == [3, 0]
    assert [len(part) for part in hold_out(faces[:1], 0.5, 0)] == [1, 0]
    assert hold_out([], 0.1, 0) == ([], [])


def test_numbered_versions_of_a_picture_are_one_group(shared: Path) -> None:
    faces = read(shared / "data" / "wflw-mini", "train")
    assert sorted(Counter(group_of(face) for face in faces).values()) == [10] * 30
    kept, held = hold_out(faces, 0.1, 0)
    assert len(held) == 30 and not {group_of(face) for face in kept} & {group_of(face) for face in held}


def test_numbers_of_pictures_are_no_versions() -> None:
    names = ("51--Dresses/51_Dresses_51_377.jpg", "51--Dresses/51_Dresses_51_378.jpg")
    assert len({group_of(sample(mean_face(), name)) for name in names}) == 2


# ---- checking


def test_the_check_finds_what_only_pictures_and_the_whole_list_tell(tmp_path: Path) -> None:
    eyeless = mean_face(40, 40)
    eyeless[72] = eyeless[60]
    faces = [
        ("good.png", mean_face()),
        ("cut.png", mean_face(20, 50)),
        ("off.png", mean_face(0, 50)),
        ("good.png", mean_face() + np.float32(0.2)),
        ("eyeless.png", eyeless),
        ("broken.png", mean_face()),
    ]
    root = write_wflw(tmp_path, "train", faces)
    (root / "WFLW_images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    samples, problems = data.check(root, "train")
    assert len(samples) == 6
    assert [(problem.line, problem.kind) for problem in problems] == [
        (3, "outside"),
        (4, "duplicate"),
        (5, "no eyes"),
        (6, "unreadable"),
    ]
    assert "list_98pt_rect_attr_train.txt line 1 again" in problems[1].what
    assert all(problem.file == "list_98pt_rect_attr_train.txt" for problem in problems)


def test_two_faces_of_a_picture_are_no_duplicates(tmp_path: Path) -> None:
    root = write_wflw(tmp_path, "train", [("a.png", mean_face(30, 50)), ("a.png", mean_face(32, 50))])
    assert data.check(root, "train").problems == []


def test_the_command_says_where_and_what_counts_by_kind_and_writes_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_wflw(tmp_path, "train", [(f"{i}.png", mean_face()) for i in range(4)])
    write_wflw(tmp_path, "test", [("3.png", mean_face()), ("9.png", mean_face())])
    out = tmp_path / "sheet.png"
    (root / "WFLW_images" / "0.png").unlink()
    (root / "WFLW_images" / "1.png").unlink()
    assert data.main(["check", str(root), "--sheet", str(out), "--most", "1"]) == 1
    text = capsys.readouterr().out
    assert "list_98pt_rect_attr_train.txt line 1: " in text and "line 2: " not in text
    assert "... and 2 more" in text
    # the test face that is in the train list too
    assert "3 problems: 2 missing picture, 1 duplicate" in text
    assert cv2.imread(str(out)) is not None


def test_the_command_is_content_with_a_good_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path, row(), row(points=None, box_xyxy=[1, 2, 30, 40]))
    assert data.main(["check", str(path), "--sheet", str(tmp_path / "s.jpg")]) == 0
    assert "train.jsonl: 2 faces in 1 pictures, 0 rows refused\nno problems" in capsys.readouterr().out
    assert data.main(["check", str(tmp_path)]) == 0
    assert "test: none" in capsys.readouterr().out


def test_the_command_says_how_to_get_a_missing_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main(["check", str(tmp_path / "gone")]) == 1
    assert "wywu.github.io" in capsys.readouterr().err
