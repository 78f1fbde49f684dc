/** The live page: reads the city through the open API, follows it live, and keeps every part up to date. */

import { City, inNextFrame } from "./city.ts";
import { Detail } from "./detail.ts";
import { byId } from "./dom.ts";
import { invite } from "./empty.ts";
import { Header, Legend } from "./header.ts";
import { watchHealth } from "./health.ts";
import { ThingList } from "./list.ts";
import { LiveStream, type Connection } from "./live.ts";
import type { CityMap, Place } from "./map.ts";
import { things, type Stream, type Thing } from "./sensorthings.ts";
import { SketchMap } from "./sketch.ts";
import { MINUTE, now, SECOND } from "./times.ts";

const SORT_PAUSE = 3 * SECOND; // the list does not jump about more often than this
const REFETCH_PAUSE = 5 * SECOND;
const REFETCH_PERIOD = 5 * MINUTE; // renamed things: `/live` tells only observations
const HIDDEN_PATIENCE = 30 * SECOND;

const city = new City();
const header = new Header();
const detail = new Detail(city, (range) => remember(detail.streamId, range));
const list = new ThingList(byId("list"), city, (stream, thing) => choose(stream, thing, true));
const legend = new Legend(byId("legend"), (state) => {
  list.filter(state);
  drawPlaces();
  drawCounts();
});
let map: CityMap | null = null;
let sortedAt = 0;
let chosenThing: number | null = null;
let broker: string | null = null;

// What is drawn, when -------------------------------------------------------------------------------------------------

const drawValues = inNextFrame(() => {
  list.draw();
  if (city.move()) drawPlaces();
});

/** Until when we know how things are: without a connection it is we who hear nothing, not they who are silent. */
let heardAt = now();
let connection: Connection = "connecting";
let answered = true;

function judge(): void {
  if (answered && connection === "live") heardAt = now();
  const changed = city.judge(heardAt);
  if (changed) {
    drawPlaces();
    drawCounts();
  }
  if (changed && now() - sortedAt > SORT_PAUSE) sort();
}

function sort(): void {
  sortedAt = now();
  list.arrange();
}

function drawPlaces(): void {
  const places: Place[] = [];
  for (const thing of city.things.values()) {
    if (!thing.place) continue;
    places.push({ id: thing.id, name: thing.name, at: thing.place, state: city.stateOfThing(thing), faint: !list.has(thing) });
  }
  map?.show(places, city.complete);
  const lost = city.things.size - places.length;
  byId("unplaced").hidden = lost === 0;
  byId("unplaced").textContent = lost === 1 ? "1 thing has no place on the map" : `${lost} things have no place on the map`;
}

function drawCounts(): void {
  const counts = city.counts();
  legend.show(counts);
  header.setThings(counts);
  const none = city.complete && city.things.size === 0;
  document.body.classList.toggle("empty", none);
  byId("welcome").hidden = !none;
  if (none) invite(broker);
  byId("loading").hidden = city.complete || city.things.size > 0;
  byId("nothing-found").hidden = list.length > 0 || city.things.size === 0;
}

// What is chosen ------------------------------------------------------------------------------------------------------

function choose(stream: Stream | null, thing: Thing, fly: boolean, range: string | null = null): void {
  chosenThing = thing.id;
  detail.show(stream, thing, range);
  list.select(stream, thing, true);
  map?.select(thing.id, fly);
  remember(stream?.id ?? null, range);
  if (fly && matchMedia("(max-width: 60rem)").matches) byId("detail").scrollIntoView({ block: "start" });
}

/** Keep the choice in the address, so that it can be sent to somebody. */
function remember(stream: number | null, range: string | null): void {
  const address = new URL(location.href);
  if (stream === null) address.searchParams.delete("datastream");
  else address.searchParams.set("datastream", String(stream));
  if (range === null) address.searchParams.delete("range");
  else address.searchParams.set("range", range);
  history.replaceState(null, "", address);
}

/** What the address asks for, once it is known; else the first of the list, so that the chart is never blank. */
function chooseFirst(): void {
  if (chosenThing !== null) return;
  const query = new URLSearchParams(location.search);
  const asked = query.get("datastream");
  const stream = asked === null ? undefined : city.streams.get(Number(asked));
  if (stream) {
    choose(stream, city.things.get(stream.thing)!, false, query.get("range"));
    map?.select(stream.thing, true);
    return;
  }
  if (!city.complete) return;
  byId("not-found").hidden = asked === null;
  byId("not-found").textContent = `There is no datastream ${asked} in this city (any more).`;
  const thing = [...city.things.values()].find((one) => one.streams.some((some) => some.newest));
  if (thing && asked === null && matchMedia("(min-width: 60rem)").matches) {
    const fresh = [...city.things.values()].find((one) => city.stateOfThing(one) === "fresh") ?? thing;
    const first = fresh.streams.find((some) => some.newest && !some.retired) ?? null;
    chosenThing = fresh.id;
    detail.show(first, fresh, null);
    list.select(first, fresh, false);
    map?.select(fresh.id, false);
  }
}

