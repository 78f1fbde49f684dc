/** The list of things and their datastreams. Only the rows in sight are elements: thousands are as quick as ten. */

import type { City } from "./city.ts";
import { h, rem, setAttribute, setText } from "./dom.ts";
import { icon, setIcon } from "./icons.ts";
import type { Stream, Thing } from "./sensorthings.ts";
import { STATE_NAMES, STATES, type State } from "./states.ts";
import { ageText, agoText, now } from "./times.ts";
import { valueText } from "./values.ts";

interface Row {
  key: string;
  thing: Thing;
  stream: Stream | null;
}

interface Drawn {
  element: HTMLElement;
  icon: SVGSVGElement;
  name: HTMLElement;
  value: HTMLElement;
  unit: HTMLElement;
  age: HTMLElement;
  time: number;
}

const MARGIN = 400; // px drawn beyond what is in sight

export class ThingList {
  private readonly list: HTMLElement;
  private readonly city: City;
  private readonly chosen: (stream: Stream | null, thing: Thing) => void;
  private rows: Row[] = [];
  private tops = new Float64Array(1);
  private readonly drawn = new Map<string, Drawn>();
  private active: string | null = null;
  private selected: string | null = null;
  private search = "";
  private only: State | null = null;

  constructor(list: HTMLElement, city: City, chosen: (stream: Stream | null, thing: Thing) => void) {
    this.list = list;
    this.city = city;
    this.chosen = chosen;
    document.addEventListener("scroll", () => this.draw(), { capture: true, passive: true });
    new ResizeObserver(() => this.measure()).observe(list);
    addEventListener("resize", () => this.measure());
    list.addEventListener("click", (event) => {
      const key = (event.target as Element).closest<HTMLElement>("[data-key]")?.dataset["key"];
      if (key) this.choose(key);
    });
    list.addEventListener("keydown", (event) => this.press(event));
  }

  /** Show only things and datastreams whose names have all these words. */
  find(words: string): void {
    this.search = words;
    this.arrange();
  }

  /** Show only things in this state. */
  filter(state: State | null): void {
    this.only = state;
    this.arrange();
  }

  /** Whether the filter and the search leave a thing in. */
  has(thing: Thing): boolean {
    return this.streamsOf(thing) !== null;
  }

  /** Mark a datastream (or a thing that has none) as the one on the chart. */
  select(stream: Stream | null, thing: Thing, scroll: boolean): void {
    this.selected = stream ? `s${stream.id}` : `t${thing.id}`;
    this.active = this.selected;
    if (scroll) this.scrollTo(this.selected);
    this.draw();
  }

  /** Sort anew: what is unwell first, then by name. */
  arrange(): void {
    const things = [...this.city.things.values()].sort(
      (a, b) =>
        STATES.indexOf(this.city.stateOfThing(a)) - STATES.indexOf(this.city.stateOfThing(b)) ||
        a.name.localeCompare(b.name, undefined, { numeric: true }),
    );
    this.rows = [];
    for (const thing of things) {
      const streams = this.streamsOf(thing);
      if (!streams) continue;
      this.rows.push({ key: `t${thing.id}`, thing, stream: null });
      for (const stream of streams) this.rows.push({ key: `s${stream.id}`, thing, stream });
    }
    this.measure();
  }

  get length(): number {
    return this.rows.length;
  }

  /** Bring the rows in sight up to date. */
  draw(): void {
    const view = this.list.parentElement!.getBoundingClientRect();
    const top = this.list.getBoundingClientRect().top;
    const from = Math.max(0, view.top, 0) - top - MARGIN;
    const to = Math.min(innerHeight, view.bottom) - top + MARGIN;
    let first = this.rowAt(from);
    const seen = new Set<string>();
    const time = now();
    for (; first < this.rows.length && this.tops[first]! < to; first += 1) {
      const row = this.rows[first]!;
      seen.add(row.key);
      this.drawRow(row, first, time);
    }
    for (const [key, drawn] of this.drawn) {
      if (seen.has(key)) continue;
      drawn.element.remove();
      this.drawn.delete(key);
    }
    // Where the active row is out of sight there is no element to point to.
    if (this.active && this.drawn.has(this.active)) {
      setAttribute(this.list, "aria-activedescendant", `row-${this.active}`);
    } else this.list.removeAttribute("aria-activedescendant");
  }

