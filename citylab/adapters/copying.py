"""The yardstick of `citylab bench`: raw binary COPY of rows that are stored already, into a table of the same shape."""

import time

import psycopg
from psycopg import sql

from citylab.adapters.postgres import primary

_COLUMNS = "id, datastream_id, phenomenon_time, result_number, quality, feature_of_interest_id"
_ROWS = 50_000  # a transaction


async def copy_again(url: str, streams: str) -> float:
    """Copy the observations of streams whose name begins with `streams` once more; return the seconds it took.

    The rows come in the order of their ids, and the table has the indexes, and is a hypertable, as observations is.
    """
    async with await psycopg.AsyncConnection.connect(primary(url), autocommit=True) as connection:
        await connection.execute("DROP TABLE IF EXISTS bench_copy")
        await connection.execute("CREATE TABLE bench_copy (LIKE observations INCLUDING ALL)")
        found = await connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
        if await found.fetchone():
            await connection.execute(
                "SELECT create_hypertable('bench_copy', 'phenomenon_time', chunk_time_interval => interval '7 days',"
                " create_default_indexes => false)"
            )
        query = sql.SQL(
            "COPY (SELECT {} FROM observations o WHERE EXISTS (SELECT 1 FROM datastreams d WHERE d.id = o.datastream_id"
            " AND d.stream_name LIKE {}) ORDER BY id) TO STDOUT (FORMAT BINARY)"
        ).format(sql.SQL(_COLUMNS), sql.Literal(f"{streams}%"))
        chunks: list[list[bytes]] = []
        count = 0
        async with connection.cursor().copy(query) as copy:
            async for row in copy:  # one row a message
                if count % _ROWS == 0:
                    chunks.append([])
                chunks[-1].append(bytes(row))
                count += 1
        head, tail = chunks[0][0][:19], b"\xff\xff"
        chunks[0][0] = chunks[0][0][19:]
        buffers = [head + b"".join(chunk).removesuffix(tail) + tail for chunk in chunks]
        began = time.perf_counter()
        for buffer in buffers:
            async with (
                connection.transaction(),
                connection.cursor().copy(f"COPY bench_copy ({_COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy,
            ):
                await copy.write(buffer)
        seconds = time.perf_counter() - began
        await connection.execute("DROP TABLE bench_copy")
    return seconds
