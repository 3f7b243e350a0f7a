"""What is written into a model file itself, whatever its format: one writer and one reader.

Every format holds pairs of texts somewhere: ONNX in `metadata_props`, OpenVINO in the runtime information of the .xml,
Core ML in the user-defined metadata. The keys and values are the same in all of them. A text stays as it is; any other
value is JSON.

Keys that every format carries: contract, variant, weights, weights_sha256, precision, tools. Formats made from an ONNX
graph carry `graph` too; a Core ML package carries `output`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from u2export.reference.image import Contract

PREFIX = "u2export."


def texts(contract: Contract, stamp: Mapping[str, Any], **more: Any) -> dict[str, str]:
    """The pairs to write into a model file, keys without `PREFIX`.

    Args:
        contract: pre- and postprocessing of the model.
        stamp: from `Source.stamp`.
        more: what this format says besides, such as `graph`.
    """
    values = {"contract": contract.to_json(), **more, **stamp}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def prefixed(pairs: Mapping[str, str]) -> dict[str, str]:
    """The pairs under the keys of a format that has one list for everybody's metadata."""
    return {PREFIX + key: value for key, value in pairs.items()}


def read(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """The values that u2export stamped into a file, by key without `PREFIX`; what others wrote is left out.

    Args:
        pairs: the format's metadata, as its library reads it.
    """
    return {k.removeprefix(PREFIX): _value(str(v)) for k, v in pairs.items() if k.startswith(PREFIX)}


def _value(text: str) -> Any:
    """Objects and lists were JSON; all else was a text."""
    if text[:1] not in ("{", "["):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
