/**
 * The files of a store, byte for byte, as docs/formats.md describes them. UPDATE_GOLDEN=1 writes them anew: only for a new version of a
 * format, and then beside the old ones.
 */
import { createCipheriv } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { countParts } from "../../src/base/part-mask.ts";
import { MIB } from "../../src/base/units.ts";
import { loadCodecs } from "../../src/codec/compression.ts";
import { diskPaths } from "../../src/replica/layout.ts";
import { decodeRecord } from "../../src/replica/disk-record.ts";
import { decodePoint, readPoint, writePoint } from "../../src/replica/points/point.ts";
import { placeParts } from "../../src/replica/points/sources.ts";
import { decodePolicyRecord } from "../../src/replica/policy-record.ts";
import { decodeSession, writeSession } from "../../src/replica/session-record.ts";
import { decodeSuspicion, writeSuspicion } from "../../src/replica/suspicion.ts";
import { decodeStore } from "../../src/replica/store-record.ts";
import { decodeUndoHeader } from "../../src/replica/undo/format.ts";
import { createSimulatedDisk } from "../../src/testing/simulated-storage.ts";
import { createTableFiles } from "../table/memory-lanes.ts";
import { applyBytes, partBytes } from "./part-writes.ts";
import { MemoryFile, openReader } from "./undo/kit.ts";
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
const isNative = (await loadCodecs()).lz4 === "native";
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
  await writeSuspicion(process, diskPaths(storePath, "vm1.sda"), {
    why: "somebody wrote to the replica after point 1",
    found: true,
    point: 1,
  });
  await store.setPolicy("vm1.sda", "last=3,daily=14");
  const found = new Map<string, Uint8Array>();
  for (const name of files) found.set(name, machine.peek(`${storePath}/${name}`) ?? new Uint8Array());
  return found;
}

async function expectGolden(path: string, written: Uint8Array = new Uint8Array()): Promise<void> {
  if (process.env["UPDATE_GOLDEN"] === "1") {
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, written);
  }
  expect(Buffer.from(written).equals(await readFile(path)), path).toBe(true);
}