  private streamsOf(thing: Thing): Stream[] | null {
    if (this.only && this.city.stateOfThing(thing) !== this.only) return null;
    const words = this.search.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const rank = (stream: Stream) => STATES.indexOf(this.city.stateOf(stream));
    const sorted = [...thing.streams].sort(
      (a, b) => rank(a) - rank(b) || shortLabel(a, thing).localeCompare(shortLabel(b, thing), undefined, { numeric: true }),
    );
    if (!words.length) return sorted;
    const fits = (text: string) => words.every((word) => text.toLocaleLowerCase().includes(word));
    const about = `${thing.name} ${thing.key ?? ""} ${thing.placeName ?? ""}`;
    if (fits(about)) return sorted;
    const found = sorted.filter((stream) =>
      fits(`${about} ${stream.name} ${stream.property} ${stream.streamName ?? ""} ${stream.unit}`),
    );
    return found.length ? found : null;
  }

  private measure(): void {
    const style = getComputedStyle(this.list);
    const thing = parseFloat(style.getPropertyValue("--thing-row")) * rem();
    const stream = parseFloat(style.getPropertyValue("--stream-row")) * rem();
    this.tops = new Float64Array(this.rows.length + 1);
    this.rows.forEach((row, i) => {
      this.tops[i + 1] = this.tops[i]! + (row.stream ? stream : thing);
    });
    const height = `${this.tops[this.rows.length]}px`;
    if (this.list.style.height !== height) this.list.style.height = height;
    this.draw();
  }

