"""ONNX files: the one place that reads a file that a user named, and that checks a graph against the standard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.errors import Unavailable, UserError
from u2export.install import how_to_install
from u2export.reference.onnx_files import model_files

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path, hint: str = "export it again, or download it again", shapes: bool = False) -> onnx.ModelProto:
    """The model in an ONNX file, with the weights that lie in files beside it.

    Args:
        path: the file.
        hint: advice to the user whose file is damaged.
        shapes: infer the shapes of all tensors.

    Raises:
        UserError: there is no such file, the file is no ONNX or holds no graph, a file of weights beside it is missing,
            or the shapes contradict each other.
        Unavailable: onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise Unavailable(f"{path}: reading .onnx needs the onnx package", how_to_install("onnx"))
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise UserError(f"no such file: {path}", "give an .onnx file")
    model_files(path)  # names what is missing, cut short, or outside the model's folder
    try:
        model = onnx.load(path)
        if shapes:
            model = onnx.shape_inference.infer_shapes(model)
    except onnx.checker.ValidationError as error:  # what onnx raises for a missing or misplaced file of weights
        raise UserError(
            f"{path}: its weights lie in another file, which cannot be read ({_first_line(error)})",
            "keep the files of weights beside the .onnx",
        ) from None
    except (DecodeError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: not an ONNX file ({_first_line(error)})", hint) from None
    if not model.graph.node:
        raise UserError(f"{path}: not an ONNX file (it holds no graph)", hint)
    return model


def check_onnx(model: onnx.ModelProto, what: str, hint: str, full: bool = False) -> None:
    """Check a graph against the ONNX standard.

    Args:
        model: the graph.
        what: what the graph is called in the error.
        hint: what to do about it.
        full: infer the shapes too, and check them.

    Raises:
        UserError: the graph is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{what} is not valid ONNX: {_first_line(error)}", hint) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
