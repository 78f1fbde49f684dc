/** The live streams of the API (`/live`): one of everything, and one of the datastream on the chart. */

import { readObservation } from "./sensorthings.ts";
import type { LiveObservation } from "./city.ts";

export type Connection = "connecting" | "live" | "reconnecting";

export interface Listener {
  observations(some: LiveObservation[]): void;
  connection(state: Connection): void;
  /** The stream was interrupted or lost something: fetch anew. */
  missed(): void;
  /** The event log went away (a sentence), or is back (null). */
  log?(trouble: string | null): void;
}

const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 15_000;

/** A stream of server-sent events that comes back by itself, also where an EventSource gives up. */
export class LiveStream {
  private source: EventSource | null = null;
  private pause = FIRST_PAUSE;
  private timer = 0;
  private wasOpen = false;
  private readonly path: string;
  private readonly listener: Listener;

  constructor(query: string, listener: Listener) {
    this.path = `/live${query}`;
    this.listener = listener;
    this.open();
  }

  /** Drop the connection, which may be dead without knowing it, and make a new one now. */
  reopen(): void {
    this.stop();
    this.listener.connection("reconnecting");
    this.open();
  }

  close(): void {
    this.stop();
  }

  private stop(): void {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  private open(): void {
    const source = new EventSource(this.path);
    this.source = source;
    source.addEventListener("open", () => {
      this.pause = FIRST_PAUSE;
      this.listener.connection("live");
      if (this.wasOpen) this.listener.missed();
      this.wasOpen = true;
    });
    source.addEventListener("error", () => {
      this.listener.connection(this.wasOpen ? "reconnecting" : "connecting");
      // After an answer that is no stream, such as 502 of a proxy, an EventSource does not try again.
      if (source.readyState !== EventSource.CLOSED) return;
      this.stop();
      this.timer = window.setTimeout(() => this.open(), this.pause);
      this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
    });
    source.addEventListener("observations", (event) => this.listener.observations(read(event.data as string)));
    source.addEventListener("reset", () => this.listener.missed());
    source.addEventListener("unwell", (event) => this.listener.log?.(messageOf(event.data as string)));
    source.addEventListener("well", () => this.listener.log?.(null));
  }
}

function read(data: string): LiveObservation[] {
  const rows = JSON.parse(data) as Record<string, unknown>[];
  const found: LiveObservation[] = [];
  for (const row of rows) {
    const one = readObservation(row, null);
    const stream = (row["Datastream"] as Record<string, unknown> | undefined)?.["@iot.id"];
    if (one && typeof stream === "number") found.push({ ...one, stream });
  }
  return found;
}

function messageOf(data: string): string {
  return String((JSON.parse(data) as Record<string, unknown>)["message"] ?? "the event log does not answer");
}
