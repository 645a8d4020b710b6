"""Augmentation: points follow the pixels, a seed is a picture, switches switch, and glasses sit on eyes."""

from __future__ import annotations

import pickle
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.geometry import apply
from lineament.landmarks.schema import IBUG68, WFLW98
from lineament.landmarks.types import F32, U8
from lineament.train import glasses, worn
from lineament.train.augment import Augment, main
from lineament.train.augment_config import ONE_OF, SWITCHES, AugmentConfig
from lineament.train.sheet import Tile, sheet

HW = (128, 128)
WIDE = 192
OFF = AugmentConfig.off()
GEOMETRIC = ("flip", "rotate", "shift_scale_rotate", "upside_down", "elastic")
HIDING = ("glasses", "worn", "occlusion")
PHOTOMETRIC = tuple(name for name in SWITCHES if name not in GEOMETRIC + HIDING)


def face(side: int = WIDE, extent: float = 90.0, yaw_deg: float = 0.0, roll_deg: float = 0.0) -> F32:
    """The mean face, turned, in the middle of a picture: (98, 2)."""
    yaw, roll = np.radians([yaw_deg, roll_deg])
    x, y, z = mean_shape().T
    x = x * np.cos(yaw) + z * np.sin(yaw)
    level = np.column_stack([x - x.mean(), y - y.mean()]) * extent / np.ptp(y)
    turn = np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    return np.asarray(level @ turn + (side - 1) / 2, np.float32)


def texture(side: int = WIDE, seed: int = 0) -> U8:
    rough = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return np.asarray(cv2.resize(rough, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def dotted(points: F32, which: list[int], side: int = WIDE) -> U8:
    """A soft dot at some of the points; they must lie apart."""
    ys, xs = np.mgrid[:side, :side]
    image = np.zeros((side, side))
    for x, y in points[which]:
        image = np.maximum(image, np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 2.5**2)))
    return np.repeat((image * 255).astype(np.uint8)[..., None], 3, 2)


def nearest_dot(image: U8, point: F32, reach: int = 9) -> F32 | None:
    """Centre of mass round a point that lies well inside the picture, None for another."""
    x, y = np.round(point).astype(int)
    if not (reach < x < image.shape[1] - reach and reach < y < image.shape[0] - reach):
        return None
    part = image[y - reach : y + reach + 1, x - reach : x + reach + 1, 0].astype(np.float64)
    part -= part.min()
    ys, xs = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.array([x + (xs * part).sum() / part.sum(), y + (ys * part).sum() / part.sum()], np.float32)


APART = [0, 8, 16, 24, 32, 54, 60, 72, 76, 82]
"""points of a face that lie far enough from one another for a dot each; with a point its mirrored one"""


def misses(augment: Augment, seeds: range, reach: int = 9) -> list[float]:
    """px between each point and its dot, of all that stayed inside."""
    image, found = dotted(face(), APART), []
    for seed in seeds:
        seen, moved = augment(image, face(), seed)
        dots = [(moved[i], nearest_dot(seen, moved[i], reach)) for i in APART]
        found += [float(np.abs(at - point).max()) for point, at in dots if at is not None]
    return found


@pytest.mark.parametrize("name", GEOMETRIC)
def test_points_move_with_their_pixels(name: str) -> None:
    found = misses(Augment(OFF.only(name), WFLW98, HW), range(12))
    assert len(found) > 60 and max(found) < 0.5


def test_points_move_with_their_pixels_when_all_happens_at_once() -> None:
    found = misses(Augment(OFF.only(*GEOMETRIC), WFLW98, HW), range(12))
    assert len(found) > 60 and max(found) < 0.5


@pytest.mark.parametrize("hw", [(96, 96), (64, 64), (200, 200)])
def test_points_move_with_their_pixels_when_the_window_is_resized(hw: tuple[int, int]) -> None:
    points = face()
    augment = Augment(OFF.only("rotate"), WFLW98, hw, window_hw=HW)
    seen, moved = augment(dotted(points, APART), points, 3)
    assert seen.shape == (*hw, 3)
    found = [np.abs(at - moved[i]).max() for i in APART if (at := nearest_dot(seen, moved[i], 5)) is not None]
    assert len(found) > 5 and max(found) < 0.3


