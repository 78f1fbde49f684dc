/** The city as the SensorThings API tells it. Nothing here that another client could not do. */

import type { Flag } from "./states.ts";
import { learnClock, parseDuration, parseTime } from "./times.ts";

export interface Observation {
  time: number;
  /** Any JSON: mostly a number. */
  result: unknown;
  flag: Flag | null;
}

export interface Stream {
  id: number;
  thing: number;
  name: string;
  property: string;
  description: string;
  unit: string;
  unitName: string;
  streamName: string | null;
  interval: number | null;
  stamp: "start" | "end" | null;
  retired: boolean;
  /** Which coordinate of its thing's position it measures. */
  axis: "lon" | "lat" | null;
  newest: Observation | null;
}

export interface Thing {
  id: number;
  name: string;
  description: string;
  key: string | null;
  /** Longitude, latitude; null where no Location has a geometry that we can place. */
  place: [number, number] | null;
  placeName: string | null;
  streams: Stream[];
}

type Json = Record<string, unknown>;

interface Page {
  value: Json[];
  "@iot.nextLink"?: string;
}

/** An answer that is none: `message` is for a person. */
export class ApiError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const TIMEOUT = 30_000;
const STREAM_OPTIONS =
  "$select=id,name,description,unitOfMeasurement,properties;" +
  "$expand=ObservedProperty($select=id,name)," +
  "Observations($orderby=phenomenonTime desc;$top=1;$select=id,phenomenonTime,result,resultQuality)";
const THINGS = `Things?$expand=Locations,Datastreams(${STREAM_OPTIONS})`;

/** Walk over all Things, a page at a time, following `@iot.nextLink`. */
export async function* things(signal: AbortSignal): AsyncGenerator<Thing[]> {
  for await (const page of pages(THINGS, signal)) {
    const found: Thing[] = [];
    for (const json of page) {
      const thing = readThing(json);
      let more = text(json["Datastreams@iot.nextLink"]);
      while (more) {
        const rest = await get(more, signal);
        thing.streams.push(...rest.value.map((stream) => readStream(stream, thing.id)));
        more = rest["@iot.nextLink"] ?? null;
      }
      found.push(thing);
    }
    yield found;
  }
}

/**
 * A datastream's observations from `start` to `end` (both included), the newest first, a page at a time.
 * Ends after `most`, and then says so by returning false.
 */
export async function* history(
  stream: Pick<Stream, "id" | "stamp">, start: number, end: number, most: number, signal: AbortSignal,
): AsyncGenerator<Observation[], boolean> {
  const size = 10_000; // the most that the API gives at once
  const within = (last: number, word: "le" | "lt") =>
    `Datastreams(${stream.id})/Observations?$select=id,phenomenonTime,result,resultQuality` +
    `&$filter=phenomenonTime ge ${instant(start)} and phenomenonTime ${word} ${instant(last)}` +
    `&$orderby=phenomenonTime desc&$top=${size}`;
  let next: string | null = within(end, "le");
  let count = 0;
  while (next) {
    const page = await get(next, signal);
    const found = page.value.map((json) => readObservation(json, stream.stamp)).filter((one) => one !== null);
    yield found;
    count += page.value.length;
    const oldest = found.at(-1);
    next = page["@iot.nextLink"] ?? (page.value.length === size && oldest ? within(oldest.time, "lt") : null);
    if (next && count >= most) return false;
  }
  return true;
}

/** An Observation as the API and `/live` write it; null when its time cannot be read. */
export function readObservation(json: Json, stamp: Stream["stamp"]): Observation | null {
  const time = parseTime(text(json["phenomenonTime"]) ?? "", stamp === "end");
  if (Number.isNaN(time)) return null;
  const quality = json["resultQuality"];
  const flag = isObject(quality) ? text(quality["flag"]) : text(quality);
  return { time, result: json["result"], flag: flag === "good" || flag === "suspect" || flag === "bad" ? flag : null };
}

