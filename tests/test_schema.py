from __future__ import annotations

import numpy as np
import pytest

from lineament.landmarks.card import ModelCard
from lineament.landmarks.schema import IBUG68, SCHEMAS, WFLW98, Schema, convert, ibug68_from_wflw98

both = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())


@both
def test_flipping_twice_is_the_identity(schema: Schema) -> None:
    points = np.random.default_rng(0).uniform(0, 100, (3, len(schema), 2))
    np.testing.assert_allclose(schema.flipped(schema.flipped(points, 100), 100), points)


@both
def test_parts_cover_each_point_once(schema: Schema) -> None:
    indices = [i for part in schema.parts.values() for i in part]
    assert sorted(indices) == list(range(len(schema)))


@both
def test_a_left_part_flips_onto_its_right_twin(schema: Schema) -> None:
    for name, indices in schema.parts.items():
        twin = name.replace("left", "right") if "left" in name else name.replace("right", "left")
        assert {schema.flip[i] for i in indices} == set(schema.parts[twin])


@both
def test_edges_stay_within_their_part_and_survive_a_flip(schema: Schema) -> None:
    edges = {frozenset(edge) for edge in schema.edges}
    assert {frozenset((schema.flip[a], schema.flip[b])) for a, b in edges} == edges


def test_lids_pupils_and_lips_are_quick_in_every_set_of_points() -> None:
    assert np.flatnonzero(WFLW98.quick).tolist() == list(range(60, 98))
    assert np.flatnonzero(IBUG68.quick).tolist() == list(range(36, 68))


def test_ten_wflw_points_lie_on_the_midline() -> None:
    assert [i for i in range(98) if WFLW98.flip[i] == i] == [16, 51, 52, 53, 54, 57, 79, 85, 90, 94]


def test_the_flip_keeps_the_eye_corners() -> None:
    for schema in SCHEMAS.values():
        left, right = schema.eye_corners
        assert schema.flip[left] == right


def test_98_to_68_commutes_with_flipping_and_keeps_parts() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (98, 2)).astype(np.float32)
    a = ibug68_from_wflw98(WFLW98.flipped(points, 100).astype(np.float32))
    np.testing.assert_allclose(a, IBUG68.flipped(ibug68_from_wflw98(points), 100), rtol=1e-5)
    index = np.repeat(np.arange(98, dtype=np.float32)[:, None], 2, 1)
    chosen = ibug68_from_wflw98(index)[:, 0].astype(int)
    for name, part in IBUG68.parts.items():
        assert set(chosen[list(part)]) <= set(WFLW98.parts[name])


def test_converting_the_wrong_way_is_refused() -> None:
    with pytest.raises(ValueError, match="ibug68"):
        convert(np.zeros((68, 2), np.float32), IBUG68, WFLW98)
    with pytest.raises(ValueError, match="98"):
        ibug68_from_wflw98(np.zeros((68, 2), np.float32))


def test_roll_is_the_angle_of_the_eyes() -> None:
    points = np.zeros((98, 2))
    points[list(WFLW98.parts["right_eye"])] = (10, 10)
    assert np.degrees(WFLW98.roll_rad(points)) == pytest.approx(45)


def test_a_card_survives_json() -> None:
    card = ModelCard("b5", "wflw98", (256, 256), 1.25, mean=(0.1, 0.2, 0.3), nme={"set, crop": 4.2})
    assert ModelCard.from_json(card.to_json()) == card


@pytest.mark.parametrize("text", ["[]", "{}", '{"name": "x", "shema": "wflw98"}', "not json"])
def test_a_broken_card_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ModelCard.from_json(text)
