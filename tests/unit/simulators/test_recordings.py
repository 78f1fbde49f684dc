from datetime import UTC, date, datetime

from simulators.recordings import air_quality_rows, drive_rows, write_air_quality, write_drive_test

SPRING = date(2025, 3, 30)


def test_the_same_seed_writes_the_same_bytes() -> None:
    def both(seed: int) -> str:
        start = datetime(2026, 5, 1, tzinfo=UTC)
        air = write_air_quality(air_quality_rows(seed, first=date(2025, 8, 1), days=2))
        return air + write_drive_test(drive_rows(seed, start=start, rows=20))

    assert both(7) == both(7)
    assert both(7) != both(8)


def test_an_hour_that_the_day_does_not_have_is_a_hole() -> None:
    for row in air_quality_rows(1, first=SPRING, days=2, holes=0):
        assert (row.cells[2].value == "NA") is (row.day == SPRING)


def test_the_air_quality_file_looks_like_the_citys() -> None:
    header, line = write_air_quality(air_quality_rows(1, first=date(2025, 8, 1), days=1)[:1]).splitlines()

    assert header.startswith(
        '"CODI_PROVINCIA","PROVINCIA","CODI_MUNICIPI","MUNICIPI","ESTACIO","CODI_CONTAMINANT","ANY"'
    )
    assert header.endswith('"H24","V24"')
    assert line.startswith('8,"Barcelona",19,"Barcelona",43,8,2025,8,1,')
    assert line.count(",") == header.count(",") == 56
