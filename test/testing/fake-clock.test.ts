import { expect, test } from "vitest";
import { createFakeClock } from "../../src/testing/fake-clock.ts";

test("time stands still until it is told to go on", () => {
  const clock = createFakeClock({ now: 1_000 });
  expect([clock.now(), clock.monotonic()]).toEqual([1_000, 0]);
  clock.advance(250);
  expect([clock.now(), clock.monotonic()]).toEqual([1_250, 250]);
  clock.shiftWall(-500);
  expect([clock.now(), clock.monotonic()]).toEqual([750, 250]);
});

test("what is due runs in order of time, then of asking, at its own time", () => {
  const clock = createFakeClock();
  const seen: string[] = [];
  const note = (name: string) => () => void seen.push(`${name}@${clock.monotonic()}`);
  const stopThird = clock.every(30, note("third"));
  clock.every(20, note("second"));
  clock.every(10, note("first"));
  expect(clock.nextAt).toBe(10);
  clock.advance(30);
  expect(seen).toEqual(["first@10", "second@20", "first@20", "third@30", "first@30"]);
  stopThird();
  seen.length = 0;
  clock.advance(30);
  expect(seen).toEqual(["second@40", "first@40", "first@50", "second@60", "first@60"]);
});

test("a task that asks for more within the time gets it", () => {
  const clock = createFakeClock();
  const seen: number[] = [];
  const stop = clock.every(10, () => {
    stop();
    clock.every(5, () => seen.push(clock.monotonic()));
  });
  clock.advance(25);
  expect(seen).toEqual([15, 20, 25]);
});

test("sleepers wake after their time, and abort with the signal's reason", async () => {
  const clock = createFakeClock();
  let woken = 0;
  const sleep = clock.sleep(100).then(() => void (woken = clock.monotonic()));
  clock.advance(99);
  await Promise.resolve();
  expect(woken).toBe(0);
  clock.advance(1);
  await sleep;
  expect(woken).toBe(100);

  const stop = new AbortController();
  const reason = new Error("enough");
  const aborted = expect(clock.sleep(100, stop.signal)).rejects.toBe(reason);
  expect(clock.waiting).toBe(1);
  stop.abort(reason);
  await aborted;
  expect(clock.waiting).toBe(0);
  await expect(clock.sleep(1, stop.signal)).rejects.toBe(reason);
});

test("run lets promise jobs go on between steps", async () => {
  const clock = createFakeClock();
  const seen: number[] = [];
  const loop = async (): Promise<void> => {
    for (let turn = 0; turn < 5; turn++) {
      await clock.sleep(10);
      seen.push(clock.monotonic());
    }
  };
  const looping = loop();
  await clock.run(35);
  expect(seen).toEqual([10, 20, 30]);
  expect(clock.monotonic()).toBe(35);
  await clock.run(15);
  await looping;
  expect(seen).toEqual([10, 20, 30, 40, 50]);
});
