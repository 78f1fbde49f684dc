/** One datastream's values over time (uPlot): gaps are gaps, what is not good is marked, the pointer reads values. */

import uPlot from "uplot";

import { h, inPixels, onThemeChange, token } from "./dom.ts";
import type { Series } from "./series.ts";
import type { Flag } from "./states.ts";
import { HOUR, localText, MINUTE, utcText } from "./times.ts";
import { valueText } from "./values.ts";

export interface View {
  series: Series;
  unit: string;
  start: number;
  end: number;
  /** The longest distance of two values that is no gap. */
  longest: number;
}

export class Chart {
  private readonly container: HTMLElement;
  private readonly tip: HTMLElement;
  private plot: uPlot | null = null;
  private view: View | null = null;
  private flags: (Flag | null)[] = [];
  private gaps: [number, number][] = [];
  private size: [number, number] = [0, 0];

  constructor(container: HTMLElement) {
    this.container = container;
    this.tip = h("div", { class: "tip", role: "status", hidden: "" });
    container.tabIndex = 0;
    container.setAttribute("role", "group");
    container.addEventListener("keydown", (event) => this.press(event));
    container.addEventListener("blur", () => (this.tip.hidden = true));
    new ResizeObserver(() => this.resize()).observe(container);
    onThemeChange(() => this.rebuild());
  }

  /** Draw; cheap enough to be called whenever something has come. */
  draw(view: View): void {
    const other = this.view?.series !== view.series || this.view.unit !== view.unit;
    this.view = view;
    if (!this.plot || other) {
      this.rebuild();
      return;
    }
    this.plot.batch(() => {
      this.plot!.setData(this.data(), false);
      this.plot!.setScale("x", { min: view.start / 1_000, max: view.end / 1_000 });
    });
  }

  clear(): void {
    this.view = null;
    this.plot?.destroy();
    this.plot = null;
    this.tip.hidden = true;
  }

  private data(): uPlot.AlignedData {
    const { series, longest } = this.view!;
    const [times, values, flags] = series.plotted(longest);
    this.flags = flags;
    this.gaps = series.gaps(longest);
    return [times, values];
  }

  private resize(): void {
    const { width, height } = this.container.getBoundingClientRect();
    if (width === this.size[0] && height === this.size[1]) return;
    this.size = [width, height];
    if (this.plot && width && height) this.plot.setSize({ width: Math.floor(width), height: Math.floor(height) });
    else this.rebuild();
  }

  private rebuild(): void {
    this.plot?.destroy();
    this.plot = null;
    const [width, height] = this.size;
    if (!this.view || !width || !height) return;
    this.plot = new uPlot(this.options(Math.floor(width), Math.floor(height)), this.data(), this.container);
    this.plot.setScale("x", { min: this.view.start / 1_000, max: this.view.end / 1_000 });
    this.plot.over.append(this.tip);
  }

