"""The live page in a real Chromium, in the states that are hard to produce on the real thing."""

import asyncio
import re
import time

import pytest
from browser.small_city import SmallCity, Stream, Thing, barcelona, many
from playwright.async_api import Page, expect

from citylab.model import Quality
from dashboards.build import SOURCE


def town(*things: Thing, **changes: object) -> SmallCity:
    """A city that is quiet: values arrive when a test sends them."""
    city = SmallCity(list(things), **changes)
    city.playing = False
    return city


def thing(number: int, name: str, *streams: Stream) -> Thing:
    return Thing(number, name, 2.15 + number / 500, 41.39 + number / 900, list(streams))


def stream(number: int, name: str = "Temperature", unit: str = "°C", **changes: object) -> Stream:
    return Stream(number, name, unit, 20.0, 1.0, flawed=False, **changes)


def row(page: Page, text: str):
    return page.locator(".row", has_text=text).first


async def test_the_city_is_listed_counted_and_on_the_map(eyes, serve):
    served = await serve(SmallCity(barcelona()))
    page = await eyes.look(served.url)
    await expect(row(page, "Air quality Eixample")).to_be_visible()
    await expect(page.locator("canvas.maplibregl-canvas")).to_be_visible()
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#figure-all")).to_have_text("of 27")
    await expect(page.locator("#legend button", has_text="Silent").locator(".count")).not_to_have_text("0")
    first = page.locator(".row.thing").first
    await expect(first).to_have_attribute("data-state", "silent")  # what is unwell comes first
    await expect(page).to_have_title(re.compile(r"\d things unwell · Citylab"))
    await expect(page.locator(".row.stream", has_text="O₃").first.locator(".unit")).to_have_text("µg/m³")


async def test_a_value_that_arrives_shows_without_a_reload(eyes, serve):
    temperature = stream(12)
    served = await serve(town(thing(1, "Station", temperature)))
    page = await eyes.look(served.url)
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator("#detail-name")).to_have_text("Temperature")
    count = page.locator("#sum-count")
    await expect(count).to_have_text(re.compile(r"3\d\d"))
    before = int(await count.inner_text())
    await served.city.send(temperature, 77.5)
    await expect(row(page, "Temperature").locator(".number")).to_have_text("77.5")
    await expect(page.locator("#detail-value")).to_have_text("77.5")
    await expect(page.locator("#sum-max")).to_have_text("77.5")
    await expect(count).to_have_text(re.compile(rf"{before}|{before + 1}"))  # the oldest may leave meanwhile


async def test_quality_and_silence_are_states_with_words_and_shapes(eyes, serve):
    served = await serve(
        town(
            thing(1, "Well", stream(1)),
            thing(2, "Doubtful", stream(2, quality=Quality.SUSPECT)),
            thing(3, "Gone", stream(3, stopped=4_000.0)),
            thing(4, "Overdue", stream(4, stopped=70.0)),
            thing(5, "Young", stream(5, empty=True)),
            thing(6, "Old", stream(6, active=False)),
        )
    )
    page = await eyes.look(served.url)
    for name, state in [
        ("Gone", "silent"), ("Young", "silent"), ("Doubtful", "suspect"), ("Overdue", "late"), ("Well", "fresh"), ("Old", "idle"),
    ]:  # fmt: skip
        await expect(row(page, name)).to_have_attribute("data-state", state)
        await expect(row(page, name).locator(f"svg.icon-{state}")).to_be_visible()
    names = await page.locator(".row.thing .name").all_inner_texts()
    assert names == ["Gone", "Young", "Doubtful", "Overdue", "Well", "Old"]
    await expect(page.get_by_role("option", name="Silent Young silent")).to_be_visible()
    await served.city.send(served.city.streams[4], 21.0)  # a first value makes it well
    await expect(row(page, "Young")).to_have_attribute("data-state", "fresh")


async def test_a_gateway_that_is_offline_is_said_on_its_things(eyes, serve):
    city = town(thing(1, "Here", stream(1)), thing(2, "There", stream(2)))
    city.health["gateways"] = {"online": 1, "offline": 1, "offline_things": [2]}
    served = await serve(city)
    page = await eyes.look(served.url)
    await expect(row(page, "There")).to_have_attribute("data-state", "offline")
    await expect(row(page, "Here")).to_have_attribute("data-state", "fresh")
    await expect(page.locator("#figure-offline")).to_have_text("1 offline")


