"""`status.json`: how a run stands, for those who look at its folder from outside.

A run that is killed cannot write how it ended, so its file goes on saying `running`. A start that fails before the
first step writes nothing: a new run is gone then, and one that was there stands as it stood.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from unmask.runs import RunFolder, State
from unmask.writing import write_text


class Status:
    """The file of one run.

    Args:
        run: whose it is.
        enabled: False on processes that write nothing.
    """

    def __init__(self, run: RunFolder, *, enabled: bool) -> None:
        self.run, self.enabled = run, enabled
        self._planned: int | None = None

    def started(self) -> None:
        """A new run prepares its text and model."""
        self._write("running")

    def planned(self, steps: int) -> None:
        """The run goes on, as far as this optimiser step."""
        self._planned = steps
        self._write("running")

    def ended(self, state: State) -> None:
        """The run is over."""
        self._write(state)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """If an error leaves the block after `planned`, write that the run failed and why."""
        try:
            yield
        except KeyboardInterrupt:
            if self._planned is not None:
                self._write("interrupted")
            raise
        except BaseException as error:
            if self._planned is not None:
                self._write("failed", f"{type(error).__name__}: {error}")
            raise

    def _write(self, state: State, error: str | None = None) -> None:
        if self.enabled:
            record = {"state": state, "planned_steps": self._planned, "error": error}
            write_text(self.run.status, json.dumps(record, indent=2) + "\n")