  /** The index of the row at a height of the list. */
  private rowAt(y: number): number {
    let [low, high] = [0, this.rows.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tops[middle + 1]! <= y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  private drawRow(row: Row, index: number, time: number): void {
    let drawn = this.drawn.get(row.key);
    if (!drawn) {
      drawn = make(row);
      this.drawn.set(row.key, drawn);
      this.list.append(drawn.element);
    }
    const { element } = drawn;
    const place = `translateY(${this.tops[index]}px)`;
    if (element.style.transform !== place) element.style.transform = place;
    setAttribute(element, "aria-posinset", String(index + 1));
    setAttribute(element, "aria-setsize", String(this.rows.length));
    setAttribute(element, "aria-selected", String(row.key === this.selected));
    element.classList.toggle("active", row.key === this.active);
    if (row.stream) this.drawStream(row.stream, row.thing, drawn, time);
    else this.drawThing(row.thing, drawn);
  }

  private drawThing(thing: Thing, drawn: Drawn): void {
    const state = this.city.stateOfThing(thing);
    setIcon(drawn.icon, state);
    setText(drawn.name, thing.name);
    const used = thing.streams.filter((stream) => !stream.retired);
    const same = used.filter((stream) => this.city.stateOf(stream) === state).length;
    let note = used.length === 1 ? "1 stream" : `${used.length} streams`;
    if (state === "offline") note = "gateway offline";
    else if (state === "idle") note = thing.streams.length ? "retired" : "no streams";
    else if (state !== "fresh") note = used.length === 1 ? WORDS[state] : `${same} of ${used.length} ${WORDS[state]}`;
    setText(drawn.age, note);
    setAttribute(drawn.element, "data-state", state);
    setAttribute(drawn.icon, "aria-label", STATE_NAMES[state]);
  }

  private drawStream(stream: Stream, thing: Thing, drawn: Drawn, time: number): void {
    const state = this.city.stateOf(stream);
    const { newest } = stream;
    setIcon(drawn.icon, state);
    setText(drawn.name, shortLabel(stream, thing));
    setAttribute(drawn.name, "title", stream.name);
    setText(drawn.value, newest ? valueText(newest.result) : "–");
    setText(drawn.unit, newest ? stream.unit : "");
    const age = newest ? time - newest.time : null;
    setText(drawn.age, age === null ? "no value" : Math.abs(age) < 1_000 ? "now" : age < 0 ? agoText(age) : ageText(age));
    setAttribute(drawn.element, "data-state", state);
    if (newest && newest.time !== drawn.time) {
      // A value that has just come shows itself, but not all of them when the page opens.
      if (drawn.time) restart(drawn.value, "arrived");
      drawn.time = newest.time;
    }
    setAttribute(drawn.icon, "aria-label", STATE_NAMES[state]);
  }

  private choose(key: string): void {
    const row = this.rows.find((one) => one.key === key);
    if (!row) return;
    this.active = key;
    this.chosen(row.stream ?? this.city.firstStream(row.thing), row.thing);
  }

  private press(event: KeyboardEvent): void {
    const at = this.rows.findIndex((row) => row.key === this.active);
    const last = this.rows.length - 1;
    const target: Record<string, number> = {
      ArrowDown: Math.min(at + 1, last), ArrowUp: Math.max(at - 1, 0), Home: 0, End: last,
      PageDown: Math.min(at + 10, last), PageUp: Math.max(at - 10, 0),
    };
    const next = target[event.key];
    if (next !== undefined && last >= 0) {
      this.active = this.rows[next]!.key;
      this.scrollTo(this.active);
      this.draw();
    } else if ((event.key === "Enter" || event.key === " ") && this.active) this.choose(this.active);
    else return;
    event.preventDefault();
  }

  private scrollTo(key: string): void {
    const index = this.rows.findIndex((row) => row.key === key);
    if (index < 0) return;
    const box = this.list.parentElement!;
    const [top, bottom] = [this.tops[index]!, this.tops[index + 1]!];
    const thingRow = this.tops[1] ?? 0;
    if (box.scrollHeight > box.clientHeight + 1 && getComputedStyle(box).overflowY !== "visible") {
      const offset = this.list.offsetTop;
      if (top + offset < box.scrollTop) box.scrollTop = Math.max(0, top + offset - thingRow);
      else if (bottom + offset > box.scrollTop + box.clientHeight) box.scrollTop = bottom + offset - box.clientHeight;
      return;
    }
    const list = this.list.getBoundingClientRect().top;
    if (document.activeElement !== this.list) return; // do not pull a phone's page away from the chart
    if (list + top < thingRow * 2) scrollBy(0, list + top - thingRow * 2);
    else if (list + bottom > innerHeight) scrollBy(0, list + bottom - innerHeight);
  }
}

const WORDS: Record<State, string> = {
  offline: "offline", silent: "silent", suspect: "suspect", late: "late", fresh: "fresh", idle: "retired",
};

/** A datastream's name within its thing: the observed property, unless the thing has two of it. */
export function label(stream: Stream, thing: Thing): string {
  const twins = thing.streams.filter((other) => other.property === stream.property);
  return twins.length > 1 ? stream.name : stream.property;
}

const ROOMY = 22; // characters that a row has room for

/** The same for a narrow row: where a name would be cut off, all of its thing go by their datastreams' own names. */
export function shortLabel(stream: Stream, thing: Thing): string {
  if (thing.streams.every((one) => label(one, thing).length <= ROOMY)) return label(stream, thing);
  const names = new Set(thing.streams.map((one) => ownName(one, thing)));
  return names.size === thing.streams.length && !names.has("") ? ownName(stream, thing) : label(stream, thing);
}

/** A datastream's name without the place or the thing that it repeats: `NO2, Plaça del Sol` is `NO2`. */
function ownName(stream: Stream, thing: Thing): string {
  let name = stream.name;
  for (const known of [thing.name, thing.placeName]) {
    if (known && name !== known) name = name.replace(known, "");
  }
  return name.replace(/^(\s|at |in |of |[,:;·|–—-])+|(\s|\bat|\bin|\bof|[,:;·|–—-])+$/g, "");
}

function make(row: Row): Drawn {
  // The row's words are its name to a screen reader, and the mark is one of them.
  const mark = icon("idle");
  mark.removeAttribute("aria-hidden");
  mark.setAttribute("role", "img");
  const name = h("span", { class: "name" });
  const value = h("span", { class: "number" });
  const unit = h("span", { class: "unit" });
  const age = h("span", { class: "age" });
  const element = h("div", {
    class: row.stream ? "row stream" : "row thing", role: "option", id: `row-${row.key}`, "data-key": row.key,
  });
  element.append(mark, name);
  if (row.stream) element.append(h("span", { class: "value" }, value, unit));
  element.append(age);
  return { element, icon: mark, name, value, unit, age, time: 0 };
}

function restart(element: HTMLElement, animation: string): void {
  element.classList.remove(animation);
  void element.offsetWidth; // the animation begins anew only after a layout without it
  element.classList.add(animation);
}
