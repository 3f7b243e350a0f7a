"""The journal of an unfinished run: what was judged so far, one line a task, beside the file of results.

A report of many photos is too large to be written after every task. The journal only grows at its end; a line that an
interruption cut off is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from u2export.errors import UserError

SUFFIX = ".judged"


class Journal:
    """The journal of one file of results.

    Args:
        results: the file of results; None to keep no journal.
        resume: whether to keep what an earlier run wrote.
    """

    def __init__(self, results: Path | None, resume: bool) -> None:
        self.path = results.with_name(results.name + SUFFIX) if results else None
        self._file: TextIO | None = None
        if self.path and not resume:
            self.path.unlink(missing_ok=True)

    def lines(self, group: str) -> Iterator[dict[str, Any]]:
        """Yield what earlier runs wrote about a group of rows."""
        if self.path is None or not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                with suppress(ValueError):
                    data = json.loads(line)
                    if isinstance(data, dict) and data.get("group") == group:
                        yield data

    def add(self, group: str, **data: Any) -> None:
        """Add a line.

        Raises:
            UserError: it cannot be written.
        """
        if self.path is None:
            return
        try:
            if self._file is None:
                self._file = self._opened(self.path)
            self._file.write(json.dumps({"group": group, **data}, separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}", "free some space, and use --resume"
            ) from None

    def _opened(self, path: Path) -> TextIO:
        """Open the journal behind its last whole line."""
        whole = 0
        if path.exists():
            with path.open("rb") as old:
                for line in old:
                    whole += len(line) if line.endswith(b"\n") else 0
        file = path.open("a", encoding="utf-8")
        file.truncate(whole)
        return file

    def close(self) -> None:
        """Close the file; it stays for `--resume`."""
        if self._file:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Remove the journal: the file of results holds everything."""
        self.close()
        if self.path:
            self.path.unlink(missing_ok=True)
