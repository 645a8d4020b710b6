"""Models: the landmark models that visitors share. Each is loaded once, at its first use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from lineament import engines
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import Landmarker, LineamentError


class Models:
    """What `engines.load` gives, by the name that a visitor sees. Landmarkers take calls from many threads, in turns.

    A visitor names a model, never a path: only those named here can be had.
    """

    def __init__(self, files: Sequence[str] = ()) -> None:
        """files: of one's own, or names of engines.MODELS; the last is the one to begin with."""
        self._specs = {name: name for name in engines.ready()}
        self._usual = engines.DEFAULT
        for file in files:
            name = file if file in engines.MODELS else Path(file).name
            if name in self._specs and file not in engines.MODELS:
                raise LineamentError(f"two models are called {name}; rename one of the files")
            self._specs[name] = file
            self._usual = name
        self._loaded: dict[str, Landmarker] = {}
        self._loading = threading.Lock()

    @property
    def usual(self) -> str:
        """The one to begin with: what the demo was started with, else the one that streaming takes too."""
        return self._usual

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    def __getitem__(self, name: str) -> Landmarker:
        """Raises LineamentError for a name that is not offered and for a file that does not load."""
        with self._loading:
            if name not in self._loaded:
                if name not in self._specs:
                    raise LineamentError(f"no model is called {name!r} here; choose one of {', '.join(self._specs)}")
                landmarker = engines.load(self._specs[name])
                if landmarker.card.schema != WFLW98.name:
                    landmarker.close()
                    raise LineamentError(
                        f"{name} has points of schema {landmarker.card.schema!r}, expected {WFLW98.name!r}; "
                        "give another model"
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
