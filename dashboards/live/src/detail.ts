/** The panel of one datastream: its newest value, its chart, its sums, and the same as a table. */

import { Chart } from "./chart.ts";
import type { City, LiveObservation } from "./city.ts";
import { byId, h, setAttribute, setText } from "./dom.ts";
import { setIcon } from "./icons.ts";
import { LiveStream } from "./live.ts";
import { label } from "./list.ts";
import { expectedCount, Series } from "./series.ts";
import { history, type Observation, type Stream, type Thing } from "./sensorthings.ts";
import { defaultRange, STATE_NAMES } from "./states.ts";
import {
  ageText, agoText, DAY, durationText, HOUR, localMinuteText, localText, number, now, SECOND, utcText, zoneText,
} from "./times.ts";
import { valueText } from "./values.ts";

export const RANGES: Record<string, number> = { "1h": HOUR, "24h": DAY, "7d": 7 * DAY };

const MOST = 70_000; // values that are fetched for a chart: a week of one every ten seconds
const TABLE_ROWS = 200;

export class Detail {
  private readonly city: City;
  private readonly panel = byId("detail");
  private readonly chart = new Chart(byId("chart"));
  private readonly moved: (range: string | null) => void;
  private stream: Stream | null = null;
  private thing: Thing | null = null;
  private chosen: string | null = null; // a range that somebody asked for
  private range = HOUR;
  private series = new Series();
  private others: Observation[] = []; // results that are no numbers, the newest first
  private loading: AbortController | null = null;
  private live: LiveStream | null = null;
  private problem: string | null = null;
  private since: number | null = null; // where the fetched history begins, when there was too much of it
  private anchored = false; // the window ends at the newest value, not now
  private tableShown = false;
  private lastDraw = 0;

  constructor(city: City, moved: (range: string | null) => void) {
    this.city = city;
    this.moved = moved;
    for (const button of this.panel.querySelectorAll<HTMLButtonElement>("[data-range]")) {
      button.addEventListener("click", () => this.ask(button.dataset["range"]!));
    }
    byId("as-table").addEventListener("click", () => {
      this.tableShown = !this.tableShown;
      this.draw();
    });
    byId("retry").addEventListener("click", () => this.load());
    byId("close-detail").addEventListener("click", () => byId("list").focus());
  }

  get streamId(): number | null {
    return this.stream?.id ?? null;
  }

  /** Show a datastream; `range` is one of `RANGES` or null for what suits it. */
  show(stream: Stream | null, thing: Thing, range: string | null): void {
    const same = stream?.id === this.stream?.id && this.thing?.id === thing.id;
    this.stream = stream;
    this.thing = thing;
    if (range && range in RANGES) this.chosen = range;
    else if (!same) this.chosen = null;
    this.range = this.chosen ? RANGES[this.chosen]! : defaultRange(stream?.interval ?? null);
    this.panel.hidden = false;
    document.body.classList.add("has-detail");
    this.live?.close();
    this.live = null;
    if (stream) {
      this.live = new LiveStream(`?datastream=${stream.id}`, {
        observations: (some) => this.take(some),
        connection: () => undefined,
        missed: () => this.load(),
      });
    }
    this.load();
  }

  /** The city was fetched anew: take over the same datastream from it. */
  renew(): void {
    if (!this.thing) return;
    const thing = this.city.things.get(this.thing.id);
    if (!thing) return;
    this.thing = thing;
    this.stream = thing.streams.find((stream) => stream.id === this.stream?.id) ?? this.stream;
    this.draw();
  }

  /** A tick of the clock: ages, and the window that moves on. */
  tick(): void {
    if (!this.thing) return;
    const width = byId("chart").clientWidth || 1;
    if (now() - this.lastDraw >= Math.min(this.range / width, 10 * SECOND)) this.draw();
    else this.drawHead();
  }

  /** Keep the live stream only while somebody looks. */
  pause(): void {
    this.live?.close();
    this.live = null;
  }

  resume(): void {
    if (this.stream && this.thing && !this.live) this.show(this.stream, this.thing, this.chosen);
  }

