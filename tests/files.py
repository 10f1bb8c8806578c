"""Idx files for the tests, written from the format's description, and what a bad one is told."""

import struct

import pytest

CODES = {
    "uint8": 0x08,
    "int8": 0x09,
    "int16": 0x0B,
    "int32": 0x0C,
    "float32": 0x0D,
    "float64": 0x0E,
}


def idx(array):
    """The bytes of an idx file, written from the format's description."""
    header = struct.pack(">BBBB", 0, 0, CODES[array.dtype.name], array.ndim)
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return header + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def message_of(error, call):
    """The message of the exception that the call raises, of exactly this type, in one line."""
    with pytest.raises(error) as caught:
        call()
    assert caught.type is error
    text = str(caught.value)
    assert "\n" not in text
    return text