def test_a_steep_bend_still_takes_its_points_along() -> None:
    cfg = AugmentConfig(elastic_strength=0.03, elastic_knots=5).only("elastic")
    moved = Augment(cfg, WFLW98, HW)(texture(), face(), 1)[1] - Augment(OFF, WFLW98, HW)(texture(), face(), 1)[1]
    assert np.ptp(moved, axis=0).min() > 4
    # a dot that is bent has its centre of mass elsewhere, the less the nearer one looks
    assert max(misses(Augment(cfg, WFLW98, HW), range(12), reach=4)) < 0.5


def test_with_everything_off_it_is_the_centre_untouched() -> None:
    rgb, points = texture(), face()
    seen, moved = Augment(OFF, WFLW98, HW)(rgb, points, 7)
    np.testing.assert_array_equal(seen, rgb[32:160, 32:160])
    np.testing.assert_array_equal(moved, points - 32)
    rgb.flags.writeable = False
    assert Augment(OFF, WFLW98, HW)(rgb, points, 7)[0].flags.writeable


def test_an_odd_margin_is_shared_by_both_sides() -> None:
    points = face(193)
    seen, moved = Augment(OFF, WFLW98, HW)(texture(193), points, 0)
    assert seen.shape == (128, 128, 3)
    np.testing.assert_allclose(moved, points - 32.5, atol=1e-4)


def test_a_flip_mirrors_and_renames_and_twice_it_is_the_identity() -> None:
    rgb, points = texture(), face()
    flip = Augment(OFF.only("flip"), WFLW98, (WIDE, WIDE))
    once, moved = flip(rgb, points, 0)
    np.testing.assert_array_equal(once, rgb[:, ::-1])
    np.testing.assert_allclose(moved, WFLW98.flipped(points, WIDE), atol=1e-4)
    twice, back = flip(once, moved, 1)
    np.testing.assert_array_equal(twice, rgb)
    np.testing.assert_allclose(back, points, atol=1e-4)


@pytest.mark.parametrize("name", [*SWITCHES, "all"])
def test_a_seed_is_a_picture_and_another_seed_another(name: str) -> None:
    cfg = AugmentConfig() if name == "all" else OFF.only(name)
    rgb, points = texture(), face()
    augment, again = Augment(cfg, WFLW98, HW), Augment(cfg, WFLW98, HW)
    again(rgb, points, 99)
    pictures, places = set(), set()
    for seed in range(8):
        seen, moved = augment(rgb, points, seed)
        seen_again, moved_again = again(rgb, points, seed)
        np.testing.assert_array_equal(seen, seen_again)
        np.testing.assert_array_equal(moved, moved_again)
        pictures.add(seen.tobytes())
        places.add(moved.tobytes())
    if name not in ("flip", "grey"):
        assert len(pictures) > 1
    if name in GEOMETRIC and name != "flip":
        assert len(places) == 8


@pytest.mark.parametrize("name", [*SWITCHES, "all"])
def test_shape_type_count_and_the_source_are_kept(name: str) -> None:
    cfg = AugmentConfig() if name == "all" else OFF.only(name)
    rgb, points = texture(), face()
    rgb_before, points_before = rgb.copy(), points.copy()
    for seed in range(4):
        seen, moved = Augment(cfg, WFLW98, HW)(rgb, points, seed)
        assert seen.shape == (128, 128, 3) and seen.dtype == np.uint8
        assert moved.shape == (98, 2) and moved.dtype == np.float32
        assert type(seen) is np.ndarray and seen.flags.c_contiguous and seen.flags.writeable
    np.testing.assert_array_equal(rgb, rgb_before)
    np.testing.assert_array_equal(points, points_before)


@pytest.mark.parametrize("name", PHOTOMETRIC + HIDING)
def test_what_is_no_geometry_leaves_points_bit_identical_and_changes_the_picture(name: str) -> None:
    rgb, points = texture(), face()
    plain, moved_plain = Augment(OFF, WFLW98, HW)(rgb, points, 0)
    changed = 0
    for seed in range(6):
        seen, moved = Augment(OFF.only(name), WFLW98, HW)(rgb, points, seed)
        np.testing.assert_array_equal(moved, moved_plain)
        changed += not np.array_equal(seen, plain)
    assert changed >= 5