  /** Fetch the window's history anew, keeping what is on the screen until it is here. */
  load(): void {
    const stream = this.stream;
    this.loading?.abort();
    this.problem = null;
    if (!stream) {
      this.series = new Series();
      this.chart.clear();
      this.draw();
      return;
    }
    const loading = new AbortController();
    this.loading = loading;
    void this.fetch(stream, loading);
    this.draw();
  }

  private async fetch(stream: Stream, loading: AbortController): Promise<void> {
    const series = new Series();
    const others: Observation[] = [];
    const [start, end] = this.window();
    // What comes live while the history is on its way is newer than this margin.
    const pages = history(stream, start, end + 5 * SECOND, MOST, loading.signal);
    try {
      this.since = null;
      let page = await pages.next();
      for (; !page.done; page = await pages.next()) {
        series.add(page.value);
        others.push(...page.value.filter((one) => typeof one.result !== "number"));
        this.takeOver(stream, series, others);
      }
      if (!page.value) this.since = series.times[0] ?? null;
      this.takeOver(stream, series, others);
      if (this.loading === loading) this.loading = null;
      this.draw();
    } catch (error) {
      if (loading.signal.aborted) return;
      this.loading = null;
      this.problem = error instanceof Error ? error.message : String(error);
      this.draw();
    }
  }

  private takeOver(stream: Stream, series: Series, others: Observation[]): void {
    if (this.stream?.id !== stream.id) return;
    if (stream.newest && !this.anchored) series.add([stream.newest]);
    this.series = series;
    this.others = others;
    this.draw();
  }

  private take(some: LiveObservation[]): void {
    const mine = some.filter((one) => one.stream === this.stream?.id);
    if (!mine.length) return;
    this.city.take(mine);
    this.series.add(mine);
    this.others.unshift(...mine.filter((one) => typeof one.result !== "number").reverse());
    this.others.length = Math.min(this.others.length, MOST);
    if (this.anchored) this.load();
    else this.draw();
  }

  private ask(range: string): void {
    this.chosen = range;
    this.range = RANGES[range]!;
    this.moved(range);
    this.load();
  }

  /** The window: up to now, or up to the newest value where that is older than the whole window. */
  private window(): [number, number] {
    const time = now();
    const newest = this.stream?.newest?.time;
    this.anchored = newest !== undefined && newest < time - this.range;
    const end = this.anchored ? newest! + 0.02 * this.range : time;
    return [end - this.range, end];
  }

  private draw(): void {
    const { stream, thing } = this;
    if (!thing) return;
    this.lastDraw = now();
    this.drawHead();
    const [start, end] = this.window();
    if (stream) {
      this.series.forget(start - this.range);
      const longest = this.series.longestStep(stream.interval);
      this.chart.draw({ series: this.series, unit: stream.unit, start, end, longest });
    }
    this.drawSums(start, end);
    this.drawNotes(start, end);
    this.drawTable(start, end);
    for (const button of this.panel.querySelectorAll<HTMLButtonElement>("[data-range]")) {
      setAttribute(button, "aria-pressed", String(RANGES[button.dataset["range"]!] === this.range));
    }
    setAttribute(this.panel, "aria-busy", String(this.loading !== null));
  }

  private drawHead(): void {
    const { stream, thing } = this;
    if (!thing) return;
    const state = stream ? this.city.stateOf(stream) : this.city.stateOfThing(thing);
    const newest = stream?.newest ?? null;
    setText(byId("detail-thing"), thing.name);
    setText(byId("detail-name"), stream ? label(stream, thing) : "No datastreams");
    setAttribute(byId("detail-name"), "title", stream ? `${stream.name}. ${stream.description}` : thing.description);
    setText(byId("detail-value"), newest ? valueText(newest.result) : "–");
    setText(byId("detail-unit"), newest && stream ? stream.unit : "");
    setIcon(byId("detail-icon") as unknown as SVGSVGElement, state);
    setText(byId("detail-state"), STATE_NAMES[state]);
    setAttribute(byId("detail-head"), "data-state", state);
    const time = now();
    setText(byId("detail-age"), newest ? agoText(time - newest.time) : "no value yet");
    setAttribute(byId("detail-age"), "title", newest ? `${localText(newest.time)} · ${utcText(newest.time)}` : "");
    const every = stream?.interval ? `every ${durationText(stream.interval)}` : "";
    setText(byId("detail-every"), stream?.retired ? "retired" : every);
    byId("chart").setAttribute(
      "aria-label",
      stream ? `Chart of ${label(stream, thing)} at ${thing.name}; the arrow keys read its values, the table has them all` : "",
    );
  }