describe("files of version 1", () => {
  test.each(files)("%s is written byte for byte", async (name) => {
    await expectGolden(join(fixtures, name), (await makeStore()).get(name));
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
    expect(decodeSuspicion("suspect.json", await read("disks/vm1.sda/suspect.json"))).toEqual({
      why: "somebody wrote to the replica after point 1",
      found: true,
      point: 1,
    });
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

describe("files of version 1 where points were removed and their logs joined", () => {
  const folder = join(import.meta.dirname, "../../fixtures/store/v1-joined");
  const second = geometry(3 * blockBytes);
  const joined = "points/0000000001.9291849.undo";
  const names = ["disk.json", "points/0000000001.json", joined, "points/0000000004.undo", "points/0000000005.json"];
  const contents = makeContents();

  /** Of points 1 to 5. */
  function makeContents(): readonly Buffer[] {
    const noise = (seed: number): Buffer =>
      createCipheriv("aes-128-ctr", Buffer.alloc(16, seed), Buffer.alloc(16)).update(Buffer.alloc(partBytes));
    const versions: Buffer[] = [];
    const content = Buffer.alloc(second.sizeBytes);
    for (let point = 1; point <= 5; point++) {
      // Parts that every delta changes, one of its own, and a block that comes and goes.
      for (const part of [0, 1, 4 + point]) content.set(noise(point * 16 + part), part * partBytes);
      if (point % 2 === 0) content.fill(0, 0, blockBytes);
      versions.push(Buffer.from(content));
    }
    return versions;
  }

  /** A disk whose replica is a VHDX: point 1 is held and of a cut, 2 and 3 were removed and joined with it, 4 was removed later. */
  async function makeDisk(): Promise<ReadonlyMap<string, Uint8Array>> {
    const machine = createSimulatedDisk();
    const process = machine.start();
    const newDisks = { format: "vhdx", payloadBlockBytes: MIB } as const;
    const store = await openTestStore(process, storePath, { keep: "all", newDisks });
    await store.create("vm1.sdb", { geometry: second, owner: "CN=sender", sectorBytes: 512 });
    const commit = async (point: number): Promise<void> => {
      const writer = await openWriter(store, "vm1.sdb");
      await writer.begin();
      await applyBytes(writer, process.lanes, contents[point - 1] ?? Buffer.alloc(0));
      const cut = point === 1 ? { id: "cut-1", members: ["vm1.sda", "vm1.sdb"] } : undefined;
      await writer.commit({ ...commitFacts(`journal-1:${point}`), cut });
      await writer.release();
    };
    for (let point = 1; point <= 4; point++) await commit(point);
    await store.hold("vm1.sdb", 1, { owner: "CN=backup", until: 1_800_000_000_000 });
    await store.prune("vm1.sdb", { keep: "last=1" });
    expect(await store.compact("vm1.sdb")).toMatchObject([{ point: 1 }]);
    await commit(5);
    await store.prune("vm1.sdb", { keep: "last=1" });
    const paths = diskPaths(storePath, "vm1.sdb");
    for (const sequence of [1, 5]) {
      const point = await readPoint(process, paths, sequence);
      if (point === undefined) throw new Error(`point ${sequence} is there`);
      // What depends on how often the clock was asked before.
      await writePoint(process, paths, {
        ...point,
        replicaModified: "1700000000027000081",
        replicaChanged: "1700000000027000081",
      });
    }
    const directory = `${storePath}/disks/vm1.sdb`;
    return new Map(
      machine.files().map((path) => [path.slice(directory.length + 1), machine.peek(path) ?? new Uint8Array()]),
    );
  }

  test("are written byte for byte, and no others are there", async () => {
    const found = await makeDisk();
    expect([...found.keys()].filter((name) => name.startsWith("points/") && !name.endsWith(".lock"))).toEqual(
      names.slice(1).sort(),
    );
    for (const name of names) if (name !== joined) await expectGolden(join(folder, name), found.get(name));
  });

  // What is compressed in it has the bytes of one compressor.
  test.skipIf(!isNative)(
    "the joined log is written byte for byte (skipped where the native lz4 was not built)",
    async () => {
      await expectGolden(join(folder, joined), (await makeDisk()).get(joined));
    },
  );

  test("are read", async () => {
    const read = (name: string): Promise<Buffer> => readFile(join(folder, name));
    expect(decodeRecord("disk.json", await read("disk.json"))).toMatchObject({
      ...second,
      name: "vm1.sdb",
      format: "vhdx",
    });
    const point = decodePoint("1.json", await read("points/0000000001.json"));
    expect(point).toMatchObject({
      point: 1,
      hold: { owner: "CN=backup", until: 1_800_000_000_000 },
      cut: { id: "cut-1", members: ["vm1.sda", "vm1.sdb"] },
      logs: [{ name: basename(joined) }, { name: "0000000004.undo" }],
    });
    // All that a list of three logs held, in one: of each part the oldest content.
    const closed = point.logs?.[0]?.closed;
    if (closed === undefined) throw new Error("the record names the joined log");
    const log = openReader(new MemoryFile(await read(joined)), { closed });
    expect(log.damage).toEqual([]);
    const found = Buffer.from(contents[3] ?? Buffer.alloc(0));
    for (const entry of log.entries(0, 3)) {
      const bytes = found.subarray(entry.block * blockBytes, (entry.block + entry.run) * blockBytes);
      const content = Buffer.alloc(countParts(entry.mask) * partBytes);
      if (!entry.zero) log.readContent(entry, content);
      placeParts(bytes, entry.mask, entry.mask, content);
    }
    expect(contents[0]?.equals(found)).toBe(true);
  });
});
