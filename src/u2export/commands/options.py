"""What commands share: groups of options, options with a few values, and how results are printed.

A group is a dataclass whose fields are options. `grouped` replaces a parameter of such a type by the group's options,
so each option stands in one place, whatever number of commands has it.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from u2export.api import exporting
from u2export.commands.console import echo, remark, waiting
from u2export.commands.parsing import STDOUT
from u2export.errors import WrongValue
from u2export.files import write_json
from u2export.text import json_text

Command = Callable[..., None]
PRECISION_HELP = {
    "fp32": "32-bit floating point.",
    "fp16": "16-bit floating point.",
    "int8": "8-bit integers; needs --calib.",
    "dynamic-int8": "int8 weights; activations become int8 in each run, so no photos are needed.",
    "w8a8": "8-bit weights and activations, experimental; needs --calib and --target ios17.",
}


def choice(values: Sequence[str], help: str, *names: str, **more: Any) -> Any:
    """Return an option that takes one of the library's values; another value is a usage error."""

    def parsed(text: str) -> str:
        if text not in values:
            raise typer.BadParameter(f"{text!r} is not one of {', '.join(values)}.")
        return text

    return typer.Option(*names, parser=parsed, metavar="|".join(filter(None, values)), help=help, **more)


AsJson = Annotated[
    str,
    typer.Option(
        "--json",
        metavar="[FILE]",
        help="Write JSON to a .json file; without one, or with -, print JSON and nothing else.",
        show_default=False,
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        metavar="local:N|tcp://HOST:PORT|tls://HOST:PORT|FILE.json",
        help="Judge the masks on the workers of a Dask scheduler, or on N workers started here.",
        show_default=False,
    ),
]
SharedFiles = Annotated[
    bool, typer.Option("--shared-files", help="The cluster's workers see the files under the same paths.")
]
Store = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="The cluster's workers fetch the files from here, such as s3://BUCKET/FOLDER; missing ones are uploaded.",
        show_default=False,
    ),
]
Weights = Annotated[
    str,
    typer.Option(help="A name of `u2export weights list`, random-u2net(p), or a .pth, .safetensors or .onnx file."),
]
Size = Annotated[
    str,
    typer.Option(
        metavar="N|HxW", help="Input size of the network in pixels; by default that of the contract, 320 or 768.",
        show_default=False,
    ),
]  # fmt: skip
Resize = Annotated[
    str, choice(exporting.RESIZES, "bilinear: without anti-aliasing, as the author does; lanczos: as rembg does.")
]
Contract = Annotated[
    str,
    choice(
        ("", *exporting.CONTRACTS),
        "imagenet, or cloth (768 pixels, mean and deviation 0.5); by default of the weights.",
    ),
]
Calib = Annotated[
    Path | None,
    typer.Option(help="Calibration photos: a folder, a manifest.json or an .npy file.", show_default=False),
]
NoCondition = Annotated[
    bool, typer.Option("--no-condition", help="Leave the network as it is; masks of lower precisions get much worse.")
]
KeepFloat = Annotated[
    Path | None,
    typer.Option(help="With --int8: a file of `u2export sensitivity` that lists float layers.", show_default=False),
]
EmbedPreprocess = Annotated[
    bool,
    typer.Option(
        "--embed-preprocess",
        help="The file takes uint8 (1, H, W, 3) of any size, resizes and normalises it, and gives the stretched mask.",
    ),
]
OutputName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The output that is the fused map d0, of ONNX files without a record; found by default.",
        show_default=False,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Open TensorRT engines that other machines built, from now on. An engine is native code.",
    ),
]


@dataclass(frozen=True)
class Network:
    """The options that say which network a command works on."""

    weights: Weights = "u2netp"
    size: Size = ""
    resize: Resize = "bilinear"
    contract: Contract = ""


