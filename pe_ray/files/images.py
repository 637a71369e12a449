"""Stored images: decode them to uint8 [height, width, channels], and resize them.

Grey is PIL's "L" (ITU-R BT.601 luma). Alpha is composited on black. EXIF orientation is applied.
The first frame of an animation counts. 16-bit grey keeps its high byte.

Private records and public images are decoded by the same functions. They keep, write and log
nothing. An error's text is one of a fixed few, so it carries no content.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pe_ray.files.storage import Location
from pe_ray.values import ImageShape

# PIL decodes these inside this process; it gives others (EPS) to outside programs.
_FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = frozenset(suffix for suffixes in _FORMATS.values() for suffix in suffixes)


class Unusable(Exception):
    """An image or its record can't be used; `reason` says why, without content."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_image(name: str) -> bool:
    """Tell by its ending whether a file is an image; name: its path below the data's folder.

    It is none if the file, or a folder in the path, is hidden.
    """
    hidden = name.startswith(".") or "/." in name
    return not hidden and os.path.splitext(name)[1].lower() in SUFFIXES


def read_content(file: Location) -> bytes | None:
    """Read an image's file; None, as for a missing image, if it can't be read."""
    try:
        return file.read_bytes()
    except OSError:
        return None


def explain_unsupported(kind: pa.DataType) -> str | None:
    """Say why an image column of this type can't be read, and the fix; None if it can.

    Guarantee: depends on the schema only.
    """
    shape, item = _layout(kind)
    if not shape and _is_encoded(item):
        return None
    if isinstance(kind, pa.FixedShapeTensorType):
        order = list(kind.permutation or range(len(kind.shape)))
        if order != sorted(order):
            return f"holds {kind}; store it without a permutation"
    if not shape or not (item == pa.uint8() or pa.types.is_floating(item)):
        return f"holds {kind}; use encoded images, or tensors of uint8 or of floats in [0, 1]"
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)):
        return f"holds {kind}; use tensors [height, width] or [height, width, 1, 3 or 4]"
    return None


def _layout(kind: pa.DataType) -> tuple[tuple[int, ...], pa.DataType]:
    """Return shape [h, w(, c)] and item type of tensors; () and the type of encoded images."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return tuple(kind.shape), kind.value_type
    shape: tuple[int, ...] = ()
    while pa.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    return shape, kind


def _is_encoded(kind: pa.DataType) -> bool:
    """Tell whether the type is binary, or the struct {bytes, path} of Hugging Face datasets."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_encoded(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def list_stored(column: pa.Array) -> Sequence[bytes | NDArray[Any] | None]:
    """List the encoded bytes, or tensors [h, w] or [h, w, c], of a batch; None if missing.

    Guarantee: none; this is the content, so that of private records is for zone 1 only.
    """
    shape, item = _layout(column.type)
    if not shape:
        values = column.to_pylist()
        if pa.types.is_struct(column.type):
            return [None if value is None else value["bytes"] for value in values]
        return list(values)
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    valid = storage.drop_null()
    flat = valid.flatten()
    missing = [flat.null_count]
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.flatten()
        missing.append(flat.null_count)
    if sum(missing):  # rare, and the caller refuses it: find the row the slow way
        return [_to_array(value.as_py(), shape, item) for value in storage]
    tensors = iter(flat.to_numpy(zero_copy_only=False).reshape(len(valid), *shape))
    return [next(tensors) if here else None for here in storage.is_valid().to_pylist()]


def _to_array(value: Any, shape: tuple[int, ...], item: pa.DataType) -> NDArray[Any] | None:
    """Convert a nested list; None if it, or an integer in it, is missing (a float: NaN)."""
    try:
        return np.asarray(value, dtype=item.to_pandas_dtype()).reshape(shape)
    except (TypeError, ValueError):
        return None


def decode_image(value: bytes | NDArray[Any] | None, channels: int) -> NDArray[np.uint8]:
    """Decode a stored image to uint8 [h, w, channels]; raise Unusable if that can't be done.

    Guarantee: a function of this value alone; an error's reason is one of a fixed few.
    """
    if value is None:
        raise Unusable("image is missing")
    image = _from_bytes(value) if isinstance(value, bytes) else _from_tensor(value)
    try:
        if image.has_transparency_data:
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA")
            )
        converted = image.convert("L" if channels == 1 else "RGB")
    except ValueError:  # PIL can't convert CIELAB, for example
        raise Unusable("image's colours can't be converted") from None
    return np.asarray(converted).reshape(image.height, image.width, channels)


def _from_bytes(content: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=list(_FORMATS))
            image.load()
            kind = image.format
            image = ImageOps.exif_transpose(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise Unusable("image has too many pixels") from None
        except Exception:  # decoders raise many types, and their texts may quote the file
            raise Unusable("image can't be decoded") from None
    if image.mode.startswith("I;16"):  # PIL's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and kind == "PPM":  # PIL scales it to 16 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise Unusable("image has 32-bit pixels; use 8 or 16")
    return image


def _from_tensor(values: NDArray[Any]) -> Image.Image:
    if values.size == 0:
        raise Unusable("image has no pixels")
    if values.dtype != np.uint8:
        if not np.isfinite(values).all():
            raise Unusable("image has a non-finite value")
        if values.min() < 0 or values.max() > 1:
            raise Unusable("float image has a value outside [0, 1]")
        values = np.rint(values * 255).astype(np.uint8)
    return Image.fromarray(values[:, :, 0] if values.shape[2:] == (1,) else values)


def label_position(value: Any, names: Sequence[str]) -> int | None:
    """Return the position in `names` of a stored label; None if it is not one of them.

    Integers match names if all names are numbers, and are positions otherwise.
    """
    if isinstance(value, int) and not all(name.isdecimal() for name in names):
        return value if 0 <= value < len(names) else None
    found = value is not None and str(value) in names
    return list(names).index(str(value)) if found else None


def resize(image: NDArray[np.uint8], shape: ImageShape) -> NDArray[np.uint8]:
    """Stretch one image, uint8 [h, w, c], to `shape` (Pillow's bicubic, with antialiasing)."""
    return _resample(image, shape.width, shape.height, Image.Resampling.BICUBIC)


def crop_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cut one image to the square in its middle and resize that (Pillow's Lanczos)."""
    height, width, _ = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    return square if side == size else _resample(square, size, size, Image.Resampling.LANCZOS)


def _resample(
    image: NDArray[np.uint8], width: int, height: int, method: Image.Resampling
) -> NDArray[np.uint8]:
    channels = image.shape[2]
    made = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    return np.asarray(made.resize((width, height), method)).reshape(height, width, channels)
