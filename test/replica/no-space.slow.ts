/** The file system is full, at some writes and at some bytes. At all of them: no-space.long.ts. */
import { describe, expect, test } from "vitest";
import { createSimulatedDisk, type Fault, type Operation } from "../../src/testing/simulated-storage.ts";
import { contentOf, fullAtBytes, fullFromOperations, makeDisk, makePoint, takesRoom } from "./no-space.ts";
import { readPoint } from "./part-writes.ts";
import { diskName, openTestStore, storePath } from "./simulated-store.ts";

describe("full from an operation on, until room is made (C-71)", () => {
  test.each([
    ["raw", "in one process", 3],
    ["raw", "and power is lost", 5],
    ["vhdx", "in one process", 5],
    ["vhdx", "and power is lost", 7],
  ] as const)("%s, %s", async (format, how, step) => {
    await fullFromOperations(format, how === "and power is lost", step);
  });
});

// Not a multiple of anything: it falls into heads, contents, records and padding alike.
test.each([
  ["raw", 3_511],
  ["vhdx", 7_121],
] as const)("%s: full at any byte of two deltas, their commits and a removal", async (format, step) => {
  await fullAtBytes(format, function* (writes) {
    const needed = writes.reduce((sum, bytes) => sum + bytes, 0);
    for (let bytes = 0; bytes < needed; bytes += step) yield bytes;
  });
});

test("removing the oldest points needs no room, and makes some", async () => {
  const machine = createSimulatedDisk();
  await makeDisk(machine);
  const before = machine.start();
  const store = await openTestStore(before);
  for (const point of [3, 4]) await makePoint(before, store, point);
  before.kill();
  const fault = (operation: Operation): Fault | undefined =>
    takesRoom(operation) ? { kind: "errno", errno: "ENOSPC" } : undefined;
  const full = await openTestStore(machine.start({ fault }));
  const verdicts = await full.prune(diskName, { keep: "last=2" });
  expect(verdicts.filter(({ keep }) => keep).map(({ point }) => point)).toEqual([3, 4]);
  for (const point of [3, 4]) expect((await readPoint(full, point)).equals(contentOf(point))).toBe(true);
  const logs = machine.files().filter((path) => path.endsWith(".undo"));
  expect(logs).toEqual([`${storePath}/disks/${diskName}/points/0000000003.undo`]);
});
