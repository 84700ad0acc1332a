/** Old content of blocks in a spill file, and the room that its file system has. */
import { expect, test } from "vitest";
import { GIB, MIB } from "../../src/base/units.ts";
import type { FreeSpace } from "../../src/storage/seam.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { OldContent, SPILL_ASK_BYTES } from "../../src/track/old-content.ts";

const blockBytes = MIB;

/** All of it in a file of which nothing is kept. `space`: after so many bytes were written. */
function spilling(space: (written: number) => Omit<FreeSpace, "fileBytesMax">) {
  const storage = createSimulatedDisk().start();
  const facts = { asked: 0, written: 0 };
  const content = new OldContent({
    ...{ blockBytes, memoryBytes: 0 },
    async openSpill() {
      const file = await storage.open("/spill", { write: true, create: true });
      const write = async (bytes: Uint8Array): Promise<void> => {
        facts.written += bytes.length;
      };
      return Object.assign(file, { write });
    },
    async spillSpace() {
      facts.asked++;
      return { ...space(facts.written), fileBytesMax: undefined };
    },
  });
  const block = new Uint8Array(blockBytes);
  return { facts, put: (nth: number) => content.put(nth, block), close: () => content.close() };
}

test.each([
  ["1 GiB of a large file system", 100 * GIB, GIB],
  ["5 % of a small one", 4 * GIB, Math.floor((4 * GIB) / 20)],
])("a spill file leaves a reserve: %s", async (_name, totalBytes, reserveBytes) => {
  const room = 100 * MIB + 5;
  const { facts, put, close } = spilling((written) => ({ freeBytes: reserveBytes + room - written, totalBytes }));
  for (let nth = 0; nth < 100; nth++) await put(nth);
  await expect(put(100)).rejects.toMatchObject({ code: "cut-abandoned", message: /last free space/ });
  expect(facts).toEqual({ asked: 3, written: 100 * MIB });
  await close();
});

test("the room is asked for when the file begins and with each stretch of it, by many at once too", async () => {
  const { facts, put, close } = spilling(() => ({ freeBytes: 50 * GIB }));
  const stretch = SPILL_ASK_BYTES / blockBytes;
  for (let nth = 0; nth < 3 * stretch; nth++) await put(nth);
  expect(facts.asked).toBe(3);
  await Promise.all(Array.from({ length: stretch }, (_unused, nth) => put(3 * stretch + nth)));
  expect(facts.asked).toBe(4);
  await close();
});

test("a file system that another fills meanwhile is not filled up", async () => {
  let freeBytes = 50 * GIB;
  const { facts, put, close } = spilling(() => ({ freeBytes, totalBytes: 100 * GIB }));
  await put(0);
  freeBytes = GIB;
  for (let nth = 1; nth < SPILL_ASK_BYTES / blockBytes; nth++) await put(nth);
  await expect(put(64)).rejects.toMatchObject({ code: "cut-abandoned" });
  expect(facts.written).toBe(SPILL_ASK_BYTES);
  await close();
});