export function readThing(json: Json): Thing {
  const id = Number(json["@iot.id"]);
  const properties = isObject(json["properties"]) ? json["properties"] : {};
  const locations = Array.isArray(json["Locations"]) ? json["Locations"].filter(isObject) : [];
  const located = locations.find((one) => placeOf(one["location"]));
  const streams = Array.isArray(json["Datastreams"]) ? json["Datastreams"].filter(isObject) : [];
  return {
    id,
    name: text(json["name"]) ?? `Thing ${id}`,
    description: text(json["description"]) ?? "",
    key: text(properties["key"]),
    place: located ? placeOf(located["location"]) : null,
    placeName: located ? text(located["name"]) : null,
    streams: streams.map((stream) => readStream(stream, id)),
  };
}

function readStream(json: Json, thing: number): Stream {
  const id = Number(json["@iot.id"]);
  const unit = isObject(json["unitOfMeasurement"]) ? json["unitOfMeasurement"] : {};
  const properties = isObject(json["properties"]) ? json["properties"] : {};
  const property = isObject(json["ObservedProperty"]) ? json["ObservedProperty"] : {};
  const stamp = properties["stamp"] === "start" || properties["stamp"] === "end" ? properties["stamp"] : null;
  const newest = Array.isArray(json["Observations"]) ? json["Observations"].find(isObject) : undefined;
  const name = text(json["name"]) ?? `Datastream ${id}`;
  return {
    id,
    thing,
    name,
    property: text(property["name"]) ?? name,
    description: text(json["description"]) ?? "",
    unit: text(unit["symbol"]) ?? "",
    unitName: text(unit["name"]) ?? "",
    streamName: text(properties["streamName"]),
    interval: parseDuration(properties["interval"]),
    stamp,
    retired: properties["active"] === false,
    axis: [properties["senmlUnit"], unit["symbol"]].find((one) => one === "lon" || one === "lat") ?? null,
    newest: newest ? readObservation(newest, stamp) : null,
  };
}

/** A point to put on a map: a GeoJSON Point itself, or the middle of what another geometry covers. */
export function placeOf(location: unknown): [number, number] | null {
  if (!isObject(location)) return null;
  if (isObject(location["geometry"])) return placeOf(location["geometry"]);
  const numbers: [number, number][] = [];
  const collect = (part: unknown): void => {
    if (!Array.isArray(part)) return;
    const [longitude, latitude] = part as unknown[];
    if (typeof longitude === "number" && typeof latitude === "number") numbers.push([longitude, latitude]);
    else part.forEach(collect);
  };
  collect(location["coordinates"]);
  const sane = numbers.filter(([x, y]) => Math.abs(x) <= 180 && Math.abs(y) <= 90);
  if (!sane.length) return null;
  const xs = sane.map(([x]) => x);
  const ys = sane.map(([, y]) => y);
  return [(Math.min(...xs) + Math.max(...xs)) / 2, (Math.min(...ys) + Math.max(...ys)) / 2];
}

async function* pages(path: string, signal: AbortSignal): AsyncGenerator<Json[]> {
  let next: string | null = path;
  while (next) {
    const page: Page = await get(next, signal);
    yield page.value;
    next = page["@iot.nextLink"] ?? null;
  }
}

async function get(link: string, signal: AbortSignal): Promise<Page> {
  const asked = Date.now();
  const answer = await fetch(here(link), {
    signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]),
    headers: { Accept: "application/json" },
    cache: "no-store",
  });
  learnClock(answer.headers.get("Date"), (asked + Date.now()) / 2);
  const body: unknown = await answer.json().catch(() => null);
  if (!answer.ok) {
    const said = isObject(body) ? text(body["message"]) : null;
    throw new ApiError(answer.status, said ?? `the API answered ${answer.status}`);
  }
  if (!isObject(body) || !Array.isArray(body["value"])) throw new ApiError(answer.status, "the API sent no collection");
  return body as unknown as Page;
}

/** A link of the API, or a path below it, on the address that this page came from: the API may know another name. */
export function here(link: string): string {
  return link.includes("/v1.1/") ? link.slice(link.indexOf("/v1.1/")) : `/v1.1/${link.replaceAll(" ", "%20")}`;
}

function instant(time: number): string {
  return new Date(time).toISOString();
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}