@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_what_is_no_geometry_leaves_dots_where_they_are(name: str) -> None:
    """A kernel off its centre, or a careless resize, would shift the picture under its points."""
    mild = AugmentConfig(brightness_limit=0.1, noise_std=(0.01, 0.02), quality=(60, 80)).only(name)
    augment, image = Augment(mild, WFLW98, HW), dotted(face(), APART)
    for seed in range(12):
        seen, moved = augment(image, face(), seed)
        off = np.array([nearest_dot(seen, moved[i]) - moved[i] for i in APART])
        # few and coarse pixels move single dots to either side
        assert np.abs(off).max() < 0.5
        assert np.abs(off.mean(0)).max() < 0.2


def test_points_outside_stay_and_keep_their_order() -> None:
    points = face()
    points[3], points[90] = (-500, 20), (1000, 900)
    cfg = OFF.only(*GEOMETRIC[1:3])
    _, moved = Augment(cfg, WFLW98, HW)(texture(), points, 5)
    # an affine map is known by three points
    corners = np.column_stack([points[[16, 60, 72]], np.ones(3)])
    matrix = np.linalg.solve(corners, moved[[16, 60, 72]]).T
    np.testing.assert_allclose(apply(matrix, points), moved, atol=0.05)


@pytest.mark.parametrize(("name", "least", "most"), [("rotate", 38, 45), ("upside_down", 170, 180)])
def test_turns_reach_as_far_as_they_say_to_both_sides(name: str, least: float, most: float) -> None:
    augment = Augment(OFF.only(name), WFLW98, HW)
    angles = [np.degrees(WFLW98.roll_rad(augment(texture(), face(), seed)[1])) for seed in range(60)]
    assert least < max(angles) <= most + 0.1 and -most - 0.1 <= min(angles) < -least


def test_a_default_config_turns_nobody_upside_down() -> None:
    augment = Augment(AugmentConfig(), WFLW98, HW)
    assert max(abs(WFLW98.roll_rad(augment(texture(), face(), seed)[1])) for seed in range(40)) < np.radians(50)


def test_each_happens_as_often_as_it_says_and_not_always_together() -> None:
    """Transforms seeded alike would draw the same number, and those of equal probability happen only together."""
    augment, points = Augment(replace(OFF, flip=0.5, grey=0.5), WFLW98, HW), face()
    counts = np.zeros((2, 2), int)
    for seed in range(200):
        seen, moved = augment(texture(), points, seed)
        counts[int(np.array_equal(moved, points - 32)), int(np.ptp(seen, axis=2).max() == 0)] += 1
    assert (counts > 25).all()


def test_occlusion_covers_some_and_never_all() -> None:
    plain = Augment(OFF, WFLW98, HW)(texture(), face(), 0)[0]
    augment = Augment(OFF.only("occlusion"), WFLW98, HW)
    shares = [(augment(texture(), face(), seed)[0] != plain).any(2).mean() for seed in range(40)]
    assert 0.02 < np.mean(shares) < 0.3 and max(shares) < 0.5


# ---- glasses


@pytest.mark.parametrize("pose", [(0, 0), (35, 0), (-35, 0), (0, 60), (20, 170)])
def test_glasses_change_what_is_near_the_eyes_and_nothing_else(pose: tuple[int, int]) -> None:
    points, rgb = face(yaw_deg=pose[0], roll_deg=pose[1]), texture()
    eyes = points[[*WFLW98.parts["left_eye"], *WFLW98.parts["right_eye"]]]
    mouth = points[list(WFLW98.parts["outer_lips"])].mean(0)
    apart = np.linalg.norm(face()[96] - face()[97])
    ys, xs = np.mgrid[:WIDE, :WIDE]
    pixels = np.stack([xs, ys], -1).astype(np.float32)
    from_eyes = np.linalg.norm(pixels - eyes.mean(0), axis=-1)
    for seed in range(12):
        changed = (glasses.draw(rgb, points, glasses.random_style(random.Random(seed))) != rgb).any(2)
        assert changed.any()
        assert not changed[from_eyes > 1.45 * apart].any()
        assert not changed[np.linalg.norm(pixels - mouth, axis=-1) < 0.2 * apart].any()


