/** The map where there is no WebGL: a still drawing of the same, with things to click on. */

import { AVENUES, CREDIT, SEA } from "./basemap.ts";
import { h, inPixels, svg } from "./dom.ts";
import { icon } from "./icons.ts";
import type { CityMap, Place } from "./map.ts";
import { STATE_NAMES, STATES } from "./states.ts";

export class SketchMap implements CityMap {
  private places: Place[] = [];
  private selected: number | null = null;
  private readonly container: HTMLElement;
  private readonly chosen: (id: number) => void;

  constructor(container: HTMLElement, chosen: (id: number) => void) {
    this.container = container;
    this.chosen = chosen;
    container.classList.add("sketch");
    new ResizeObserver(() => this.draw()).observe(container);
  }

  show(places: Place[]): void {
    this.places = places;
    this.draw();
  }

  select(id: number | null): void {
    this.selected = id;
    this.draw();
  }

  remove(): void {
    this.container.replaceChildren();
  }

  private draw(): void {
    const { width, height } = this.container.getBoundingClientRect();
    if (!width || !height) return;
    const project = projection(this.places.map((place) => place.at), width, height);
    const path = (points: number[][]) => points.map((point) => project(point).map(Math.round).join(",")).join("L");
    const sea = SEA.features.map((feature) =>
      svg("path", { class: "sea", d: feature.geometry.coordinates.map((ring) => `M${path(ring)}Z`).join("") }),
    );
    const avenues = AVENUES.map(({ points }) => svg("path", { class: "road", d: `M${path(points)}` }));
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...sea, ...avenues);
    const marks = [...this.places]
      .sort((a, b) => STATES.indexOf(b.state) - STATES.indexOf(a.state))
      .map((place) => {
        const [x, y] = project(place.at);
        const mark = h(
          "button",
          {
            type: "button",
            class: `mark${place.id === this.selected ? " selected" : ""}${place.faint ? " faint" : ""}`,
            title: `${place.name} · ${STATE_NAMES[place.state].toLowerCase()}`,
          },
          icon(place.state) as unknown as Node,
        );
        mark.style.transform = `translate(${x}px, ${y}px)`;
        mark.addEventListener("click", () => this.chosen(place.id));
        return mark;
      });
    const note = h("p", { class: "credit" }, `A still drawing, as there is no WebGL here. ${CREDIT}`);
    this.container.replaceChildren(drawing, ...marks, note);
  }
}

/** Web Mercator, fitted to the places with a margin; Barcelona when there are none. */
export function projection(
  places: [number, number][], width: number, height: number,
): (point: number[]) => [number, number] {
  const mercator = (latitude: number) => Math.log(Math.tan(Math.PI / 4 + (latitude * Math.PI) / 360)) * (180 / Math.PI);
  const points = places.length ? places : ([[2.08, 41.34], [2.24, 41.45]] as [number, number][]);
  const xs = points.map(([x]) => x);
  const ys = points.map(([, y]) => mercator(y));
  const [west, east, south, north] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const margin = typeof document === "undefined" ? 48 : inPixels(4);
  const scale = Math.min(
    Math.max(width - 2 * margin, 1) / Math.max(east - west, 0.02),
    Math.max(height - 2 * margin, 1) / Math.max(north - south, 0.02),
  );
  return ([x, y]) => [
    width / 2 + (x! - (west + east) / 2) * scale,
    height / 2 - (mercator(y!) - (south + north) / 2) * scale,
  ];
}
