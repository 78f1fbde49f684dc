import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.sensorthings.batches import Item, Outcome
from api.sensorthings.errors import RequestError
from api.sensorthings.json_batch import read_json
from api.sensorthings.multipart import boundary_of, read_multipart, write_multipart
from api.sensorthings.requests import Answer

BATCH = (
    b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n"
    b"--c\r\nContent-Type: application/http\r\nContent-ID: 1\r\n\r\nPOST Things HTTP/1.1\r\nA: b\r\n\r\n{}\r\n--c--\r\n"
    b"--b\r\nContent-Type: application/http\r\n\r\nGET Things?$filter=name eq 'a' HTTP/1.1\r\n\r\n\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        (b"multipart/mixed; boundary=abc", b"abc"),
        (b"Multipart/Mixed;charset=utf-8;BOUNDARY=a:b", b"a:b"),
        (b'multipart/mixed; boundary="a b; c"', b"a b; c"),
        (b'multipart/mixed; x="boundary=no"; boundary=yes', b"yes"),
        (b"multipart/mixed", None),
        (b"multipart/form-data; boundary=a", None),
        (b"application/json", None),
    ],
)
def test_the_boundary_is_read_from_the_media_type(kind, boundary):
    assert boundary_of(kind) == boundary


def test_a_batch_is_read_into_change_sets_and_requests():
    change_set, single = read_multipart(BATCH, b"b")
    assert change_set == [Item("POST", "Things", ((b"a", b"b"),), b"{}", "1")]
    assert single == Item("GET", "Things?$filter=name eq 'a'", (), b"")


def test_a_body_holds_what_stands_before_the_boundary():
    body = b"--b\r\nContent-Type: application/http\r\n\r\nPOST Things HTTP/1.1\r\nContent-Length: 3\r\n\r\n\xc3\xa9--b x\r\n\r\n--b--"
    (item,) = read_multipart(body, b"b")
    assert item.body == b"\xc3\xa9--b x\r\n"


def test_what_is_written_can_be_read_again():
    outcomes = [
        Outcome("1", Answer(200, b"{}")),
        [Outcome("2", Answer(204)), Outcome("3", Answer(404, b"no"))],
    ]
    text = write_multipart(outcomes, b"b")
    assert text.count(b"HTTP/1.1 ") == 3
    assert b"HTTP/1.1 204 No Content\r\n\r\n" in text
    assert text.endswith(b"--b--\r\n")


def status_of_reading(read):
    try:
        read()
    except RequestError as error:
        return error.status
    return 200


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_batch_breaks_the_reader(data):
    """Whatever comes is a batch, or is refused with 400."""
    text = bytearray(BATCH)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 20)))
        pieces = st.sampled_from(
            [b"", b"\r\n", b"\n", b"--b", b"--b--", b"--c\r\n", b": ", b"\0", b"\xff", b"HTTP/1.1"]
        )
        text[at:end] = data.draw(pieces | st.binary(max_size=10))
    assert status_of_reading(lambda: read_multipart(bytes(text), b"b")) in {200, 400}
    assert status_of_reading(lambda: read_multipart(bytes(text), b"(")) == 400


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_no_document_breaks_the_reader_of_json(document):
    assert status_of_reading(lambda: read_json(document)) == 400


def test_reading_takes_time_in_proportion_to_the_size():
    body = b"\r\n--b " * 200_000
    with pytest.raises(RequestError):
        read_multipart(body, b"b")
    with pytest.raises(RequestError):
        read_multipart(b"--b\r\n" + b"a:b\r\n" * 200_000 + b"\r\n--b--", b"b")