def test_each_lens_lies_round_its_eye() -> None:
    dark = glasses.Style("round", 0.355, 0.355, 0.06, 0.05, False, (0, 0, 0), (0, 0, 0), 1.0, 0.0, ())
    white = np.full((WIDE, WIDE, 3), 255, np.uint8)
    for yaw_deg in (0, 25, -25):
        for roll_deg in (0, 45, 180):
            points = face(yaw_deg=yaw_deg, roll_deg=roll_deg)
            worn = glasses.draw(white, points, dark)
            for eye in ("left_eye", "right_eye"):
                lids = points[list(WFLW98.parts[eye])]
                x, y = np.round(lids.mean(0)).astype(int)
                assert worn[y, x].max() < 20
            # the tip of the nose and the chin stay bare
            for i in (54, 16):
                x, y = np.round(points[i]).astype(int)
                assert worn[y, x].min() > 240


def test_clear_lenses_leave_the_eyes_to_be_seen() -> None:
    clear = glasses.Style("rectangle", 0.41, 0.3, 0.05, 0.05, False, (0, 0, 0), (255, 255, 255), 0.0, 0.0, ())
    rgb, points = texture(), face()
    worn = glasses.draw(rgb, points, clear)
    for pupil in points[96:]:
        x, y = np.round(pupil).astype(int)
        assert np.abs(worn[y, x].astype(int) - rgb[y, x]).max() < 60
    assert (np.abs(worn.astype(int) - rgb).max(2) > 60).sum() > 100


def test_a_face_too_small_or_out_of_the_picture_gets_no_glasses() -> None:
    rgb, style = texture(), glasses.random_style(random.Random(0))
    np.testing.assert_array_equal(glasses.draw(rgb, face(extent=10), style), rgb)
    np.testing.assert_array_equal(glasses.draw(rgb, face() + np.float32(3000), style), rgb)
    for offset in range(-160, 161, 20):
        assert glasses.draw(rgb, face() + np.float32(offset), style).shape == rgb.shape
    flat = np.repeat(face()[:1], 98, 0)
    np.testing.assert_array_equal(glasses.draw(rgb, flat, style), rgb)


@pytest.mark.parametrize("kind", worn.KINDS)
@pytest.mark.parametrize("pose", [(0, 0), (40, 0), (-40, 25)])
def test_what_is_worn_covers_its_own_part_of_the_face_and_leaves_the_rest(
    kind: worn.Kind, pose: tuple[int, int]
) -> None:
    points, image = face(yaw_deg=pose[0], roll_deg=pose[1]), texture()
    changed = np.zeros((WIDE, WIDE), bool)
    for seed in range(12):
        changed |= (worn.draw(image, points, kind, random.Random(seed)) != image).any(2)
        assert not changed.all()
    inside = [bool(changed[int(y), int(x)]) for x, y in np.round(points)]
    hit = {part: any(inside[i] for i in indices) for part, indices in WFLW98.parts.items()}
    match kind:
        case "mask":
            assert hit["inner_lips"] and not hit["left_brow"] and not hit["right_pupil"]
        case "cap":
            assert not hit["outer_lips"] and not hit["nose_base"] and changed.any()
        case _:
            assert hit["outer_lips"]


def test_things_are_drawn_alike_by_the_same_dice() -> None:
    for kind in worn.KINDS:
        first, second = (worn.draw(texture(), face(), kind, random.Random(3)) for _ in range(2))
        assert np.array_equal(first, second) and not np.array_equal(first, texture())


def test_a_weight_stays_with_its_point_in_a_flip() -> None:
    weighted = np.column_stack([face(), np.arange(98)]).astype(np.float32)
    _, moved = Augment(OFF.only("flip"), WFLW98, HW)(texture(), weighted, 0)
    assert moved.shape == (98, 3)
    np.testing.assert_array_equal(moved[:, 2], np.array(WFLW98.flip))
    _, all_at_once = Augment(AugmentConfig(), WFLW98, HW)(texture(), weighted, 5)
    assert sorted(all_at_once[:, 2]) == list(range(98))


