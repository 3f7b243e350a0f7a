"""What TensorRT reports while it works: its messages, sorted, and its progress."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from u2export.errors import UserError

# An engine built after one of these warnings computes something else, or fails when it runs.
FATAL = ("Defaulting to INT8 instead", "not self-consistent")
NO_GPU = "cudaError"
NO_REASON = "it gave no reason"
# What to do about a message with these words.
ADVICE = {
    "must have type FP8": "quantise with u2export trt --int8, which leaves biases in float",
    "zero point": "TensorRT takes symmetric int8 only; quantise with u2export trt --int8",
    "Scale coefficients": "a scale is 0 in fp16; export again, or with the rest in fp32",
    "optimization profile": "give a profile of shapes min,opt,max",
    "equal for concatenation": "give sides that are multiples of 32",
    "out of memory": "lower the workspace, or the largest of the shapes",
}
# Is called with the name of a phase, the steps done and the steps in all.
Progress = Callable[[str, int, int], None]
_log = logging.getLogger("tensorrt")


class BuildLog:
    """TensorRT's messages, collected.

    Attributes:
        logger: the object that TensorRT takes.
        errors, warnings: texts of the messages.
        layers: text of the layer table, where the version logs one.
        activation: bytes of activation memory, where the version logs them.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""
        self.activation = 0
        severity = trt.ILogger.Severity
        ours = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, text: str) -> None:
                ours.take(level in (severity.ERROR, severity.INTERNAL_ERROR), level == severity.WARNING, text)

        self.logger = Logger()

    def take(self, error: bool, warning: bool, text: str) -> None:
        """Sort one message. The options -v and -vv show all of them."""
        _log.log(logging.INFO if error or warning else logging.DEBUG, "%s", text)
        if error and NO_GPU not in text:  # without a GPU each error is followed by one about that
            self.errors.append(text.strip())
        elif warning:
            self.warnings.append(text.strip())
        elif text.startswith("Layers:"):
            self.layers = text
        elif found := re.match(r"Total Activation Memory: (\d+)", text):
            self.activation = int(found[1])

    @property
    def first_error(self) -> str:
        """First line of the first error: what a parser or a runtime refuses."""
        return self.errors[0].splitlines()[0] if self.errors else NO_REASON

    @property
    def last_error(self) -> str:
        """First line of the last error: what a builder fails with."""
        return self.errors[-1].splitlines()[0] if self.errors else NO_REASON

    @property
    def fatal(self) -> str:
        """A warning that means a wrong engine; empty where there is none."""
        return next((w for w in self.warnings if any(f in w for f in FATAL)), "")

    def check(self) -> None:
        """Refuse to go on after a warning that means a wrong engine.

        Raises:
            UserError: there is such a warning.
        """
        if self.fatal:
            advice = "quantise with u2export trt --int8; sizes in a profile must be multiples of 32"
            raise UserError(f"TensorRT would build another network: {' '.join(self.fatal.split())}", advice)


def advice_for(reason: str) -> str:
    """Return what to do about an error message of TensorRT."""
    return next((hint for words, hint in ADVICE.items() if words in reason), "see TensorRT's messages with -v")


def monitor_for(trt: Any, progress: Progress) -> Any:
    """Return an IProgressMonitor that reports to `progress`; TensorRT has one from version 10 on."""
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, steps.get(phase_name, 0), steps.get(phase_name, 0))

    return Monitor()
