/** What the platform says of itself at `/health/ready`. */

import { learnClock } from "./times.ts";

export interface Check {
  name: string;
  ok: boolean;
  detail: string;
}

export interface Health {
  /** False when nobody answers: then the rest is what was known last. */
  answers: boolean;
  unwell: Check[];
  perSecond: number | null;
  lag: number | null;
  gateways: { online: number; offline: number } | null;
  /** Ids of Things whose gateway is offline, where the platform says so. */
  offlineThings: number[];
  broker: string | null;
}

const PERIOD = 3_000;
const TIMEOUT = 5_000;

/** Ask every few seconds, also in a hidden tab (where browsers make it a minute): the title says what is unwell. */
export function watchHealth(told: (health: Health) => void): void {
  let last: Health = {
    answers: true, unwell: [], perSecond: null, lag: null, gateways: null, offlineThings: [], broker: null,
  };
  const ask = async (): Promise<void> => {
    last = await once(last);
    told(last);
    setTimeout(() => void ask(), PERIOD);
  };
  void ask();
}

async function once(last: Health): Promise<Health> {
  try {
    const asked = Date.now();
    const answer = await fetch("/health/ready", { signal: AbortSignal.timeout(TIMEOUT), cache: "no-store" });
    learnClock(answer.headers.get("Date"), (asked + Date.now()) / 2);
    // 503 with the same body is how readiness says no.
    return readHealth((await answer.json()) as Record<string, unknown>);
  } catch {
    return { ...last, answers: false };
  }
}

export function readHealth(json: Record<string, unknown>): Health {
  const checks = Array.isArray(json["checks"]) ? (json["checks"] as Record<string, unknown>[]) : [];
  const unwell = checks
    .filter((check) => check["ok"] === false)
    .map((check) => ({ name: String(check["name"]), ok: false, detail: String(check["detail"] ?? "") }));
  if (!unwell.length && json["state"] === "unwell") unwell.push({ name: "platform", ok: false, detail: "is unwell" });
  const gateways = json["gateways"] as Record<string, unknown> | undefined;
  const things = gateways?.["offline_things"];
  return {
    answers: true,
    unwell,
    perSecond: finite(json["observations_per_second"]),
    lag: finite(json["lag_seconds"]),
    gateways: gateways ? { online: Number(gateways["online"] ?? 0), offline: Number(gateways["offline"] ?? 0) } : null,
    offlineThings: Array.isArray(things) ? things.filter((one): one is number => typeof one === "number") : [],
    broker: typeof json["broker"] === "string" ? json["broker"] : null,
  };
}

function finite(value: unknown): number | null {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
