/** Syncs of one file that are asked for at any time. */
import { expect, test } from "vitest";
import { SoundSync } from "../../src/image/sound-sync.ts";

/** One that the test ends. */
function heldSync() {
  const begun: { resolve(): void; reject(error: Error): void }[] = [];
  const sync = new SoundSync(() => new Promise((resolve, reject) => begun.push({ resolve, reject })));
  const settle = async (): Promise<void> => {
    for (let turn = 0; turn < 20; turn++) await Promise.resolve();
  };
  return { sync, begun, settle };
}

test("one at a time: what is asked for while one runs begins after it, and who waits shares the next", async () => {
  const { sync, begun, settle } = heldSync();
  const done: string[] = [];
  const ask = (name: string): Promise<number> => sync.run().then(() => done.push(name));
  const first = ask("first");
  await settle();
  expect(begun).toHaveLength(1);
  const later = [ask("second"), ask("third")];
  await settle();
  // What was written after the first began is not known to be in it.
  expect(begun).toHaveLength(1);
  begun[0]?.resolve();
  await first;
  await settle();
  expect(begun).toHaveLength(2);
  expect(done).toEqual(["first"]);
  const last = ask("fourth");
  begun[1]?.resolve();
  await Promise.all(later);
  await settle();
  expect(done).toEqual(["first", "second", "third"]);
  expect(begun).toHaveLength(3);
  begun[2]?.resolve();
  await last;
  expect(sync.failure).toBeUndefined();
});

test("of two at once none succeeds when the first failed, nor does any later one", async () => {
  const { sync, begun, settle } = heldSync();
  const error = new Error("EIO");
  const both = [sync.run()];
  await settle();
  both.push(sync.run());
  const results = Promise.allSettled(both);
  begun[0]?.reject(error);
  await settle();
  // Only what this would have said is in question: that the system says yes to it.
  for (const { resolve } of begun.slice(1)) resolve();
  expect((await results).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  expect(sync.failure).toEqual({ error });
  await expect(sync.run()).rejects.toBe(error);
  expect(begun).toHaveLength(1);
});
