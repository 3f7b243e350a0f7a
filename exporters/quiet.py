"""Hides what conversion tools and runtimes print about themselves, so that the terminal holds results alone."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Hide prints, progress bars, warnings, and log records up to WARNING, of this process's Python code."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def quiet_library() -> Iterator[None]:
    """Hide what libraries in C++ write to standard error; for calls that read no file of the user and so cannot fail.

    The error messages of such libraries go the same way, so nothing else belongs into this context.
    """
    sys.stderr.flush()
    known, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(known, 2)
        os.close(known)
        os.close(nowhere)
