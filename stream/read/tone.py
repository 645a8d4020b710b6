"""Tone: a lookup table from HDR video to what an ordinary display shows, for FFmpeg's lut3d filter.

    graph.add("lut3d", file=path)  # of a file that holds cube(HLG, wide=True)

HDR signals stand for light of up to 1000 cd/m2 and more in wide colours; taken as they are, they look grey and dark.
Signal to light follows ITU-R BT.2100 (HLG, PQ), the brightness of ordinary white BT.2408, the rolled-off highlights
BT.2390, and the colours BT.2087. Light becomes signal by the gamma of common monitors.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from lineament.landmarks.types import F64

PQ, HLG = 16, 18
"""numbers of the two transfer functions in FFmpeg and ISO/IEC 23091-2"""
_PEAK_NITS, _WHITE_NITS = 1000.0, 203.0
"""of the reference display, and of white paper on it, which becomes the white of an ordinary display"""
_GAMMA = 2.2
"""of the ordinary display"""
_STEPS = 33
"""a side of the table; between its entries lut3d interpolates"""
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_709_FROM_2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


@cache
def cube(transfer: int, wide: bool) -> str:
    """A .cube file. transfer: PQ or HLG; wide: the primaries are BT.2020's, else BT.709's."""
    steps = np.linspace(0.0, 1.0, _STEPS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # red changes fastest
    signal_N3 = np.stack([red, green, blue], -1).reshape(-1, 3)
    nits_N3 = _pq_nits(signal_N3) if transfer == PQ else _hlg_nits(signal_N3)
    # by the largest channel, so that the hue stays
    largest_N1 = np.maximum(nits_N3.max(1, keepdims=True), 1e-6)
    nits_N3 = nits_N3 * (_rolled_off(largest_N1) / largest_N1)
    if wide:
        nits_N3 = nits_N3 @ _709_FROM_2020.T
    shown_N3 = np.clip(nits_N3 / _WHITE_NITS, 0.0, 1.0) ** (1 / _GAMMA)
    lines = "\n".join(f"{r:.5f} {g:.5f} {b:.5f}" for r, g, b in shown_N3)
    return f"LUT_3D_SIZE {_STEPS}\n{lines}\n"


def _hlg_nits(signal_N3: F64) -> F64:
    """BT.2100, table 5: the inverse OETF, then the OOTF of a display of 1000 cd/m2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene_N3 = np.where(signal_N3 <= 0.5, signal_N3**2 / 3, (np.exp((signal_N3 - c) / a) + b) / 12)
    luma_N1 = (scene_N3 @ _LUMA_2020)[:, None]
    return np.asarray(_PEAK_NITS * np.maximum(luma_N1, 1e-9) ** 0.2 * scene_N3, np.float64)


_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
"""BT.2100, table 4"""


def _pq_nits(signal: F64) -> F64:
    root = signal ** (1 / _M2)
    return 10_000.0 * (np.maximum(root - _C1, 0.0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _pq_signal(nits: F64) -> F64:
    power = (nits / 10_000.0) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _rolled_off(nits: F64) -> F64:
    """BT.2390, section 5.4.1: unchanged up to a knee, then a spline that ends at white. Above the peak is white."""
    peak, white = (float(_pq_signal(np.array(limit))) for limit in (_PEAK_NITS, _WHITE_NITS))
    signal, most = np.minimum(_pq_signal(nits) / peak, 1.0), white / peak
    knee = 1.5 * most - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return _pq_nits(np.where(signal < knee, signal, spline) * peak)
