import assert from "node:assert/strict";
import { test } from "node:test";

import { City } from "../src/city.ts";
import { readThing, type Stream, type Thing } from "../src/sensorthings.ts";
import { defaultRange, streamState, worst } from "../src/states.ts";

const MINUTE = 60_000;
const every = (interval: number | null, stamp: "start" | "end" | null = null) => ({ interval, stamp });
const newest = (time: number, flag: "good" | "suspect" | "bad" | null = null) => ({ time, flag });

test("a stream is fresh, then late, then silent", () => {
  const now = 100 * MINUTE;
  const state = (age: number) => streamState(every(10_000), newest(now - age), now);
  assert.equal(state(0), "fresh");
  assert.equal(state(50_000), "fresh");
  assert.equal(state(50_001), "late");
  assert.equal(state(400_000), "late");
  assert.equal(state(400_001), "silent");
});

test("an hourly stream is not late after a minute", () => {
  assert.equal(streamState(every(60 * MINUTE), newest(0), 119 * MINUTE), "fresh");
  assert.equal(streamState(every(60 * MINUTE), newest(0), 125 * MINUTE), "late");
});

test("a value that names the start of its hour is due an hour later", () => {
  assert.equal(streamState(every(60 * MINUTE, "end"), newest(0), 170 * MINUTE), "late");
  assert.equal(streamState(every(60 * MINUTE, "start"), newest(0), 170 * MINUTE), "fresh");
});

test("quality counts while values arrive, silence afterwards", () => {
  assert.equal(streamState(every(10_000), newest(0, "bad"), 1_000), "suspect");
  assert.equal(streamState(every(10_000), newest(0, "suspect"), 90_000), "suspect");
  assert.equal(streamState(every(10_000), newest(0, "good"), 1_000), "fresh");
  assert.equal(streamState(every(10_000), newest(0, "bad"), 60 * MINUTE), "silent");
});

test("no value at all is silence", () => {
  assert.equal(streamState(every(10_000), null, 0), "silent");
});

test("a thing is as unwell as the worst of its streams; nothing expected is idle", () => {
  assert.equal(worst(["fresh", "late", "idle"]), "late");
  assert.equal(worst(["idle", "fresh"]), "fresh");
  assert.equal(worst([]), "idle");
});

test("the chart begins with a range that suits the interval", () => {
  assert.equal(defaultRange(10_000), 60 * MINUTE);
  assert.equal(defaultRange(null), 60 * MINUTE);
  assert.equal(defaultRange(60 * MINUTE), 24 * 60 * MINUTE);
  assert.equal(defaultRange(24 * 60 * MINUTE), 7 * 24 * 60 * MINUTE);
});

const thing = (id: number, ...streams: Partial<Stream>[]): Thing => ({
  ...readThing({ "@iot.id": id, name: `thing ${id}` }),
  streams: streams.map((stream) => ({
    id: 0, thing: id, name: "", property: "", description: "", unit: "", unitName: "", streamName: null,
    interval: 10_000, stamp: null, retired: false, axis: null, newest: null, ...stream,
  })),
});

test("a value that came live is newer than what was fetched before it came", () => {
  const city = new City();
  assert.equal(city.take([{ stream: 5, time: 100, result: 2, flag: null }]), true); // not known yet
  city.put([thing(1, { id: 5, newest: { time: 50, result: 1, flag: null } })]);
  assert.equal(city.streams.get(5)?.newest?.result, 2);
  city.put([thing(1, { id: 5, newest: { time: 150, result: 3, flag: null } })]);
  assert.equal(city.streams.get(5)?.newest?.result, 3);
  assert.equal(city.take([{ stream: 5, time: 120, result: 9, flag: null }]), false); // late data is not the newest
  assert.equal(city.streams.get(5)?.newest?.result, 3);
});

test("states, counts, retired streams, gateways that are offline, things that are gone", () => {
  const city = new City();
  city.put([
    thing(1, { id: 1, newest: { time: 0, result: 1, flag: null } }, { id: 2, retired: true }),
    thing(2, { id: 3 }),
    thing(3),
    thing(4, { id: 4, newest: { time: 0, result: 1, flag: null } }),
  ]);
  city.offline = new Set([4]);
  assert.equal(city.judge(1_000), true);
  assert.equal(city.judge(1_000), false);
  assert.deepEqual(city.counts(), { offline: 1, silent: 1, suspect: 0, late: 0, fresh: 1, idle: 1 });
  city.keep(new Set([1]));
  city.judge(1_000);
  assert.deepEqual([...city.streams.keys()], [1, 2]);
  assert.deepEqual(city.counts(), { offline: 0, silent: 0, suspect: 0, late: 0, fresh: 1, idle: 0 });
});

test("a thing that moves is where it said last that it is", () => {
  const city = new City();
  const at = (time: number, lon: unknown, lat: unknown, flag: "bad" | null = null) => {
    city.take([{ stream: 1, time, result: lon, flag }, { stream: 2, time, result: lat, flag }]);
    return [city.move(), city.things.get(1)!.place];
  };
  city.put([thing(1, { id: 1, axis: "lon" }, { id: 2, axis: "lat" })]);

  assert.deepEqual(at(100, 2.2, 41.4), [true, [2.2, 41.4]]);
  assert.deepEqual(at(200, 2.2, 41.4), [false, [2.2, 41.4]]);
  assert.deepEqual(at(150, 2.3, 41.4), [false, [2.2, 41.4]]); // late
  assert.deepEqual(at(300, 2.3, 41.4, "bad"), [false, [2.2, 41.4]]);
  assert.deepEqual(at(400, 200, 41.4), [false, [2.2, 41.4]]);
  city.take([{ stream: 1, time: 500, result: 2.3, flag: null }]);
  assert.equal(city.move(), false); // half of a position
  city.take([{ stream: 2, time: 500, result: 41.5, flag: null }]);
  assert.equal(city.move(), true);
  assert.deepEqual(city.things.get(1)!.place, [2.3, 41.5]);
});
