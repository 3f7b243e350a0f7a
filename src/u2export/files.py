"""Files appear whole or not at all: each is written under a temporary name beside its target, then renamed."""

from __future__ import annotations

import codecs
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from u2export.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

if sys.platform != "win32":
    import fcntl

SCRATCH, OLD = ".u2export-", ".old"
# Names of the open files of this process. Opening such a name anew would truncate a log that the shell appends to.
DESCRIPTORS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
NUMBERED = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
# Folders in which this process has looked for stale scratch folders: one look each, for a folder may hold many files.
_swept: set[Path] = set()

# Types of JSON values by how a dataclass declares its fields; fields of other declarations are not checked.
KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str, "int": int, "float": (int, float), "bool": bool, "Mapping": dict
}  # fmt: skip
Made = TypeVar("Made", bound="DataclassInstance")

# Byte order marks and the encodings that they announce. The mark of UTF-32 begins with the mark of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def make_folder(folder: Path) -> None:
    """Create a folder for outputs, with its parents.

    Raises:
        UserError: the folder cannot be created or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", "choose another folder", "out") from None


def is_hidden(path: Path, root: Path) -> bool:
    """Return whether the name of `path`, or of a folder between it and `root`, begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Give a scratch folder inside `folder`; it is removed at the end of the block in every case.

    Scratch folders that killed processes left in `folder` are removed when a process first writes there.
    """
    make_folder(folder)
    if folder.absolute() not in _swept:
        _swept.add(folder.absolute())
        remove_stale(folder)
    scratch, lock = _locked_scratch(folder)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_scratch(folder: Path) -> tuple[Path, int | None]:
    """Return a new scratch folder and the open lock that says that this process uses it."""
    while True:
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=SCRATCH))
        try:
            lock = _lock(scratch)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process takes the folder for a stale one, and removes it
        if lock is None or _is_open(scratch, lock):
            return scratch, lock
        os.close(lock)  # another process removed the folder before the lock was there


def _is_open(scratch: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), scratch.stat())
    except FileNotFoundError:
        return False


def _lock(scratch: Path) -> int | None:
    """Return a lock on a scratch folder; the system gives the lock up when this process dies.

    None: the system has no such locks; scratch folders of dead processes then stay.

    Raises:
        BlockingIOError: another process holds the lock.
        FileNotFoundError: the folder is not there any more.
    """
    if sys.platform == "win32":
        return None
    opened = None
    try:
        opened = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if opened is not None:
            os.close(opened)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None
    return opened


def remove_stale(folder: Path) -> None:
    """Remove scratch folders of dead processes in `folder`.

    A process that is killed while it replaces a folder leaves the old folder in its scratch folder. It is put back.
    """
    for scratch in folder.glob(f"{SCRATCH}*"):
        try:
            lock = _lock(scratch)
        except (BlockingIOError, FileNotFoundError):
            continue
        if lock is None:
            continue
        try:
            for old in scratch.glob(f"*{OLD}"):
                target = folder / old.name.removesuffix(OLD)
                if not target.exists():
                    old.replace(target)
            shutil.rmtree(scratch, ignore_errors=True)
        except OSError:
            continue  # somebody else's folder
        finally:
            os.close(lock)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a path to write to; it replaces `target` when the block ends without an error, else `target` stays.

    The file behind a link is replaced, not the link. Devices, pipes and standard output get the bytes at the end.
    """
    with staging(Path(tempfile.gettempdir()) if _takes_bytes(target) else _real(target).parent) as scratch:
        temporary = scratch / target.name
        yield temporary
        publish(temporary, target)


def publish(made: Path, target: Path) -> None:
    """Put a finished file or folder in the place of `target`; an old folder is deleted after the new one is there.

    A link stays, and what it points to is replaced. A device, a pipe or standard output gets the bytes.

    Raises:
        UserError: `target` is a folder and the new one is a file, or links point to each other.
    """
    if _takes_bytes(target):
        _pour(made, target)
        return
    target = _real(target)
    umask = os.umask(0)
    os.umask(umask)
    for path in (made, *made.rglob("*")) if made.is_dir() else (made,):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)  # some writers make files that only the owner can read
    if target.parent.stat().st_dev == made.stat().st_dev:
        _replace(made, target)
        return
    with staging(target.parent) as scratch:  # the link led to another file system
        near = scratch / made.name
        shutil.move(made, near)
        _replace(near, target)


def _replace(made: Path, target: Path) -> None:
    if not target.is_dir():
        made.replace(target)
        return
    if not made.is_dir():
        raise UserError(f"{target} is a folder", "choose another name")
    old = made.with_name(target.name + OLD)
    target.replace(old)
    made.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def _takes_bytes(target: Path) -> bool:
    """Return whether `target` is something to write to and not to replace: a device, a pipe, an open file."""
    if _descriptor(target) is not None:
        return True
    try:
        mode = target.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(target: Path) -> int | None:
    numbered = NUMBERED.fullmatch(str(target))
    return int(numbered[1]) if numbered else DESCRIPTORS.get(str(target))


def _pour(made: Path, target: Path) -> None:
    if made.is_dir():
        raise UserError(f"{target} takes no folder", "choose another name")
    sys.stdout.flush()  # what was printed before stands before
    descriptor = _descriptor(target)
    opened = os.open(target, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
    with made.open("rb") as file, os.fdopen(opened, "wb") as out:
        shutil.copyfileobj(file, out)


def _real(target: Path) -> Path:
    """Return the path behind the links of `target`, which need not exist."""
    if not target.is_symlink():
        return target
    try:
        return target.resolve()
    except (OSError, RuntimeError):
        raise UserError(f"{target} is a link to itself", "choose another name") from None


def no_pipe(path: Path, hint: str = "give a file") -> None:
    """Refuse what is neither a file nor a folder: reading from a pipe may wait without end, and a device has no end.

    Raises:
        UserError: the path is a pipe, a device or a socket.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is not a regular file", hint)


def write_json(data: Any, target: Path) -> None:
    """Write JSON that a person can read and compare."""
    write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", target)


def write_text(text: str, target: Path) -> None:
    r"""Write a text file in UTF-8.

    Names of files need not be UTF-8. Python then holds lone surrogates, which are written as escapes such as `\udce9`;
    JSON reads such an escape back as the same name.
    """
    with staged(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def decoded(data: bytes, errors: str = "strict") -> str:
    """Return bytes as text, without a byte order mark.

    The mark chooses the encoding: Notepad writes UTF-8 with a mark, and the operator `>` of Windows PowerShell writes
    UTF-16. Text without a mark is UTF-8. `errors` is what `bytes.decode` does with damaged characters.

    Raises:
        UnicodeDecodeError: a character is damaged, and `errors` is "strict".
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", "utf-8"))
    return data[len(mark) :].decode(encoding, errors)


def read_json(path: Path, what: str) -> Any:
    """Return the JSON in a file; errors ask the user for `what`.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(decoded(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", f"give {what}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", f"give {what}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})", f"give {what}") from None


def checked(made: Made) -> Made:
    """Return a dataclass that was read from JSON, after a check of the types of its plain fields.

    Raises:
        TypeError: a field has another type than its declaration.
    """
    for f in fields(made):
        kind = KINDS.get(str(f.type).partition("[")[0])
        if kind and not isinstance(getattr(made, f.name), kind):
            raise TypeError(f"{f.name} is {getattr(made, f.name)!r:.40}, expected {f.type}")
    return made
