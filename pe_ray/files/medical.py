"""Medical images, DICOM and NIfTI, as arrays: read by pydicom and nibabel (extra `medical`).

A file is one image, whatever it holds: of several frames the middle one counts, of a volume the
middle axial slice.
"""

from __future__ import annotations

import gzip
import io
import logging
import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXTRA = "pip install 'pe_ray[medical]'"
_LIBRARIES = {".dcm": "pydicom", ".dicom": "pydicom", ".nii": "nibabel", ".nii.gz": "nibabel"}
ENDINGS = tuple(_LIBRARIES)
_GZIP = b"\x1f\x8b"


class CompressionError(Exception):
    """What is installed can't decode the compression of a DICOM file."""


def list_endings() -> list[str]:
    """Return the endings that the installed libraries read."""
    return [ending for ending, library in _LIBRARIES.items() if find_spec(library) is not None]


def is_medical(content: bytes) -> bool:
    """Tell by its first bytes whether a file is DICOM or NIfTI."""
    return _is_dicom(content) or _is_nifti(content) or content.startswith(_GZIP)


def decode(content: bytes) -> NDArray[np.uint8]:
    """Decode DICOM or NIfTI to uint8 [height, width] or [height, width, 3].

    Raises ImportError where the library is missing, CompressionError, and many types where it can't
    read the file.

    Guarantee: a function of the content alone. The libraries' warnings, which may quote it, are
    dropped; the text of an error may quote it too.
    """
    for library in ("pydicom", "nibabel.global"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        if _is_dicom(content):
            return _decode_dicom(content)
        if not _is_nifti(content):
            raise ValueError("neither DICOM nor NIfTI")
        return _decode_nifti(content)


def _is_dicom(content: bytes) -> bool:
    return content[128:132] == b"DICM"


def _is_nifti(content: bytes) -> bool:
    return content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0"


def _decode_dicom(content: bytes) -> NDArray[np.uint8]:
    import pydicom
    from pydicom.pixels import (
        apply_color_lut,
        apply_modality_lut,
        apply_voi_lut,
        get_decoder,
        pixel_array,
    )

    data = pydicom.dcmread(io.BytesIO(content))
    if not get_decoder(data.file_meta.TransferSyntaxUID).is_available:
        raise CompressionError
    middle = int(data.get("NumberOfFrames") or 1) // 2
    frame = pixel_array(data, index=middle)  # colours as RGB
    if data.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, data)[..., :3]
        return _scale(frame, 0, np.iinfo(frame.dtype).max)
    if frame.ndim == 3:
        return _scale(frame, 0, 2**data.BitsStored - 1)
    _take_frame_settings(data, middle)
    values = apply_modality_lut(frame, data)
    if data.get("VOILUTSequence"):
        low, high = 0, 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
        values = apply_voi_lut(np.rint(values).astype(np.int64), data)
    elif data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        low, high = apply_voi_lut(np.array([-1e12, 1e12]), data)  # what lies outside of the window
        values = apply_voi_lut(values, data)
    elif data.BitsStored <= 8:
        first = -(2 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0
        ends = np.array([first, first + 2**data.BitsStored - 1]).astype(frame.dtype)
        low, high = np.sort(apply_modality_lut(ends, data))
    else:
        low, high = values.min(), values.max()
    scaled = _scale(values, low, high)
    return 255 - scaled if data.PhotometricInterpretation == "MONOCHROME1" else scaled


def _take_frame_settings(data: Any, frame: int) -> None:
    """Put what an enhanced object says of a frame's values where a plain one says it."""
    groups = [*(data.get("SharedFunctionalGroupsSequence") or [])[:1]]
    groups += (data.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for element in (group.get(name) or [{}])[0]:
                data.add(element)


def _decode_nifti(content: bytes) -> NDArray[np.uint8]:
    import nibabel

    kind = nibabel.Nifti2Image if content[4:8] == b"n+2\0" else nibabel.Nifti1Image
    image = nibabel.as_closest_canonical(kind.from_bytes(content))
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    place = [size // 2 if axis == 2 else 0 for axis, size in enumerate(image.shape)][2:]
    piece = np.asarray(image.dataobj[(slice(None), slice(None), *place)])
    values = np.rot90(piece)  # the patient's front above, the left side at the left
    if values.dtype.names:  # red, green, blue, each of 8 bits
        return np.stack([values[name] for name in values.dtype.names[:3]], axis=-1)
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return _scale(values, low, high) if high > low else _scale(values, values.min(), values.max())


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Scale low..high to 0..255; what lies outside is cut off."""
    span = float(high) - float(low)
    shares = (values.astype(np.float64) - low) / (span or 1)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
