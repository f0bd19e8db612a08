"""The decoder of each DICOM transfer syntax, by name, and whether it is installed."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.pixels import get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

DECODERS: dict[str, tuple[str, str]] = {
    "1.2.840.10008.1.2.4.50": ("pillow", "pillow"),
    "1.2.840.10008.1.2.4.51": ("pylibjpeg", "pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.57": ("pylibjpeg", "pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.70": ("pylibjpeg", "pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.80": ("pylibjpeg", "pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.81": ("pylibjpeg", "pylibjpeg-libjpeg"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg", "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.5": ("pydicom", "pydicom"),
}
"""Transfer syntax -> (pydicom's name of the decoding plugin, the package to install for it).

pydicom tries the plugins that happen to be installed in an order that changes between its versions, and decoders of
lossy JPEG differ by a few grey levels. Pillow's baseline JPEG equals OpenCV's to the pixel, so a team that reads the
files its own way gets our pixels.
"""

UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DeflatedExplicitVRLittleEndian)


@dataclass(frozen=True)
class DecoderStatus:
    """Whether one DICOM transfer syntax can be decoded here."""

    transfer_syntax: str
    name: str
    plugin: str
    package: str
    available: bool


def decoder_report() -> list[DecoderStatus]:
    """The state of every decoder that :func:`read_dicom` may need, in the order of :data:`DECODERS`."""
    return [
        DecoderStatus(uid, UID(uid).name, plugin, package, plugin in get_decoder(UID(uid)).available_plugins)
        for uid, (plugin, package) in DECODERS.items()
    ]
