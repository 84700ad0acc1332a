import { freemem } from "node:os";
import { expect, test } from "vitest";
import { GIB } from "../../src/base/units.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { createScratch } from "./scratch.ts";

test("C-53 one read of 2 GiB + 5 arrives whole, in both faces", async (context) => {
  if (freemem() < 8 * GIB) return context.skip("less than 8 GiB of memory free");
  const scratch = await createScratch();
  const storage = createNodeStorage();
  const length = 2 * GIB + 5;
  const marks = [0, GIB - 2, GIB, 2 * GIB - 2, length - 5];
  const file = await storage.open(scratch.file("a"), { write: true, create: true });
  try {
    await file.truncate(length);
    for (const at of marks) await file.write(Buffer.from(`m${marks.indexOf(at)}`), at);
    const target = new Uint8Array(length);
    for (const read of [async () => storage.lanes.read(file.fd, target, 0), () => file.read(target, 0)]) {
      target.fill(0xee);
      expect(await read()).toBe(length);
      for (const at of marks) {
        expect(Buffer.from(target.subarray(at, at + 2)).toString()).toBe(`m${marks.indexOf(at)}`);
      }
      expect(target[length - 1]).toBe(0);
    }
  } finally {
    await file.close();
    await scratch.remove();
  }
});
