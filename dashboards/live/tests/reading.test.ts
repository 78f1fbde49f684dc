import assert from "node:assert/strict";
import { test } from "node:test";

import { graticule } from "../src/basemap.ts";
import { readHealth } from "../src/health.ts";
import { label, shortLabel } from "../src/list.ts";
import { here, placeOf, readObservation, readThing } from "../src/sensorthings.ts";
import { projection } from "../src/sketch.ts";
import { ageText, agoText, durationText, number, parseDuration, parseTime, utcText } from "../src/times.ts";
import { valueText } from "../src/values.ts";

test("ISO 8601 durations", () => {
  assert.equal(parseDuration("PT10S"), 10_000);
  assert.equal(parseDuration("P1DT2H3M4.5S"), 93_784_500);
  assert.equal(parseDuration("P2W"), 14 * 86_400_000);
  for (const none of ["P1M", "10 s", "P", "PT", "PT0S", null, 5]) assert.equal(parseDuration(none), null);
});

test("instants and intervals", () => {
  assert.equal(parseTime("1970-01-01T00:00:01Z"), 1_000);
  assert.equal(parseTime("1970-01-01T00:00:00Z/1970-01-01T01:00:00Z"), 0);
  assert.equal(parseTime("1970-01-01T00:00:00Z/1970-01-01T01:00:00Z", true), 3_600_000);
});

test("ages in words", () => {
  assert.deepEqual([0, 59_999, 60_000, 3_600_000, 47 * 3_600_000, 48 * 3_600_000].map(ageText), ["0 s", "59 s", "1 min", "1 h", "47 h", "2 d"]);
  assert.deepEqual([400, 12_000, -1_000, -180_000].map(agoText), ["now", "12 s ago", "now", "in 3 min"]);
  assert.deepEqual([10_000, 60_000, 3_600_000, 90_000, 500].map(durationText), ["10 s", "1 min", "1 h", "90 s", "0.5 s"]);
  assert.equal(utcText(Date.parse("2026-05-01T07:00:00.250Z")), "2026-05-01 07:00:00.250 UTC");
});

test("values as they are", () => {
  assert.equal(valueText(21.4), "21.4");
  assert.equal(valueText("open"), "open");
  assert.equal(valueText(false), "false");
  assert.equal(valueText(null), "null");
  assert.equal(valueText([1, { a: 2 }]), '[1,{"a":2}]');
  assert.equal(number(0), "0");
  assert.equal(number(1.5e-9), "1.500e-9");
});

test("an observation with each kind of quality", () => {
  const read = (resultQuality: unknown) => readObservation({ phenomenonTime: "1970-01-01T00:00:01Z", result: 1, resultQuality }, null)?.flag;
  assert.deepEqual([{ flag: "bad" }, "suspect", null, { nameOfMeasure: "x" }, undefined].map(read), ["bad", "suspect", null, null, null]);
  assert.equal(readObservation({ phenomenonTime: "soon", result: 1 }, null), null);
});

test("a thing with everything, and with next to nothing", () => {
  const full = readThing({
    "@iot.id": 3,
    name: "Station",
    properties: { key: "k" },
    Locations: [{ name: "Nowhere", location: "unknown" }, { name: "There", location: { type: "Point", coordinates: [2, 41] } }],
    Datastreams: [
      {
        "@iot.id": 7, name: "NO2 at Station", unitOfMeasurement: { name: "microgram", symbol: "µg/m³" },
        properties: { streamName: "a/no2", interval: "PT1H", stamp: "end", active: false },
        ObservedProperty: { name: "NO2" },
        Observations: [{ phenomenonTime: "1970-01-01T00:00:01Z", result: 5, resultQuality: { flag: "good" } }],
      },
    ],
  });
  assert.deepEqual([full.place, full.placeName, full.key], [[2, 41], "There", "k"]);
  const [stream] = full.streams;
  assert.deepEqual(
    [stream?.property, stream?.unit, stream?.interval, stream?.stamp, stream?.retired, stream?.newest],
    ["NO2", "µg/m³", 3_600_000, "end", true, { time: 1_000, result: 5, flag: "good" }],
  );
  const bare = readThing({ "@iot.id": 4, Datastreams: [{ "@iot.id": 9, unitOfMeasurement: { name: null, symbol: null, definition: null } }] });
  assert.deepEqual([bare.name, bare.place, bare.streams[0]?.unit, bare.streams[0]?.newest], ["Thing 4", null, "", null]);
});

