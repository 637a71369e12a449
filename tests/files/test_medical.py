"""DICOM and NIfTI become the pictures that their headers describe."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pe_ray import InputError
from pe_ray.files.image_batches import read_images
from pe_ray.files.image_shards import find_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.images import Unusable, decode_image
from pe_ray.values import Framing, ImageShape

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

CT = np.array([[0, 1000, 1024], [1064, 1100, 4000]], np.uint16)
"""Stored values; with CT's usual rescaling by -1024 these are -1024, -24, 0, 40, 76, 2976 HU."""


def dicom(pixels: np.ndarray, kind: str = "MONOCHROME2", bits: int = 12, **elements: Any) -> bytes:
    """Encode pixels [h, w], [frames, h, w] or [h, w, 3] as an uncompressed DICOM file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    colours = pixels.shape[-1] == 3 and kind not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    made.SamplesPerPixel = 3 if colours else 1
    if colours:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = kind
    made.Rows, made.Columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    if pixels.ndim == 3 and not colours:
        made.NumberOfFrames = len(pixels)
    made.BitsAllocated = pixels.dtype.itemsize * 8
    made.BitsStored, made.HighBit = bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    sink = io.BytesIO()
    made.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def grey(content: bytes) -> list[list[int]]:
    return decode_image(content, 1)[..., 0].tolist()


def test_a_window_of_hounsfield_units() -> None:
    """PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5), here of c = 40, w = 400."""
    windows = {"WindowCenter": [40, 500], "WindowWidth": [400, 2000]}  # the first counts
    units = CT.astype(float) - 1024
    share = np.clip((units - 39.5) / 399 + 0.5, 0, 1)
    expected = np.rint(share * 255).astype(int).tolist()
    assert grey(dicom(CT, **HOUNSFIELD, **windows)) == expected
    inverted = [[255 - value for value in row] for row in expected]
    assert grey(dicom(CT, "MONOCHROME1", **HOUNSFIELD, **windows)) == inverted
    signed = dicom((CT.astype(int) - 1024).astype(np.int16), bits=16, **windows)
    assert grey(signed) == expected


def test_without_a_window_deep_grey_reaches_from_its_least_to_its_most() -> None:
    expected = np.rint(CT / 4000 * 255).astype(int).tolist()
    assert grey(dicom(CT)) == expected
    assert grey(dicom(CT, **HOUNSFIELD)) == expected
    eight = np.array([[10, 20], [30, 40]], np.uint8)
    assert grey(dicom(eight, bits=8)) == eight.tolist()
    assert grey(dicom(eight, "MONOCHROME1", bits=8)) == (255 - eight).tolist()


def test_a_lookup_table_is_a_window_too() -> None:
    from pydicom.dataset import Dataset

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [3, 1000, 10], [0, 1023, 512]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[999, 1000, 1001, 1002, 2000]], np.uint16)
    assert grey(dicom(pixels, VOILUTSequence=[table])) == [[0, 0, 255, 128, 128]]


def test_colours(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert np.array_equal(decode_image(dicom(picture, "RGB", bits=8), 3), picture)
    brightness = np.asarray(Image.fromarray(picture).convert("YCbCr"))
    decoded = decode_image(dicom(brightness, "YBR_FULL", bits=8), 3)
    assert np.abs(decoded.astype(int) - picture).max() <= 2
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, entries in (("Red", [0, 65535]), ("Green", [0, 32768]), ("Blue", [65535, 0]))
        for part, value in (
            ("Descriptor", [2, 0, 16]),
            ("Data", np.array(entries, np.uint16).tobytes()),
        )
    }
    decoded = decode_image(dicom(np.array([[0, 1]], np.uint8), "PALETTE COLOR", 8, **palette), 3)
    assert decoded.tolist() == [[[0, 0, 255], [255, 128, 0]]]


def test_of_several_frames_the_middle_one() -> None:
    from pydicom.dataset import Dataset

    frames = np.stack([np.full((2, 2), value, np.uint8) for value in (10, 20, 30)])
    assert grey(dicom(frames, bits=8)) == [[20, 20], [20, 20]]
    groups = []
    for center in (1, 20, 1):  # of an enhanced object, each frame has its own window
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, 40, "LINEAR_EXACT"
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    content = dicom(frames, bits=8, PerFrameFunctionalGroupsSequence=groups)
    assert grey(content) == [[128, 128], [128, 128]]


def test_a_compression_that_nothing_decodes_is_named() -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless

    made = pydicom.dcmread(io.BytesIO(dicom(CT)))
    made.file_meta.TransferSyntaxUID = JPEGLSLossless
    made.PixelData = encapsulate([b"secret"])
    sink = io.BytesIO()
    made.save_as(sink)
    with pytest.raises(Unusable, match=r"compression .*pydicom"):
        decode_image(sink.getvalue(), 1)


def nifti(values: np.ndarray, affine: np.ndarray | None = None, **header: float) -> bytes:
    made = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        made.header[name] = value
    content: bytes = made.to_bytes()
    return content


VOLUME = np.arange(2 * 3 * 5, dtype=np.int16).reshape(2, 3, 5)


def test_a_volumes_middle_slice_is_seen_from_its_front() -> None:
    """Rows from the patient's front to the back, columns from left to right, in any storage."""
    middle = VOLUME[:, :, 2]  # [left to right, back to front]
    span = middle.max() - middle.min()
    expected = np.rint((middle.T[::-1] - middle.min()) / span * 255).astype(int).tolist()
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])
    for content in (nifti(VOLUME), nifti(VOLUME[::-1], turned), nifti(VOLUME[..., None])):
        assert grey(content) == expected
        assert grey(gzip.compress(content)) == expected
    axes = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    assert grey(nifti(VOLUME.transpose(1, 2, 0), axes)) == expected
    assert grey(nibabel.Nifti2Image(VOLUME, np.eye(4)).to_bytes()) == expected
    assert grey(nifti(VOLUME[:, :, 2])) == expected


