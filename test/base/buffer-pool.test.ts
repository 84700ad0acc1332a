import { expect, test } from "vitest";
import { createBufferPool } from "../../src/base/buffer-pool.ts";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";

test("slots lie side by side in one shared memory", () => {
  const pool = createBufferPool({ slotBytes: 64, slotCount: 3 });
  const slots = [pool.tryAcquire(), pool.tryAcquire(), pool.tryAcquire()];
  expect(pool.tryAcquire()).toBeUndefined();
  expect(pool.free).toBe(0);
  expect(new Set(slots.map((slot) => slot?.index))).toEqual(new Set([0, 1, 2]));
  for (const slot of slots) slot?.bytes.fill(slot.index + 1);
  const all = new Uint8Array(pool.memory.buffer, 0, 192);
  expect(all).toHaveLength(192);
  for (let at = 0; at < all.length; at++) expect(all[at]).toBe(Math.floor(at / 64) + 1);
});

test("who waits is served in order, and the one who leaves is skipped", async () => {
  const pool = createBufferPool({ slotBytes: 8, slotCount: 1 });
  const first = await pool.acquire();
  const order: string[] = [];
  const leaving = new AbortController();
  const a = pool.acquire().then((slot) => {
    order.push("a");
    slot.release();
  });
  const b = expect(pool.acquire(leaving.signal)).rejects.toMatchObject({ code: "aborted" });
  const c = pool.acquire().then((slot) => {
    order.push("c");
    slot.release();
  });
  leaving.abort();
  first.release();
  await Promise.all([a, b, c]);
  expect(order).toEqual(["a", "c"]);
  expect(pool.free).toBe(1);
});

test("an abort after the slot was lent takes nothing away; one before lends nothing", async () => {
  const pool = createBufferPool({ slotBytes: 8, slotCount: 1 });
  const controller = new AbortController();
  const slot = await pool.acquire(controller.signal);
  const reason = new ReplicationError("superseded", "another session took over");
  controller.abort(reason);
  slot.release();
  expect(pool.free).toBe(1);
  await expect(pool.acquire(controller.signal)).rejects.toBe(reason);
  expect(pool.free).toBe(1);
});

test("a slot given back twice is a bug, and found", () => {
  const pool = createBufferPool({ slotBytes: 8, slotCount: 2 });
  const slot = pool.tryAcquire();
  slot?.release();
  expect(() => slot?.release()).toThrow(InvariantError);
  expect(pool.free).toBe(2);
  expect(() => createBufferPool({ slotBytes: 0, slotCount: 1 })).toThrow(InvariantError);
});