test("every geometry has a place, nonsense has none", () => {
  assert.deepEqual(placeOf({ type: "Point", coordinates: [2, 41, 30] }), [2, 41]);
  assert.deepEqual(placeOf({ type: "Feature", geometry: { type: "LineString", coordinates: [[0, 0], [2, 4]] } }), [1, 2]);
  assert.deepEqual(placeOf({ type: "Polygon", coordinates: [[[0, 0], [2, 0], [2, 2], [0, 0]]] }), [1, 1]);
  for (const none of [null, "here", {}, { type: "Point", coordinates: [] }, { type: "Point", coordinates: [200, 95] }]) assert.equal(placeOf(none), null);
});

test("links of the API are followed on the page's own address", () => {
  assert.equal(here("https://city.example:444/v1.1/Things?$skip=100&x=a+b"), "/v1.1/Things?$skip=100&x=a+b");
  assert.equal(here("Things?$orderby=name desc"), "/v1.1/Things?$orderby=name%20desc");
});

test("health, with and without what it may leave out", () => {
  const full = readHealth({
    state: "unwell",
    checks: [{ name: "store", ok: true, detail: "" }, { name: "bridge", ok: false, detail: "is gone" }],
    observations_per_second: 12.5, lag_seconds: 0.2, gateways: { online: 3, offline: 1, offline_things: [7] },
  });
  assert.deepEqual(full.unwell, [{ name: "bridge", ok: false, detail: "is gone" }]);
  assert.deepEqual([full.perSecond, full.lag, full.gateways, full.offlineThings], [12.5, 0.2, { online: 3, offline: 1 }, [7]]);
  const bare = readHealth({ state: "unwell" });
  assert.deepEqual([bare.unwell.length, bare.perSecond, bare.gateways], [1, null, null]);
});

test("a grid of degrees has a handful of lines at every zoom", () => {
  for (const width of [0.01, 0.2, 3, 60, 300]) {
    const lines = graticule(2 - width / 2, 41 - width / 4, 2 + width / 2, 41 + width / 4);
    assert.ok(lines.length > 4 && lines.length < 40, `${width}: ${lines.length}`);
  }
});

test("the drawing keeps all places in sight, north up", () => {
  const project = projection([[2, 41], [2.2, 41.5]], 800, 600);
  const [west, south] = project([2, 41]);
  const [east, north] = project([2.2, 41.5]);
  assert.ok(west < east && north < south && west > 0 && east < 800 && north > 0 && south < 600);
});

test("a narrow row tells two long names apart", () => {
  const stream = (id: number, name: string, property: string) => ({ "@iot.id": id, name, ObservedProperty: { name: property } });
  const station = readThing({
    "@iot.id": 1,
    name: "Air-quality station, Plaça del Sol",
    Locations: [{ name: "Plaça del Sol", location: { type: "Point", coordinates: [2, 41] } }],
    Datastreams: [
      stream(1, "PM10, Plaça del Sol", "Particles smaller than 10 µm"),
      stream(2, "PM2.5 at Plaça del Sol", "Particles smaller than 2.5 µm"),
    ],
  });
  assert.deepEqual(station.streams.map((one) => shortLabel(one, station)), ["PM10", "PM2.5"]);
  assert.equal(label(station.streams[0]!, station), "Particles smaller than 10 µm");
  const twins = readThing({ "@iot.id": 2, name: "Mast", Datastreams: [stream(3, "Wind at 10 m", "Wind"), stream(4, "Wind at 40 m", "Wind")] });
  assert.deepEqual(twins.streams.map((one) => shortLabel(one, twins)), ["Wind at 10 m", "Wind at 40 m"]);
});
