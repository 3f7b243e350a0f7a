"""The files of an ONNX model: the `.onnx` itself and the external data it names, found without the onnx package.

Devices that only run a model have ONNX Runtime alone. The file is a protobuf message; only the fields that lead to
tensors are followed (onnx.proto: ModelProto.graph, GraphProto.initializer and node, TensorProto.external_data; wire
format: https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from u2export.errors import UserError
from u2export.files import no_pipe

# Fields that hold messages on the way to a tensor, by the kind of message they stand in: field number -> kind.
INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
# Graphs inside graphs; deeper ones are an attack, not a model.
DEEPEST = 32


class Malformed(ValueError):
    """The bytes are no protobuf message."""


def external_data(path: Path) -> dict[str, int]:
    """Return the locations of external data that a model names, each with the least number of bytes that it must have.

    Locations are in the order of the file, and as they are written there.

    Raises:
        UserError: unreadable, or no ONNX file.
    """
    problem = f"{path}: not an ONNX file"
    no_pipe(path, "give an .onnx file")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: not an ONNX file (it is empty)", "export or download it again")
        with path.open("rb") as file:
            # Closed when nothing reads it any more: an error on the way keeps views of it.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            ends: dict[str, int] = {}
            for location, end in _locations(memoryview(data), "model"):
                ends[location] = max(end, ends.get(location, 0))
            return ends
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", "check the path") from None
    except (Malformed, UnicodeDecodeError):
        raise UserError(problem, "export or download it again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not an ONNX file ({error})", "give an .onnx file") from None


def model_files(path: Path) -> list[Path]:
    """The `.onnx` file and the files of its external data, all beside it or in folders below.

    Raises:
        UserError: no ONNX file; or external data that is missing, cut short, or outside the model's folder.
    """
    files = [path]
    for location, least in external_data(path).items():
        inside = PurePosixPath(location)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts or "\\" in location:
            raise UserError(
                f"{path}: names external data outside its folder: {location!r}", "save it with the data beside it"
            )
        file = path.parent / inside
        if not file.is_file():
            raise UserError(f"{path}: its external data {location} is missing", "copy the model with all its files")
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f"{path}: its external data {location} is a link to another folder", "copy the data itself")
        if (size := file.stat().st_size) < least:
            raise UserError(
                f"{path}: its external data {location} is cut short: {size} of at least {least} bytes",
                "copy the model with all its files",
            )
        files.append(file)
    return files


def _locations(data: memoryview, kind: str, depth: int = 0) -> Iterator[tuple[str, int]]:
    """Yield the location of each tensor that lies outside, and where it ends there in bytes; 0 where none is said."""
    entries: dict[bytes, bytes] = {}
    if depth > DEEPEST:
        raise Malformed("nested too deep")
    for field, value in fields(data):
        inner = INSIDE[kind].get(field)
        if inner == "entry":
            pair = {number: bytes(text) for number, text in fields(value) if number in (1, 2)}
            entries[pair.get(1, b"")] = pair.get(2, b"")
        elif inner:
            yield from _locations(value, inner, depth + 1)
    if b"location" in entries:
        yield entries[b"location"].decode(), _end(entries)


def _end(entries: dict[bytes, bytes]) -> int:
    try:
        return int(entries.get(b"offset", b"0")) + int(entries.get(b"length", b"0"))
    except ValueError:
        raise Malformed("an offset or a length that is no number") from None


def fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of every length-delimited field of a message; the others are skipped.

    Raises:
        Malformed: the bytes are no message. All that came before is yielded first.
    """
    return ((field, value) for field, value in _all_fields(data) if isinstance(value, memoryview))


def numbers(data: memoryview) -> Iterator[tuple[int, int]]:
    """Number and value of every field of a message that holds a whole number; the others are skipped.

    Raises:
        Malformed: as `fields`.
    """
    return ((field, value) for field, value in _all_fields(data) if isinstance(value, int))


def _all_fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise Malformed("field number 0")
        if wire == 0:
            number, at = _varint(data, at)
            yield field, number
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise Malformed("a field beyond the end")
            yield field, data[at : at + length]
            at += length
        else:
            raise Malformed(f"wire type {wire}")
    if at > len(data):
        raise Malformed("a field beyond the end")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Malformed("a number beyond the end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed("a number of more than ten bytes")
