"""Grey images of eight bits as PNG files, written and read without an imaging library.

A PNG file is a signature and chunks: a length, four letters, that many bytes and a checksum. For
these images the chunks are IHDR (the shape and the kind), IDAT (the rows, compressed) and IEND.
Before compression a row is a byte naming its filter, then for each pixel what the filter leaves of
it, modulo 256, given its neighbours a (left), b (above) and c (above left), 0 outside the image:

    0 none  x      1 sub  x − a      2 up  x − b      3 average  x − ⌊(a + b) / 2⌋
    4 Paeth  x − whichever of a, b, c is nearest to a + b − c, the first of them at a tie

We write filter 0 and read all five, which other writers choose from, row by row. Undoing them goes
through the pixels in order, but does each for all images at once.

References:
    W3C, Portable Network Graphics (PNG) Specification, sections 5 and 9.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY = (8, 0, 0, 0, 0)  # bits, colour type, compression, filter method, interlace


def encode_png(image: np.ndarray) -> bytes:
    """Return the PNG file of an image (rows, columns) of unsigned bytes.

    Args:
        image: The image, uint8.

    Returns:
        The file's bytes, the same for the same image and zlib.

    Example:
        >>> image = np.arange(6, dtype=np.uint8).reshape(2, 3)
        >>> decode_pngs([encode_png(image)], (2, 3)).tolist()
        [[[0, 1, 2], [3, 4, 5]]]
    """
    rows, columns = image.shape
    filtered = np.zeros((rows, columns + 1), np.uint8)
    filtered[:, 1:] = image
    header = struct.pack(">II5B", columns, rows, *_GREY)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def decode_pngs(files: Sequence[bytes], shape: tuple[int, int]) -> np.ndarray:
    """Return the images of PNG files that all have one shape.

    Args:
        files: The files' bytes.
        shape: (rows, columns) of each image.

    Returns:
        The images (N, rows, columns), uint8.

    Raises:
        ValueError: One is no PNG file, damaged, or not a grey image of eight bits and this shape.
    """
    rows, columns = shape
    n_bytes = rows * (columns + 1)
    filtered = np.empty((len(files), n_bytes), np.uint8)
    for place, file in enumerate(files):
        try:
            filtered[place] = np.frombuffer(_filtered_rows(file, shape, n_bytes), np.uint8)
        except ValueError as error:
            raise ValueError(f"image {place}: {error}") from error
    filtered = filtered.reshape(len(files), rows, columns + 1)
    kinds, images = filtered[:, :, 0], np.ascontiguousarray(filtered[:, :, 1:])
    if kinds.max(initial=0) > 4:
        raise ValueError(
            f"image {int(np.argmax(kinds.max(1) > 4))}: expected filters 0 to 4, got {kinds.max()}"
        )
    if kinds.any():
        _undo_filters(images, kinds)
    return images


def _filtered_rows(file: bytes, shape: tuple[int, int], n_bytes: int) -> bytes:
    """Return what the chunks IDAT hold, decompressed, of a file checked to be of our kind."""
    if file[:8] != _SIGNATURE:
        raise ValueError(f"expected a PNG file, got one that begins with {file[:8].hex(' ')}")
    header, compressed, place = None, b"", 8
    while place + 12 <= len(file):
        length = int.from_bytes(file[place : place + 4], "big")
        kind, end = file[place + 4 : place + 8], place + 8 + length
        content = file[place + 8 : end]
        if file[end : end + 4] != struct.pack(">I", zlib.crc32(kind + content)):
            raise ValueError(f"expected an intact chunk {kind!r}, got a damaged or cut-off one")
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            compressed += content
        elif kind == b"IEND":
            break
        place = end + 4
    else:
        raise ValueError("expected a whole PNG file, got one without its end")
    rows, columns = shape
    if header != (expected := struct.pack(">II5B", columns, rows, *_GREY)):
        got = "none" if header is None else header.hex(" ")
        raise ValueError(
            f"expected a grey image of eight bits and shape {shape}, header {expected.hex(' ')}, "
            f"got {got}"
        )
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(compressed, n_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"expected intact pixels, got damaged ones ({error})") from error
    if len(content) != n_bytes:
        more = "more" if len(content) > n_bytes else len(content)
        raise ValueError(f"expected {n_bytes} bytes of filtered rows, got {more}")
    return content


def _undo_filters(images: np.ndarray, kinds: np.ndarray) -> None:
    """Replace, in place, filtered pixels by the pixels; `kinds` (N, rows) are the filters.

    Additions are of unsigned bytes: they wrap around, which is the format's modulo 256.
    """
    n, rows, columns = images.shape
    above = np.zeros((n, columns), np.uint8)
    for row in range(rows):
        line, kind = images[:, row], kinds[:, row]
        sub, up, average, paeth = (np.flatnonzero(kind == value) for value in (1, 2, 3, 4))
        line[sub] = np.cumsum(line[sub], axis=1, dtype=np.uint8)
        line[up] += above[up]
        if average.size:
            line[average] = _undo_average(line[average], above[average])
        if paeth.size:
            line[paeth] = _undo_paeth(line[paeth], above[paeth])
        above = line


def _undo_average(line: np.ndarray, above: np.ndarray) -> np.ndarray:
    left = np.zeros(len(line), np.uint8)
    for column in range(line.shape[1]):
        mean = (left.astype(np.uint16) + above[:, column]) // 2
        line[:, column] += mean.astype(np.uint8)
        left = line[:, column]
    return line


def _undo_paeth(line: np.ndarray, above: np.ndarray) -> np.ndarray:
    a = c = np.zeros(len(line), np.int16)
    for column in range(line.shape[1]):
        b = above[:, column].astype(np.int16)
        # The distances of a, b and c from a + b − c.
        to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
        nearest = np.where(to_b <= to_c, b, c)
        nearest = np.where((to_a <= to_b) & (to_a <= to_c), a, nearest)
        line[:, column] += nearest.astype(np.uint8)
        a, c = line[:, column].astype(np.int16), b
    return line
