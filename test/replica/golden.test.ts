/**
 * The files of a store, byte for byte, as docs/formats.md describes them. UPDATE_GOLDEN=1 writes them anew: only for a new version of a
 * format, and then beside the old ones.
 */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { diskPaths } from "../../src/replica/layout.ts";
import { decodeRecord } from "../../src/replica/disk-record.ts";
import { decodePoint } from "../../src/replica/points/point.ts";
import { decodePolicyRecord } from "../../src/replica/policy-record.ts";
import { decodeSession, writeSession } from "../../src/replica/session-record.ts";
import { decodeSuspicion, writeSuspicion } from "../../src/replica/suspicion.ts";
import { decodeStore } from "../../src/replica/store-record.ts";
import { decodeUndoHeader } from "../../src/replica/undo/format.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { createTableFiles } from "../table/memory-lanes.ts";
import {
  blockBytes,
  commitFacts,
  geometry,
  openTestStore,
  openWriter,
  putBlock,
  rootOf,
  storePath,
} from "./simulated-store.ts";

const fixtures = join(import.meta.dirname, "../../fixtures/store/v1");
const root = join(import.meta.dirname, "../..");
const disk = geometry(3 * blockBytes + 512);
const files = [
  "store.json",
  "disks/vm1.sda/disk.json",
  "disks/vm1.sda/points/0000000001.json",
  "disks/vm1.sda/points/0000000001.undo",
  "disks/vm1.sda/session.json",
  "disks/vm1.sda/suspect.json",
  "disks/vm1.sda/keep.json",
  "disks/vm1.sda/digests",
  "disks/vm1.sda/pages",
];

/** A disk with one point and a delta laid aside. */
async function makeStore(): Promise<ReadonlyMap<string, Uint8Array>> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  const store = await openTestStore(process);
  await store.create("vm1.sda", { geometry: disk, owner: "CN=sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  await writer.begin();
  await putBlock(writer, process.lanes, 0, 1);
  await putBlock(writer, process.lanes, 3, 2);
  await writer.commit({ ...commitFacts("journal-1:1"), label: "before update" });
  await writer.begin();
  await putBlock(writer, process.lanes, 2, 3);
  await writer.suspend(3);
  // Inode and time of the replica depend on what was done before: here they are given.
  const replica = { sizeBytes: disk.sizeBytes, inode: "8", changedNanos: "1700000000027000081" };
  const session = { undo: 1, root: Buffer.from(writer.table.root()).toString("hex"), replica, resumeBlock: 3 };
  await writeSession(process, diskPaths(storePath, "vm1.sda"), session);
  await writer.release();
  await writeSuspicion(process, diskPaths(storePath, "vm1.sda"), "somebody wrote to the replica after point 1");
  await store.setPolicy("vm1.sda", "last=3,daily=14");
  const found = new Map<string, Uint8Array>();
  for (const name of files) found.set(name, machine.peek(`${storePath}/${name}`) ?? new Uint8Array());
  return found;
}

describe("files of version 1", () => {
  test.each(files)("%s is written byte for byte", async (name) => {
    const path = join(fixtures, name);
    const written = (await makeStore()).get(name) ?? new Uint8Array();
    if (process.env["UPDATE_GOLDEN"] === "1") {
      await mkdir(dirname(path), { recursive: true });
      await writeFile(path, written);
    }
    expect(Buffer.from(written).equals(await readFile(path))).toBe(true);
  });

  test("are read", async () => {
    const read = (name: string): Promise<Buffer> => readFile(join(fixtures, name));
    expect(decodeStore("store.json", await read("store.json")).id).toMatch(/^[0-9a-f-]{36}$/);
    expect(decodeRecord("disk.json", await read("disks/vm1.sda/disk.json"))).toMatchObject({
      ...disk,
      name: "vm1.sda",
      owner: "CN=sender",
    });
    const point = decodePoint("1.json", await read("disks/vm1.sda/points/0000000001.json"));
    expect(point).toMatchObject({ point: 1, label: "before update", cycle: "journal-1:1" });
    expect(point.root).toBe(
      rootOf(
        disk,
        new Map([
          [0, 1],
          [3, 2],
        ]),
      ),
    );
    expect(decodeUndoHeader("1.undo", await read("disks/vm1.sda/points/0000000001.undo")).sequence).toBe(1);
    const session = decodeSession("session.json", await read("disks/vm1.sda/session.json"));
    expect(session).toMatchObject({ undo: 1, resumeBlock: 3 });
    expect(decodeSuspicion("suspect.json", await read("disks/vm1.sda/suspect.json"))).toMatch(/after point 1$/);
    expect(decodePolicyRecord("keep.json", await read("disks/vm1.sda/keep.json"))).toBe("last=3,daily=14");
    const table = createTableFiles(disk);
    table.digests.write(await read("disks/vm1.sda/digests"), 0);
    table.pages.write(await read("disks/vm1.sda/pages"), 0);
    const opened = table.open(disk);
    expect(Buffer.from(opened.root()).toString("hex")).toBe(session.root);
    expect([0, 1, 2, 3].map((block) => opened.isZero(block))).toEqual([false, true, false, false]);
  });

  test("the example in docs/formats.md is the undo log of the fixture", async () => {
    const text = await readFile(join(root, "docs/formats.md"), "utf8");
    const example = /```hex undo\n([^`]*)```/.exec(text)?.[1] ?? "";
    // Offset, then bytes, then a remark.
    const bytes = example
      .split("\n")
      .map((line) => /^[0-9a-f]{4} {2}((?:[0-9a-f]{2} )*[0-9a-f]{2})/.exec(line)?.[1] ?? "")
      .join(" ")
      .replaceAll(" ", "");
    expect(bytes.length).toBe(2 * 48);
    const log = await readFile(join(fixtures, "disks/vm1.sda/points/0000000001.undo"));
    expect(bytes).toBe(log.subarray(0, 48).toString("hex"));
  });
});
