/** The map of the things (MapLibre GL). Where there is no WebGL, `sketch.ts` takes its place. */

import {
  AttributionControl, GeoJSONSource, LngLatBounds, Map as MapLibreMap, NavigationControl, ScaleControl, setWorkerUrl,
  type ExpressionSpecification, type StyleSpecification,
} from "maplibre-gl";

import { AVENUES, CREDIT, graticule, SEA } from "./basemap.ts";
import { h, inPixels, onThemeChange, rem, token } from "./dom.ts";
import { pixels } from "./icons.ts";
import { STATE_NAMES, STATES, type State } from "./states.ts";

export interface Place {
  id: number;
  name: string;
  state: State;
  at: [number, number];
  /** Drawn faintly: the filter leaves it out. */
  faint: boolean;
}

export interface CityMap {
  /** Draw these; `complete` once they are all, which is when the map fits itself to them for the last time. */
  show(places: Place[], complete: boolean): void;
  select(id: number | null, fly: boolean): void;
  remove(): void;
}

const EMPTY: GeoJSON.FeatureCollection = { type: "FeatureCollection", features: [] };
const FONT = ["Inter Variable"];

export class GlMap implements CityMap {
  private readonly map: MapLibreMap;
  private places: Place[] = [];
  private selected: number | null = null;
  private ready = false;
  private fitted: "no" | "to some" | "to all" = "no";
  private moved = false;
  private readonly narrow = matchMedia("(max-width: 60rem)").matches;
  private readonly still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  /** `failed` is called when the map cannot begin: a worker that does not load, WebGL that gives up. */
  constructor(container: HTMLElement, chosen: (id: number) => void, failed: () => void) {
    setWorkerUrl(new URL("/static/maplibre-gl-worker.js", location.href).href);
    this.map = new MapLibreMap({
      container,
      style: style(),
      center: [2.165, 41.395],
      zoom: 11.4,
      minZoom: 3,
      maxZoom: 18,
      attributionControl: false,
      dragRotate: false,
      pitchWithRotate: false,
      touchPitch: false,
      fadeDuration: 0,
      // On a phone one finger scrolls the page.
      cooperativeGestures: this.narrow,
      localIdeographFontFamily: '"Inter Variable", sans-serif',
    });
    this.map.touchZoomRotate.disableRotation();
    this.map.addControl(new AttributionControl({ compact: this.narrow, customAttribution: CREDIT }), "bottom-right");
    this.map.addControl(new ScaleControl({ maxWidth: inPixels(7) }), "bottom-left");
    this.map.addControl(new NavigationControl({ showCompass: false }), "top-right");
    this.map.addControl(new FitControl(() => this.fit(true)), "top-right");
    this.map.getCanvas().setAttribute("aria-label", "Map of the things; the list beside it has the same in words");

    let began = false;
    this.map.on("error", (event) => {
      if (began) console.warn(event.error.message);
      else failed();
    });
    this.map.on("load", () => {
      began = true;
      container.dataset["drawn"] = "map";
      this.ready = true;
      this.addIcons();
      this.draw();
      container.querySelector(".maplibregl-compact-show")?.classList.remove("maplibregl-compact-show");
    });
    this.map.on("movestart", (event) => (this.moved ||= "originalEvent" in event && event.originalEvent !== undefined));
    this.map.on("moveend", () => this.drawGrid());
    this.map.on("resize", () => this.drawGrid());
    for (const layer of ["things", "names"]) {
      this.map.on("click", layer, (event) => {
        const id = event.features?.[0]?.properties["id"] as unknown;
        if (typeof id === "number") chosen(id);
      });
      this.map.on("mouseenter", layer, () => (this.map.getCanvas().style.cursor = "pointer"));
      this.map.on("mouseleave", layer, () => (this.map.getCanvas().style.cursor = ""));
    }
    const tip = h("div", { class: "map-tip", hidden: "" });
    container.append(tip);
    this.map.on("mousemove", "things", (event) => {
      const at = this.places.find((place) => place.id === event.features?.[0]?.properties["id"]);
      if (!at) return;
      tip.textContent = `${at.name} · ${STATE_NAMES[at.state].toLowerCase()}`;
      tip.hidden = false;
      tip.style.transform = `translate(${event.point.x + 14}px, ${event.point.y + 14}px)`;
    });
    this.map.on("mouseleave", "things", () => (tip.hidden = true));
    onThemeChange(() => {
      this.ready = false;
      this.map.setStyle(style(), { diff: false });
      this.map.once("style.load", () => {
        this.ready = true;
        this.addIcons();
        this.draw();
      });
    });
  }

  show(places: Place[], complete: boolean): void {
    this.places = places;
    if (this.ready) this.draw();
    if (!places.length || this.fitted === "to all") return;
    // Not under the hands of somebody who has moved the map meanwhile.
    if (this.fitted === "no" || (complete && !this.moved)) this.fit(false);
    this.fitted = complete ? "to all" : "to some";
  }

  select(id: number | null, fly: boolean): void {
    this.selected = id;
    if (this.ready) this.drawSelected();
    const place = this.places.find((one) => one.id === id);
    if (!place || !fly) return;
    this.moved = true;
    const zoom = Math.max(this.map.getZoom(), 12.8);
    if (this.still) this.map.jumpTo({ center: place.at, zoom });
    else this.map.flyTo({ center: place.at, zoom, duration: 900, essential: false });
  }

  remove(): void {
    this.ready = false;
    this.map.remove();
  }

