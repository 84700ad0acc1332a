/** What retention says of a point, and how it writes times. */

export interface Judgement {
  readonly keep: boolean;
  /** For people: which rule decided. */
  readonly rule: string;
}

/** What a date can be, in milliseconds on both sides of 1970. */
const DATE_MILLIS_MAX = 8.64e15;

/** `2026-01-01T10:00:00Z`. A label from outside the calendar is written as the number it is. */
export function writeTime(millis: number): string {
  if (Math.abs(millis) > DATE_MILLIS_MAX) return `${millis} ms`;
  return new Date(millis).toISOString().replace(/\.\d+Z$/, "Z");
}