async def test_every_page_of_things_is_read(eyes, serve):
    city = town(*[thing(i, f"Thing {i}", stream(100 + i)) for i in range(1, 24)])
    city.page_size = 5
    served = await serve(city)
    page = await eyes.look(served.url)
    await expect(page.locator("#figure-all")).to_have_text("of 23")
    assert sum("/Things" in asked for asked in city.asked) == 5


async def test_a_link_names_a_datastream_and_a_range(eyes, serve):
    served = await serve(
        town(thing(1, "One", stream(11)), thing(2, "Two", stream(12), stream(13, "Humidity", "%")))
    )
    page = await eyes.look(f"{served.url}?datastream=13&range=24h")
    await expect(page.locator("#detail-name")).to_have_text("Humidity")
    await expect(page.locator("#detail-thing")).to_have_text("Two")
    await expect(page.get_by_role("button", name="24 h")).to_have_attribute("aria-pressed", "true")
    await row(page, "One").click()
    await expect(page).to_have_url(re.compile(r"\?datastream=11$"))
    missing = await eyes.look(f"{served.url}?datastream=99")
    await expect(missing.locator("#not-found")).to_have_text(
        "There is no datastream 99 in this city (any more)."
    )


async def test_the_list_is_searched_filtered_and_walked_with_the_keyboard(eyes, serve):
    served = await serve(
        town(
            thing(1, "Sants", stream(11), stream(12, "Noise", "dB(A)")),
            thing(2, "Gràcia", stream(13), stream(14, "Noise", "dB(A)", quality=Quality.BAD)),
        )
    )
    page = await eyes.look(served.url)
    await expect(row(page, "Sants")).to_be_visible()
    await page.keyboard.press("/")
    await page.keyboard.type("noise gràcia")
    await expect(page.locator(".row")).to_have_count(2)
    await page.keyboard.press("ArrowDown")
    await expect(page.locator("#list")).to_be_focused()
    await page.keyboard.press("End")
    await page.keyboard.press("Enter")
    await expect(page.locator("#detail-thing")).to_have_text("Gràcia")
    await expect(page.locator("#detail-name")).to_have_text("Noise")
    await expect(page.locator("#list")).to_have_attribute("aria-activedescendant", "row-s14")
    await page.fill("#search", "")
    await page.locator("#legend button", has_text="Fresh").click()
    await expect(page.locator(".row.thing")).to_have_count(1)
    await expect(row(page, "Sants")).to_be_visible()
    await page.fill("#search", "nothing has this name")
    await expect(page.locator("#nothing-found")).to_be_visible()


async def test_the_chart_is_read_with_the_pointer_and_the_keyboard(eyes, serve):
    served = await serve(town(thing(1, "Station", stream(12))))
    page = await eyes.look(served.url)
    await expect(page.locator("#sum-count")).to_have_text(re.compile(r"3\d\d"))
    box = await page.locator("#chart .u-over").bounding_box()
    await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator(".tip")
    await expect(tip).to_contain_text("°C")
    await expect(tip).to_contain_text("UTC")
    await page.mouse.move(5, 5)
    await page.locator("#chart").focus()
    await page.keyboard.press("End")
    newest = await tip.inner_text()
    await page.keyboard.press("ArrowLeft")
    await expect(tip).not_to_have_text(newest)


async def test_the_table_has_what_the_chart_has(eyes, serve):
    temperature = stream(12)
    served = await serve(town(thing(1, "Station", temperature)))
    page = await eyes.look(served.url)
    await expect(page.locator("#sum-count")).to_have_text(re.compile(r"3\d\d"))
    await served.city.send(temperature, -3.25, Quality.BAD)  # behind the history: nothing is newer
    await page.get_by_role("button", name="Table").click()
    cells = page.locator("#table tbody tr").first.locator("td")
    await expect(cells.nth(1)).to_contain_text("UTC")
    await expect(cells.nth(2)).to_have_text("-3.25")
    await expect(cells.nth(3)).to_have_text("bad")
    await expect(page.locator("#sum-min")).not_to_have_text("-3.25")  # what is bad is not in the sums