def test_a_volume_may_say_its_range() -> None:
    middle = VOLUME[:, :, 2].T[::-1]
    expected = np.rint(np.clip((middle - 7) / 10, 0, 1) * 255).astype(int).tolist()
    assert grey(nifti(VOLUME, cal_min=7, cal_max=17)) == expected
    assert grey(nifti(np.full((2, 2, 2), 5, np.int16))) == [[0, 0], [0, 0]]
    colours = np.zeros((2, 2, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours[1, 1, 0] = (200, 100, 50)
    assert decode_image(nifti(colours), 3)[0, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: dicom(CT)[:-8],
        lambda: dicom(CT, PatientName="secret", Rows=9),
        lambda: dicom(CT, WindowCenter=1, WindowWidth=0, PatientBirthDate="1900-secret"),
        lambda: nifti(VOLUME)[:-45],
        lambda: gzip.compress(b"secret"),
        lambda: nifti(np.full((2, 2, 2), np.nan, np.float32)),
        lambda: b"\0" * 128 + b"DICM" + b"secret" * 9,
    ],
)
def test_errors_quote_nothing(
    spoil: Callable[[], bytes], capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    content = spoil()
    recwarn.clear()
    capfd.readouterr()
    with pytest.raises(Unusable) as caught:
        decode_image(content, 1)
    assert caught.value.reason == "image can't be decoded"
    assert caught.value.__suppress_context__
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def write_slices(folder: Path) -> None:
    for label, content, name in (
        ("ct", dicom(CT), "1.2.840.DCM"),
        ("ct", dicom(CT, "MONOCHROME1"), "b.dicom"),
        ("mr", nifti(VOLUME), "c.nii"),
        ("mr", gzip.compress(nifti(VOLUME[::-1])), "sub-01.T1.nii.gz"),
    ):
        (folder / label).mkdir(exist_ok=True)
        (folder / label / name).write_bytes(content)


def table(data: Path) -> ImageTable:
    return ImageTable(block="private", private=True, data=str(data), labels=("ct", "mr"))


def test_class_folders_of_slices(tmp_path: Path) -> None:
    """One file is one record. A file without an ending isn't read, but may be listed."""
    write_slices(tmp_path)
    (tmp_path / "ct" / "IM0001").write_bytes(dicom(CT))
    framing = Framing(shape=ImageShape(height=4, width=4, channels=1))
    images, labels = read_images(table(tmp_path), framing)
    assert labels.tolist() == [0, 0, 1, 1]
    assert len({image.tobytes() for image in images}) == 4
    assert find_shards(table(tmp_path)).passed_over == {"neither images nor tables": ["ct/IM0001"]}
    (tmp_path / "metadata.csv").write_text("file_name,label\nct/IM0001,ct\nmr/c.nii,mr\n")
    assert read_images(table(tmp_path), framing)[1].tolist() == [0, 1]
    only = tmp_path / "only"
    (only / "ct").mkdir(parents=True)
    (only / "ct" / "IM0001").write_bytes(dicom(CT))
    with pytest.raises(InputError, match=r"^private\.data: .*'ct'.*ends as"):
        find_shards(table(only))


@pytest.mark.parametrize(
    ("library", "name"), [("pydicom", "ct/1.2.840.DCM"), ("nibabel", "mr/c.nii")]
)
def test_without_the_extra_the_error_names_it(tmp_path: Path, library: str, name: str) -> None:
    write_slices(tmp_path)
    code = f"""
import sys
sys.modules[{library!r}] = None
from pathlib import Path
from pe_ray import InputError
from pe_ray.files.image_shards import find_shards
from pe_ray.files.image_tables import ImageTable
from pe_ray.files.images import Unusable, decode_image
table = ImageTable(block="private", private=True, data={str(tmp_path)!r}, labels=("ct", "mr"))
try:
    find_shards(table)
except InputError as error:
    print(error)
try:
    decode_image(Path({str(tmp_path / name)!r}).read_bytes(), 1)
except Unusable as error:
    print(error.reason)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    of_folder, of_image = done.stdout.splitlines()
    assert of_folder.startswith(f"private.data: {name}: ")
    assert of_folder.endswith("pip install 'pe_ray[medical]'")
    assert of_image.endswith("pip install 'pe_ray[medical]'")
