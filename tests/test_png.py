"""Grey PNG images: every filter undone, the bytes worked by hand, every fault named."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from jaxmlp.data.png import decode_pngs, encode_png

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(shape, filtered, header=(8, 0, 0, 0, 0), between=b"", pieces=1):
    """A PNG file from its filtered rows, written from the format's description."""
    packed = zlib.compress(bytes(filtered))
    cuts = [len(packed) * piece // pieces for piece in range(pieces + 1)]
    data = b"".join(chunk(b"IDAT", packed[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
    start = chunk(b"IHDR", struct.pack(">II5B", shape[1], shape[0], *header))
    return SIGNATURE + start + between + data + chunk(b"IEND", b"")


def filtered(image, kinds):
    """The rows under the named filters, pixel by pixel as the specification's section 9 says."""
    image = image.astype(int)
    result = []
    for r, kind in enumerate(kinds):
        result.append(kind)
        for i in range(image.shape[1]):
            a = image[r, i - 1] if i else 0
            b = image[r - 1, i] if r else 0
            c = image[r - 1, i - 1] if r and i else 0
            # min takes the first of equals: a before b before c
            paeth = min((a, b, c), key=lambda value: abs(a + b - c - value))  # noqa: B023
            result.append(int(image[r, i] - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
    return result


IMAGES = numpy_strategies.arrays(
    np.uint8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=6)
)


@given(IMAGES)
def test_what_was_written_is_read_back(image):
    read = decode_pngs([encode_png(image)], image.shape)
    np.testing.assert_array_equal(read, image[None])
    assert read.dtype == np.uint8


@given(st.data())
def test_every_filter_is_undone_whatever_other_images_use(data):
    images = data.draw(
        numpy_strategies.arrays(
            np.uint8, numpy_strategies.array_shapes(min_dims=3, max_dims=3, max_side=5)
        )
    )
    shape = images.shape[1:]
    rows = st.lists(st.integers(0, 4), min_size=shape[0], max_size=shape[0])
    files = [png(shape, filtered(image, data.draw(rows))) for image in images]
    np.testing.assert_array_equal(decode_pngs(files, shape), images)


def test_an_image_worked_by_hand_is_read():
    # Row 1 under filter 1 (sub): 10, 10 + 250 = 260 → 4. Row 2 under filter 4 (Paeth): the first
    # pixel has a = c = 0 and b = 10, so a + b − c = 10 is b itself: 10 + 1. The second has a = 11,
    # b = 4, c = 10: 11 + 4 − 10 = 5, nearest to b = 4, so 4 + 255 = 259 → 3.
    file = png((2, 2), [1, 10, 250, 4, 1, 255])
    assert decode_pngs([file], (2, 2)).tolist() == [[[10, 4], [11, 3]]]


def test_other_chunks_are_passed_over_and_the_pixels_may_lie_in_several():
    file = png((1, 3), [0, 7, 8, 9], between=chunk(b"tEXt", b"Comment\0none"), pieces=3)
    assert decode_pngs([file], (1, 3)).tolist() == [[[7, 8, 9]]]


def test_no_files_are_no_images():
    assert decode_pngs([], (2, 3)).shape == (0, 2, 3)


WHOLE = png((1, 3), [0, 7, 8, 9])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (b"", "expected a PNG file, got one that begins with "),
        (b"\xff\xd8\xff\xe0" + bytes(8), "expected a PNG file, got one that begins with ff d8 ff "),
        (SIGNATURE, "expected a whole PNG file, got one without its end"),
        (WHOLE[:-12], "expected a whole PNG file, got one without its end"),
        (WHOLE[:-13], "expected an intact chunk b'IDAT', got a damaged or cut-off one"),
        (WHOLE.replace(b"IEND", b"IENE"), "expected an intact chunk b'IENE', got a damaged or "),
        (png((3, 1), [0, 7, 0, 8, 0, 9]), "expected a grey image of eight bits and shape (1, 3), "),
        (png((1, 3), [0, 7, 8, 9], (8, 2, 0, 0, 0)), "expected a grey image of eight bits and "),
        (SIGNATURE + chunk(b"IEND", b""), "expected a grey image of eight bits and shape (1, 3), "),
        (png((1, 3), [0, 7, 8]), "expected 4 bytes of filtered rows, got 3"),
        (png((1, 3), [0, 7, 8, 9, 0]), "expected 4 bytes of filtered rows, got more"),
        (png((1, 3), [5, 7, 8, 9]), "expected filters 0 to 4, got 5"),
        (
            WHOLE[:33] + chunk(b"IDAT", b"none") + chunk(b"IEND", b""),
            "expected intact pixels, got damaged ones (",
        ),
    ],
    ids=[
        *["empty", "a JPEG", "the signature alone", "no end", "cut off", "a wrong checksum"],
        *["another shape", "colours", "no header", "a pixel short", "a pixel more"],
        *["an unknown filter", "no compressed stream"],
    ],
)
def test_a_file_of_another_kind_is_named_by_its_place(file, expected):
    with pytest.raises(ValueError, match="^image 1: ") as caught:
        decode_pngs([WHOLE, file], (1, 3))
    assert str(caught.value).startswith(f"image 1: {expected}")


def test_no_flipped_bit_changes_the_image():
    for bit in range(8 * len(WHOLE)):
        flipped = bytearray(WHOLE)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="^image 0: "):
            decode_pngs([bytes(flipped)], (1, 3))
