/** A state's mark: its own shape as well as its own colour, the same in lists, in the legend and on the map. */

import { svg, token } from "./dom.ts";
import type { State } from "./states.ts";

/** Paths in a box of 24 by 24. `hollow` ones are strokes. */
const SHAPES: Record<State, { path: string; hollow?: boolean }> = {
  fresh: { path: "M12 5a7 7 0 1 0 0 14a7 7 0 1 0 0-14z" },
  late: { path: "M11.1 4.6a1.1 1.1 0 0 1 1.8 0l7.4 12.6a1.1 1.1 0 0 1-.9 1.7H4.6a1.1 1.1 0 0 1-.9-1.7z" },
  suspect: { path: "M11.1 3.3a1.3 1.3 0 0 1 1.8 0l7.8 7.8a1.3 1.3 0 0 1 0 1.8l-7.8 7.8a1.3 1.3 0 0 1-1.8 0l-7.8-7.8a1.3 1.3 0 0 1 0-1.8z" },
  silent: { path: "M6.6 5h10.8a1.6 1.6 0 0 1 1.6 1.6v10.8a1.6 1.6 0 0 1-1.6 1.6H6.6a1.6 1.6 0 0 1-1.6-1.6V6.6a1.6 1.6 0 0 1 1.6-1.6z" },
  offline: { path: "M6 6l12 12M18 6l-12 12", hollow: true },
  idle: { path: "M12 7a5 5 0 1 0 0 10a5 5 0 1 0 0-10z", hollow: true },
};

export function icon(state: State): SVGSVGElement {
  const element = svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" });
  setIcon(element, state);
  return element;
}

export function setIcon(element: SVGSVGElement, state: State): void {
  if (element.dataset["state"] === state) return;
  element.dataset["state"] = state;
  element.setAttribute("class", `icon icon-${state}${SHAPES[state].hollow ? " hollow" : ""}`);
  element.replaceChildren(svg("path", { d: SHAPES[state].path }));
}

/** The mark as pixels for the map, with a rim that sets it off from what is under it. */
export function pixels(state: State, size: number): ImageData {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.ceil(size);
  const context = canvas.getContext("2d")!;
  const { path, hollow } = SHAPES[state];
  const shape = new Path2D(path);
  const colour = token(`--${state}`);
  context.scale(canvas.width / 24, canvas.height / 24);
  context.lineJoin = "round";
  context.lineCap = "round";
  context.strokeStyle = token("--rim");
  context.lineWidth = hollow ? 7.5 : 3.4;
  context.stroke(shape);
  if (hollow) {
    context.strokeStyle = colour;
    context.lineWidth = 3.6;
    context.stroke(shape);
  } else {
    context.fillStyle = colour;
    context.fill(shape);
  }
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
