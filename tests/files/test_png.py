"""PNG: pillow, which wrote none of it, reads the same pixels."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pe_ray.files.png import encode_png

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))


def read_png(content):
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.mode in ("L", "RGB")
        return np.asarray(image).reshape(image.height, image.width, -1)


@given(arrays(np.uint8, SHAPES))
def test_pillow_reads_what_was_written(image):
    assert np.array_equal(read_png(encode_png(image)), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["flat", "gradient", "noise"])
def test_drawings_and_photographs_alike(kind, channels):
    rng = np.random.default_rng(0)
    image = {
        "flat": np.full((40, 30, channels), 200),
        "gradient": np.add.outer(np.arange(40), np.arange(30))[:, :, None].repeat(channels, 2),
        "noise": rng.integers(0, 256, (40, 30, channels)),
    }[kind].astype(np.uint8)
    content = encode_png(image)
    assert np.array_equal(read_png(content), image)
    if kind != "noise":
        assert len(content) < image.size / 4


def test_views_are_encoded_as_they_look():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    assert np.array_equal(read_png(encode_png(image[::-1, ::2])), image[::-1, ::2])