  private options(width: number, height: number): uPlot.Options {
    // Whole pixels: uPlot scales the number that it finds before "px" to the screen's.
    const font = `${Math.round(inPixels(0.72))}px "Inter Variable", sans-serif`;
    const axis: uPlot.Axis = {
      stroke: token("--ink-3"),
      font,
      grid: { stroke: token("--line"), width: 1 },
      ticks: { show: false },
    };
    return {
      width,
      height,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 9, fill: token("--accent") } },
      scales: { x: { time: true, auto: false, range: () => [this.view!.start / 1_000, this.view!.end / 1_000] } },
      axes: [
        { ...axis, size: inPixels(1.9), gap: 6, space: inPixels(5), values: (_, ticks, __, ___, step) => timeTicks(ticks, step) },
        { ...axis, size: (_, ticks) => inPixels(1.1) + inPixels(0.46) * Math.max(2, ...(ticks ?? []).map((tick) => tick.length)), gap: 6, space: inPixels(2.2) },
      ],
      series: [
        {},
        {
          stroke: token("--accent"),
          width: Math.max(1.6, inPixels(0.1)),
          fill: token("--accent-wash"),
          fillTo: (plot) => plot.scales["y"]!.min ?? 0,
          points: { show: (plot) => this.sparse(plot), size: inPixels(0.34), fill: token("--accent") },
          spanGaps: false,
        },
      ],
      hooks: {
        drawClear: [(plot) => this.drawGaps(plot)],
        draw: [(plot) => this.drawMarks(plot)],
        setCursor: [(plot) => this.point(plot)],
      },
    };
  }

  /** Whether every value can have its own point. */
  private sparse(plot: uPlot): boolean {
    const { series, start, end } = this.view!;
    const count = series.at(end) - series.at(start);
    return count * inPixels(0.6) < plot.over.clientWidth;
  }

  private drawGaps(plot: uPlot): void {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.fillStyle = token("--gap");
    for (const [from, to] of this.gaps) {
      const left = Math.max(plot.valToPos(from / 1_000, "x", true), bbox.left);
      const right = Math.min(plot.valToPos(to / 1_000, "x", true), bbox.left + bbox.width);
      if (right - left > 1) ctx.fillRect(left, bbox.top, right - left, bbox.height);
    }
    ctx.restore();
  }

  /** Diamonds on what is suspect, crosses on what is bad; where they would cover each other, the line in their colour. */
  private drawMarks(plot: uPlot): void {
    const { ctx, bbox } = plot;
    const [times, values] = plot.data as unknown as [number[], (number | null)[]];
    const size = inPixels(0.34) * devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    let before: { flag: string; index: number; x: number; y: number } | null = null;
    let marked = -Infinity;
    for (let i = 0; i < times.length; i += 1) {
      const flag = this.flags[i];
      const value = values[i];
      if ((flag !== "suspect" && flag !== "bad") || value === null || value === undefined) continue;
      const x = plot.valToPos(times[i]!, "x", true);
      const y = plot.valToPos(value, "y", true);
      if (before !== null && before.index === i - 1 && before.flag === flag) {
        ctx.beginPath();
        ctx.moveTo(before.x, before.y);
        ctx.lineTo(x, y);
        ctx.strokeStyle = token(flag === "suspect" ? "--suspect" : "--silent");
        ctx.lineWidth = 2 * devicePixelRatio;
        ctx.stroke();
      }
      const apart = before?.flag !== flag || x - marked >= size * 4;
      before = { flag, index: i, x, y };
      if (!apart || x < bbox.left || x > bbox.left + bbox.width) continue;
      marked = x;
      ctx.lineWidth = 1.6 * devicePixelRatio;
      ctx.beginPath();
      if (flag === "suspect") {
        ctx.moveTo(x, y - size);
        ctx.lineTo(x + size, y);
        ctx.lineTo(x, y + size);
        ctx.lineTo(x - size, y);
        ctx.closePath();
        ctx.fillStyle = token("--suspect");
        ctx.fill();
        ctx.strokeStyle = token("--card");
        ctx.stroke();
      } else {
        const half = size * 0.8;
        ctx.moveTo(x - half, y - half);
        ctx.lineTo(x + half, y + half);
        ctx.moveTo(x + half, y - half);
        ctx.lineTo(x - half, y + half);
        ctx.strokeStyle = token("--silent");
        ctx.lineWidth = 2.4 * devicePixelRatio;
        ctx.stroke();
      }
    }
    ctx.restore();
  }

  private point(plot: uPlot): void {
    const index = plot.cursor.idx;
    const value = index === null || index === undefined ? null : plot.data[1]![index];
    if (index === null || index === undefined || value === null || value === undefined || (plot.cursor.left ?? -1) < 0) {
      this.tip.hidden = true;
      return;
    }
    const time = plot.data[0]![index]! * 1_000;
    const flag = this.flags[index];
    this.tip.replaceChildren(
      h("b", {}, `${valueText(value)} ${this.view!.unit}`.trim()),
      h("span", {}, localText(time)),
      h("span", { class: "utc" }, utcText(Math.round(time))),
    );
    if (flag) this.tip.append(h("span", { class: `flag ${flag}` }, flag));
    this.tip.hidden = false;
    const x = plot.valToPos(plot.data[0]![index]!, "x");
    const y = plot.valToPos(value, "y");
    const left = x > plot.over.clientWidth / 2;
    this.tip.style.transform =
      `translate(${x}px, ${Math.min(Math.max(y, 40), plot.over.clientHeight - 40)}px) ` +
      `translate(${left ? "calc(-100% - 12px)" : "12px"}, -50%)`;
  }

  /** The arrow keys walk from value to value. */
  private press(event: KeyboardEvent): void {
    const plot = this.plot;
    if (!plot || !this.view) return;
    const { series, start, end } = this.view;
    const [first, last] = [series.at(start), series.at(end + 1) - 1];
    if (last < first) return;
    const pointed = plot.cursor.idx;
    const time = pointed === null || pointed === undefined ? end : plot.data[0]![pointed]! * 1_000;
    const at = Math.min(series.at(time - 0.5), last);
    const steps: Record<string, number> = {
      ArrowLeft: this.tip.hidden ? last : at - 1, ArrowRight: this.tip.hidden ? first : at + 1, Home: first, End: last,
    };
    let next = steps[event.key];
    if (next === undefined) return;
    event.preventDefault();
    next = Math.min(Math.max(next, first), last);
    const left = plot.valToPos(series.times[next]! / 1_000, "x");
    plot.setCursor({ left, top: plot.valToPos(series.values[next]!, "y") });
  }
}

/** Tick labels in local time on a clock of 24 hours; the date where a day begins. */
function timeTicks(ticks: number[], step: number): string[] {
  const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const clock = new Intl.DateTimeFormat(undefined, {
    hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...(step * 1_000 < MINUTE ? { second: "2-digit" } : {}),
  });
  return ticks.map((tick) => {
    const time = new Date(tick * 1_000);
    const midnight = time.getHours() === 0 && time.getMinutes() === 0 && time.getSeconds() === 0;
    return midnight || step * 1_000 >= 12 * HOUR ? date.format(time) : clock.format(time);
  });
}
