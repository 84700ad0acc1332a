/** When cycles begin, and what is told of those that do not keep up. */
import { expect, test } from "vitest";
import { type Lag, RETRY_MILLIS, runCycles } from "../../src/replication/schedule.ts";
import { createFakeClock, type FakeClock } from "../../src/testing/fake-clock.ts";

interface Run {
  readonly clock: FakeClock;
  /** Moments at which cycles began. */
  readonly begun: number[];
  readonly failures: unknown[];
  readonly lags: (Lag & { readonly at: number })[];
  /** How long the next cycles take; negative: they fail after so long. The last one is for all that follow. */
  takes: number[];
  end(): Promise<void>;
}

function start(everyMillis: number, takes: number[]): Run {
  const clock = createFakeClock();
  const stop = new AbortController();
  const run: Run = {
    ...{ clock, takes, begun: [], failures: [], lags: [] },
    async end() {
      stop.abort();
      await clock.run(0);
      await over;
      expect(clock.waiting, "no timer is left").toBe(0);
    },
  };
  const over = runCycles({
    ...{ clock, everyMillis, signal: stop.signal },
    cycle: async (signal) => {
      run.begun.push(clock.monotonic());
      const millis = (run.takes.length > 1 ? run.takes.shift() : run.takes[0]) ?? 0;
      await clock.sleep(Math.abs(millis), signal);
      if (millis < 0) throw new Error("failed");
    },
    onFailure: (error) => run.failures.push(error),
    onLag: (lag) => run.lags.push({ ...lag, at: clock.monotonic() }),
  });
  return run;
}

test("a cycle begins with each interval; one that took longer is followed by one at once, whatever was missed", async () => {
  const run = start(1_000, [100, 100, 2_500, 100]);
  await run.clock.run(6_000);
  expect(run.begun).toEqual([0, 1_000, 2_000, 4_500, 5_500]);
  await run.end();
});

test("one that failed is tried again when it is due, and not before a second has passed", async () => {
  const run = start(100, [-10, 10]);
  await run.clock.run(RETRY_MILLIS + 250);
  expect(run.failures).toHaveLength(1);
  expect(run.begun).toEqual([0, 10 + RETRY_MILLIS, 110 + RETRY_MILLIS, 210 + RETRY_MILLIS]);
  await run.end();
});

test("as fast as it goes: nothing falls behind", async () => {
  const run = start(0, [5_000]);
  await run.clock.run(20_000);
  expect(run.begun).toEqual([0, 5_000, 10_000, 15_000, 20_000]);
  expect(run.lags).toEqual([]);
  await run.end();
});

test("cycles that take nearly as long as the interval are in time", async () => {
  const run = start(1_000, [990]);
  await run.clock.run(20_000);
  expect(run.lags).toEqual([]);
  await run.end();
});

test("C-83 what the receiver has grows old: told when it is twice as old as the interval, whenever it has doubled, and when that is over", async () => {
  // Each takes three times as long as the one before, as over a link with a third of the rate of change.
  const run = start(1_000, [500, 1_500, 4_500, 13_500, 900]);
  await run.clock.run(25_000);
  expect(run.lags).toEqual([
    { state: "behind", millis: 2_000, at: 2_000 },
    { state: "behind", millis: 4_000, at: 5_000 },
    { state: "behind", millis: 8_500, at: 11_000 },
    { state: "behind", millis: 17_500, at: 20_000 },
    { state: "caught-up", millis: 900, at: 21_400 },
  ]);
  await run.end();
});

test("a receiver that is away: the lag goes on from what it has", async () => {
  const run = start(1_000, [200, 200, -3_000, -3_000, 200]);
  await run.clock.run(12_000);
  expect(run.lags).toEqual([
    { state: "behind", millis: 2_000, at: 3_000 },
    { state: "behind", millis: 4_000, at: 5_000 },
    { state: "behind", millis: 8_000, at: 9_000 },
    { state: "caught-up", millis: 200, at: 10_200 },
  ]);
  await run.end();
});
