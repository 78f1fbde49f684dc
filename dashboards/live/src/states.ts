/** What is well and what is not: the page's one judgement, from the age and the quality of the newest value. */

import { HOUR, MINUTE, SECOND } from "./times.ts";

export type Flag = "good" | "suspect" | "bad";

/** From worst to best; things are sorted, drawn and counted in this order. */
export const STATES = ["offline", "silent", "suspect", "late", "fresh", "idle"] as const;
export type State = (typeof STATES)[number];

export const STATE_NAMES: Record<State, string> = {
  offline: "Gateway offline",
  silent: "Silent",
  suspect: "Suspect or bad",
  late: "Late",
  fresh: "Fresh",
  idle: "No streams",
};

export const STATE_MEANINGS: Record<State, string> = {
  offline: "The gateway has signed off or lost its connection",
  silent: "No value for more than ten intervals, or none at all",
  suspect: "The newest value is flagged suspect or bad",
  late: "The next value is overdue",
  fresh: "Values arrive as expected",
  idle: "Nothing is expected from it: no datastream, or all retired",
};

/** What a stream whose interval is not declared is taken for. */
const UNKNOWN_INTERVAL = 5 * MINUTE;
/** Sending, collecting and storing take this long on top, without anything being wrong. */
const GRACE = 30 * SECOND;
const LONG_GRACE = 5 * MINUTE;

export interface Expectation {
  /** Between two values; null when it is not declared. */
  interval: number | null;
  /** Which end of the covered interval a value's time names. */
  stamp: "start" | "end" | null;
}

export interface Newest {
  time: number;
  flag: Flag | null;
}

/** The state of one datastream, its gateway aside. */
export function streamState(expected: Expectation, newest: Newest | null, now: number): State {
  if (!newest) return "silent";
  const interval = expected.interval ?? UNKNOWN_INTERVAL;
  // A value that names the start of what it covers cannot come before the end of it.
  const waited = now - newest.time - (expected.stamp === "start" ? interval : 0);
  if (waited > 10 * interval + LONG_GRACE) return "silent";
  if (newest.flag === "bad" || newest.flag === "suspect") return "suspect";
  if (waited > 2 * interval + GRACE) return "late";
  return "fresh";
}

/** The worst of several; `idle` when there are none. */
export function worst(states: Iterable<State>): State {
  let rank = STATES.length - 1;
  for (const state of states) rank = Math.min(rank, STATES.indexOf(state));
  return STATES[rank]!;
}

/** What the chart shows at first: enough for some dozen values. */
export function defaultRange(interval: number | null): number {
  if (interval !== null && interval > 6 * HOUR) return 7 * 24 * HOUR;
  if (interval !== null && interval > 5 * MINUTE) return 24 * HOUR;
  return HOUR;
}
