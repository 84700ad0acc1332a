/** When cycles begin, and what is told of those that do not keep up. */
import { describe, expect, test } from "vitest";
import { RankedGate } from "../../src/base/ranked-gate.ts";
import { type Lag, RETRY_MILLIS, runCycles } from "../../src/replication/schedule.ts";
import { sendContinuously } from "../../src/library/continuous.ts";
import type { Engine } from "../../src/replication/engine.ts";
import type { SendReport } from "../../src/replication/report.ts";
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

/** Disks on one link: cycles of some milliseconds each, and what was done when. */
async function share(
  disks: Readonly<Record<string, { readonly every: number; readonly takes: number; readonly fails?: boolean }>>,
  millis: number,
): Promise<string[]> {
  const clock = createFakeClock();
  const stop = new AbortController();
  const turns = new RankedGate(1);
  const done: string[] = [];
  let running = 0;
  const over = Object.entries(disks).map(([name, { every, takes, fails = false }]) =>
    runCycles({
      ...{ clock, everyMillis: every, turns, signal: stop.signal },
      cycle: async (signal) => {
        expect(++running, "one at a time").toBe(1);
        done.push(`${name} ${String(clock.monotonic())}`);
        await clock.sleep(takes, signal).finally(() => running--);
        if (fails) throw new Error("failed");
      },
      onFailure: (error) => {
        if (!fails) throw error;
      },
    }),
  );
  await clock.run(millis);
  stop.abort();
  await Promise.all(over);
  return done;
}

test("disks that share a link take turns, the earliest deadline first", async () => {
  const done = await share(
    {
      slow: { every: 60_000, takes: 3_000 },
      often: { every: 5_000, takes: 1_000 },
      seldom: { every: 20_000, takes: 2_000 },
    },
    20_500,
  );
  // All are due at the start, in the order of their intervals but for the first, which was there alone; then what is due.
  expect(done).toEqual([
    "slow 0",
    "often 3000",
    "seldom 4000",
    "often 6000",
    "often 10000",
    "often 15000",
    "seldom 20000",
  ]);
});

test("one that is sent as fast as it goes keeps no other waiting past its deadline by more than a cycle", async () => {
  const done = await share({ fast: { every: 0, takes: 1_000 }, other: { every: 4_000, takes: 100 } }, 17_000);
  const others = done.filter((each) => each.startsWith("other")).map((each) => Number(each.split(" ")[1]));
  expect(others.length).toBeGreaterThanOrEqual(4);
  for (const [nth, at] of others.entries()) expect(at - (others[nth - 1] ?? 0)).toBeLessThanOrEqual(4_000 + 1_000);
});

test("who waits for a turn and is stopped has none to give back", async () => {
  const gate = new RankedGate(1);
  const stop = new AbortController();
  await gate.enter(5, new AbortController().signal);
  const waiting = gate.enter(1, stop.signal);
  const next = gate.enter(9, new AbortController().signal);
  stop.abort(new Error("stopped"));
  await expect(waiting).rejects.toThrow("stopped");
  await expect(gate.enter(0, stop.signal)).rejects.toThrow("stopped");
  gate.leave();
  await next;
  gate.leave();
  await gate.enter(0, new AbortController().signal);
});

test("disks that always fail keep no other from its turn", async () => {
  const done = await share(
    {
      one: { every: 2_000, takes: 5_000, fails: true },
      two: { every: 2_000, takes: 5_000, fails: true },
      well: { every: 10_000, takes: 100 },
    },
    120_000,
  );
  expect(done.filter((each) => each.startsWith("well")).length).toBeGreaterThanOrEqual(6);
});

describe("sendContinuously", () => {
  const engine = { clock: createFakeClock() } as unknown as Engine;
  const never = {
    cycle: (signal: AbortSignal) =>
      new Promise<never>((_resolve, reject) => {
        signal.addEventListener("abort", () => reject(signal.reason));
      }),
  };

  test("reports each cycle, until it is stopped", async () => {
    const stop = new AbortController();
    const reports: unknown[] = [];
    const sender = { cycle: () => Promise.resolve([{ point: reports.length + 1 }] as unknown as SendReport[]) };
    const onReports = (some: readonly SendReport[]): void => {
      reports.push(...some);
      if (reports.length === 3) stop.abort();
      else (engine.clock as FakeClock).advance(0);
    };
    const over = sendContinuously([{ sender, everyMillis: 0, onReports }], { engine, signal: stop.signal });
    while (!stop.signal.aborted) await (engine.clock as FakeClock).run(1);
    await over;
    expect(reports).toEqual([{ point: 1 }, { point: 2 }, { point: 3 }]);
  });

  test("what a callback throws ends all of them, and is told when they have ended", async () => {
    const sender = { cycle: () => Promise.resolve([]) };
    const onReports = (): void => {
      throw new Error("no room for reports");
    };
    const sends = [
      { sender: never, everyMillis: 0 },
      { sender, everyMillis: 0, onReports },
    ];
    const { signal } = new AbortController();
    await expect(sendContinuously(sends, { engine, signal, together: 2 })).rejects.toThrow("no room for reports");
  });
});
