"""Names of number types: every tool spells them in its own way, u2export spells them in two.

`stored_name` is for what a file stores ("float32", numpy's spelling); `precision_name` is for what an artifact is asked
to be and what a runtime computes in ("fp32").
"""

from __future__ import annotations

# Other spellings by numpy's. ONNX writes "float" and "double", OpenVINO "f32" and "i8", TensorRT "half" and "fp16".
_SPELLINGS = {
    "float64": ("double", "f64", "fp64"),
    "float32": ("float", "f32", "fp32"),
    "float16": ("half", "f16", "fp16"),
    "bfloat16": ("bf16",),
    "int64": ("i64",),
    "int32": ("i32",),
    "int16": ("i16",),
    "int8": ("i8",),
    "int4": ("i4",),
    "uint64": ("u64",),
    "uint32": ("u32",),
    "uint16": ("u16",),
    "uint8": ("u8",),
    "uint4": ("u4",),
    "bool": ("boolean",),
    "fp8": ("float8",),
}
_STORED = {other: name for name, others in _SPELLINGS.items() for other in (name, *others)}
_PRECISIONS = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
FLOATS = ("float16", "float32", "bfloat16")


def stored_name(name: str) -> str:
    """numpy's spelling of a type, in whatever spelling it is given ("FLOAT", "f32", "fp32": "float32").

    A name of no known type is returned in lower case.
    """
    return _STORED.get(name.lower(), name.lower())


def precision_name(name: str) -> str:
    """The vocabulary's spelling of a type ("float32", "f32", "FLOAT": "fp32"); integers keep numpy's ("int8").

    A name of no known type is returned in lower case.
    """
    return _PRECISIONS.get(stored_name(name), stored_name(name))


def arithmetic_name(name: str) -> str:
    """The vocabulary's spelling of a row's arithmetic: "fp32" for the "f32" of older reports and of OpenVINO.

    All other arithmetics ("int8", "fp16 cuda", "simulated fp16") are returned as they are. So is "float": some tools
    write it for whatever their device computes in, fp16 included.
    """
    return precision_name(name) if name in ("f16", "f32") else name
