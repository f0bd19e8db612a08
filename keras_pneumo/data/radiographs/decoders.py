"""The decoder of each DICOM transfer syntax, by name, and whether it is installed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from PIL import features

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
RUN_LENGTH = "1.2.840.10008.1.2.5"

DECODERS: dict[str, tuple[str, str]] = {
    JPEG_BASELINE: ("pillow", "pillow"),
    JPEG_EXTENDED: ("pylibjpeg", "pylibjpeg-libjpeg"),
    **dict.fromkeys(JPEG_LOSSLESS, ("pylibjpeg", "pylibjpeg-libjpeg")),
    **dict.fromkeys(JPEG_LS, ("pyjpegls", "pyjpegls")),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg", "pylibjpeg-openjpeg"),
    RUN_LENGTH: ("pydicom", "pydicom"),
}
"""Transfer syntax -> (pydicom's name of the decoding plugin, the package to install for it).

pydicom tries the plugins that happen to be installed in an order that changes between its versions, and decoders of
lossy JPEG differ by a few grey levels. Pillow's baseline JPEG equals OpenCV's to the pixel, so a team that reads the
files its own way gets our pixels. JPEG-LS is read by CharLS (pyjpegls), which refuses a stream that ends before its
last pixel or goes on after it; pylibjpeg's decoder fills the rest with one grey.
"""

DEFLATED = "1.2.840.10008.1.2.1.99"

UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED)


@dataclass(frozen=True)
class DecoderStatus:
    """Whether one DICOM transfer syntax can be decoded here."""

    transfer_syntax: str
    name: str
    plugin: str
    package: str
    available: bool


def decoder_report(transfer_syntaxes: Collection[str] = tuple(DECODERS)) -> list[DecoderStatus]:
    """The state of every decoder that :func:`read_dicom` may need, in the order of :data:`DECODERS`.

    Args:
        transfer_syntaxes: only theirs.
    """
    report = []
    for uid, (plugin, package) in DECODERS.items():
        if uid in transfer_syntaxes:
            name, available = _PILLOW if (uid, plugin) == (JPEG_BASELINE, "pillow") else _in_pydicom(uid, plugin)
            report.append(DecoderStatus(uid, name, plugin, package, available))
    return report


_PILLOW = ("JPEG Baseline (Process 1)", bool(features.check("jpg")))


def _in_pydicom(uid: str, plugin: str) -> tuple[str, bool]:
    """The name of a transfer syntax, and whether pydicom has the plugin for it."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    return UID(uid).name, plugin in get_decoder(UID(uid)).available_plugins
