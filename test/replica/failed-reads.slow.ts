/** See failed-reads.ts; crash.long.ts lets every read fail. And old content that cannot be read for a while, or never. */
import { describe, expect, test } from "vitest";
import type { ReplicationError } from "../../src/base/errors.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { failedReadTests } from "./failed-reads.ts";
import { readPoint } from "./part-writes.ts";
import {
  apply,
  blockBytes,
  blockContent,
  commitFacts,
  diskName,
  geometry,
  openTestStore,
  openWriter,
  storePath,
} from "./simulated-store.ts";

failedReadTests((life) => (life === "points" ? 3 : 7));

describe("old content that a delta overwrites", () => {
  /** Two points, the second one made while block 1 of the first gives an error to so many reads. */
  async function overwrite(failures: number): Promise<() => Promise<Buffer>> {
    const machine = createSimulatedDisk();
    let left = 0;
    const process = machine.start({
      readFault: (path, offset) =>
        path.endsWith("/replica.raw") && offset === blockBytes && left-- > 0 ? "EIO" : undefined,
    });
    await process.makeDirectory(storePath);
    const store = await openTestStore(process, storePath, { keep: "all" });
    await store.create(diskName, { geometry: geometry(3 * blockBytes), owner: "sender", sectorBytes: 512 });
    const writer = await openWriter(store);
    for (const value of [1, 2]) {
      const blocks = new Map([0, 1, 2].map((block) => [block, 10 * block + value]));
      left = value === 2 ? failures : 0;
      await writer.begin();
      await apply(writer, process.lanes, blocks);
      await writer.commit(commitFacts(`c${value}`));
    }
    await writer.release();
    left = 0;
    const contentOf = (value: number): Buffer =>
      Buffer.concat([0, 1, 2].map((block) => blockContent(10 * block + value)));
    expect((await readPoint(store, 2)).equals(contentOf(2))).toBe(true);
    return async () => {
      const content = await readPoint(store, 1);
      expect(content.equals(contentOf(1))).toBe(true);
      return content;
    };
  }

  test("is read again before it is given up: a device that is away for a moment costs nothing", async () => {
    for (const failures of [1, 2, 3]) await (await overwrite(failures))();
  });

  test("is given up, and never served, when it stays away", async () => {
    const read = await overwrite(Number.POSITIVE_INFINITY);
    const error = await read().then(
      () => undefined,
      (thrown: ReplicationError) => thrown,
    );
    expect(error).toMatchObject({ code: "store-damaged", details: { point: 1, block: 1 } });
  });
});
