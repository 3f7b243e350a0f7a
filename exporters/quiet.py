"""Hides what conversion tools and runtimes print about themselves, so that the terminal holds results alone."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
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
    """Hide what libraries in C++ write to standard error, unless an exception leaves the context: then all is written.

    A library that ends the process takes its last words with it; so only calls belong here that read no file of the
    user.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        known = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(known, said.read())
            raise
        finally:
            os.dup2(known, 2)
            os.close(known)
