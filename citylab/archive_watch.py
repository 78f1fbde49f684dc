"""Whether the archives of the store get its WAL: a state of health, before one has a hole or the disk is full of it."""

from collections.abc import Sequence
from typing import NamedTuple

from citylab.ports import Transaction

SLOTS = "citylab_archive_"
"""What the names of archives' replication slots begin with."""

SILENT = 60.0  # s without anybody who receives
BEHIND = 256 << 20  # bytes that a receiver has not got: what it gets in a few seconds
# As JSON, because a server before PostgreSQL 17 does not say since when.
_SLOTS = """
SELECT slot_name::text, active, wal_status = 'lost',
    coalesce(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn), 0)::bigint,
    coalesce(extract(epoch FROM now() - (to_jsonb(s) ->> 'inactive_since')::timestamptz), 'infinity')::float8
FROM pg_replication_slots s WHERE slot_type = 'physical' AND starts_with(slot_name, %s) ORDER BY 1
"""


class Archived(NamedTuple):
    """An archive as the store sees it, by its slot. behind: bytes of WAL it has not; silent: s, while nobody receives."""

    slot: str
    active: bool
    lost: bool
    behind: int
    silent: float

    @property
    def name(self) -> str:
        """What tells it from others."""
        return self.slot.removeprefix(SLOTS)

    @property
    def unwell(self) -> bool:
        """Whether it needs somebody's care."""
        return self.lost or (not self.active and self.silent > SILENT) or self.behind > BEHIND

    @property
    def warn(self) -> bool:
        """Whether it is well, but not for long."""
        return not self.unwell and not self.active

    @property
    def text(self) -> str:
        """What to tell people of it, with what to do."""
        if self.lost:
            return "the store could not keep all WAL for it: run its `citylab backup --continuous`, which begins anew, or --end it"
        late = f"{self.behind:,} bytes of WAL are not in it yet"
        if self.active:
            return late
        return (
            f"nobody receives, and {late}: run its `citylab backup --continuous`, or --end it (without its folder:"
            f" SELECT pg_drop_replication_slot('{self.slot}'))"
        )


async def archives(transaction: Transaction) -> Sequence[Archived]:
    """The archives that this store keeps WAL for."""
    return [Archived(*row) for row in await transaction.fetch(_SLOTS, (SLOTS,))]
