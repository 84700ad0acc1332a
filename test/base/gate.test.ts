import { expect, test } from "vitest";
import { Gate } from "../../src/base/gate.ts";

test("so many at once, the others in the order of asking", async () => {
  const gate = new Gate(2);
  const inside: number[] = [];
  const enter = async (number: number): Promise<void> => {
    await gate.enter();
    inside.push(number);
  };
  const all = [1, 2, 3, 4].map(enter);
  await Promise.all(all.slice(0, 2));
  await Promise.resolve();
  expect(inside).toEqual([1, 2]);
  expect(gate.waiting).toBe(2);
  gate.leave();
  await all[2];
  gate.leave();
  await all[3];
  expect(inside).toEqual([1, 2, 3, 4]);
  expect(gate.waiting).toBe(0);
});

test("who does not want to wait any more leaves the row, and takes no place", async () => {
  const gate = new Gate(1);
  await gate.enter();
  const stop = new AbortController();
  const waiting = gate.enter(stop.signal);
  const behind = gate.enter();
  stop.abort(new Error("enough"));
  await expect(waiting).rejects.toThrow("enough");
  await expect(gate.enter(stop.signal)).rejects.toThrow("enough");
  gate.leave();
  await behind;
  // Fired after it was let in: it has its place.
  const late = new AbortController();
  const last = gate.enter(late.signal);
  gate.leave();
  await last;
  late.abort();
  gate.leave();
  await gate.enter();
});
