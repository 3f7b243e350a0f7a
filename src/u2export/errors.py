"""The errors that users see: two lines in place of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can correct, or something that is missing.

    Attributes:
        problem: what is wrong, in one line. `str(error)` gives this line.
        hint: what to do about it, in one line; empty where there is nothing to say.
        option: the parameter of the Python function that the hint is about, such as "calib"; empty where there is
            none. The command line shows it as its option, `--calib`.

    Example:
        >>> raise UserError("ONNX Runtime int8 needs calibration photos", "give a folder of photos", "calib")
        Traceback (most recent call last):
        ...
        u2export.errors.UserError: ONNX Runtime int8 needs calibration photos
        give a folder of photos (calib=)
    """

    def __init__(self, problem: str, hint: str = "", option: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint
        self.option = option
        if hint and hasattr(self, "add_note"):  # a Python traceback then shows the hint too, from Python 3.11 on
            self.add_note(f"{hint} ({option}=)" if option else hint)

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.problem, self.hint, self.option)


class Unavailable(UserError):
    """This machine cannot do what was asked: the problem is the reason, the hint says what to install."""


class WrongValue(UserError):
    """A value that is wrong on every machine, such as a size that is no number; the command line exits with 2."""
