/** The chart's data: one datastream's observations in order of time, its gaps, its marks and its sums. */

import type { Flag } from "./states.ts";
import type { Observation } from "./sensorthings.ts";

export interface Sums {
  count: number;
  min: number;
  max: number;
  mean: number;
  /** How many of them are flagged suspect or bad. */
  flagged: number;
}

/** Numeric observations, kept in order of time, one an instant; the later word on an instant stands. */
export class Series {
  times: number[] = [];
  values: number[] = [];
  flags: (Flag | null)[] = [];
  /** Observations that are no numbers, and so are not on the chart. */
  others = 0;

  /** Merge observations in any order. */
  add(observations: readonly Observation[]): void {
    const numeric = observations.filter((one) => typeof one.result === "number" && Number.isFinite(one.result));
    this.others += observations.length - numeric.length;
    if (!numeric.length) return;
    numeric.sort((a, b) => a.time - b.time);
    if (!this.times.length || numeric[0]!.time > this.times.at(-1)!) {
      for (const one of numeric) this.append(one);
      return;
    }
    const old = { times: this.times, values: this.values, flags: this.flags };
    this.times = [];
    this.values = [];
    this.flags = [];
    let i = 0;
    for (const one of numeric) {
      while (i < old.times.length && old.times[i]! <= one.time) {
        this.append({ time: old.times[i]!, result: old.values[i]!, flag: old.flags[i]! });
        i += 1;
      }
      this.append(one);
    }
    for (; i < old.times.length; i += 1) {
      this.append({ time: old.times[i]!, result: old.values[i]!, flag: old.flags[i]! });
    }
  }

  /** Drop what is older than an instant. */
  forget(before: number): void {
    const keep = this.at(before);
    if (keep === 0) return;
    this.times.splice(0, keep);
    this.values.splice(0, keep);
    this.flags.splice(0, keep);
  }

  /** The index of the first observation not before an instant. */
  at(time: number): number {
    let low = 0;
    let high = this.times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.times[middle]! < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Over what is not bad, as the platform's aggregates are; null when there is nothing. */
  sums(start: number, end: number): Sums | null {
    let [count, flagged, good, mean, min, max] = [0, 0, 0, 0, Infinity, -Infinity];
    for (let i = this.at(start); i < this.times.length && this.times[i]! <= end; i += 1) {
      count += 1;
      const flag = this.flags[i];
      if (flag === "bad" || flag === "suspect") flagged += 1;
      if (flag === "bad") continue;
      const value = this.values[i]!;
      good += 1;
      mean += (value - mean) / good;
      if (value < min) min = value;
      if (value > max) max = value;
    }
    return count ? { count, flagged, min: good ? min : NaN, max: good ? max : NaN, mean: good ? mean : NaN } : null;
  }

  /** The longest distance of two values that is no gap: half as much again as is declared, else as is usual here. */
  longestStep(interval: number | null): number {
    if (interval !== null) return 1.5 * interval;
    const steps = [];
    for (let i = Math.max(1, this.times.length - 500); i < this.times.length; i += 1) {
      steps.push(this.times[i]! - this.times[i - 1]!);
    }
    steps.sort((a, b) => a - b);
    const median = steps[steps.length >> 1];
    return median === undefined ? Infinity : 5 * median;
  }

  /** Spans without values, as pairs of the instants around them. */
  gaps(longest: number): [number, number][] {
    const found: [number, number][] = [];
    for (let i = 1; i < this.times.length; i += 1) {
      if (this.times[i]! - this.times[i - 1]! > longest) found.push([this.times[i - 1]!, this.times[i]!]);
    }
    return found;
  }

  /** For uPlot: seconds, values, and a null in every gap, which breaks the line. */
  plotted(longest: number): [number[], (number | null)[], (Flag | null)[]] {
    const seconds: number[] = [];
    const values: (number | null)[] = [];
    const flags: (Flag | null)[] = [];
    for (let i = 0; i < this.times.length; i += 1) {
      const time = this.times[i]!;
      if (i > 0 && time - this.times[i - 1]! > longest) {
        seconds.push((this.times[i - 1]! + time) / 2_000);
        values.push(null);
        flags.push(null);
      }
      seconds.push(time / 1_000);
      values.push(this.values[i]!);
      flags.push(this.flags[i]!);
    }
    return [seconds, values, flags];
  }

  private append(one: Observation): void {
    const last = this.times.length - 1;
    if (last >= 0 && this.times[last] === one.time) {
      this.values[last] = one.result as number;
      this.flags[last] = one.flag;
      return;
    }
    this.times.push(one.time);
    this.values.push(one.result as number);
    this.flags.push(one.flag);
  }
}

/** How many values a span should have; null where no interval is declared. */
export function expectedCount(interval: number | null, start: number, end: number): number | null {
  return interval === null ? null : Math.max(1, Math.floor((end - start) / interval));
}
