/** A log that was damaged while it was open is not taken for a whole one by the commit that closes it. */
import { expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import {
  apply,
  blockBytes,
  blockContent,
  commitFacts,
  diskName,
  expectPoint,
  geometry,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  storePath,
} from "./simulated-store.ts";

const disk = geometry(40 * blockBytes);

test("what its damage hid is refused, also when the delta has ended; everything else is served", async () => {
  const machine = createSimulatedDisk();
  const process = machine.start();
  await process.makeDirectory(storePath);
  const store = await openTestStore(process, storePath, { keep: "all" });
  await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
  const before = new Map(Array.from({ length: 40 }, (_unused, block) => [block, block + 1] as const));
  const after = new Map([...before, [3, 103], [4, 104], [30, 130]] as const);
  let writer = await openWriter(store);
  await writer.begin();
  await apply(writer, process.lanes, before);
  await writer.commit(commitFacts("c1"));
  await writer.begin();
  for (const block of [3, 4, 30]) await putBlock(writer, process.lanes, block, block + 100);
  await writer.release();

  // The heads of the first batch: block 3.
  const log = `${storePath}/disks/${diskName}/points/0000000001.undo`;
  const at = 4_096 + 64 + 3;
  machine.poke(log, Uint8Array.of((machine.peek(log)?.[at] ?? 0) ^ 0x10), at);

  writer = await openWriter(store);
  expect(writer.doubt).toMatchObject({ blocks: "all" });
  await rebuild(writer, process.lanes);
  await writer.begin();
  await apply(writer, process.lanes, after);
  await writer.commit(commitFacts("c2"));
  await writer.release();

  await expectPoint(store, 2, disk, after);
  const reader = await store.openPoint(diskName, 1);
  const refused: number[] = [];
  for (const [block, value] of before) {
    const found = Buffer.alloc(blockBytes);
    try {
      await reader.read(found, block * blockBytes);
      expect(found.equals(blockContent(value)), `block ${block}`).toBe(true);
    } catch (error) {
      if (!(error instanceof ReplicationError)) throw error;
      expect(error.code).toBe("store-damaged");
      refused.push(block);
    }
  }
  expect(refused).toContain(3);
  await reader.close();
});
