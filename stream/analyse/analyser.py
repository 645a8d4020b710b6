"""Analyser: a tracker with the detector that fits its source. Used by the stream, the demo and the Python API."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from lineament.landmarks.types import Landmarker
from lineament.stream.analyse.detect import MIN_SCORE, ImageDetector, VideoDetector
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker


class Analyser(Tracker):
    """Finds the faces in the frames of one source. A context manager; `close` may be called twice.

    with Analyser(landmarker) as analyse:
        result = analyse(frame)
    """

    def __init__(
        self,
        landmarker: Landmarker,
        cfg: TrackConfig | None = None,
        *,
        still: bool = False,
        min_score: float = MIN_SCORE,
        expressive: bool = True,
    ) -> None:
        """landmarker: borrowed, not closed. min_score: of the detector, 0..1.

        still: every frame stands alone and shows every face, whatever cfg.max_faces is. expressive: as in Tracker.
        """
        cfg = cfg or TrackConfig()
        self._owned = (ImageDetector if still else VideoDetector)(min_score=min_score)
        cfg = replace(cfg, max_faces=0) if still else cfg
        super().__init__(self._owned, landmarker, cfg, still=still, expressive=expressive)

    def close(self) -> None:
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