async def test_results_that_are_no_numbers_are_a_table(eyes, serve):
    served = await serve(
        town(thing(1, "Barrier", stream(12, "State", "", interval=60, results=["open", {"a": 1}])))
    )
    page = await eyes.look(served.url)
    await expect(page.locator("#chart-says")).to_have_text(
        "These results are not numbers; the table has them."
    )
    await expect(page.locator("#table tbody")).to_contain_text('{"a":1}')


async def test_old_recordings_show_up_to_their_newest_value_and_say_so(eyes, serve):
    served = await serve(
        town(thing(1, "Archive", stream(12, interval=3_600, stopped=30 * 86_400, stamp="end")))
    )
    page = await eyes.look(served.url)
    await expect(page.locator("#chart-notes")).to_contain_text("Up to the newest value")
    await expect(page.locator("#chart-notes")).to_contain_text("time is the end of the 1 h it covers.")
    await expect(page.locator("#sum-count")).to_have_text("24")
    await expect(page.get_by_role("button", name="24 h")).to_have_attribute("aria-pressed", "true")


async def test_after_an_interruption_nothing_is_missed(eyes, serve):
    temperature = stream(12, stopped=120.0)  # what is sent meanwhile is the newest, however long it takes
    served = await serve(town(thing(1, "Station", temperature)))
    eyes.expected += ["ERR_", "Failed to load resource"]
    page = await eyes.look(served.url)
    await expect(page.locator("#connection")).to_have_text("Live")
    await expect(page.locator('#map[data-drawn="map"]')).to_be_visible()
    await served.stop()
    await expect(page.locator("#connection")).to_contain_text("Reconnecting")
    await expect(page.locator("#notice")).to_contain_text("Connection")
    await expect(page).to_have_title("⚠ No connection · Citylab")
    city = SmallCity(served.city.things)  # another process of the same city
    city.playing = False
    temperature.extra.append((time.time_ns() // 1_000, 55.5, Quality.NONE))
    served.city = city
    await served.start()
    await expect(page.locator("#connection")).to_have_text("Live", timeout=30_000)
    await expect(page.locator("#detail-value")).to_have_text("55.5")
    await expect(page.locator("#sum-max")).to_have_text("55.5")
    await expect(page.locator("#notice")).to_be_hidden()


async def test_what_is_unwell_is_said_at_the_top_and_in_the_title(eyes, serve):
    city = town(thing(1, "Station", stream(12)))
    eyes.expected.append("503")
    served = await serve(city)
    page = await eyes.look(served.url)
    await expect(page.locator("#notice")).to_be_hidden()
    city.health["state"] = "unwell"
    city.health["checks"] = [{"name": "processing", "ok": False, "detail": "has reported nothing for 40 s"}]
    await expect(page.locator("#notice")).to_have_text("processing has reported nothing for 40 s")
    await expect(page).to_have_title("⚠ processing unwell · Citylab")
    city.health["state"] = "ready"
    city.health["checks"] = []
    await expect(page.locator("#notice")).to_be_hidden()


async def test_an_api_that_fails_is_said_and_tried_again(eyes, serve):
    city = town(thing(1, "Station", stream(12)))
    city.failing = True
    eyes.expected.append("503")
    served = await serve(city)
    page = await eyes.look(served.url)
    await expect(page.locator("#notice")).to_contain_text("could not be loaded: the store does not answer")
    city.failing = False
    await expect(row(page, "Station")).to_be_visible(timeout=15_000)
    await expect(page.locator("#notice")).to_be_hidden()


async def test_a_city_without_things_says_how_to_make_the_first(eyes, serve):
    city = town()
    served = await serve(city)
    page = await eyes.look(served.url)
    await expect(page.locator("#welcome")).to_be_visible()
    await expect(page.locator("#first-steps")).to_contain_text("mosquitto_pub -h 127.0.0.1 -p 18830")
    await expect(page.locator("#welcome a")).to_have_attribute("href", "/docs")
    new = stream(12)
    city.things.append(thing(1, "My first thing", new))
    await asyncio.sleep(0)
    await city.send(new, 21.4)
    await expect(row(page, "My first thing")).to_be_visible(timeout=15_000)  # by itself
    await expect(page.locator("#welcome")).to_be_hidden()


async def test_names_are_text_whatever_they_look_like(eyes, serve):
    name = "<img src=x onerror=alert(1)> 北京 العربية"
    served = await serve(town(thing(1, name, stream(12, "<b>fat</b>", "<i>"))))
    page = await eyes.look(served.url)
    await expect(page.locator(".row.thing .name")).to_have_text(name)
    await expect(page.locator("#detail-name")).to_have_text("<b>fat</b>")


async def test_without_webgl_there_is_a_drawing_to_click_on(eyes_without_webgl, serve):
    served = await serve(town(thing(1, "Sants", stream(11)), thing(2, "Gràcia", stream(12))))
    page = await eyes_without_webgl.look(served.url)
    await expect(page.locator("#map.sketch .mark")).to_have_count(2)
    await page.locator('.mark[title^="Gràcia"]').click()
    await expect(page.locator("#detail-thing")).to_have_text("Gràcia")


async def test_a_thousand_things_are_as_quick_as_ten(eyes, serve):
    city = SmallCity(many(1_000))
    served = await serve(city)
    page = await eyes.look(served.url)
    await expect(page.locator("#figure-all")).to_have_text("of 1,000", timeout=30_000)
    assert await page.locator(".row").count() < 100  # only what is in sight
    longest = await page.evaluate(
        """async () => {
            const box = document.querySelector('.rows');
            let longest = 0;
            for (let i = 1; i <= 40; i += 1) {
                const start = performance.now();
                box.scrollTop = (box.scrollHeight * i) / 40;
                box.dispatchEvent(new Event('scroll'));
                longest = Math.max(longest, performance.now() - start);
                await new Promise((done) => requestAnimationFrame(done));
            }
            return longest;
        }"""
    )
    assert longest < 100, f"a step of scrolling took {longest:.0f} ms"
    await expect(page.locator(".row.stream").last).to_be_in_viewport()


async def test_on_a_phone_nothing_is_wider_than_the_screen(eyes, serve):
    served = await serve(SmallCity(barcelona()))
    page = await eyes.look(served.url, width=390, height=844, has_touch=True, is_mobile=True)
    await expect(row(page, "Air quality Eixample")).to_be_attached()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390
    await page.locator(".row.stream").nth(2).tap()
    await expect(page.locator("#detail")).to_be_in_viewport()
    await expect(page.locator("#chart canvas")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390


async def test_on_a_wall_the_table_stands_beside_the_chart(eyes, serve):
    served = await serve(SmallCity(barcelona()))
    page = await eyes.look(served.url, width=3_840, height=1_600, color_scheme="dark")
    await expect(page.locator("#table tbody tr").first).to_be_visible()
    await expect(page.locator("#chart canvas")).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")


@pytest.mark.parametrize(("width", "scheme"), [(1_440, "light"), (1_440, "dark"), (390, "light")])
async def test_people_who_use_no_mouse_or_see_little_can_use_it(eyes, serve, width, scheme):
    """The rules of axe-core, which has those of WCAG 2.2 that a program can check."""
    city = SmallCity(barcelona())
    city.health["state"] = "unwell"
    city.health["checks"] = [{"name": "processing", "ok": False, "detail": "has reported nothing for 40 s"}]
    eyes.expected.append("503")
    served = await serve(city)
    page = await eyes.look(served.url, width=width, color_scheme=scheme, bypass_csp=True)
    await expect(page.locator("#notice")).to_be_visible()
    await page.locator(".row.stream").nth(1).click()
    await page.get_by_role("button", name="Table").click()
    await expect(page.locator("#table tbody tr").first).to_be_visible()
    await page.evaluate((SOURCE / "node_modules/axe-core/axe.min.js").read_text() + ";0")
    violations = await page.evaluate(
        "axe.run().then((found) => found.violations.map((one) => `${one.id}: ${one.nodes[0].target}`))"
    )
    assert violations == []
