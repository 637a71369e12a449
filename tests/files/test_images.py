"""Stored images become uint8 pixels as documented, or are refused with a fixed reason."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image
from whole_slices import list_slices, read_slice

from pe_ray.config.blocks import PrivateConfig
from pe_ray.errors import InputError, RecordError
from pe_ray.files import images
from pe_ray.files.images import Unusable, decode_image, frame_image
from pe_ray.values import Framing, ImageShape, Resize

TINY = ImageShape(height=2, width=2, channels=1)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def read(folder: Path, image: pa.Array, **changes: Any) -> list[np.ndarray]:
    file = folder / "records.parquet"
    pq.write_table(pa.table({"image": image, "split": ["a"] * len(image)}), file)
    config = PrivateConfig(data=str(file), labels=("all",), label_column=None, **changes)
    return [im for part in list_slices(config) for im in read_slice(part, config, TINY).images]


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    image = Image.fromarray(np.array([[0, 20000, 65535]], dtype=np.uint16))
    assert decode_image(encoded(image), 1).ravel().tolist() == [0, 78, 255]


def test_images_of_every_ending_that_pillow_writes_are_read(tmp_path: Path) -> None:
    """In capitals too. Formats that Pillow reads but doesn't write can't be tried here."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) // 32 * 255
    (tmp_path / "a").mkdir()
    for number, end in enumerate(sorted(images.list_suffixes() - {".pfm"})):  # .pfm holds floats
        image = Image.fromarray(grey).convert("1" if end in (".pbm", ".xbm", ".msp") else "L")
        content = io.BytesIO()
        try:
            image.save(content, format=Image.registered_extensions()[end])
        except (KeyError, OSError, ValueError):
            continue
        name = f"{number:02d}{end.upper() if number % 2 else end}"
        (tmp_path / "a" / name).write_bytes(content.getvalue())
    config = PrivateConfig(data=str(tmp_path), labels=("a",))
    (part,) = list_slices(config)
    assert {".png", ".jpg", ".tif", ".webp", ".avif", ".jp2", ".bmp", ".gif"} <= {
        Path(name).suffix.lower() for name in part.names
    }
    for image in read_slice(part, config, ImageShape(height=8, width=8, channels=1)).images:
        assert np.abs(image[..., 0].astype(int) - grey).max() < 40  # some lose a little


