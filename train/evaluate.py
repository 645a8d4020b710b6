"""Scores a model on a labelled set: NME, FR@10 and AUC@10 by crop, subset and part, and its worst faces.

    python -m train.evaluate runs/b5/best.safetensors --data WFLW --flip

Published numbers use crops that are not levelled, some from the true points, some from the list's rect. The points crop
comes first, not levelled; then the same crop levelled by the true eyes, as serving levels a tracked face; then the rect
crop. The model file does not change, unless --write-card puts the figures into its card. `evaluate` itself takes any
function from crops to points and needs no torch.

Suffixes: N faces, K points.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tyro
from matplotlib.figure import Figure
from tqdm import tqdm

from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.geometry import apply, compose, crop_from_frame, crop_from_unit, warp
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema
from lineament.landmarks.types import F32, F64, U8, Floats, LineamentError
from lineament.train import metrics
from lineament.train.crops import CropConfig, Crops
from lineament.train.data import read, shifted
from lineament.train.sample import ATTRIBUTES, Sample
from lineament.train.sheet import Tile, sheet

log = logging.getLogger("lineament")

LIMIT = 10.0
"""percent of the inter-ocular distance above which a face counts as failed: FR@10, AUC@10"""
CHUNK = 256
"""faces cropped at a time: 50 MB of 256-px crops"""
TILE_HW, TILE_SCALE = (256, 256), 1.5
"""crop of the worst faces on their sheet, whatever the model's own crop"""

Predict = Callable[[U8], F32]
"""crops (N, H, W, 3) uint8 RGB -> points (N, K, 2) in unit coordinates of the crop"""


class Score(NamedTuple):
    """The score of a set of faces."""

    faces: int
    nme: float
    """percent of the inter-ocular distance"""
    failures: float
    """FR@10, percent of faces"""
    auc: float
    """AUC@10, 0..1"""


@dataclass(frozen=True)
class Scores:
    """What one model scored on one set with one crop."""

    crop: str
    """how the faces were cropped: "points crop", "levelled points crop", "rect crop, flip", ..."""
    schema: Schema
    predicted: F32
    """(N, K, 2) px of the picture, pixel centres"""
    truth: F32
    """(N, K, 2) px of the picture, pixel centres: the labels less their shift"""
    attributes: tuple[frozenset[str], ...]
    """N, what makes each face difficult"""
    errors: F64 = field(init=False)
    """(N, K) percent of each face's inter-ocular distance"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "errors", metrics.point_errors(self.predicted, self.truth, self.schema))

    @property
    def nme(self) -> F64:
        """(N,) percent, one per face."""
        return np.asarray(self.errors.mean(1))

    @property
    def total(self) -> Score:
        return _score(self.nme)

    def by_subset(self) -> dict[str, Score]:
        """One score for each attribute that any face has, in WFLW's order."""
        rows_of = {name: np.array([name in of_face for of_face in self.attributes]) for name in ATTRIBUTES}
        return {name: _score(self.nme[rows]) for name, rows in rows_of.items() if rows.any()}

    def by_part(self) -> dict[str, float]:
        """NME of each part's points."""
        return {part: float(self.errors[:, list(indices)].mean()) for part, indices in self.schema.parts.items()}

    def lines(self) -> list[str]:
        """A table to print."""
        rows = {"all": self.total, **self.by_subset()}
        parts = ", ".join(f"{part} {nme:.2f}" for part, nme in self.by_part().items())
        return [
            self.crop,
            f"  {'':14} faces    NME  FR@10   AUC@10",
            *(f"  {name:14}{s.faces:6}{s.nme:7.2f}{s.failures:7.2f}{s.auc:9.3f}" for name, s in rows.items()),
            f"  by part: {parts}",
        ]

    def to_card(self, set_name: str) -> dict[str, float]:
        """Every figure, keyed by set, crop and subset or part. All are in percent, except AUC@10, which is 0..1."""
        key, total = f"{set_name}, {self.crop}", self.total
        figures = {key: total.nme, f"{key}, FR@10": total.failures, f"{key}, AUC@10": total.auc}
        for name, score in self.by_subset().items():
            figures[f"{key}, {name}"] = score.nme
            figures[f"{key}, {name}, FR@10"] = score.failures
            figures[f"{key}, {name}, AUC@10"] = score.auc
        figures |= {f"{key}, {part}": nme for part, nme in self.by_part().items()}
        return {name: round(value, 4) for name, value in figures.items()}


