"""State dicts from checkpoints as people hold them: containers, prefixes, extra tensors, half precision, numpy scalars.

A checkpoint is taken for what its first bytes say, whatever its suffix. Pickles are read as plain tensors only: a
pickled module can run code.
"""

from __future__ import annotations

import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.errors import UserError
from u2export.files import no_pipe
from u2export.text import one_line

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar", ".safetensors", ".onnx")
# The tensor that every U²-Net has, whatever stands in front of its name.
FIRST = "stage1.rebnconvin.conv_s1.weight"
# How deep containers are looked into.
DEPTH = 4
SAVE = "save it with torch.save(model.state_dict(), FILE)"


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of U²-Net in a `.pth`, `.pt`, `.ckpt`, `.bin`, `.pth.tar` or `.safetensors` file.

    The network may lie in a container under any one key, and its names may begin with any one prefix (`module.`,
    `model.`, `_orig_mod.`). Tensors that are not the network's are named in a warning and left out. A missing
    `num_batches_tracked`, which inference never reads, is added.

    Returns:
        Tensors by the published parameter names, floating point ones in float32.

    Raises:
        UserError: unreadable, another kind of file (the error says which), no U²-Net or several in it, or tensors that
            are not plain dense numbers.
    """
    no_pipe(path, "give a checkpoint's file")
    if problem := _other_kind(path):
        raise problem
    data = _safetensors(path) if _is_safetensors(path) or path.suffix == ".safetensors" else _pickled(path)
    found = list(_networks(data))
    if not found:
        raise UserError(f"{path}: holds no tensor named {FIRST}, with or without a prefix", f"{SAVE} for a U²-Net")
    if len(found) > 1:
        keys = ", ".join(where or "the top level" for where, _, _ in found)
        raise UserError(f"{path}: holds several U²-Nets ({keys})", "save the state dict of one of them in a file")
    _, prefix, state = found[0]
    return _completed(path, _own(path, prefix, state))


def _other_kind(path: Path) -> UserError | None:
    """An error for files that are no checkpoint, as their first bytes tell."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return UserError(f"cannot read {path}: {error.strerror}", "check the path and its permissions")
    text = head.lstrip().lower()
    if not head:
        return UserError(f"{path}: the file is empty", "download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return UserError(
            f"{path}: a web page, not a checkpoint", "download the file itself, in a browser or with gdown"
        )
    if text.startswith(b"version https://git-lfs"):
        return UserError(f"{path}: a pointer of Git LFS, not the checkpoint", "run git lfs pull where it was cloned")
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in _members(path)):
        load = f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'state.pth')"
        return UserError(f"{path}: a TorchScript file, not a state dict", f'python -c "import torch; {load}"')
    return None


def _members(path: Path) -> list[str]:
    """Names in a zip archive, which torch's files are; none where it is no archive or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as the safetensors format does: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except MemoryError:
        raise _too_large(path) from None
    except Exception as error:  # the format's reader names no set of errors
        raise UserError(f"{path}: unreadable safetensors file ({_line(error)})", "download it again") from None


def _pickled(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # torch warns of unusual pickle protocols before it refuses the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise _too_large(path) from None
    except Exception as error:  # torch names no set of errors: noise gave IndexError, KeyError, struct.error and others
        module = re.search(r"(?:GLOBAL|global) ([\w.]+)", _line(error, 4000))
        if module and not module[1].startswith(("torch.", "numpy.")):
            load = f"torch.save(torch.load({str(path)!r}, weights_only=False).state_dict(), 'state.pth')"
            raise UserError(
                f"{path}: a pickled {module[1]}, not a state dict; opening it can run code",
                f'if you trust it, where that class can be imported: python -c "import torch; {load}"',
            ) from None
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({_line(error)})", f"{SAVE}, or get it again"
        ) from None


def _too_large(path: Path) -> UserError:
    return UserError(
        f"{path}: asks for more memory than there is", "the file may be damaged: get it again, or free memory"
    )


def _harmless() -> list[Any]:
    """What numpy scalars and arrays in a checkpoint (an epoch's loss, say) are pickled with; none of it runs code."""
    import numpy as np
    from numpy.dtypes import BoolDType, Float32DType, Float64DType, Int32DType, Int64DType

    core = getattr(np, "_core", None) or np.core
    kinds = [BoolDType, Float32DType, Float64DType, Int32DType, Int64DType]
    return [core.multiarray.scalar, core.multiarray._reconstruct, np.ndarray, np.dtype, *kinds]


def _networks(data: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, str, Mapping[Any, Any]]]:
    """Every dictionary with a U²-Net in it: the keys that lead to it, the prefix of its names, its items."""
    if not isinstance(data, Mapping) or depth > DEPTH:
        return
    names = [key for key in data if isinstance(key, str) and (key == FIRST or key.endswith(f".{FIRST}"))]
    for name in names:
        prefix = name.removesuffix(FIRST)
        yield ".".join(filter(None, (where, prefix.rstrip(".") if len(names) > 1 else ""))), prefix, data
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _networks(value, f"{where}.{key}" if where else str(key), depth + 1)


def _own(path: Path, prefix: str, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The network's tensors, their prefix removed; the others are named in a warning."""
    import torch

    from u2export.reference.model import U2Net

    wanted = U2Net("u2netp").state_dict().keys()
    own, others = {}, []
    for name, value in state.items():
        short = name.removeprefix(prefix) if isinstance(name, str) else ""
        if short in wanted and isinstance(name, str) and name.startswith(prefix):
            if not isinstance(value, torch.Tensor):
                raise UserError(f"{path}: {name} is {type(value).__name__}, not a tensor", SAVE)
            own[short] = value
        else:
            others.append(str(name))
    if others:
        shown = ", ".join(sorted(others)[:5]) + (" …" if len(others) > 5 else "")
        logging.getLogger("u2export").warning("%s: %d entries are not U²-Net's: %s", path, len(others), shown)
    return own


def _completed(path: Path, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    made = {}
    for name, tensor in state.items():
        problem = ""
        if tensor.is_meta:
            problem = "has no values (a tensor on the device meta)"
        elif tensor.is_quantized or tensor.layout != torch.strided or tensor.is_complex():
            problem = "is not a plain dense tensor"
        elif not tensor.is_floating_point() and not name.endswith(".num_batches_tracked"):
            problem = f"holds {str(tensor.dtype).removeprefix('torch.')}, not floating point numbers"
        if problem:
            raise UserError(f"{path}: {name} {problem}", "save the weights in fp32, unquantised")
        made[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        if tensor.is_floating_point() and not bool(made[name].isfinite().all()):
            raise UserError(f"{path}: {name} holds NaN or infinite values", "the checkpoint is damaged; get it again")
    for name in list(made):
        if name.endswith(".running_mean"):
            made.setdefault(f"{name.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return made


def _line(error: Exception, length: int = 160) -> str:
    """An error's text without the escape codes that torch puts into it, its first line or as much as is asked for."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__
    if length <= 160 and "WeightsUnpickler error:" in text:  # the cause, behind torch's advice on its own options
        text = text.partition("WeightsUnpickler error:")[2].strip() or "its pickle is damaged"
    text = text if length > 160 else text.splitlines()[0]
    text = text if length > 160 else one_line(text)  # a damaged name may hold any byte
    return text if len(text) <= length else text[: length - 1] + "…"
