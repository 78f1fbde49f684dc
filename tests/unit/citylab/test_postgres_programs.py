"""Which of PostgreSQL's programs is taken for a server, and how it reaches it."""

from pathlib import Path

import pytest

from citylab.adapters.postgres_programs import program, reaching
from citylab.errors import ConfigurationError


@pytest.fixture
def of_98_and_99(tmp_path, monkeypatch) -> dict[int, Path]:
    found = {}
    for major in (98, 99):
        path = tmp_path / str(major) / "pg_receivewal"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho 'pg_receivewal (PostgreSQL) {major}.1'\n")
        path.chmod(0o755)
        found[major] = path
    monkeypatch.setenv("PATH", f"{tmp_path / '99'}:{tmp_path / '98'}")
    return found


def test_it_is_of_the_servers_version_or_the_next_newer_one(of_98_and_99):
    assert program("pg_receivewal", 98) == of_98_and_99[98]
    assert program("pg_receivewal", 97) == of_98_and_99[98]
    assert program("pg_receivewal", 99, same=True) == of_98_and_99[99]


@pytest.mark.parametrize(("major", "same"), [(100, False), (97, True)])
@pytest.mark.usefixtures("of_98_and_99")
def test_one_that_does_not_fit_is_refused_with_what_to_install(major, same):
    with pytest.raises(ConfigurationError, match=rf"98, 99: install PostgreSQL {major}'s programs"):
        program("pg_receivewal", major, same=same)


def test_the_password_is_no_word_of_the_command():
    words, environment = reaching("postgresql://user:se%20cret@host:5433/db?sslmode=require")
    assert "se cret" not in words
    assert "secret" not in words
    assert environment["PGPASSWORD"] == "se cret"
    assert {"user=user", "host=host", "port=5433", "sslmode=require"} <= set(words.split())
