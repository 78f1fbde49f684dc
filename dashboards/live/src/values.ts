/** A result as a person reads it. */

import { number } from "./times.ts";

export function valueText(result: unknown): string {
  if (typeof result === "number") return number(result);
  if (typeof result === "string") return result;
  if (result === null || result === undefined) return "null";
  return JSON.stringify(result);
}
