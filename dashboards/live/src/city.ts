/** What the page knows: things, streams, newest values, states. Those who draw it are told at most once a frame. */

import { STATES, streamState, worst, type State } from "./states.ts";
import type { Observation, Stream, Thing } from "./sensorthings.ts";

export interface LiveObservation extends Observation {
  stream: number;
}

export class City {
  readonly things = new Map<number, Thing>();
  readonly streams = new Map<number, Stream>();
  /** Things whose gateway is known to be offline. */
  offline: ReadonlySet<number> = new Set();
  /** Whether all pages have been read at least once. */
  complete = false;

  private states = new Map<number, State>();
  private thingStates = new Map<number, State>();

  /** Take over a page of things as the API tells them; a newer value that has come live stays. */
  put(things: Thing[]): void {
    for (const thing of things) {
      for (const stream of this.things.get(thing.id)?.streams ?? []) this.streams.delete(stream.id);
      for (const stream of thing.streams) {
        const before = this.live.get(stream.id);
        if (before && (!stream.newest || before.time > stream.newest.time)) stream.newest = before;
        this.streams.set(stream.id, stream);
      }
      this.things.set(thing.id, thing);
    }
  }

  /** Forget the things that a whole walk did not meet. */
  keep(ids: ReadonlySet<number>): void {
    for (const [id, thing] of this.things) {
      if (ids.has(id)) continue;
      this.things.delete(id);
      for (const stream of thing.streams) {
        this.streams.delete(stream.id);
        this.live.delete(stream.id);
      }
    }
    this.complete = true;
  }

  private live = new Map<number, Observation>();

  /** Take what came live. Returns whether one of the datastreams is not known yet. */
  take(observations: Iterable<LiveObservation>): boolean {
    let unknown = false;
    for (const one of observations) {
      const stream = this.streams.get(one.stream);
      if (!stream) unknown = true;
      const known = stream?.newest ?? this.live.get(one.stream);
      if (known && known.time > one.time) continue;
      const newest: Observation = { time: one.time, result: one.result, flag: one.flag };
      this.live.set(one.stream, newest);
      if (stream) stream.newest = newest;
      if (stream?.axis) this.locate(stream);
    }
    return unknown;
  }

  /** Put things that move where they said last that they are. Returns whether one is at another place than before. */
  move(): boolean {
    let moved = false;
    for (const [id, at] of this.moving) {
      const thing = this.things.get(id);
      if (thing && (thing.place?.[0] !== at[0] || thing.place[1] !== at[1])) {
        thing.place = at;
        moved = true;
      }
    }
    this.moving.clear();
    return moved;
  }

  private moving = new Map<number, [number, number]>();

  /** A position is a longitude and a latitude of one time. */
  private locate(stream: Stream): void {
    const of = (axis: Stream["axis"]) => this.things.get(stream.thing)?.streams.find((one) => one.axis === axis)?.newest;
    const [x, y] = [of("lon"), of("lat")];
    if (!x || !y || x.time !== y.time || x.flag === "bad" || y.flag === "bad") return;
    if (typeof x.result === "number" && typeof y.result === "number" && Math.abs(x.result) <= 180 && Math.abs(y.result) <= 90)
      this.moving.set(stream.thing, [x.result, y.result]);
  }

  /** Judge everything anew. Returns whether any thing's state is another one. */
  judge(now: number): boolean {
    let changed = false;
    for (const thing of this.things.values()) {
      const states: State[] = [];
      for (const stream of thing.streams) {
        const state = stream.retired ? "idle" : streamState(stream, stream.newest, now);
        this.states.set(stream.id, state);
        states.push(state);
      }
      let state = worst(states);
      if (this.offline.has(thing.id) && state !== "idle") state = "offline";
      if (this.thingStates.get(thing.id) !== state) {
        this.thingStates.set(thing.id, state);
        changed = true;
      }
    }
    if (this.thingStates.size > this.things.size) {
      for (const id of this.thingStates.keys()) if (!this.things.has(id)) this.thingStates.delete(id);
      changed = true;
    }
    return changed;
  }

  stateOf(stream: Stream): State {
    return this.states.get(stream.id) ?? "idle";
  }

  stateOfThing(thing: Thing): State {
    return this.thingStates.get(thing.id) ?? "idle";
  }

  /** How many things are in each state. */
  counts(): Record<State, number> {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0])) as Record<State, number>;
    for (const thing of this.things.values()) counts[this.stateOfThing(thing)] += 1;
    return counts;
  }

  /** The stream of a thing to look at first: the worst one in use. */
  firstStream(thing: Thing): Stream | null {
    const rank = (stream: Stream) => STATES.indexOf(this.stateOf(stream)) + (stream.newest ? 0 : 0.5);
    return [...thing.streams].sort((a, b) => rank(a) - rank(b))[0] ?? null;
  }
}

/** Call `work` once in the next frame, however often it is asked for. */
export function inNextFrame(work: () => void): () => void {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      work();
    });
  };
}
