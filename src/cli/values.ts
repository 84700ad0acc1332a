/** Sizes, times and addresses as people write them. Each throws `usage` naming the option. */
import { ReplicationError } from "../base/errors.ts";

const sizeUnits: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};
const timeUnits: Readonly<Record<string, number>> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `64KiB`, `1GiB`, `1048576`: bytes. */
export function parseSize(text: string, option: string): number {
  const match = /^(\d+(?:\.\d+)?)(B|KiB|MiB|GiB|TiB)?$/.exec(text);
  const bytes = match === null ? Number.NaN : Number(match[1]) * (sizeUnits[match[2] ?? ""] ?? Number.NaN);
  if (!Number.isSafeInteger(bytes)) {
    throw new ReplicationError(
      "usage",
      `${option}: ${JSON.stringify(text)} is no size; write 64KiB, 50MiB, 1GiB or bytes`,
    );
  }
  return bytes;
}

/** At less a single unit of 1 MiB would take more than a quarter of an hour. */
const rateMin = 1024;

/** `--rate`: bytes a second. */
export function parseRate(text: string): number {
  const bytes = parseSize(text, "--rate");
  if (bytes >= rateMin) return bytes;
  throw new ReplicationError("usage", `--rate: ${JSON.stringify(text)} is less than 1KiB a second`);
}

/** `30s`, `15m`, `1h`, `30d`: milliseconds. */
export function parseTime(text: string, option: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text);
  const millis = match === null ? Number.NaN : Number(match[1]) * (timeUnits[match[2] ?? ""] ?? Number.NaN);
  if (!Number.isFinite(millis)) {
    throw new ReplicationError("usage", `${option}: ${JSON.stringify(text)} is no time; write 30s, 15m or 1h`);
  }
  return millis;
}

/** A whole number between bounds. */
export function parseCount(
  text: string,
  option: string,
  bounds: { readonly min: number; readonly max: number },
): number {
  const count = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(count >= bounds.min && count <= bounds.max)) {
    throw new ReplicationError(
      "usage",
      `${option}: ${JSON.stringify(text)} is not a number from ${bounds.min} to ${bounds.max}`,
    );
  }
  return count;
}

/** One of a few words. */
export function parseWord<const Word extends string>(text: string, option: string, words: readonly Word[]): Word {
  const word = words.find((known) => known === text);
  if (word === undefined) {
    throw new ReplicationError("usage", `${option}: ${JSON.stringify(text)} is none of ${words.join(", ")}`);
  }
  return word;
}

/** `host:port`, `[::1]:7000`. */
export function parseAddress(text: string, option: string): { readonly host: string; readonly port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3] ?? Number.NaN);
  if (match === null || !(port >= 0 && port <= 65_535)) {
    throw new ReplicationError(
      "usage",
      `${option}: ${JSON.stringify(text)} is no address; write host:7000 or [::1]:7000`,
    );
  }
  return { host: match[1] ?? match[2] ?? "", port };
}

/** `1.5 GiB`. */
export function formatSize(bytes: number): string {
  let value = bytes;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (value < 1024) return `${unit === "B" || value >= 100 ? Math.round(value) : value.toFixed(1)} ${unit}`;
    value /= 1024;
  }
  return `${value.toFixed(1)} TiB`;
}

/** `1:02:03` or `4 s`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const whole = Math.round(seconds);
  const tail = `${String(Math.floor(whole / 60) % 60).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return whole < 3_600 ? tail.replace(/^0/, "") : `${Math.floor(whole / 3_600)}:${tail}`;
}

/** UTC with its zone: `2026-11-25 05:00:00Z`. */
export function formatTime(millis: number): string {
  return new Date(millis)
    .toISOString()
    .replace("T", " ")
    .replace(/\.\d+Z$/, "Z");
}

/** `0.1%`: a part of one. */
export function parseShare(text: string): number {
  const percent = /^(\d+(?:\.\d+)?)%$/.exec(text)?.[1];
  const share = percent === undefined ? Number.NaN : Number(percent) / 100;
  if (share >= 0 && share <= 1) return share;
  throw new ReplicationError("usage", `--audit: ${JSON.stringify(text)} is not a share such as 0.1%`);
}

/** Milliseconds between the beginnings of two cycles; 0: without a pause. */
export function parseEvery(text: string): number {
  const millis = text === "0" ? 0 : parseTime(text, "--every");
  // Timers hold no more.
  if (millis <= everyMillisMax) return millis;
  throw new ReplicationError("usage", `--every: ${JSON.stringify(text)} is too long; at most 24d`);
}

const everyMillisMax = 24 * 24 * 3_600_000;
