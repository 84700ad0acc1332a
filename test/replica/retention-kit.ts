/** Series of points, policies and verdicts for the tests of retention. */
import fc from "fast-check";
import {
  decideRetention,
  type RetainedPoint,
  type RetentionOptions,
  type Verdict,
} from "../../src/replica/retention/decide.ts";
import { keepOptions, parsePolicy } from "../../src/replica/retention/policy.ts";

export const SECOND = 1000;
export const MINUTE = 60 * SECOND;
export const HOUR = 60 * MINUTE;
export const DAY = 24 * HOUR;
export const noon = Date.parse("2026-05-06T12:00:00Z");
export const utc: RetentionOptions = { holdNow: noon, timeZone: "UTC" };

/** Points 1, 2 ... with these times. */
export const series = (times: readonly number[]): RetainedPoint[] =>
  times.map((time, index) => ({ point: index + 1, time }));
export const at = (...texts: string[]): RetainedPoint[] => series(texts.map((text) => Date.parse(text)));

export function kept(
  points: readonly RetainedPoint[],
  policy: string,
  options: Partial<RetentionOptions> = {},
): number[] {
  return numbers(decideRetention(points, parsePolicy(policy), { ...utc, ...options }));
}
export const numbers = (verdicts: readonly Verdict[]): number[] =>
  verdicts.filter(({ keep }) => keep).map(({ point }) => point);

export function rules(
  points: readonly RetainedPoint[],
  policy: string,
  options: Partial<RetentionOptions> = {},
): string[] {
  return decideRetention(points, parsePolicy(policy), { ...utc, ...options }).map(
    ({ keep, rule }) => `${keep ? "+" : "-"} ${rule}`,
  );
}

/** Retention after each commit, as a receiver runs it. `seen` hears what is left each time. */
export function commitAll(
  points: readonly RetainedPoint[],
  policy: string,
  seen: (left: readonly RetainedPoint[], newest: RetainedPoint) => void = () => {},
): RetainedPoint[] {
  const parsed = parsePolicy(policy);
  let left: RetainedPoint[] = [];
  for (const point of points) {
    const stays = new Set(numbers(decideRetention([...left, point], parsed, utc)));
    left = [...left, point].filter(({ point: number }) => stays.has(number));
    seen(left, point);
  }
  return left;
}

// Tame labels never fall; wild ones are tame ones of which a few jump, or stay shifted from there on, or are anything.
export const tameTimes = fc
  .array(fc.oneof(fc.integer({ min: 0, max: 2 * HOUR }), fc.integer({ min: 0, max: 3 * DAY })), {
    maxLength: 60,
    // Else there are hardly ever more than ten.
    size: "max",
  })
  .map((steps) => {
    let time = noon;
    return steps.map((step) => {
      time += step;
      return time;
    });
  });
export const wildTimes = fc
  .tuple(tameTimes, fc.array(fc.tuple(fc.nat(60), fc.integer({ min: -3000, max: 3000 }), fc.nat(2)), { maxLength: 5 }))
  .map(([tame, jumps]) => {
    const times = [...tame];
    for (const [from, hours, reach] of jumps) {
      const shift = hours * (reach === 0 ? HOUR : MINUTE);
      const to = reach === 2 ? times.length : from + 1 + reach * 3;
      for (let index = from; index < Math.min(to, times.length); index++) times[index] = (times[index] ?? 0) + shift;
    }
    return times;
  });
export const gridText = fc.constantFrom(
  "grid=1x1h(keep=all)|24x1h|14x1d|8x7d",
  "grid=24x1h",
  "grid=3x1h(keep=2)|5x1d",
  "grid=1x1d(keep=all)|4x6h|2x20d(keep=3)",
  "grid=1x1s",
);
export const keepText = fc
  .dictionary(fc.constantFrom(...keepOptions), fc.nat(6), { minKeys: 1 })
  .map((counts) => Object.entries(counts).map(([name, count]) => `${name}=${String(count)}`))
  .map((parts) => parts.join(","));
export const anyPolicy = fc.oneof(gridText, keepText, fc.constant("all"), fc.constant("last=0"));
/** Of most points nothing. (`freq` of `fc.option` says how rare nothing is.) */
function rarely<T>(weight: number, arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> {
  return fc.oneof({ weight, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary });
}
const decorations = fc.array(
  fc.record({
    gap: fc.integer({ min: 1, max: 5 }),
    held: rarely(8, fc.record({ owner: fc.constant("backup"), until: fc.constantFrom(undefined, noon, noon + 1) })),
    inUse: rarely(8, fc.constant(true)),
    spared: rarely(8, fc.constant("another disk")),
  }),
  { minLength: 60, maxLength: 60 },
);
export const decorated: fc.Arbitrary<RetainedPoint[]> = fc.tuple(wildTimes, decorations).map(([times, list]) => {
  let point = 0;
  return times.map((time, index) => {
    const { gap = 1, ...rest } = list[index] ?? {};
    point += gap;
    return { point, time, ...rest };
  });
});