  private fit(animate: boolean): void {
    if (!this.places.length) return;
    const bounds = new LngLatBounds();
    for (const place of this.places) bounds.extend(place.at);
    const padding = { top: inPixels(5), bottom: inPixels(3.5), left: inPixels(4), right: inPixels(4) };
    this.map.fitBounds(bounds, { padding, maxZoom: 14, animate: animate && !this.still, duration: 700 });
  }

  private draw(): void {
    source(this.map, "things").setData({
      type: "FeatureCollection",
      features: this.places.map((place) => ({
        type: "Feature",
        properties: {
          id: place.id,
          name: place.name,
          icon: `state-${place.state}`,
          // The worst is drawn last, on top, and its name comes first.
          rank: STATES.length - STATES.indexOf(place.state),
          faint: place.faint ? 1 : 0,
        },
        geometry: { type: "Point", coordinates: place.at },
      })),
    });
    this.drawSelected();
    this.drawGrid();
  }

  private drawSelected(): void {
    const place = this.places.find((one) => one.id === this.selected);
    source(this.map, "selected").setData(
      place ? { type: "Feature", properties: {}, geometry: { type: "Point", coordinates: place.at } } : EMPTY,
    );
  }

  private drawGrid(): void {
    if (!this.ready) return;
    const bounds = this.map.getBounds();
    const lines = graticule(bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth());
    source(this.map, "grid").setData({ type: "MultiLineString", coordinates: lines });
  }

  private addIcons(): void {
    // Twice as fine as the screen: MapLibre then smooths them, wherever between two pixels they come to lie.
    const ratio = 2 * Math.max(1, window.devicePixelRatio);
    for (const state of STATES) {
      const name = `state-${state}`;
      if (this.map.hasImage(name)) this.map.removeImage(name);
      this.map.addImage(name, pixels(state, inPixels(1.35) * ratio), { pixelRatio: ratio });
    }
  }
}

class FitControl {
  private readonly fit: () => void;
  private element: HTMLElement | null = null;

  constructor(fit: () => void) {
    this.fit = fit;
  }

  onAdd(): HTMLElement {
    const button = h("button", { type: "button", class: "fit", title: "Show all things", "aria-label": "Show all things" });
    button.addEventListener("click", this.fit);
    this.element = h("div", { class: "maplibregl-ctrl maplibregl-ctrl-group" }, button);
    return this.element;
  }

  onRemove(): void {
    this.element?.remove();
  }
}

function source(map: MapLibreMap, name: string): GeoJSONSource {
  return map.getSource(name) as GeoJSONSource;
}

function style(): StyleSpecification {
  const scale = rem() / 16;
  const faint = (full: number): ExpressionSpecification => ["case", ["==", ["get", "faint"], 1], 0.22, full];
  return {
    version: 8,
    sources: {
      sea: { type: "geojson", data: SEA },
      grid: { type: "geojson", data: EMPTY },
      avenues: {
        type: "geojson",
        data: {
          type: "FeatureCollection",
          features: AVENUES.map(({ name, rank, points }) => ({
            type: "Feature", properties: { name, rank }, geometry: { type: "LineString", coordinates: points },
          })),
        },
      },
      things: { type: "geojson", data: EMPTY },
      selected: { type: "geojson", data: EMPTY },
    },
    layers: [
      { id: "land", type: "background", paint: { "background-color": token("--land") } },
      { id: "sea", type: "fill", source: "sea", paint: { "fill-color": token("--sea") } },
      { id: "grid", type: "line", source: "grid", paint: { "line-color": token("--grid"), "line-width": 1 } },
      {
        id: "shore", type: "line", source: "sea",
        paint: { "line-color": token("--shore"), "line-width": 1.2 * scale },
      },
      {
        id: "avenues", type: "line", source: "avenues", minzoom: 10,
        layout: { "line-cap": "round", "line-join": "round" },
        paint: {
          "line-color": token("--road"),
          "line-width": ["interpolate", ["exponential", 1.5], ["zoom"], 10, 0.8 * scale, 13, 3 * scale, 16, 11 * scale],
        },
      },
      {
        id: "avenue-names", type: "symbol", source: "avenues", minzoom: 12.4,
        layout: {
          "symbol-placement": "line", "text-field": ["get", "name"], "text-font": FONT, "text-size": 10.5 * scale,
          "symbol-spacing": 420, "text-letter-spacing": 0.02, "text-max-angle": 30,
        },
        paint: { "text-color": token("--road-ink"), "text-halo-color": token("--land"), "text-halo-width": 1.4 },
      },
      {
        id: "selected", type: "circle", source: "selected",
        paint: {
          "circle-radius": 16 * scale, "circle-color": token("--accent"), "circle-opacity": 0.16,
          "circle-stroke-color": token("--accent"), "circle-stroke-width": 2.2 * scale,
        },
      },
      // Marks lie above names and are placed first, so that no name covers a mark.
      {
        id: "names", type: "symbol", source: "things",
        layout: {
          "text-field": ["get", "name"], "text-font": FONT, "text-size": 12 * scale, "text-max-width": 11,
          "text-variable-anchor": ["top", "bottom", "left", "right"], "text-radial-offset": 1.2,
          "text-justify": "auto", "symbol-sort-key": ["-", ["get", "rank"]], "text-padding": 1,
        },
        paint: {
          "text-color": token("--ink"), "text-halo-color": token("--land"), "text-halo-width": 1.6,
          "text-opacity": faint(1),
        },
      },
      {
        id: "things", type: "symbol", source: "things",
        layout: {
          "icon-image": ["get", "icon"], "icon-allow-overlap": true, "icon-padding": 0,
          "symbol-sort-key": ["get", "rank"],
        },
        paint: { "icon-opacity": faint(1) },
      },
    ],
  };
}
