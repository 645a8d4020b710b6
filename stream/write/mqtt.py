"""MQTT: each result's line of JSON to a topic of a broker. A transport for Background in network.py."""

from __future__ import annotations

import re
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from lineament.landmarks.types import U8, LineamentError, Result
from lineament.stream.backoff import RefusedError
from lineament.stream.write.json_line import JsonLine
from lineament.stream.write.network import CONNECT_S, Address, unreachable

_SEND_S = 5.0
"""timeout for a broker to accept a message"""
_KEEPALIVE_S = 10
"""a broker that is silent for twice as long counts as lost"""
_LOOK_S = 0.1
"""between checks whether a wait for the broker should end"""


class MqttBroker:
    """A transport of JSON lines to a topic, QoS 0. `topic/status` says "online" or "offline", retained.

    The protocol runs in the calling thread, and each message is sent before the next: the client's own buffer, which is
    unbounded for QoS 0, never holds more than one.
    """

    def __init__(self, address: Address, line: JsonLine) -> None:
        self._address, self._line = address, line
        self._topic, self._status = address.path, f"{address.path}/status"
        if re.search(r"[+#\0]", self._topic) or len(self._status.encode()) > 65535:
            raise LineamentError(f"{address.shown!r} has an invalid topic; remove '+' and '#'")
        self._client: mqtt.Client | None = None
        self._interrupted = threading.Event()

    def prepare(self) -> None: ...

    def message(self, result: Result, drawn_bgr: U8) -> str:
        return self._line(result)

    def connect(self) -> None:
        address = self._address
        self._client = client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.connect_timeout = CONNECT_S
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.scheme == "mqtts":
            client.tls_set()
        client.will_set(self._status, "offline", retain=True)
        answers: list[ReasonCode] = []
        client.on_connect = lambda client, data, flags, code, properties: answers.append(code)
        try:
            client.connect(address.host, address.port, _KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise unreachable(address, error) from None
        until_s = time.monotonic() + CONNECT_S
        while not answers:
            self._look(client, _LOOK_S, until_s, "no answer; check that it is an MQTT broker", answers)
        if answers[0].is_failure:
            kind = RefusedError if answers[0].getName() in ("Bad user name or password", "Not authorized") else None
            raise (kind or LineamentError)(f"cannot publish to {address.shown}: {str(answers[0]).lower()}")
        client.publish(self._status, "online", retain=True)

    def send(self, message: str) -> None:
        assert self._client is not None
        self._look(self._client, 0.0)
        sent = self._client.publish(self._topic, message)
        until_s = time.monotonic() + _SEND_S
        while sent.rc == mqtt.MQTT_ERR_SUCCESS and not sent.is_published():
            self._look(self._client, _LOOK_S, until_s, f"no data accepted for {_SEND_S:.0f} s; check the broker")
        if sent.rc != mqtt.MQTT_ERR_SUCCESS:
            raise self._failure(mqtt.error_string(sent.rc).lower())

    def idle(self) -> None:
        assert self._client is not None
        self._look(self._client, 0.0)

    def close(self) -> None:
        """Publishes "offline" if the broker accepts it at once."""
        client, self._client = self._client, None
        if client is None:
            return
        if client.is_connected():
            client.publish(self._status, "offline", retain=True)
            client.disconnect()
        left = client.socket()
        if left is not None:
            left.close()

    def interrupt(self) -> None:
        self._interrupted.set()

    def _look(
        self,
        client: mqtt.Client,
        wait_s: float,
        until_s: float | None = None,
        says: str = "",
        answers: list[ReasonCode] | None = None,
    ) -> None:
        """Lets the client read, write and keep alive. Raises LineamentError on a lost connection or a timeout."""
        code = client.loop(wait_s)
        if code != mqtt.MQTT_ERR_SUCCESS and not answers:
            raise self._failure(mqtt.error_string(code).lower())
        if self._interrupted.is_set() or (until_s is not None and time.monotonic() > until_s and not answers):
            raise self._failure(says or "interrupted")

    def _failure(self, why: str) -> LineamentError:
        return LineamentError(f"cannot publish to {self._address.shown}: {why.rstrip('.')}")