@dataclass(frozen=True)
class Export(Network):
    """The options of every export command."""

    out: Annotated[Path, typer.Option(help="Folder for the artifact and its record.")] = Path("artifacts")
    calib: Calib = None
    limit: Annotated[
        int | None,
        typer.Option(
            min=2, help="Read no more calibration photos than this, evenly spread over the names.", show_default=False
        ),
    ] = None
    no_condition: NoCondition = False
    budget: Annotated[
        str, typer.Option(help="Fidelity limits in place of the target's own, such as mae=0.003,iou_worst=0.97.")
    ] = ""

    max_float: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="PERCENT",
            help="Most of the work that int8 may leave in float to keep its budget; 0 for none.",
        ),
    ] = 10

    def run(self, target: str, precision: str, /, **options: Any) -> exporting.Artifact:
        """Export with these options and the target's own."""
        with waiting() as show:
            return exporting.export(
                target, precision, weights=self.weights, out=self.out, size=self.size or None, resize=self.resize,
                contract=self.contract,
                calib=self.calib, limit=self.limit, condition=not self.no_condition, budget=self.budget,
                max_float=self.max_float, progress=show, **options,
            )  # fmt: skip


def grouped(command: Command) -> Command:
    """Replace parameters whose type is a dataclass by options, one for each field."""
    return _with_options(command, {})


def with_precisions(target: str, **more: str) -> Callable[[Command], Command]:
    """Return a decorator: as `grouped`, and `precision` becomes one flag for each precision of the target.

    Args:
        target: a name in `exporting.PRECISIONS`; its first precision is the default.
        more: help texts that differ from PRECISION_HELP, by precision.
    """
    texts = {**PRECISION_HELP, **more}
    flags = {p: texts[p] for p in exporting.PRECISIONS[target] if p in texts}
    return lambda command: _with_options(command, flags)


def _with_options(command: Command, flags: Mapping[str, str]) -> Command:
    hints = get_type_hints(command, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if is_dataclass(kind) and isinstance(kind, type)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _options(groups[parameter.name])
        elif parameter.name == "precision" and flags:
            parameters += [_flag(name, text) for name, text in flags.items()]
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))

    def run(**values: Any) -> None:
        if flags:
            values["precision"] = _chosen({name: values.pop(_parameter(name)) for name in flags})
        made = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        command(**made, **values)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _options(group: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(group)]


def _parameter(precision: str) -> str:
    """Return the name of the parameter that a precision's flag sets; "-" has no place in it."""
    return precision.replace("-", "_")


def _flag(name: str, text: str) -> inspect.Parameter:
    annotation = Annotated[bool, typer.Option(f"--{name}", help=text)]
    return inspect.Parameter(_parameter(name), inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)


def _chosen(flags: dict[str, bool]) -> str:
    """Return the one precision whose flag was given; empty for the default one."""
    given = [name for name, on in flags.items() if on]
    if len(given) > 1:
        raise WrongValue(f"--{' and --'.join(given)} exclude each other", "give one precision")
    return given[0] if given else ""


def print_json(data: Any, target: str) -> bool:
    """Give data to whoever asked for JSON.

    Args:
        data: plain data.
        target: what stands behind `--json`: a file, "-" for standard output, or "" without the option.

    Returns:
        Whether standard output holds the JSON. A command then prints nothing else there.
    """
    if target == STDOUT:
        print(json_text(data))
    elif target:
        write_json(data, Path(target))
        remark(f"JSON: {target}")
    return target == STDOUT


def written(paths: Sequence[Path], as_json: str) -> None:
    """Print the files that a command wrote, one a line or as JSON."""
    if not print_json({"written": [str(path) for path in paths]}, as_json):
        echo(*paths)


def show_artifact(artifact: exporting.Artifact, as_json: str) -> None:
    """Print an artifact's path, with a summary on standard error; or the whole record as JSON."""
    if print_json({**artifact.to_json(), "path": str(artifact.path)}, as_json):
        return
    echo(artifact.path)
    digest = next(iter(artifact.files.values()))
    lines = [f"  {artifact.size / 1e6:.2f} MB, sha256 {digest[:16]}…, {artifact.weights.label}"]
    if f := artifact.fidelity:
        lines.append(
            f"  masks against PyTorch on {f['photos']} photos: MAE {f['mae']:.2g} (worst {f['mae_worst']:.2g}), "
            f"IoU {f['iou']:.4f} (worst {f['iou_worst']:.4f})"
        )
    lines += [f"  note: {note}" for note in artifact.notes]
    remark(*lines, f"  next: u2export bench {shlex.quote(str(artifact.path))} --images FOLDER")
