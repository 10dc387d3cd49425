"""Whether the Hugging Face hub is within reach, found out once and quickly.

In: the endpoint that `huggingface_hub` would ask. Out: why it cannot be asked, or nothing. The libraries ask a hub that
does not answer again and again, for half a minute and more; whoever knows it is silent looks into the cache alone.
"""

from __future__ import annotations

import socket
import threading
import time
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants

_HUB_SECONDS, _SILENCE_SECONDS = 3, 60
_PORTS = {"http": 80, "https": 443}
_silences: dict[str, tuple[float, str | None]] = {}
"""How long the hub may be silent before it counts as out of reach, for how long it then does, and since when."""


def silence() -> str | None:
    """Why the hub cannot be asked, or None. Whoever names a proxy asks that one, which answers for itself."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask the hub"
    endpoint = constants.ENDPOINT
    known = _silences.get(endpoint)
    if known is None or known[0] < time.monotonic() - _SILENCE_SECONDS:
        address = urlsplit(endpoint)
        reached = bool(getproxies()) or _connects(
            address.hostname or "", address.port or _PORTS.get(address.scheme, 443)
        )
        _silences[endpoint] = known = time.monotonic(), None if reached else f"{endpoint} cannot be reached"
    return known[1]


def _connects(host: str, port: int) -> bool:
    """Whether a machine answers within `_HUB_SECONDS`; looking its name up may wait for longer, and is left alone."""
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_HUB_SECONDS).close()
        except OSError:
            return
        answers.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS)
    return bool(answers)