// Fetching ------------------------------------------------------------------------------------------------------------

let fetching: AbortController | null = null;
let fetchedAt = -Infinity;
let again = 0;

/** Fetch all things; at once, but not again within a few seconds. */
function refetch(): void {
  const wait = fetchedAt + REFETCH_PAUSE - performance.now();
  clearTimeout(again);
  if (fetching || wait > 0) again = window.setTimeout(refetch, Math.max(wait, 500));
  else void fetchCity();
}

async function fetchCity(): Promise<void> {
  fetching = new AbortController();
  fetchedAt = performance.now();
  const met = new Set<number>();
  try {
    for await (const page of things(fetching.signal)) {
      city.put(page);
      for (const thing of page) met.add(thing.id);
      heardAt = now();
      city.judge(heardAt);
      sort();
      drawPlaces();
      drawCounts();
      chooseFirst();
    }
    city.keep(met);
    city.judge(heardAt);
    sort();
    drawPlaces();
    drawCounts();
    chooseFirst();
    detail.renew();
    header.setLoading(null);
  } catch (error) {
    header.setLoading(`could not be loaded: ${error instanceof Error ? error.message : String(error)}. Trying again.`);
    again = window.setTimeout(refetch, REFETCH_PAUSE);
  } finally {
    fetching = null;
  }
}

// Beginning -----------------------------------------------------------------------------------------------------------

/** WebGL where there is some, and a still drawing where there is none. */
async function makeMap(): Promise<void> {
  const container = byId("map");
  const onMap = (id: number) => {
    const thing = city.things.get(id);
    if (thing) choose(city.firstStream(thing), thing, false);
  };
  const sketch = () => {
    map?.remove();
    container.replaceChildren();
    use(new SketchMap(container, onMap));
  };
  const use = (made: CityMap) => {
    map = made;
    drawPlaces();
    if (chosenThing !== null) map.select(chosenThing, false);
  };
  try {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL");
    await document.fonts.load('12px "Inter Variable"');
    const { GlMap } = await import("./map.ts");
    use(new GlMap(container, onMap, sketch));
  } catch {
    sketch();
  }
}

let live: LiveStream | null = null;

/** Listen first, fetch then: what comes in between is newer than what is fetched, and stays. */
function listen(): void {
  live = new LiveStream("", {
    observations: (some) => {
      if (city.take(some) && city.complete) refetch();
      drawValues();
    },
    connection: (state) => {
      connection = state;
      header.setConnection(state);
    },
    missed: () => {
      refetch();
      detail.load();
    },
    log: (trouble) => header.setLog(trouble),
  });
}

let hiddenAt: number | null = null;

void makeMap();
listen();
refetch();
setInterval(refetch, REFETCH_PERIOD);

watchHealth((health) => {
  broker = health.broker;
  if (document.body.classList.contains("empty")) invite(broker);
  city.offline = new Set(health.offlineThings);
  // A connection can be dead without knowing it; when the platform answers again, begin anew.
  if (health.answers && !answered) live?.reopen();
  answered = health.answers;
  header.setHealth(health);
});

setInterval(() => {
  judge();
  header.draw();
  if (document.hidden) {
    // Browsers open few connections to one server: a tab that nobody looks at gives its own back.
    hiddenAt ??= now();
    if (live && now() - hiddenAt > HIDDEN_PATIENCE) {
      live.close();
      live = null;
      connection = "connecting";
      detail.pause();
    }
    return;
  }
  list.draw();
  detail.tick();
}, SECOND);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  hiddenAt = null;
  if (live) return;
  listen();
  refetch();
  detail.resume();
});

const search = byId("search") as HTMLInputElement;
search.addEventListener("input", () => {
  list.find(search.value);
  drawPlaces();
  drawCounts();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    search.focus();
    event.preventDefault();
  } else if (event.key === "Escape" && typing) {
    search.value = "";
    search.dispatchEvent(new Event("input"));
    byId("list").focus();
  } else if (event.key === "ArrowDown" && event.target === search) byId("list").focus();
});
