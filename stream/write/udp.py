"""UDP: one face, to a program that moves an avatar by it. A transport for Background in network.py.

Nobody answers, so a receiver that is away is no failure: what is sent to it is gone.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lineament.landmarks.types import U8, LineamentError, Result, Track
from lineament.stream.write.network import Address, unreachable

POSES = 8
"""results buffered: an avatar shows the newest, and no older one is worth waiting for"""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is sent of a result, without its picture."""

    track: Track | None
    """the face that has been followed for longest; None if there is none"""
    frame_hw: tuple[int, int]
    time_s: float


class Udp:
    """A transport of moments as datagrams."""

    def __init__(self, address: Address, datagrams: Callable[[Moment], Sequence[bytes]]) -> None:
        """datagrams: of a moment, in order. Called by the thread that sends."""
        self._address, self._datagrams = address, datagrams
        self._socket: socket.socket | None = None
        self._target: tuple[object, ...] = ()

    def prepare(self) -> None: ...

    def message(self, result: Result, drawn_bgr: U8) -> Moment:
        oldest = min(result.tracks, key=lambda track: track.id, default=None)
        return Moment(oldest, result.frame.bgr.shape[:2], result.frame.time_s)

    def connect(self) -> None:
        address = self._address
        try:
            family, kind, protocol, _, self._target = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_DGRAM
            )[0]
            self._socket = socket.socket(family, kind, protocol)
        except (OSError, UnicodeError) as error:
            raise unreachable(address, error) from None
        self._socket.setblocking(False)

    def send(self, message: Moment) -> None:
        assert self._socket is not None
        try:
            for datagram in self._datagrams(message):
                # not connected to the target, so that the system reports no receiver that is away
                self._socket.sendto(datagram, self._target)
        except OSError as error:
            why = (error.strerror or type(error).__name__).lower()
            raise LineamentError(f"cannot send to {self._address.shown}: {why}; check the network") from None

    def idle(self) -> None: ...

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def interrupt(self) -> None: ...
