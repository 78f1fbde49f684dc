"""The live page on a real city: from a gateway's message to a picture in a browser."""

import asyncio
import json
import re
import time

from city import City
from city_devices import place, stream, thing
from playwright.async_api import expect


def url(city: City, query: str = "") -> str:
    return f"http://127.0.0.1:{city.settings.http_port}/{query}"


async def test_what_an_empty_city_invites_to_makes_a_first_thing(eyes, city):
    page = await eyes.look(url(city))
    await expect(page.locator("#welcome")).to_be_visible()
    for line in await page.locator("#first-steps code").all_inner_texts():
        found = re.search(r"( -r)? -t citylab/v1/gateways/(\S+) -m '(.*)'$", line, re.DOTALL)
        assert found, line
        await asyncio.to_thread(city.publish, found[2], found[3], retain=bool(found[1]))

    await expect(page.locator(".row.thing .name")).to_have_text("My box", timeout=20_000)
    await expect(page.locator("#welcome")).to_be_hidden()
    await expect(page.locator(".row.stream .number")).to_have_text("21.4")
    await expect(page.locator(".row.thing")).to_have_attribute("data-state", "fresh")
    await expect(page.locator("#notice")).to_be_hidden()


async def test_a_chart_moves_as_values_arrive(eyes, city):
    name = "first/no2"
    at = place(2.1734, 41.3851, "Plaça de Catalunya")
    await asyncio.to_thread(city.descriptor, "first", thing("first", stream(name), at=at, name="Station 北"))
    start = time.time() - 300
    history = [{"n": name, "t": start + 10 * i, "v": 20 + i % 7} for i in range(25)]
    await asyncio.to_thread(city.pack, "first", *history)
    await asyncio.to_thread(city.until, lambda: len(city.results(name)) == 25, "the history is stored")

    page = await eyes.look(url(city))
    row = page.locator(".row.stream", has_text="NO2")
    await row.click()
    await expect(page.locator("#detail-thing")).to_have_text("Station 北")
    await expect(page.locator("#sum-count")).to_have_text("25")
    await expect(page.locator("#detail-unit")).to_have_text("ug/m3")

    await asyncio.to_thread(city.pack, "first", {"n": name, "v": 77.5, "quality": "suspect"})
    await expect(page.locator("#detail-value")).to_have_text("77.5")
    await expect(row.locator(".number")).to_have_text("77.5")
    await expect(page.locator("#sum-max")).to_have_text("77.5")
    await expect(page.locator("#sum-count")).to_have_text("26")
    await expect(page.locator("#sum-flagged")).to_have_text("1 flagged")
    station = page.locator(".row.thing", has_text="Station")
    await expect(station).to_have_attribute("data-state", "suspect")

    await asyncio.to_thread(city.publish, "first/status", json.dumps({"state": "offline"}), retain=True)
    await expect(station).to_have_attribute("data-state", "offline")
    await expect(page.locator("#figure-offline")).to_have_text("1 offline")

    # Another person who is sent the link sees the same.
    other = await eyes.look(page.url, color_scheme="dark")
    await expect(other.locator("#sum-count")).to_have_text("26")
    await expect(other.locator("#detail-value")).to_have_text("77.5")


async def test_every_value_of_a_fast_stream_reaches_the_chart(eyes, city):
    name = "fast/x"
    await asyncio.to_thread(city.descriptor, "fast", thing("fast", stream(name)))
    await asyncio.to_thread(city.until, lambda: city.datastream(name), "the stream is registered")
    number = city.datastream(name)["@iot.id"]
    page = await eyes.look(url(city, f"?datastream={number}"))
    await expect(page.locator("#chart-says")).to_contain_text("No value has arrived yet")
    start = time.time() - 100
    for pack in range(10):  # ten values a pack, as fast as the broker takes them
        records = [{"n": name, "t": start + pack + i / 10, "v": pack * 10 + i} for i in range(10)]
        await asyncio.to_thread(city.pack, "fast", *records)
    await expect(page.locator("#sum-count")).to_have_text("100")
    await expect(page.locator("#sum-mean")).to_have_text("49.5")


async def test_what_was_stored_while_the_api_was_away_is_there_afterwards(eyes, city):
    name = "patient/x"
    await asyncio.to_thread(city.descriptor, "patient", thing("patient", stream(name)))
    await asyncio.to_thread(city.pack, "patient", {"n": name, "v": 1})
    await asyncio.to_thread(city.until, lambda: city.results(name) == [1], "the first value is stored")
    eyes.expected += ["ERR_", "Failed to load"]
    page = await eyes.look(url(city, f"?datastream={city.datastream(name)['@iot.id']}"))
    await expect(page.locator("#detail-value")).to_have_text("1")
    await expect(page.locator('#map[data-drawn="map"]')).to_be_visible()

    city.kill("api")
    await expect(page.locator("#connection")).to_contain_text("Reconnecting")
    await asyncio.to_thread(city.pack, "patient", {"n": name, "v": 2})
    (stored,) = await asyncio.to_thread(
        city.until,
        lambda: city.fetch("SELECT 1 FROM observations WHERE result_number = 2 LIMIT 1"),
        "the second value is stored",
    )
    assert stored
    city.start("api")
    await expect(page.locator("#connection")).to_have_text("Live", timeout=30_000)
    await expect(page.locator("#detail-value")).to_have_text("2")
    await expect(page.locator("#sum-count")).to_have_text("2")


async def test_a_service_that_is_gone_is_said(eyes, city):
    eyes.expected.append("503")
    page = await eyes.look(url(city))
    await expect(page.locator("#notice")).to_be_hidden(timeout=20_000)
    city.kill("processing")
    await expect(page.locator("#notice")).to_contain_text("processing", timeout=20_000)
    await expect(page).to_have_title(re.compile("processing unwell"))
    city.start("processing")
    await expect(page.locator("#notice")).to_be_hidden(timeout=20_000)
