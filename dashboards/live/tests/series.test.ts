import assert from "node:assert/strict";
import { test } from "node:test";

import { expectedCount, Series } from "../src/series.ts";
import type { Observation } from "../src/sensorthings.ts";

const at = (time: number, result: unknown = time, flag: Observation["flag"] = null): Observation => ({ time, result, flag });

test("observations in any order become one line in order of time", () => {
  const series = new Series();
  series.add([at(30), at(10)]);
  series.add([at(20), at(40), at(5)]);
  assert.deepEqual(series.times, [5, 10, 20, 30, 40]);
  assert.deepEqual(series.values, [5, 10, 20, 30, 40]);
});

test("the later word on an instant stands, and it stays one value", () => {
  const series = new Series();
  series.add([at(10, 1), at(20, 2)]);
  series.add([at(10, 7), at(20, 8)]);
  assert.deepEqual(series.values, [7, 8]);
});

test("merging page by page is the same as all at once", () => {
  const all = Array.from({ length: 500 }, (_, i) => at(((i * 7_919) % 500) * 10));
  const [once, paged] = [new Series(), new Series()];
  once.add([...all]);
  for (let i = 0; i < all.length; i += 37) paged.add(all.slice(i, i + 37));
  assert.deepEqual(paged, once);
});

test("what is no number is counted and left out", () => {
  const series = new Series();
  series.add([at(1, "on"), at(2, 3), at(3, null), at(4, NaN)]);
  assert.deepEqual([series.times, series.others], [[2], 3]);
});

test("a gap is more than one and a half intervals, and is a null in the line", () => {
  const series = new Series();
  series.add([at(0), at(10_000), at(24_000), at(40_000)]);
  const longest = series.longestStep(10_000);
  assert.deepEqual(series.gaps(longest), [[24_000, 40_000]]);
  assert.deepEqual(series.plotted(longest)[1], [0, 10_000, 24_000, null, 40_000]);
  assert.deepEqual(series.plotted(longest)[0], [0, 10, 24, 32, 40]);
});

test("without a declared interval the usual step decides", () => {
  const series = new Series();
  series.add([...Array.from({ length: 20 }, (_, i) => at(i * 1_000)), at(60_000)]);
  assert.deepEqual(series.gaps(series.longestStep(null)), [[19_000, 60_000]]);
  assert.equal(new Series().longestStep(null), Infinity);
});

test("sums are over what is not bad, within the window", () => {
  const series = new Series();
  series.add([at(1, 100), at(2, 1), at(3, 99, "bad"), at(4, 3, "suspect"), at(5, 5, "good"), at(6, 100)]);
  assert.deepEqual(series.sums(2, 5), { count: 4, flagged: 2, min: 1, max: 5, mean: 3 });
  assert.equal(series.sums(7, 9), null);
});

test("what is older than the window is forgotten", () => {
  const series = new Series();
  series.add([at(1), at(2), at(3)]);
  series.forget(2);
  assert.deepEqual(series.times, [2, 3]);
});

test("how many values are due", () => {
  assert.equal(expectedCount(10_000, 0, 3_600_000), 360);
  assert.equal(expectedCount(null, 0, 1), null);
});
