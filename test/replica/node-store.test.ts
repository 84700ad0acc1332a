/** The store on a real file system. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, rm, stat, utimes } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { TIB } from "../../src/base/units.ts";
import type { Store } from "../../src/replica/store.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import {
  apply,
  type Blocks,
  blockBytes,
  commitFacts,
  diskName,
  expectTableTrue,
  geometry,
  holder,
  openTestStore,
  openWriter,
  putBlock,
  rebuild,
  rootOf,
} from "./simulated-store.ts";

const storage = createNodeStorage();
const disk = geometry(300 * blockBytes + 1000);
const blocks: Blocks = new Map([
  [0, 1],
  [7, 2],
  [300, 3],
]);
let directory: string;
let store: Store;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "replicate-store-"));
  store = await openTestStore(storage, join(directory, "store"));
  await store.create(diskName, { geometry: disk, owner: "sender", sectorBytes: 512 });
});

afterEach(async () => {
  await rm(directory, { recursive: true, force: true });
});

const pathOf = (name: string): string => join(directory, "store/disks", diskName, name);

async function commitFirst(): Promise<void> {
  const writer = await openWriter(store);
  await writer.begin();
  await apply(writer, storage.lanes, blocks);
  expect((await writer.commit(commitFacts("c1"))).root).toBe(rootOf(disk, blocks));
  await writer.release();
}

test("files, modes and holes", async () => {
  await commitFirst();
  expect((await readdir(pathOf(""))).sort()).toEqual([
    "apply.lock",
    "chain.lock",
    "digests",
    "disk.json",
    "pages",
    "points",
    "replica.raw",
  ]);
  expect(await readdir(pathOf("points"))).toEqual(["0000000001.json"]);
  const modes = await Promise.all(
    ["replica.raw", "disk.json", "digests", "points/0000000001.json"].map(
      async (name) => (await stat(pathOf(name))).mode & 0o777,
    ),
  );
  expect(modes).toEqual([0o400, 0o600, 0o600, 0o600]);
  const replica = await stat(pathOf("replica.raw"));
  expect(replica.size).toBe(disk.sizeBytes);
  if (storage.capabilities.holes) expect(replica.blocks * 512).toBeLessThan(disk.sizeBytes / 4);
});

test("a delta is laid aside and taken up again; touched in between it is read again (C-76)", async () => {
  await commitFirst();
  let writer = await openWriter(store);
  await writer.begin();
  await putBlock(writer, storage.lanes, 5, 5);
  await putBlock(writer, storage.lanes, 7, 0);
  await writer.suspend(8);
  await writer.release();
  writer = await openWriter(store);
  expect(writer.doubt).toBeUndefined();
  expect(writer.resumeBlock).toBe(8);
  expect(writer.table.isZero(7)).toBe(true);
  await writer.release();
  const future = new Date("2099-01-01T00:00:00Z");
  await utimes(pathOf("replica.raw"), future, future);
  writer = await openWriter(store);
  expect(writer.doubt?.why).toMatch(/touched/);
  await rebuild(writer, storage.lanes);
  expectTableTrue(writer, storage.lanes);
  await writer.begin();
  await apply(writer, storage.lanes, blocks);
  expect((await writer.commit(commitFacts("c2"))).root).toBe(rootOf(disk, blocks));
  await writer.release();
  expect((await store.summary(diskName))?.state).toBe("idle");
});

test("a second writer is told who the first is", async () => {
  const writer = await openWriter(store);
  const second = await openTestStore(createNodeStorage(), join(directory, "store"));
  expect(await second.openWriter(diskName, holder)).toMatchObject({ kind: "busy", holder: { ...holder, pid: 4711 } });
  expect(await second.summary(diskName)).toMatchObject({ state: "receiving", holder });
  await writer.release();
  await (await openWriter(second)).release();
});

const hasFlock = spawnSync("flock", ["--version"]).status === 0;

test.skipIf(!hasFlock)("a lock of another process keeps us out and ends with it, killed (needs flock)", async () => {
  // `--no-fork`: the process that holds the lock is the one that is killed.
  const child = spawn("flock", ["--no-fork", pathOf("apply.lock"), "sh", "-c", "echo locked; exec sleep 600"]);
  try {
    await once(child.stdout, "data");
    expect((await store.openWriter(diskName, holder)).kind).toBe("busy");
  } finally {
    child.kill("SIGKILL");
  }
  await once(child, "exit");
  await (await openWriter(store)).release();
});

test("a disk of a terabyte takes next to nothing", async ({ skip }) => {
  const { fileBytesMax } = await storage.space(directory);
  skip(
    fileBytesMax !== undefined && fileBytesMax < TIB,
    "the file system of the temporary directory holds no such file",
  );
  await store.create("large", { geometry: geometry(TIB), owner: "sender", sectorBytes: 4096 });
  const writer = await openWriter(store, "large");
  expect(writer.table.isEmpty()).toBe(true);
  await writer.begin();
  await putBlock(writer, storage.lanes, TIB / blockBytes - 1, 9);
  await writer.commit(commitFacts("c1"));
  await writer.release();
  expect((await store.summary("large"))?.allocatedBytes).toBeLessThan(1_000_000);
});
