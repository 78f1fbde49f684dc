"""Observations as server-sent events, or the same over a WebSocket: what is chosen, and its text. Columns in, bytes out."""

import json
from itertools import repeat

import numpy as np

from citylab.columns import Int64, Observations
from citylab.model import SECOND, Quality

ROWS_AN_EVENT = 2_000  # more rows than this become several events

_QUALITY = {
    Quality.NONE: "null",
    Quality.GOOD: '{"flag":"good"}',
    Quality.SUSPECT: '{"flag":"suspect"}',
    Quality.BAD: '{"flag":"bad"}',
}
_EXACT = float(2**53)  # integral numbers below it are written without a fraction


def newest(rows: Observations) -> Int64:
    """The index of each datastream's row with the greatest time, the later row where times are equal.

    int64, shape (m,), one for each datastream, in the order of their ids.
    """
    order = np.lexsort((rows.time, rows.datastream))
    datastream = rows.datastream[order]
    last = np.ones(len(order), np.bool_)
    last[:-1] = datastream[1:] != datastream[:-1]
    return order[last]


def instants(micros: Int64) -> list[str]:
    """UTC with `Z` and as many digits of a second as are needed, as `times.format_instant` writes them."""
    seconds = np.datetime_as_string(micros.view("M8[us]"), unit="s").tolist()
    fraction = micros % SECOND
    if not fraction.any():
        return [f"{text}Z" for text in seconds]
    return [
        f"{text}.{part:06d}".rstrip("0") + "Z" if part else f"{text}Z"
        for text, part in zip(seconds, fraction.tolist(), strict=True)
    ]


def results(rows: Observations) -> list[str]:
    """JSON text of each result: the text that was stored, else the number, integral ones without a fraction."""
    whole = (np.abs(rows.number) < _EXACT) & (rows.number == np.floor(rows.number))
    texts = [
        str(int(number)) if integral else repr(number) if number - number == 0.0 else "null"
        for number, integral in zip(rows.number.tolist(), whole.tolist(), strict=True)
    ]
    if rows.json is not None:
        for index, text in enumerate(rows.json):
            if text is not None:
                texts[index] = _one_line(text)
    return texts


def observations(rows: Observations, update: int) -> list[bytes]:
    """The rows as events `observations`. Only the last carries the id, so that a resume repeats an unfinished run."""
    texts = [
        f'{{"{name}":{{"@iot.id":{datastream}}},"phenomenonTime":"{instant}",'
        f'"result":{result},"resultQuality":{quality}}}'
        for name, datastream, instant, result, quality in zip(
            np.where(rows.multi, "MultiDatastream", "Datastream").tolist()
            if rows.multi is not None
            else repeat("Datastream", len(rows)),
            rows.datastream.tolist(),
            instants(rows.time),
            results(rows),
            [_QUALITY[Quality(flag)] for flag in rows.quality.tolist()],
            strict=True,
        )
    ]
    events = [texts[start : start + ROWS_AN_EVENT] for start in range(0, len(texts), ROWS_AN_EVENT)]
    return [
        event("observations", f"[{','.join(some)}]", update if number == len(events) else None)
        for number, some in enumerate(events, 1)
    ]


def event(name: str, data: str, update: int | None = None) -> bytes:
    """One event. `data` is a single line."""
    place = "" if update is None else f"id: {update}\n"
    return f"event: {name}\n{place}data: {data}\n\n".encode()


def as_json(event: bytes) -> str | None:
    """An event as a JSON object with `event`, `id` (where it has one) and `data`, for a WebSocket; None for what is no event.

    The first thing that a client is told, where we are, becomes an event `connected`.
    """
    fields = dict(line.split(": ", 1) for line in event.decode().splitlines() if line and line[0] != ":")
    if not fields:
        return None
    place = f',"id":"{fields["id"]}"' if "id" in fields else ""
    data = f',"data":{fields["data"]}' if "data" in fields else ""
    return f'{{"event":"{fields.get("event", "connected")}"{place}{data}}}'


def message(name: str, text: str, update: int | None = None) -> bytes:
    """An event that tells a person something."""
    return event(name, json.dumps({"message": text}, ensure_ascii=False), update)


def _one_line(text: str) -> str:
    """JSON text without line breaks, which would end a line of the stream; in valid JSON they are only white space."""
    return text.replace("\r", " ").replace("\n", " ") if "\n" in text or "\r" in text else text