  private drawSums(start: number, end: number): void {
    const stream = this.stream;
    const sums = stream ? this.series.sums(start, end) : null;
    const show = (id: string, value: number | undefined) =>
      setText(byId(id), value === undefined || Number.isNaN(value) ? "–" : number(value, 4));
    show("sum-min", sums?.min);
    show("sum-mean", sums?.mean);
    show("sum-max", sums?.max);
    for (const unit of this.panel.querySelectorAll(".sums .unit")) setText(unit, sums && stream ? stream.unit : "");
    const count = sums?.count ?? 0;
    // From where the record begins: a stream that is an hour old did not miss a week.
    const first = Math.max(start, this.series.times[this.series.at(start)] ?? start);
    const expected = stream && count ? expectedCount(stream.interval, first, end) : null;
    setText(byId("sum-count"), number(count));
    setText(byId("sum-expected"), expected === null ? "" : `of ${number(Math.max(expected, count))} due`);
    setText(byId("sum-flagged"), sums?.flagged ? `${number(sums.flagged)} flagged` : "");
  }

  private drawNotes(start: number, end: number): void {
    const { stream } = this;
    const newest = stream?.newest;
    const notes: string[] = [];
    if (this.anchored && newest) {
      notes.push(`Up to the newest value, ${localMinuteText(newest.time)}; nothing in the ${ageText(now() - newest.time)} since.`);
    }
    if (this.since !== null) notes.push(`Only the newest ${number(MOST)} values, from ${localMinuteText(this.since)} on.`);
    if (stream?.stamp) notes.push(`A value’s time is the ${stream.stamp} of the ${stream.interval ? durationText(stream.interval) : "interval"} it covers.`);
    notes.push(`Local time: ${zoneText(end)}.`);
    setText(byId("chart-notes"), notes.join(" "));

    const empty = byId("chart-empty");
    const inRange = this.series.at(end + 1) - this.series.at(start);
    let says = "";
    if (!stream) says = "This thing has no datastreams.";
    else if (this.problem) says = `The history could not be loaded: ${this.problem}.`;
    else if (!inRange && this.loading) says = "Loading…";
    else if (!inRange && this.others.length) says = "These results are not numbers; the table has them.";
    else if (!inRange) says = newest ? "No values in this time." : "No value has arrived yet. The chart begins with the first one.";
    setText(byId("chart-says"), says);
    empty.hidden = says === "";
    byId("retry").hidden = this.problem === null;
  }

  private drawTable(start: number, end: number): void {
    const wide = matchMedia("(min-width: 137.5rem)").matches;
    const button = byId("as-table");
    const shown = this.tableShown || wide || (this.others.length > 0 && !this.series.times.length);
    setAttribute(button, "aria-expanded", String(shown));
    setText(button, this.tableShown ? "Chart" : "Table");
    const box = byId("table");
    box.hidden = !shown;
    this.panel.classList.toggle("tabular", shown && !wide);
    if (!shown || !this.stream) return;
    const { series, stream } = this;
    const rows: Observation[] = [];
    for (let i = series.at(end + 1) - 1; i >= series.at(start) && rows.length < TABLE_ROWS; i -= 1) {
      rows.push({ time: series.times[i]!, result: series.values[i]!, flag: series.flags[i]! });
    }
    if (!rows.length) rows.push(...this.others.slice(0, TABLE_ROWS));
    const count = series.at(end + 1) - series.at(start);
    const more = count > rows.length ? `The newest ${rows.length} of ${number(count)} values` : `${rows.length} values`;
    setText(byId("table-caption"), `${more}, the newest first`);
    setText(byId("table-unit"), stream.unit ? `Value in ${stream.unit}` : "Value");
    byId("table-rows").replaceChildren(
      ...rows.map((row) =>
        h(
          "tr", row.flag === "bad" || row.flag === "suspect" ? { class: row.flag } : {},
          h("td", {}, localText(row.time)), h("td", { class: "utc" }, utcText(row.time)),
          h("td", { class: "number" }, valueText(row.result)), h("td", {}, row.flag ?? ""),
        ),
      ),
    );
  }
}
