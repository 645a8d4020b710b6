"""Models: the landmark models, shared by all visitors. Each is loaded once, on first use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from lineament import engines
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import Landmarker, LineamentError


class Models:
    """Landmarkers by the name that visitors see. Each can be called from many threads; calls are serialised.

    Visitors select a model by name, never by path.
    """

    def __init__(self, files: Sequence[str] = ()) -> None:
        """files: paths of model files, or names in engines.MODELS; the last one is selected at start."""
        self._specs = {name: name for name in engines.ready()}
        self._usual = engines.DEFAULT
        for file in files:
            name = file if file in engines.MODELS else Path(file).name
            if name in self._specs and file not in engines.MODELS:
                raise LineamentError(f"two models are named {name}; rename one of the files")
            self._specs[name] = file
            self._usual = name
        self._loaded: dict[str, Landmarker] = {}
        self._loading = threading.Lock()

    @property
    def usual(self) -> str:
        """The model selected at start: the last one given, else the default of streaming."""
        return self._usual

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    def __getitem__(self, name: str) -> Landmarker:
        """Raises LineamentError if the name is unknown or the file does not load."""
        with self._loading:
            if name not in self._loaded:
                if name not in self._specs:
                    raise LineamentError(f"unknown model {name!r}; choose one of {', '.join(self._specs)}")
                landmarker = engines.load(self._specs[name])
                if landmarker.card.schema != WFLW98.name:
                    landmarker.close()
                    raise LineamentError(
                        f"{name} has the schema {landmarker.card.schema!r}, expected {WFLW98.name!r}; use another model"
                    )
                self._loaded[name] = landmarker
            return self._loaded[name]

    def close(self) -> None:
        with self._loading:
            while self._loaded:
                self._loaded.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
