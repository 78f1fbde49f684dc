/** Instants are milliseconds since the epoch, durations are milliseconds. */

export const SECOND = 1_000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;

const DURATION =
  /^P(?:(\d+(?:\.\d+)?)W|(?:(\d+(?:\.\d+)?)D)?(?:T(?:(\d+(?:\.\d+)?)H)?(?:(\d+(?:\.\d+)?)M)?(?:(\d+(?:\.\d+)?)S)?)?)$/;

/** An ISO 8601 duration of fixed length; null when the text is none, or is of no length. */
export function parseDuration(text: unknown): number | null {
  const match = typeof text === "string" ? DURATION.exec(text) : null;
  if (!match) return null;
  const [weeks, days, hours, minutes, seconds] = match.slice(1).map((part) => Number(part ?? 0));
  const sum = weeks! * 7 * DAY + days! * DAY + hours! * HOUR + minutes! * MINUTE + seconds! * SECOND;
  return sum > 0 ? sum : null;
}

/** A phenomenonTime: an instant, or the start of an interval, or its end where that is what is asked for. */
export function parseTime(text: string, end = false): number {
  const slash = text.indexOf("/");
  if (slash < 0) return Date.parse(text);
  return Date.parse(end ? text.slice(slash + 1) : text.slice(0, slash));
}

/** How long ago, in the largest unit that says enough: `8 s`, `3 min`, `5 h`, `12 d`. */
export function ageText(age: number): string {
  const past = Math.abs(age);
  if (past < MINUTE) return `${Math.floor(past / SECOND)} s`;
  if (past < HOUR) return `${Math.floor(past / MINUTE)} min`;
  if (past < 2 * DAY) return `${Math.floor(past / HOUR)} h`;
  return `${Math.floor(past / DAY)} d`;
}

/** The same as a phrase. A value from the future is one, and is called so. */
export function agoText(age: number): string {
  if (age < -2 * SECOND) return `in ${ageText(age)}`;
  if (age < SECOND) return "now";
  return `${ageText(age)} ago`;
}

/** A duration for people: `10 s`, `1 min`, `1 h`. */
export function durationText(length: number): string {
  for (const [unit, name] of [[DAY, "d"], [HOUR, "h"], [MINUTE, "min"]] as const) {
    if (length >= unit && length % unit === 0) return `${length / unit} ${name}`;
  }
  return `${number(length / SECOND, 3)} s`;
}

const fine = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hourCycle: "h23",
});
const coarse = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23",
});

export function localText(time: number): string {
  return fine.format(time);
}

export function localMinuteText(time: number): string {
  return coarse.format(time);
}

export function utcText(time: number): string {
  const text = new Date(time).toISOString();
  return `${text.slice(0, 10)} ${text.slice(11, time % SECOND ? 23 : 19)} UTC`;
}

/** The browser's zone with its offset at that instant: `Europe/Madrid, UTC+2`. */
export function zoneText(time: number): string {
  const minutes = -new Date(time).getTimezoneOffset();
  const hours = Math.floor(Math.abs(minutes) / 60);
  const rest = Math.abs(minutes) % 60;
  const offset = `UTC${minutes < 0 ? "−" : "+"}${hours}${rest ? `:${String(rest).padStart(2, "0")}` : ""}`;
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  return zone === "UTC" ? "UTC" : `${zone}, ${offset}`;
}

const formats = new Map<number, Intl.NumberFormat>();

/** A number with at most so many significant digits, grouped as the reader's language does. */
export function number(value: number, digits = 6): string {
  if (value !== 0 && (Math.abs(value) >= 1e12 || Math.abs(value) < 1e-6)) return value.toPrecision(4);
  let format = formats.get(digits);
  if (!format) {
    format = new Intl.NumberFormat(undefined, { maximumSignificantDigits: digits });
    formats.set(digits, format);
  }
  return format.format(value);
}

/** Milliseconds to add to this computer's clock to get the server's: ages must not depend on a laptop's clock. */
let skew = 0;

/** Learn the server's clock from a `Date` header, which has whole seconds. */
export function learnClock(header: string | null, here: number): void {
  const there = header === null ? NaN : Date.parse(header);
  if (Number.isNaN(there)) return;
  const difference = there + SECOND / 2 - here;
  skew = Math.abs(difference) > 2 * SECOND ? difference : 0;
}

export function now(): number {
  return Date.now() + skew;
}
