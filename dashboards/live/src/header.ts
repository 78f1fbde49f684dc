/** The strip at the top: how much comes in, how late, from whom; and what is unwell. */

import type { Connection } from "./live.ts";
import { byId, h, setAttribute, setText, svg } from "./dom.ts";
import type { Health } from "./health.ts";
import { icon } from "./icons.ts";
import { STATE_MEANINGS, STATE_NAMES, STATES, type State } from "./states.ts";
import { ageText, now, number, SECOND } from "./times.ts";

const TRACE = 40; // points of the small line of the rate

export class Header {
  private health: Health | null = null;
  private connection: Connection = "connecting";
  private lostAt: number | null = null;
  private log: string | null = null;
  private loading: string | null = null;
  private unwellThings = 0;
  private readonly rates: number[] = [];

  setHealth(health: Health): void {
    this.health = health;
    if (health.answers && health.perSecond !== null) {
      this.rates.push(health.perSecond);
      if (this.rates.length > TRACE) this.rates.shift();
    }
    this.draw();
  }

  setConnection(connection: Connection): void {
    if (connection === "live") this.lostAt = null;
    else this.lostAt ??= now();
    this.connection = connection;
    this.draw();
  }

  /** The event log's trouble, as `/live` says it. */
  setLog(trouble: string | null): void {
    this.log = trouble;
    this.draw();
  }

  /** Why the things could not be loaded. */
  setLoading(problem: string | null): void {
    this.loading = problem;
    this.draw();
  }

  setThings(counts: Record<State, number>): void {
    const all = STATES.reduce((sum, state) => sum + counts[state], 0) - counts.idle;
    setText(byId("figure-things"), `${number(counts.fresh)}`);
    setText(byId("figure-all"), `of ${number(all)}`);
    const bits = (["late", "suspect", "silent", "offline"] as const)
      .filter((state) => counts[state])
      .map((state) => `${counts[state]} ${SHORT[state]}`);
    setText(byId("figure-unwell"), bits.join(" · "));
    this.unwellThings = counts.silent + counts.suspect + counts.offline;
    this.title();
  }

  /** What the tab says; unwell things and checks come first. */
  private title(): void {
    const things = this.unwellThings;
    const checks = this.troubles().length;
    let title = "Citylab";
    if (this.connection === "reconnecting" || this.health?.answers === false) title = "⚠ No connection · Citylab";
    else if (checks) title = `⚠ ${this.troubles()[0]!.name} unwell · Citylab`;
    else if (things) title = `${things} ${things === 1 ? "thing" : "things"} unwell · Citylab`;
    if (document.title !== title) document.title = title;
  }

  /** Once a second, for what says how long something lasts. */
  draw(): void {
    const health = this.health;
    setText(byId("figure-rate"), health?.perSecond == null ? "–" : rateText(health.perSecond));
    setText(byId("figure-lag"), health?.lag == null ? "–" : lagText(health.lag));
    setText(byId("figure-gateways"), health?.gateways ? number(health.gateways.online) : "–");
    const off = health?.gateways?.offline ?? 0;
    setText(byId("figure-offline"), off ? `${number(off)} offline` : health?.gateways ? "online" : "");
    byId("figure-offline").classList.toggle("bad", off > 0);
    this.drawTrace();
    this.title();

    const pill = byId("connection");
    const down = this.connection !== "live" || health?.answers === false;
    const state = !down ? "live" : this.connection === "connecting" ? "connecting" : "reconnecting";
    setAttribute(pill, "data-state", state);
    const lost = this.lostAt === null ? 0 : now() - this.lostAt;
    const since = lost > 2 * SECOND ? ` · ${ageText(lost)}` : "";
    setText(byId("connection-text"), { live: "Live", connecting: "Connecting", reconnecting: "Reconnecting" }[state]);
    setText(byId("connection-since"), state === "reconnecting" ? since : "");

    const troubles = this.troubles();
    const notice = byId("notice");
    const text = troubles.map((one) => `${one.name}: ${one.detail}`).join("\n");
    if (notice.dataset["text"] !== text) {
      notice.dataset["text"] = text;
      notice.hidden = troubles.length === 0;
      notice.replaceChildren(
        ...troubles.map((one) => h("p", {}, h("b", {}, one.name), ` ${one.detail}`)),
      );
    }
  }

  private troubles(): { name: string; detail: string }[] {
    const found: { name: string; detail: string }[] = [];
    if (this.health?.answers === false) {
      found.push({ name: "Connection", detail: "the platform does not answer. What you see is from before; this page tries again by itself." });
    } else if (this.connection === "reconnecting") {
      found.push({ name: "Connection", detail: "live values have stopped; trying again. Everything missed is loaded afterwards." });
    }
    if (this.loading) found.push({ name: "Things", detail: this.loading });
    if (this.log) found.push({ name: "Event log", detail: `${this.log}; values are stored, but do not show live.` });
    if (this.health?.answers) found.push(...this.health.unwell.map(({ name, detail }) => ({ name, detail })));
    return found;
  }

  private drawTrace(): void {
    const box = byId("trace") as unknown as SVGSVGElement;
    const highest = Math.max(...this.rates, 1e-9);
    const points = this.rates.map((rate, i) => {
      const x = ((i + TRACE - this.rates.length) / (TRACE - 1)) * 60;
      return `${x.toFixed(1)},${(17 - (rate / highest) * 15).toFixed(1)}`;
    });
    box.replaceChildren(svg("polyline", { points: points.length > 1 ? points.join(" ") : "" }));
  }
}

const SHORT: Record<State, string> = {
  offline: "offline", silent: "silent", suspect: "suspect", late: "late", fresh: "fresh", idle: "idle",
};

const LEGEND: State[] = ["fresh", "late", "suspect", "silent", "offline", "idle"];

/** The legend, whose entries are switches of a filter. */
export class Legend {
  private readonly buttons = new Map<State, { button: HTMLButtonElement; count: HTMLElement }>();
  private pressed: State | null = null;

  constructor(box: HTMLElement, changed: (state: State | null) => void) {
    for (const state of LEGEND) {
      const count = h("span", { class: "count" });
      const button = h(
        "button", { type: "button", "aria-pressed": "false", title: `${STATE_MEANINGS[state]}. Click to see only these.` },
        icon(state) as unknown as Node, h("span", {}, STATE_NAMES[state]), count,
      );
      button.addEventListener("click", () => {
        this.pressed = this.pressed === state ? null : state;
        for (const [other, { button: one }] of this.buttons) setAttribute(one, "aria-pressed", String(other === this.pressed));
        changed(this.pressed);
      });
      this.buttons.set(state, { button, count });
    }
    box.append(...[...this.buttons.values()].map(({ button }) => button));
  }

  show(counts: Record<State, number>): void {
    for (const [state, { button, count }] of this.buttons) {
      setText(count, number(counts[state]));
      // The rare ones take no room until they are there.
      button.hidden = counts[state] === 0 && (state === "idle" || state === "offline") && this.pressed !== state;
      button.classList.toggle("none", counts[state] === 0);
    }
  }
}

function rateText(rate: number): string {
  return rate >= 100 ? number(Math.round(rate)) : number(rate, 2);
}

function lagText(seconds: number): string {
  if (seconds < 0.01) return "< 10 ms";
  if (seconds < 1) return `${Math.round(seconds * 1_000)} ms`;
  return seconds < 10 ? `${number(seconds, 2)} s` : ageText(seconds * 1_000);
}
