"""Stored images: decode them to uint8 [height, width, channels] of one shape.

Private records, public images and references are decoded by the same functions, so that equal
pictures become equal arrays (docs/storage.md has a table of what is done to each kind). They keep,
write and log nothing. An error's text is one of a fixed few, so it carries no content.
"""

from __future__ import annotations

import io
import mimetypes
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from pe_ray.files import medical
from pe_ray.values import Framing, ImageShape

# Pillow gives these to outside programs, or can't decode their pixels.
_NOT_DECODED = frozenset({"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"})
_BITS_PER_SAMPLE, _PHOTOMETRIC, _MOST_SAMPLE = 258, 262, 281  # tags of TIFF
_WHITE_IS_ZERO = 0


class Readable(Protocol):
    """A file, or a piece of one, that holds an image."""

    def read_bytes(self) -> bytes: ...


StoredImage = bytes | NDArray[Any] | Readable | None
"""An encoded image, a tensor [h, w] or [h, w, c], where to read an encoded one, or nothing."""


class Unusable(Exception):
    """An image or its record can't be used; `reason` says why, without content."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@lru_cache
def _list_kinds() -> dict[str, str]:
    """Return ending -> format of all that the installed Pillow decodes, in small letters."""
    Image.init()
    kinds = Image.registered_extensions().items()
    return {end: kind for end, kind in kinds if kind in Image.OPEN and kind not in _NOT_DECODED}


@lru_cache
def list_suffixes() -> frozenset[str]:
    """Return the endings of images that are decoded here, in small letters."""
    return frozenset({*_list_kinds(), *medical.list_endings()})


def is_image(name: str) -> bool:
    """Tell by its ending whether a file is an image that is decoded here."""
    stem, ending = os.path.splitext(name.lower())
    if ending == ".gz":
        ending = f"{os.path.splitext(stem)[1]}.gz"
    return ending in list_suffixes()


def is_undecoded_image(name: str) -> bool:
    """Tell by its ending whether a file is an image or a film that isn't decoded here."""
    kind, _ = mimetypes.guess_type(name.lower())
    known = kind is not None and kind.startswith(("image/", "video/"))
    return not is_image(name) and (known or name.lower().endswith(_OTHER_IMAGES))


def explain_undecoded(name: str) -> str:
    """Say what to do about a file that `is_undecoded_image`."""
    if name.lower().endswith(medical.ENDINGS):
        return f"is a medical image; {medical.EXTRA}"
    return (
        "can't be decoded by what is installed here; convert, or give it a name that begins with a "
        "dot if it is no data"
    )


_OTHER_IMAGES = (
    *(".heic", ".heif", ".jxl", ".jxr", ".exr", ".hdr", ".svg", ".eps"),
    *(".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf"),
    *medical.ENDINGS,
)


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
    if not shape or not (item in (pa.uint8(), pa.bool_()) or pa.types.is_floating(item)):
        return (
            f"holds {kind}; use encoded images, or tensors of booleans, uint8 or floats in [0, 1]"
        )
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
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FramedImage:
    """An image in the run's shape, and what was stored: its sides and its kind of pixels.

    mode: Pillow's name of it; of a tensor the name of its numbers.
    """

    pixels: NDArray[np.uint8]
    height: int
    width: int
    mode: str


def frame_image(value: StoredImage, framing: Framing) -> NDArray[np.uint8]:
    """Decode a stored image and bring it to the shape of the run's (see `inspect_image`)."""
    return inspect_image(value, framing).pixels


def inspect_image(value: StoredImage, framing: Framing) -> FramedImage:
    """Decode a stored image and bring it to the shape of the run's; raise Unusable if need be.

    Guarantee: a function of this value alone; an error's reason is one of a fixed few.
    """
    picture, mode = _open(value)
    image = _convert(picture, framing.shape.channels, framing.background)
    height, width, _ = image.shape
    return FramedImage(pixels=fit_image(image, framing), height=height, width=width, mode=mode)


def fit_image(image: NDArray[np.uint8], framing: Framing) -> NDArray[np.uint8]:
    """Bring one image, uint8 [h, w, c], to the shape of the run's, by Pillow's Lanczos.

    crop: cut it to the shape's proportions in the middle. pad: add background on two sides.
    stretch: change its proportions.
    """
    shape = framing.shape
    if image.shape[:2] == (shape.height, shape.width):
        return image
    picture, size = to_pillow(image), (shape.width, shape.height)
    if framing.resize == "crop":
        fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif framing.resize == "pad":
        ground = ImageColor.getcolor(framing.background, picture.mode)
        fitted = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=ground)
    else:
        fitted = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(shape.height, shape.width, image.shape[2])


