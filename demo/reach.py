"""Where a visitor's address may lead. This machine opens it, so it must not lead where only this machine may go.

Allowed are rtsp, rtsps, http and https to public addresses; with allow_private also to private networks and to this
machine, never to link-local ones, where clouds keep their secrets. A name is resolved once: what was checked is what is
connected to.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from lineament.landmarks.types import LineamentError
from lineament.stream.read.spec import redacted_spec

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
"""the schemes that are taken, and where they listen"""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5.0, 10.0
_METADATA = frozenset({"100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"})
"""where clouds keep their secrets outside of the link-local range"""
_LOCAL = tuple(ipaddress.ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "3fff::/20"))
"""no public ones, although `ipaddress` takes some or all of their addresses for such"""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """An address that was found good."""

    scheme: str
    host: str
    port: int
    ip: str
    """the one to connect to, among those of host"""
    user: str | None
    password: str | None
    rest: str
    """path and query"""
    verify: bool
    """check the certificate; cameras at home sign their own"""


def resolve(url: str, allow_private: bool) -> Target:
    """Raises LineamentError for an address that may not be opened."""
    if len(url) > 2000 or not url.isprintable() or re.search(r"[\s\\]", url):
        raise LineamentError("the address has blanks or other signs that no address has; write rtsp://host/path")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise LineamentError(f"{redacted_spec(url)} is no address; write rtsp://user:password@host:port/path") from None
    if parts.scheme not in PORTS:
        raise LineamentError(
            f"addresses of kind {parts.scheme or 'none'!r} are not opened here; write one of {', '.join(PORTS)}://"
        )
    if not host:
        raise LineamentError(f"{redacted_spec(url)} names no host; write {parts.scheme}://host/path")
    port = port or PORTS[parts.scheme]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise LineamentError(f"no host is called {host}; check the name and the network") from None
    ips = [str(info[4][0]) for info in found]
    # all of them: a name with a good and a bad address is a trick
    for ip in ips:
        _check(ip, host, allow_private)
    return Target(
        scheme=parts.scheme,
        host=host,
        port=port,
        ip=ips[0],
        user=unquote(parts.username) if parts.username is not None else None,
        password=unquote(parts.password) if parts.password is not None else None,
        rest=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        verify=not allow_private,
    )


def connect(target: Target) -> socket.socket:
    """A connection to the very address that was checked, TLS included. Raises LineamentError."""
    where = f"{target.host}:{target.port}"
    try:
        plain = socket.create_connection((target.ip, target.port), timeout=CONNECT_TIMEOUT_S)
    except ConnectionRefusedError:
        raise LineamentError(f"{where} refuses the connection; check the port, and that the camera is on") from None
    except OSError:
        raise LineamentError(f"{where} does not answer; check the address and the network") from None
    plain.settimeout(READ_TIMEOUT_S)
    if target.scheme not in ("rtsps", "https"):
        return plain
    context = ssl.create_default_context()
    if not target.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(plain, server_hostname=target.host)
    except (OSError, ValueError) as error:
        plain.close()
        raise LineamentError(f"{where} does not speak TLS as it should: {error}") from None


def _check(ip: str, host: str, allow_private: bool) -> None:
    address = ipaddress.ip_address(ip.partition("%")[0])
    for inner in _inside(address):
        secret = inner.is_link_local or inner.is_multicast or inner.is_unspecified or str(inner) in _METADATA
        if secret or (inner.is_reserved and not inner.is_loopback):
            raise LineamentError(f"{host} leads to {ip}, which is never opened from here; give a camera's own address")
        if not allow_private and (not inner.is_global or any(inner in net for net in _LOCAL)):
            raise LineamentError(
                f"{host} leads to {ip}, in a private network; start the demo with --allow-private to open such cameras"
            )


def _inside(address: Address) -> list[Address]:
    """The address, or the IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address.sixtofour:
        return [address.sixtofour]
    if address.teredo:
        return list(address.teredo)
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    return [address]
