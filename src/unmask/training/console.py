"""What training prints, on standard error: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from unmask.reports.replay import printable


class _Console(Console):
    """A console whose reader may go away, as `| head` does: the run goes on without it."""

    def on_broken_pipe(self) -> None:
        """Print nothing from here on."""
        self.quiet = True


class TrainingConsole:
    """Progress of a run: step, share, loss, learning rate, gradient norm, tokens/s, MFU, memory, time left.

    Args:
        total: optimiser steps of the run.
        start: steps that were done before.
        enabled: False on processes that print nothing.
    """

    def __init__(self, total: int, *, start: int, enabled: bool) -> None:
        self.total, self.start = total, start
        self.console = _Console(stderr=True, quiet=not enabled, highlight=False)
        self._began = time.monotonic()
        self._live: Live | None = None
        if enabled and self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4)
            self._live.start()

    def record(self, record: dict[str, Any]) -> None:
        """Show the newest record of metrics."""
        line = self._line(record)
        if self._live is not None:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        else:
            self._print(line)

    def message(self, text: str) -> None:
        """Print a line that stays."""
        self._print(text)

    def close(self) -> None:
        """Leave the terminal as it was, with the last line on it."""
        if self._live is not None:
            self._live.stop()

    def _print(self, text: str) -> None:
        """Print a line; a log that cannot be written does not end the run."""
        try:
            self.console.print(Text(printable(text)), soft_wrap=True)
        except OSError:
            self.console.quiet = True

    def _line(self, record: dict[str, Any]) -> str:
        step = record["step"]
        elapsed = time.monotonic() - self._began
        left = elapsed / max(1, step - self.start) * (self.total - step)
        parts = [
            f"step {step:>{len(str(self.total))}}/{self.total} ({step / self.total:.0%})",
            f"loss {record['train/loss']:.4f}",
            f"lr {record['train/learning_rate']:.2e}",
            f"grad norm {record['train/grad_norm']:.3f}",
            f"{record['throughput/tokens_per_second']:,.0f} tok/s",
            f"MFU {record['throughput/mfu']:.0%}",
            f"{record['throughput/memory_bytes'] / 2**30:.2f} GiB",
            f"ETA {_duration(left)}",
        ]
        return " | ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
