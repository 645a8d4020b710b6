"""Models and peers in one table: size, milliseconds per crop, and accuracy on labelled faces.

    python -m engines.compare student student-fast pfld.onnx --data wflw-mini wflw-hard-dev --label-shift-px 0.5 0

Each model gets the crop that its card specifies. Times are those of a call with one crop, from crop in memory to points
in memory; models take turns (see engines.timing), and the first is the reference.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from lineament import engines
from lineament.engines.bench import machine
from lineament.engines.labelled import scores_on
from lineament.engines.timing import in_turns
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.types import Landmarker
from lineament.train.data import shift_of_each
from lineament.train.evaluate import Scores

POSE = "pose"
"""WFLW's name for large poses"""


@dataclass(frozen=True)
class CompareConfig:
    """Compares models with one another, and with peers imported by `python -m engines.import_onnx`."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Names of models that ship, or model files. Times are also given relative to the first."""
    data: tuple[Path, ...] = ()
    """Labelled folders, such as WFLW: NME, FR@10 and NME of large poses are measured on their test lists, on
    unlevelled crops round the labelled points."""
    label_shift_px: tuple[float, ...] = (0.0,)
    """Subtracted from every label: one number, or one per set; 0.5 for sets whose origin is a pixel's corner."""
    device: str = "auto"
    """Device to run on; 'openvino' is f32 on every processor."""
    n: int = 60
    """Timed calls per model."""

    def __post_init__(self) -> None:
        shift_of_each(self.label_shift_px, self.data)
        if self.n < 1 or not self.models:
            raise ValueError(f"give at least one model, and n of at least 1; got {len(self.models)} and {self.n}")


@dataclass(frozen=True)
class Row:
    """Results of one model."""

    name: str
    size_mb: float | None
    """of its file; None if it has none"""
    card: ModelCard
    ms: tuple[float, float]
    """p50 and p95 for one crop"""
    scores: tuple[Scores, ...]
    """one per folder"""


@ends_in_a_line
def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(CompareConfig, args=args, prog="python -m engines.compare", description=CompareConfig.__doc__)
    print(machine())
    print("\n".join(table(compare(cfg), cfg)))
    return 0


def compare(cfg: CompareConfig) -> list[Row]:
    """Opens, times and scores every model. Raises LineamentError if one cannot be opened."""
    from lineament.engines.export import real_crops

    with ExitStack() as stack:
        opened = [stack.enter_context(engines.load(model, cfg.device)) for model in cfg.models]
        calls = [partial(landmarker, real_crops(landmarker.card, 1)) for landmarker in opened]
        times_ms = np.percentile(in_turns(calls, cfg.n), (50, 95), axis=1).T
        return [
            Row(model, _size_mb(model), landmarker.card, (p50, p95), _scores(landmarker, cfg))
            for model, landmarker, (p50, p95) in zip(cfg.models, opened, times_ms.tolist())
        ]


def table(rows: Sequence[Row], cfg: CompareConfig) -> list[str]:
    """rows as lines of Markdown."""
    sets = [f"{path.resolve().name}: NME | FR@10 | {POSE}" for path in cfg.data]
    head = ["model", "MB", "crop", "ms, p50 / p95", f"of {Path(rows[0].name).stem}'s", *sets]
    lines = [f"{cfg.n} calls per model, in turns, device {cfg.device}", "", f"| {' | '.join(head)} |"]
    lines.append("|---" * (len(head) + 2 * len(sets)) + "|")
    for row in rows:
        cells = [
            Path(row.name).stem,
            "-" if row.size_mb is None else f"{row.size_mb:.1f}",
            f"{row.card.input_hw[1]} px",
            f"{row.ms[0]:.2f} / {row.ms[1]:.2f}",
            f"{row.ms[0] / rows[0].ms[0]:.2f}",
        ]
        for score in row.scores:
            pose = score.by_subset().get(POSE)
            cells += [f"{score.total.nme:.2f}", f"{score.total.failures:.1f}", f"{pose.nme:.2f}" if pose else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _scores(landmarker: Landmarker, cfg: CompareConfig) -> tuple[Scores, ...]:
    sets = zip(cfg.data, shift_of_each(cfg.label_shift_px, cfg.data))
    scorers = [scores_on(path, landmarker.card, level=False, label_shift_px=px) for path, px in sets]
    return tuple(score(landmarker) for score in scorers)


def _size_mb(model: str) -> float | None:
    """Of the file that ships; None for the mesh, whose files are in mediapipe."""
    path = engines.CHECKPOINTS.get(model, Path(model).expanduser())
    return path.stat().st_size / 1e6 if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
