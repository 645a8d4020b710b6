"""Metrics: the numbers of a run in the text format that Prometheus asks for, collected for each scrape."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from lineament.landmarks.card import ModelCard
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.run.session import Session
from lineament.stream.run.stats import BUCKETS_S
from lineament.stream.watch.status import no_picture

_Family = type[CounterMetricFamily] | type[GaugeMetricFamily]
_OF_A_SOURCE: tuple[tuple[_Family, str, str, Callable[[Session], float]], ...] = (
    (GaugeMetricFamily, "up", "1 while the source delivers pictures.", lambda s: float(not no_picture(s))),
    (CounterMetricFamily, "frames", "Frames drawn.", lambda s: s.stats.frames),
    (CounterMetricFamily, "dropped_frames", "Frames dropped for newer ones or as too old.", lambda s: s.dropped),
    (CounterMetricFamily, "stale_frames", "Frames dropped as too old.", lambda s: s.stale),
    (CounterMetricFamily, "reconnects", "Times the source was lost and came back.", lambda s: s.reconnects),
    (CounterMetricFamily, "lost_seconds", "Time without a picture.", lambda s: s.lost_s),
    (GaugeMetricFamily, "fps", "Frames per second over the last two seconds.", lambda s: s.stats.fps),
    (GaugeMetricFamily, "faces", "Faces in the last frame.", lambda s: s.stats.faces),
)
"""kind, name, help and value; a counter's name gets _total"""


class Metrics:
    """The registry of one run. sessions, shared: as Monitor takes them."""

    def __init__(
        self, sessions: Callable[[], Mapping[str, Session]], card: ModelCard, shared: SharedLandmarker | None
    ) -> None:
        self._sessions, self._card, self._shared = sessions, card, shared
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self, accept: str) -> tuple[str, str]:
        """The content type and the text for an Accept header: OpenMetrics or Prometheus' own format."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # a version that is not a number
            encode, content_type = choose_encoder("")
        return content_type, encode(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each scrape."""
        sessions = self._sessions()
        engine = GaugeMetricFamily(
            "lineament_engine_info", "The landmark model.", labels=("model", "schema", "precision")
        )
        engine.add_metric((self._card.name, self._card.schema, self._card.precision), 1)
        yield engine
        for kind, name, says, value in _OF_A_SOURCE:
            family = kind(f"lineament_{name}", says, labels=("source",))
            for source, session in sessions.items():
                family.add_metric((source,), value(session))
            yield family
        yield _undelivered(sessions)
        yield _stages(sessions)
        if self._shared is not None:
            for name, count in (("batches", self._shared.batches), ("crops", self._shared.crops)):
                yield CounterMetricFamily(f"lineament_landmark_{name}", "By the shared model.", count)
        if os.path.isdir("/proc/self/task"):
            threads = len(os.listdir("/proc/self/task"))
            yield GaugeMetricFamily("process_threads", "Threads, including those of libraries.", threads)


def _undelivered(sessions: Mapping[str, Session]) -> Metric:
    family = CounterMetricFamily(
        "lineament_output_lost", "Results not delivered to an output.", labels=("source", "output")
    )
    for source, session in sessions.items():
        for output, count in session.lost_messages.items():
            family.add_metric((source, output), count)
    return family


def _stages(sessions: Mapping[str, Session]) -> Metric:
    family = HistogramMetricFamily(
        "lineament_stage_seconds", "Time by stage; age, if live, is from capture to drawn.", labels=("source", "stage")
    )
    for source, session in sessions.items():
        for stage, (counts, sum_s) in session.stats.histograms().items():
            bounds = [*map(str, BUCKETS_S), "+Inf"]
            family.add_metric((source, stage), list(zip(bounds, accumulate(counts))), sum_s)
    return family


def resident_bytes() -> int | None:
    """Memory of this process; None where there is no /proc."""
    if not os.path.isdir("/proc/self/fd"):
        return None
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