def decode_image(value: StoredImage, channels: int, background: str = "black") -> NDArray[np.uint8]:
    """Decode a stored image to uint8 [h, w, channels]; raise Unusable if that can't be done.

    background: the colour that is seen through what is transparent.

    Guarantee: a function of this value alone; an error's reason is one of a fixed few.
    """
    image, _ = _open(value)
    return _convert(image, channels, background)


def _open(value: StoredImage) -> tuple[Image.Image, str]:
    """Return a stored image with 8 bits a sample, and its kind of pixels as stored."""
    if isinstance(value, np.ndarray):
        return from_tensor(value), str(value.dtype)
    return _from_bytes(_read(value))


def _convert(image: Image.Image, channels: int, background: str) -> NDArray[np.uint8]:
    try:
        if image.has_transparency_data:
            ground = Image.new("RGBA", image.size, ImageColor.getrgb(background))
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        converted = image.convert("L" if channels == 1 else "RGB")
    except ValueError:  # PIL can't convert CIELAB, for example
        raise Unusable("image's colours can't be converted") from None
    return np.asarray(converted).reshape(image.height, image.width, channels)


def _read(value: bytes | Readable | None) -> bytes:
    try:
        content = value if value is None or isinstance(value, bytes) else value.read_bytes()
    except OSError:
        content = None
    if content is None:
        raise Unusable("image is missing")
    return content


def _from_bytes(content: bytes) -> tuple[Image.Image, str]:
    if medical.is_medical(content):
        return _from_medical(content), "medical"
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(
                io.BytesIO(content), formats=[*dict.fromkeys(_list_kinds().values())]
            )
            image.load()
            return normalize(image), image.mode
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise Unusable("image has too many pixels") from None
        except Unusable:
            raise
        except Exception:  # decoders raise many types, and their texts may quote the file
            raise Unusable("image can't be decoded") from None


def _from_medical(content: bytes) -> Image.Image:
    try:
        return to_pillow(medical.decode(content))
    except ImportError:
        raise Unusable(f"image is a medical one: {medical.EXTRA}") from None
    except medical.CompressionError:
        raise Unusable(
            "image's compression needs a plugin of pydicom, such as python-gdcm"
        ) from None
    except Exception:  # many types, and their texts may quote the file
        raise Unusable("image can't be decoded") from None


def normalize(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says and scale deep grey to 8 bits; raise Unusable if need be."""
    tags = getattr(image, "tag_v2", {})
    return _scale_deep(ImageOps.exif_transpose(image), image.format, tags)


def _scale_deep(image: Image.Image, kind: str | None, tags: Mapping[int, Any]) -> Image.Image:
    """Scale grey of 12 or 16 bits to 8, with white at 255; return others as they are.

    Pillow's own conversion would clip at 255, and takes no notice of what zero stands for.
    tags: of a TIFF.
    """
    if image.mode.startswith("I;16"):
        most = _first(tags.get(_MOST_SAMPLE)) or 2 ** (_first(tags.get(_BITS_PER_SAMPLE)) or 16) - 1
    elif image.mode == "I" and kind in ("PPM", "PNG"):  # Pillow scales it to 16 bits
        most = 2**16 - 1
    elif image.mode in ("I", "F"):
        raise Unusable("image has 32-bit pixels; use 8 or 16")
    else:
        return image
    values = np.clip(np.asarray(image).astype(np.float64), 0, most)
    if _first(tags.get(_PHOTOMETRIC)) == _WHITE_IS_ZERO:
        values = most - values
    return Image.fromarray(np.rint(values * (255 / most)).astype(np.uint8))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def from_tensor(values: NDArray[Any]) -> Image.Image:
    """Convert uint8, booleans or floats in [0, 1] to an image; raise Unusable if need be."""
    if values.size == 0:
        raise Unusable("image has no pixels")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype != np.uint8:
        if not np.isfinite(values).all():
            raise Unusable("image has a non-finite value")
        if values.min() < 0 or values.max() > 1:
            raise Unusable("float image has a value outside [0, 1]")
        values = np.rint(values * 255).astype(np.uint8)
    elif values.max() == 1:
        raise Unusable("image of bytes has no value but 0 and 1; store booleans, or 0 and 255")
    return to_pillow(values)


def to_pillow(image: NDArray[np.uint8]) -> Image.Image:
    """Return an image, uint8 [height, width] or [height, width, channels], as pillow has it."""
    return Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)


def resize(image: NDArray[np.uint8], shape: ImageShape) -> NDArray[np.uint8]:
    """Stretch one image, uint8 [h, w, c], to `shape` (Pillow's bicubic, with antialiasing)."""
    made = to_pillow(image).resize((shape.width, shape.height), Image.Resampling.BICUBIC)
    return np.asarray(made).reshape(shape.height, shape.width, shape.channels)
