"""What the command line shows instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake or a missing part the reader can fix: the problem in one line, what to do in a second."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.code = 1  # what the command line exits with

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        return type(self), (self.problem, self.hint)


class Unavailable(UserError):
    """This machine cannot do it: the reason, and how to get it."""
