"""What running services say of themselves in the store's table `services`, by name."""

from collections.abc import Mapping
from typing import Any

PROCESSING_SILENT = 5.0  # s after which a worker counts as dead; it reports every second
_SUMMED = (
    "observations_per_second",
    "stored",
    "duplicates",
    "announcements",
    "not_announced",
    "waiting_events",
)


def processing_name(number: int) -> str:
    """What the workers of processing are called: processing, processing 2, ..."""
    return "processing" if number == 1 else f"processing {number}"


def together(states: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The states of processing's workers, by name, as that of one; nothing of none. A problem tells whose it is."""
    if not states:
        return {}
    found: dict[str, Any] = {key: sum(state.get(key, 0) for state in states.values()) for key in _SUMMED}
    found["lag_seconds"] = max(float(state.get("lag_seconds", 0.0)) for state in states.values())
    found["problems"] = {
        problem if len(states) == 1 else f"{problem} ({name})": why
        for name, state in states.items()
        for problem, why in (state.get("problems") or {}).items()
    }
    return found
