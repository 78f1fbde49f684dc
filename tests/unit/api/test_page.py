"""How the live page is served: what may be kept, what a browser may do with it, and what is said when it is missing."""

import gzip
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from api.page import page_router


@pytest.fixture
def static(tmp_path: Path) -> Path:
    (tmp_path / "index.html").write_text("<!doctype html><title>page</title>")
    (tmp_path / "live-ABCD1234.js").write_text("run()")
    (tmp_path / "live-ABCD1234.js.gz").write_bytes(gzip.compress(b"run()"))
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path / ".built").write_text("digest")
    (tmp_path / "secret.py").write_text("secret")
    return tmp_path


def client(static: Path) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(page_router(static))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page")


async def test_the_page_is_always_asked_for_and_its_parts_are_kept_for_good(static):
    async with client(static) as http:
        page = await http.get("/")
        assert (page.status_code, page.headers["cache-control"]) == (200, "no-cache")
        part = await http.get("/static/live-ABCD1234.js", headers={"Accept-Encoding": "identity"})
        assert part.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert part.headers["content-type"] == "text/javascript; charset=utf-8"
        assert part.text == "run()"
        icon = await http.get("/static/icon.svg")
        assert icon.headers["cache-control"] == "no-cache"  # its name does not change with its content


async def test_a_browser_that_has_it_gets_it_not_again(static):
    async with client(static) as http:
        tag = (await http.get("/")).headers["etag"]
        again = await http.get("/", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")


async def test_text_goes_compressed_to_those_who_take_it(static):
    async with client(static) as http:
        packed = await http.get("/static/live-ABCD1234.js", headers={"Accept-Encoding": "gzip"})
        plain = await http.get("/static/live-ABCD1234.js", headers={"Accept-Encoding": "identity"})
        assert packed.headers["content-encoding"] == "gzip"
        assert "content-encoding" not in plain.headers
        assert packed.text == plain.text
        assert packed.headers["etag"] != plain.headers["etag"]
        assert packed.headers["vary"] == "Accept-Encoding"


async def test_everything_forbids_scripts_from_elsewhere_and_inline(static):
    async with client(static) as http:
        for path in ("/", "/static/icon.svg", "/static/nothing.js"):
            policy = (await http.get(path)).headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "unsafe" not in policy


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        ".built",
        "secret.py",
        "..%2findex.html",
        "%2e%2e/secret.py",
        "live-ABCD1234.js.gz",
        "a%00.js",
    ],
)
async def test_only_what_was_built_is_served(static, name):
    async with client(static) as http:
        assert (await http.get(f"/static/{name}")).status_code == 404


async def test_a_page_that_was_not_built_says_what_to_run(tmp_path):
    async with client(tmp_path / "none") as http:
        answer = await http.get("/")
        assert answer.status_code == 503
        assert "make setup" in answer.text
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / "index.html").write_text("built meanwhile")
        assert (await http.get("/")).text == "built meanwhile"