def evaluate(
    samples: Sequence[Sample],
    predict: Predict,
    input_hw: tuple[int, int],
    crop: CropConfig,
    schema: Schema = WFLW98,
    flip: bool = False,
    whole: bool = False,
    label_shift_px: float = 0.0,
    cache: Path | None = None,
) -> Scores:
    """Crops every face, runs predict, and compares in the picture's pixels.

    crop: with source "points" and the default `level`, the scores are named "levelled points crop"; to compare with a
        published figure use level=False, "points crop".
    flip: averages with the prediction of the mirrored crop.
    whole: the crop is the whole picture, resized: for sets whose pictures are crops already.
    label_shift_px: subtracted from the labels; 0.5 if they count from a pixel's corner.
    cache: a folder to keep the crops in; without it they are temporary.
    """
    if not samples:
        raise LineamentError("there are no faces to evaluate; check --data and --split")
    samples = shifted(samples, label_shift_px)
    truth = np.stack([sample.points for sample in samples])
    _check(samples, truth, schema)
    predicted = np.empty_like(truth)
    with nullcontext(str(cache)) if cache else TemporaryDirectory(prefix="crops-") as folder:
        # nothing moves the crops here, so they need no margin
        still = replace(crop, margin=1.0)
        cut = _whole(samples, input_hw) if whole else _by_region(Crops(samples, input_hw, still, schema, Path(folder)))
        for start in tqdm(range(0, len(samples), CHUNK), desc="evaluate", leave=False, disable=None):
            rows = range(start, min(start + CHUNK, len(samples)))
            rgb, frame_from_unit = zip(*(cut(i) for i in rows))
            for i, frame, points in zip(rows, frame_from_unit, _predicted(predict, np.stack(rgb), schema, flip)):
                predicted[i] = apply(frame, points)
    name = _name(crop, flip, whole, label_shift_px)
    return Scores(name, schema, predicted, truth, tuple(sample.attributes for sample in samples))


def _name(crop: CropConfig, flip: bool, whole: bool, label_shift_px: float) -> str:
    levelled = crop.source == "points" and crop.level
    name = "whole picture" if whole else "levelled " * levelled + f"{crop.source} crop"
    return name + ", flip" * flip + (f", labels less {label_shift_px:g} px" if label_shift_px else "")


def ced(nme_N: Floats, at: Floats) -> F64:
    """The cumulative error distribution: the share of faces, 0..1, whose NME is at most each of `at`."""
    return np.asarray(np.searchsorted(np.sort(nme_N), at, side="right") / len(nme_N), np.float64)


def plot_ced(scores: Sequence[Scores], path: Path, limit: float = LIMIT) -> None:
    """Draws the curves of several scores, up to limit percent; the area under a curve is its AUC."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for one in scores:
        # a step at every face is exact, even for few faces
        at = np.concatenate([[0.0], np.sort(one.nme[one.nme < limit]), [limit]])
        total = one.total
        label = f"{one.crop}: NME {total.nme:.2f}, FR {total.failures:.1f} %, AUC {total.auc:.3f}"
        axes.step(at, ced(one.nme, at), where="post", label=label)
    axes.set(xlim=(0, limit), ylim=(0, 1), xlabel="NME, % of the inter-ocular distance", ylabel="share of faces")
    axes.set_title(f"{len(scores[0].nme)} faces")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=120)


def tile(sample: Sample, points: F32, caption: str, schema: Schema) -> Tile:
    """A face for a sheet, cropped the same way for every model: points (K, 2) px of the picture, and the label."""
    region = sample.points if np.isfinite(sample.points).all() else points
    crop = crop_from_frame(region, ModelCard("tile", schema.name, TILE_HW, TILE_SCALE))
    rgb = warp(np.ascontiguousarray(sample.bgr()[..., ::-1]), crop, TILE_HW)
    return Tile(rgb, apply(crop, points), caption, apply(crop, sample.points))


# ---- from pictures to crops and back

Cut = Callable[[int], tuple[U8, F64]]
"""index of the sample -> its crop, and the matrix from the crop's unit coordinates to the picture"""