def test_dark_pictures_are_darker_and_noisier() -> None:
    grey = np.full((WIDE, WIDE, 3), 200, np.uint8)
    seen = [Augment(OFF.only("dark"), WFLW98, HW)(grey, face(), seed)[0] for seed in range(20)]
    assert min(float(picture.mean()) for picture in seen) < 60
    assert all(picture.std() > 0.1 for picture in seen)


def test_a_schema_without_glasses_is_told_so_and_goes_without(caplog: pytest.LogCaptureFixture) -> None:
    points = np.random.default_rng(0).uniform(40, 150, (68, 2)).astype(np.float32)
    with caplog.at_level("INFO"):
        augment = Augment(OFF.only("glasses"), IBUG68, HW)
    assert len(caplog.records) == 1 and "ibug68" in caplog.text
    np.testing.assert_array_equal(augment(texture(), points, 0)[0], texture()[32:160, 32:160])


# ---- config


def test_every_switch_is_a_field_and_the_defaults_hold() -> None:
    assert set(SWITCHES) <= {field.name for field in fields(AugmentConfig)}
    assert {name for name in SWITCHES if getattr(OFF, name)} == set()
    assert AugmentConfig().upside_down == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"flip": 1.5}, "augment.flip"),
        ({"elastic": -0.1}, "augment.elastic"),
        ({"clahe": 0.6, "gamma": 0.6}, "add up"),
        ({"scale": (1.2, 0.8)}, "augment.scale"),
        ({"quality": (0, 50)}, "augment.quality"),
        ({"elastic_strength": 0.1, "elastic_knots": 8}, "fold"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AugmentConfig(**values)  # type: ignore[arg-type]


def test_scaling_multiplies_probabilities_as_far_as_they_go() -> None:
    half = AugmentConfig().scaled(0.5)
    assert half.flip == 0.25 and half.glasses == pytest.approx(AugmentConfig().glasses / 2)
    assert half.rotate_deg == AugmentConfig().rotate_deg
    much = AugmentConfig().scaled(10)
    assert much.flip == 1 and much.upside_down == 0
    assert sum(getattr(much, name) for name in ONE_OF) == pytest.approx(1)
    assert AugmentConfig().scaled(0) == AugmentConfig().off()


def test_wrong_shapes_are_refused() -> None:
    augment = Augment(OFF, WFLW98, HW)
    with pytest.raises(ValueError, match="uint8"):
        augment(texture().astype(np.float32), face(), 0)
    with pytest.raises(ValueError, match="points"):
        augment(texture(), face()[:68], 0)
    with pytest.raises(ValueError, match="98"):
        glasses.draw(texture(), face()[:68], glasses.random_style(random.Random(0)))


def test_it_travels_to_worker_processes() -> None:
    augment = Augment(AugmentConfig(), WFLW98, HW)
    again = pickle.loads(pickle.dumps(augment))
    np.testing.assert_array_equal(augment(texture(), face(), 4)[0], again(texture(), face(), 4)[0])


def test_nothing_warns_over_many_draws() -> None:
    augment = Augment(AugmentConfig().scaled(2), WFLW98, HW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(100):
            augment(texture(), face(yaw_deg=seed % 80 - 40), seed)


def test_the_preview_shows_each_transform(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Tile] = []

    def recorded(tiles: Sequence[Tile], path: Path, columns: int) -> U8:
        shown.extend(tiles)
        return sheet(tiles, path, columns)

    monkeypatch.setattr("lineament.train.augment.sheet", recorded)
    out = tmp_path / "sheet.png"
    wflw = str(shared / "data" / "wflw-mini")
    args = ["preview", "--data", wflw, "--out", str(out), "--input-px", "64", "--columns", "2"]
    assert main([*args, "--augment.rotate-deg", "80"]) == 0
    assert cv2.imread(str(out)) is not None
    captions = Counter(tile.caption for tile in shown)
    assert {captions[name] for name in SWITCHES} == {2} and len(shown) == 2 * (len(SWITCHES) + 5)
    assert {tile.rgb.shape for tile in shown} == {(64, 64, 3)}
    assert main(["preview", "--data", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_the_bench_prints_a_rate_and_a_line_a_transform(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--input-px", "48", "--seconds", "0.1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "crops/s" in printed[0]
    assert [line.split()[0] for line in printed[2:]] == list(SWITCHES)