def tiff(values: np.ndarray, bits: int, photometric: int, most: int | None = None) -> bytes:
    """A grey TIFF of one strip, which Pillow can't write."""
    data = values.astype("<u2").tobytes()
    height, width = values.shape
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8)]
    entries += [(277, 1), (278, height), (279, len(data))] + ([(281, most)] if most else [])
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries))
    tags = (struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    return head + b"".join(tags) + b"\0\0\0\0"


@pytest.mark.parametrize(
    ("most", "stated", "photometric", "expected"),
    [
        (65535, None, 1, [0, 85, 255]),
        (65535, None, 0, [255, 170, 0]),
        (4095, 4095, 1, [0, 85, 255]),
    ],
)
def test_deep_grey_is_scaled_by_its_stated_depth(
    most: int, stated: int | None, photometric: int, expected: list[int]
) -> None:
    content = tiff(np.array([[0, most // 3, most]]), 16, photometric, stated)
    assert decode_image(content, 1).ravel().tolist() == expected


def test_bits_are_scaled_and_bytes_of_bits_are_refused() -> None:
    bits = np.eye(3, dtype=np.bool_)
    assert np.array_equal(decode_image(bits, 1)[..., 0], np.eye(3, dtype=np.uint8) * 255)
    with pytest.raises(Unusable, match="0 and 1"):
        decode_image(bits.astype(np.uint8), 1)
    assert not decode_image(np.zeros((3, 3), np.uint8), 1).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_other_proportions_are_cut_filled_or_changed(resize: Resize, channels: int) -> None:
    """A picture of three squares, white between black, in a square of a third of its width."""
    wide = np.zeros((30, 90), np.uint8)
    wide[:, 30:60] = 255
    shape = ImageShape(height=30, width=30, channels=channels)
    framing = Framing(shape=shape, resize=resize, background="white")
    made = frame_image(wide, framing)[..., 0]
    if resize == "crop":
        assert made.min() == 255
    elif resize == "stretch":
        assert made[:, [2, 15, 27]].tolist() == [[0, 255, 0]] * 30
    else:
        assert made[:9].min() == made[21:].min() == 255
        assert made[10:20, [2, 15, 27]].tolist() == [[0, 255, 0]] * 10
    assert frame_image(wide, framing).shape == (30, 30, channels)


def test_what_is_transparent_shows_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 255, 255, 255))
    assert decode_image(encoded(image), 3, "#0a141e")[0].tolist() == [[10, 20, 30], [255] * 3]


@pytest.mark.parametrize("high", [65535, 1023])
def test_sixteen_bit_pgm_keeps_its_high_byte(high: int) -> None:
    """PIL brings it to the range of 16 bits, in 32."""
    values = np.array([0, high // 3, high], dtype=">u2")
    content = f"P5\n3 1\n{high}\n".encode() + values.tobytes()
    assert decode_image(content, 1).ravel().tolist() == [0, 85, 255]


def test_transparent_is_black() -> None:
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    image.putpixel((1, 0), (255, 255, 255, 255))
    assert decode_image(encoded(image), 1).ravel().tolist() == [0, 255]
    assert decode_image(np.asarray(image), 3)[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    assert decode_image(encoded(image, exif=exif), 1).shape == (3, 2, 1)


def test_colours_that_pil_cant_convert_are_named() -> None:
    sink = io.BytesIO()
    Image.new("LAB", (4, 4)).save(sink, format="TIFF")
    with pytest.raises(Unusable, match="colours can't be converted"):
        decode_image(sink.getvalue(), 1)


def test_no_outside_program_and_no_other_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF"
    with pytest.raises(Unusable, match="can't be decoded"):
        decode_image(eps, 1)
    assert not started
    other = tmp_path / "other.png"
    other.write_bytes(encoded(Image.new("L", (2, 2))))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    with pytest.raises(RecordError, match="row 0: image is missing"):
        read(tmp_path, pa.array([{"bytes": None, "path": str(other)}], kind))


def test_pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (30, 30)))
    for limit in (600, 100):  # PIL warns above the limit and raises above twice
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(Unusable, match="too many pixels"):
            decode_image(content, 1)


@pytest.mark.parametrize("extension", [True, False])
def test_missing_tensor_names_its_row(tmp_path: Path, extension: bool) -> None:
    storage = pa.array([[0.5] * 4, None, [0.1] * 4], pa.list_(pa.float32(), 4))
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 2))
    if extension:
        image = pa.ExtensionArray.from_storage(kind, storage)
    else:
        image = pa.array([[[9, 0], [0, 1]], None], pa.list_(pa.list_(pa.uint8(), 2), 2))
    with pytest.raises(RecordError, match="row 1: image is missing"):
        read(tmp_path, image)


@pytest.mark.parametrize("where", [{"split": 1}, {"split": True}])
def test_where_of_another_type_is_refused(tmp_path: Path, where: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"private\.where\.split"):
        read(tmp_path, pa.array([encoded(Image.new("L", (2, 2)))]), where=where)


def test_a_slice_reads_only_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "records.parquet"
    image = pa.array([encoded(Image.new("L", (1, 1), row % 251)) for row in range(1000)])
    pq.write_table(pa.table({"image": image}), file, row_group_size=70)
    config = PrivateConfig(data=str(file), labels=("all",), label_column=None)
    asked: list[int] = []
    whole = pq.ParquetFile.iter_batches

    def watched(self: Any, *args: Any, row_groups: list[int], **kwargs: Any) -> Any:
        asked.extend(row_groups)
        return whole(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    one = ImageShape(height=1, width=1, channels=1)
    parts = [read_slice(part, config, one) for part in list_slices(config)]
    assert len(parts) == 4
    assert [int(im[0, 0, 0]) for part in parts for im in part.images] == [
        row % 251 for row in range(1000)
    ]
    assert np.array_equal(np.concatenate([part.rows for part in parts]), np.arange(1000))
    assert len(asked) <= 15 + 3