def _whole(samples: Sequence[Sample], input_hw: tuple[int, int]) -> Cut:
    def cut(i: int) -> tuple[U8, F64]:
        rgb = np.ascontiguousarray(samples[i].bgr()[..., ::-1])
        shrinks = rgb.shape[0] * rgb.shape[1] > input_hw[0] * input_hw[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = np.asarray(cv2.resize(rgb, input_hw[::-1], interpolation=how), np.uint8)
        return small, crop_from_unit((rgb.shape[0], rgb.shape[1]))

    return cut


def _by_region(crops: Crops) -> Cut:
    input_from_unit = crop_from_unit(crops.input_hw)

    def cut(i: int) -> tuple[U8, F64]:
        return crops.input_crop(i).rgb, compose(crops.frame_from_input(i), input_from_unit)

    return cut


def _predicted(predict: Predict, rgb_NHWC: U8, schema: Schema, flip: bool) -> F32:
    points_unit = _checked_points(predict, rgb_NHWC, schema)
    if flip:
        mirrored = _checked_points(predict, np.ascontiguousarray(rgb_NHWC[:, :, ::-1]), schema)
        # width 2 mirrors unit coordinates: 1 - x
        points_unit = np.asarray((points_unit + schema.flipped(mirrored, 2.0)) / 2, np.float32)
    return points_unit


def _checked_points(predict: Predict, rgb_NHWC: U8, schema: Schema) -> F32:
    points_unit = predict(rgb_NHWC)
    wanted = (len(rgb_NHWC), len(schema), 2)
    if points_unit.shape != wanted:
        raise LineamentError(
            f"the model gave points of shape {points_unit.shape}, expected {wanted} for {schema.name}; "
            "is it of another schema?"
        )
    if not np.isfinite(points_unit).all():
        raise LineamentError("the model gave points that are not finite; it is untrained, or its training diverged")
    return points_unit


def _check(samples: Sequence[Sample], truth: F32, schema: Schema) -> None:
    """Raises LineamentError if a face has no NME because its eye corners are missing or coincide."""
    left, right = schema.eye_corners
    good = np.isfinite(truth).all((1, 2)) & (np.linalg.norm(truth[:, left] - truth[:, right], axis=-1) > 0)
    if not good.all():
        first = int(np.argmin(good))
        raise LineamentError(
            f"face {first + 1} of the list, in {samples[first].name}, has no points, or both eye corners in one place: "
            f"{int((~good).sum())} faces have no NME; `python -m train.data check` lists them"
        )


# ---- the command line


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores a trained model on a labelled set, first with crops that are not levelled, as in published numbers."""

    model: tyro.conf.Positional[Path]
    """The .safetensors of a run."""
    data: Path
    """WFLW's folder, or any data set that `python -m train --data` reads."""
    split: Literal["test", "train"] = "test"
    """Which list to score on."""
    out: Path | None = None
    """Folder for scores.json, ced.png and worst.jpg. Default: 'evaluation' beside the model."""
    flip: bool = False
    """Also score the mean of crop and mirrored crop; takes twice as long."""
    boxes: Path | None = None
    """A .jsonl of `python -m stream.label`: also score crops from a detector's boxes."""
    label_shift_px: float = 0.0
    """Subtracted from every label: 0.5 for sets that count from a pixel's corner, such as wflw-mini."""
    worst: int = 20
    """How many of the worst faces to show on worst.jpg."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    batch: int = 64
    """Faces per forward pass."""
    write_card: bool = False
    """Also put the figures into the model file's card; the weights stay the same."""

    def __post_init__(self) -> None:
        if self.worst < 1:
            raise ValueError(f"worst must be at least 1, got {self.worst}")


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(EvaluateConfig, args=args, prog="python -m train.evaluate", description=EvaluateConfig.__doc__)
    report(cfg)
    return 0


def report(cfg: EvaluateConfig) -> list[Scores]:
    """Scores every crop, prints the tables, writes the files. The first score is of the points crop, not levelled."""
    predict, card = load_predictor(cfg.model, cfg.device, cfg.batch)
    schema = SCHEMAS[card.schema]
    samples = [s for s in read(cfg.data, cfg.split, schema) if np.isfinite(s.points).all()]
    out = cfg.out or cfg.model.parent / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    scores = []
    # the crops can be large: in the output folder, because /tmp may be in memory
    with TemporaryDirectory(prefix=".crops-", dir=out) as cache:
        for crop in _crops(cfg, card):
            for flip in (False, True)[: 1 + cfg.flip]:
                shift = cfg.label_shift_px
                one = evaluate(samples, predict, card.input_hw, crop, schema, flip, False, shift, Path(cache))
                print("\n".join(one.lines()))
                scores.append(one)
    set_name = f"{cfg.data.resolve().stem} {cfg.split}"
    write_files(scores, samples, set_name, cfg.model, out, cfg.worst)
    print(f"{out}: scores.json, ced.png, worst.jpg")
    if cfg.write_card:
        from lineament.train.model import write_card

        write_card(cfg.model, with_figures(card, scores, set_name))
        print(f"wrote the figures into the card of {cfg.model}")
    else:
        print(f"{cfg.model} is unchanged; to put the figures into its card, run again with --write-card")
    return scores


def _crops(cfg: EvaluateConfig, card: ModelCard) -> Iterator[CropConfig]:
    """Every crop to score: first as in published numbers, then levelled as serving levels a tracked face."""
    points = CropConfig(scale=card.crop_scale, level=False)
    yield points
    yield replace(points, level=True)
    yield replace(points, source="rect")
    if cfg.boxes:
        yield replace(points, source="detector", boxes=cfg.boxes)


def write_files(
    scores: Sequence[Scores], samples: Sequence[Sample], set_name: str, model: Path, out: Path, n_worst: int
) -> None:
    """Writes scores.json (all figures and each face's NME), ced.png, and worst.jpg: the n_worst faces by the first of
    scores, predicted points beside labels."""
    faces = [
        {"image": sample.name, **{one.crop: round(float(one.nme[i]), 3) for one in scores}}
        for i, sample in enumerate(samples)
    ]
    figures = {name: value for one in scores for name, value in one.to_card(set_name).items()}
    content = {"model": str(model), "set": set_name, "date": str(date.today()), "figures": figures, "faces": faces}
    (out / "scores.json").write_text(json.dumps(content, indent=1) + "\n")
    plot_ced(scores, out / "ced.png")
    first = scores[0]
    worst = np.argsort(-first.nme, kind="stable")[:n_worst].tolist()
    tiles = [tile(samples[i], first.predicted[i], f"{first.nme[i]:.1f} {samples[i].name}", first.schema) for i in worst]
    sheet(tiles, out / "worst.jpg", columns=5)


def with_figures(card: ModelCard, scores: Sequence[Scores], set_name: str) -> ModelCard:
    """card with these figures; they replace older ones of the same name."""
    new = {name: value for one in scores for name, value in one.to_card(set_name).items()}
    return replace(card, nme={**card.nme, **new})


def load_predictor(path: Path, device: str = "auto", batch: int = 64) -> tuple[Predict, ModelCard]:
    """A trained model as a function of crops. device: auto uses a GPU if there is one."""
    # imported here, because evaluating another function needs no torch
    import torch

    from lineament.train import model

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    net, card = model.load(path, device)
    return model.predictor(net, device, batch=batch), card


def _score(nme_N: F64) -> Score:
    return Score(len(nme_N), float(nme_N.mean()), metrics.failure_rate(nme_N, LIMIT), metrics.auc(nme_N, LIMIT))


if __name__ == "__main__":
    sys.exit(main())
