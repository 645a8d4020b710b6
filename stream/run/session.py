"""Session: one source from its first frame to its last output, run by one thread.

with Session(cfg, source, landmarker, ("points.jsonl",)) as session:
    for result, drawn_bgr in session:
        ...
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Annotated, Self

import tyro

from lineament.engines import mesh
from lineament.landmarks.schema import MESH468, SCHEMAS
from lineament.landmarks.types import U8, Frame, Landmarker, Result
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.analyse.detect import MIN_SCORE
from lineament.stream.analyse.followed import TrackConfig, TrackerState
from lineament.stream.analyse.mesh import Mesh
from lineament.stream.analyse.track import Tracker
from lineament.stream.mailbox import Closed, Mailbox
from lineament.stream.read.base import Source
from lineament.stream.read.reconnect import RetryConfig
from lineament.stream.read.spec import ReadConfig, redacted_spec
from lineament.stream.run.pipeline import Pipeline
from lineament.stream.run.stats import Stats
from lineament.stream.write.base import Sink
from lineament.stream.write.blur import Blur
from lineament.stream.write.draw import DrawConfig, draw
from lineament.stream.write.open import is_address, is_expressive, open_sink

OLD_OPTIONS = {"--every": "--detect-every"}
"""renamed options: old name to new"""


@dataclass(frozen=True)
class SessionConfig:
    """How any source is processed."""

    blur_faces: bool = False
    """Blur every face beyond recognition, and run the detector on every frame. Only a face that is found is blurred."""
    audio: bool = True
    """Write a file's audio to video files too: copied if possible, else as AAC, or Opus in .webm. Blurred faces keep
    their voices. Live sources and URLs are recorded without audio."""
    frames: int | None = None
    """Stop after this many frames of each source."""
    min_score: float = MIN_SCORE
    """Least score of the detector, 0..1; faces below it are ignored."""
    max_age_s: float = 1.0
    """Drop and count live frames older than this many seconds. One per second is shown at any age, so that a slow
    machine shows something. 'inf' keeps all; files never drop frames."""
    read: Annotated[ReadConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ReadConfig)
    retry: Annotated[RetryConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RetryConfig)
    view: Annotated[DrawConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=DrawConfig)
    track: Annotated[TrackConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")
        if not 0 < self.min_score < 1:
            raise ValueError(f"min_score must lie between 0 and 1, got {self.min_score}")
        if not self.max_age_s > 0:
            raise ValueError(f"max_age_s must be more than 0 seconds, got {self.max_age_s}")


class Session:
    """Owns the source, its detector, tracker, threads and outputs between __enter__ and __exit__.

    landmarker: borrowed, not closed. outputs: as open_sink takes them; if one is an address, a video file plays in real
    time, like a camera. spec: the source as the user gave it, so that no output overwrites it. idle: as Pipeline's.
    Raises LineamentError if the wanted points need a package that is not installed.
    """

    def __init__(
        self,
        cfg: SessionConfig,
        source: Source,
        landmarker: Landmarker,
        outputs: Sequence[str],
        spec: str = "",
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        if cfg.view.schema == MESH468.name:
            mesh.check_installed()
        self.source, self.stats = source, Stats()
        self._cfg, self._landmarker, self._outputs, self._spec, self._idle = cfg, landmarker, outputs, spec, idle
        self.fault: str | None = None
        """why it ended early, set by its runner"""
        self.ended = False
        """the source has ended, or the wanted frames are done"""
        self.tracker: Tracker | None = None
        """within the block"""
        self.before: tuple[TrackerState, float] | None = None
        """state of the session that this one replaces, as Tracker.resume takes it"""
        self._sinks: list[Sink] = []
        self._hurry: Mailbox[None] = Mailbox(1, newest_wins=True)
        """closed to end the waits of real-time playback"""
        self._pipeline: Pipeline | None = None
        self._stack = ExitStack()

    @property
    def dropped(self) -> int:
        """Frames captured but not shown, because newer ones came or they were too old."""
        return self._pipeline.dropped if self._pipeline else 0

    @property
    def stale(self) -> int:
        """The dropped frames that were too old."""
        return self._pipeline.stale if self._pipeline else 0

    @property
    def reconnects(self) -> int:
        """How often the source was lost and came back."""
        return self.source.health.reconnects

    @property
    def lost_s(self) -> float:
        """Seconds without a picture, all outages together."""
        return self.source.health.lost_s

    @property
    def lost_messages(self) -> dict[str, int]:
        """Results not delivered because the receiver is slow or away, by output with passwords redacted.

        Only for outputs to other machines and programs; a file loses nothing.
        """
        lost: Counter[str] = Counter()
        for output, sink in zip(self._outputs, list(self._sinks)):
            if is_address(output):
                lost[redacted_spec(output)] += sink.lost
        return dict(lost)

    @property
    def trouble(self) -> str | None:
        """Why there is no picture, and for how long; None while there is one."""
        health = self.source.health
        return None if health.trouble is None else f"no picture for {health.down_s:.0f} s: {health.trouble}"

    def live_line(self) -> str:
        """The status in one line."""
        lost = sum(self.lost_messages.values())
        unsent = f"  unsent {lost}" if lost else ""
        return self.trouble or self.stats.live_line(self.dropped, self.reconnects) + unsent

    def summary(self) -> str:
        lines = [self.stats.summary(self.dropped, self.reconnects, self.lost_s, self.stale)]
        if most := self.stats.most_left_out:
            lines.append(
                f"--max-faces {self._cfg.track.max_faces} left out up to {most} faces a frame; "
                "--max-faces 0 follows all"
            )
        if self.tracker is not None and (unusable := self.tracker.unusable):
            lines.append(f"dropped {unusable} faces with unusable points")
        lines += [f"{count} results not delivered to {output}" for output, count in self.lost_messages.items() if count]
        return "\n".join(lines)

    def __enter__(self) -> Self:
        """Opens the source and every output; if one fails, closes the others and raises its error."""
        cfg, source = self._cfg, self.source
        with ExitStack() as stack:
            stack.callback(source.close)
            # only a followed face is blurred, so blurring follows all and searches every frame
            track = replace(cfg.track, detect_every=1, max_faces=0) if cfg.blur_faces else cfg.track
            expressive = cfg.view.gaze or any(map(is_expressive, self._outputs))
            analyser = Analyser(
                self._landmarker, track, still=source.still, min_score=cfg.min_score, expressive=expressive
            )
            tracker = self.tracker = stack.enter_context(analyser)
            if self.before is not None:
                tracker.resume(*self.before)
            analyse: Callable[[Frame], Result] = tracker
            if cfg.view.schema == MESH468.name:
                analyse = Mesh(tracker, smooth=cfg.track.smooth, still=source.still)
            self._pipeline = stack.enter_context(Pipeline(source, analyse, self._idle, cfg.max_age_s))
            for path in self._outputs:
                sink = open_sink(
                    path, source.fps, cfg.view.schema, self._spec, source.live, still=source.still, audio=cfg.audio
                )
                self._sinks.append(stack.enter_context(sink))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[tuple[Result, U8]]:
        """Each result with its drawing (H, W, 3) BGR, after every output has it."""
        assert self._pipeline is not None, "iterate within the with block"
        blur = Blur() if self._cfg.blur_faces else None
        paced = not self.source.live and not self.source.still and any(map(is_address, self._outputs))
        began_s = -math.inf
        for result in self._pipeline:
            if paced:
                with suppress(TimeoutError, Closed):
                    self._hurry.take(max(0.0, began_s + result.frame.time_s - time.monotonic()))
                began_s = max(began_s, time.monotonic() - result.frame.time_s)  # no catching up after a delay
            result, drawn = self._drawn(blur(result) if blur else result)
            for sink in self._sinks:
                sink.write(result, drawn)
            self.stats.add(result)
            yield result, drawn
            if self.stats.frames == self._cfg.frames:
                break
        self.ended = True

    def stop(self) -> None:
        """Ends the iteration soon. May be called from any thread and from a signal handler."""
        self._hurry.close()
        if self._pipeline is not None:
            self._pipeline.stop()

    def _drawn(self, result: Result) -> tuple[Result, U8]:
        """The result with the time of drawing and, if live, the age of its frame added, and its drawing."""
        stats, began_s = self.stats, time.perf_counter()
        note = f"{stats.fps:.0f} fps" if stats.frames > 1 else ""
        if note and self.source.live:
            note += f"  {stats.age_ms[0]:.0f} ms"
        canvas = draw(result, SCHEMAS[self._landmarker.card.schema], self._cfg.view, note)
        ms = {**result.ms, "draw": (time.perf_counter() - began_s) * 1e3}
        if self.source.live:  # a file's frames wait in a queue: the time since they were read is no delay
            ms["age"] = (time.monotonic() - result.frame.captured_s) * 1e3
        return replace(result, ms=ms), canvas
