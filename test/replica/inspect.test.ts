import { describe, expect, test } from "vitest";
import { diskPaths } from "../../src/replica/layout.ts";
import { inspectStoreFile } from "../../src/replica/store.ts";
import { writeSuspicion } from "../../src/replica/suspicion.ts";
import { createSimulatedDisk, type SimulatedDisk, type SimulatedProcess } from "../../src/testing/simulated-storage.ts";
import {
  blockBytes,
  commitFacts,
  diskName,
  geometry,
  holder,
  openTestStore,
  openWriter,
  putBlock,
  storePath,
} from "./simulated-store.ts";

const directory = `${storePath}/disks/${diskName}`;

/** A disk of two table pages with a point and an open delta. */
async function setUp(): Promise<{
  readonly machine: SimulatedDisk;
  readonly process: SimulatedProcess;
  readonly root: string;
}> {
  const machine = createSimulatedDisk();
  const process = machine.start();
  const store = await openTestStore(process);
  await store.create(diskName, { geometry: geometry(300 * blockBytes), owner: "sender", sectorBytes: 512 });
  const writer = await openWriter(store);
  await writer.begin();
  await putBlock(writer, process.lanes, 299, 1);
  const { root } = await writer.commit(commitFacts("c1"));
  await writer.begin();
  await writer.suspend(7);
  await writeSuspicion(process, diskPaths(storePath, diskName), { why: "somebody mounted it" });
  await store.setPolicy(diskName, "last=7");
  return { machine, process, root };
}

describe("a whole file", () => {
  const cases: readonly (readonly [string, string, Record<string, unknown>])[] = [
    ["/store.json", "store", { id: expect.any(String) }],
    [`/disks/${diskName}/disk.json`, "disk", { name: diskName, sizeBytes: 300 * blockBytes, digestKind: "sha256" }],
    [`/disks/${diskName}/points/0000000001.json`, "point", { point: 1, cycle: "c1", label: undefined }],
    [`/disks/${diskName}/session.json`, "session", { undo: 1, resumeBlock: 7, replicaSizeBytes: 300 * blockBytes }],
    [`/disks/${diskName}/suspect.json`, "suspicion", { why: "somebody mounted it" }],
    [`/disks/${diskName}/keep.json`, "policy", { keep: "last=7" }],
    [
      `/disks/${diskName}/points/0000000001.undo`,
      "undo log",
      { sequence: 1, id: expect.stringMatching(/^[0-9a-f]{16}$/) },
    ],
    [`/disks/${diskName}/digests`, "digests", { pages: 2, nonZeroPages: 1, differentPages: 0 }],
    [`/disks/${diskName}/pages`, "page digests", { pages: 2, nonZeroPages: 1 }],
    [`/disks/${diskName}/apply.lock`, "lock", { ...holder, pid: 4711 }],
  ];
  for (const [path, kind, facts] of cases) {
    test(path, async () => {
      const { process, root } = await setUp();
      const found = await inspectStoreFile(process, `${storePath}${path}`);
      expect(found).toMatchObject({ kind, facts, trouble: undefined, sizeBytes: expect.any(Number) });
      if (kind === "page digests") expect(found?.facts["root"]).toBe(root);
    });
  }
});

describe("a damaged file is described and its trouble told", () => {
  for (const name of [
    "disk.json",
    "session.json",
    "suspect.json",
    "keep.json",
    "points/0000000001.json",
    "points/0000000001.undo",
  ]) {
    test(`${name}, flipped and cut short`, async () => {
      const { machine, process } = await setUp();
      const path = `${directory}/${name}`;
      const bytes = machine.peek(path) ?? new Uint8Array();
      // Of an undo log the id: what lies behind its last batch says nothing.
      const at = name.endsWith(".undo") ? 20 : Math.max(bytes.length - 8, 0);
      machine.poke(path, Uint8Array.of((bytes[at] ?? 0) ^ 0x02), at);
      expect((await inspectStoreFile(process, path))?.trouble).toMatch(/is damaged/);
      const file = await process.open(path, { write: true });
      await file.truncate(5);
      await file.close();
      expect(await inspectStoreFile(process, path)).toMatchObject({
        facts: {},
        trouble: expect.stringMatching(/is damaged/),
      });
    });
  }

  test("a table page that does not match", async () => {
    const { machine, process } = await setUp();
    machine.poke(`${directory}/digests`, Uint8Array.of(0xaa), 4096 + 43 * 16 + 3);
    expect(await inspectStoreFile(process, `${directory}/digests`)).toMatchObject({
      facts: { differentPages: 1 },
      trouble: expect.stringContaining("the first is page 1"),
    });
  });

  test("table files of another length", async () => {
    const { process } = await setUp();
    for (const name of ["digests", "pages"]) {
      const file = await process.open(`${directory}/${name}`, { write: true });
      await file.truncate(100_000);
      await file.close();
      expect((await inspectStoreFile(process, `${directory}/${name}`))?.trouble).toMatch(/100000 bytes and not/);
    }
  });

  test("a table without its disk.json", async () => {
    const { process } = await setUp();
    await process.unlink(`${directory}/disk.json`);
    expect((await inspectStoreFile(process, `${directory}/pages`))?.trouble).toMatch(/no disk.json/);
  });
});

test("a copy under another name is known by what it says", async () => {
  const { machine, process } = await setUp();
  for (const [from, kind] of [
    ["disk.json", "disk"],
    ["points/0000000001.undo", "undo log"],
  ] as const) {
    const file = await process.open("/copy", { write: true, create: true, truncate: true });
    await file.write(machine.peek(`${directory}/${from}`) ?? new Uint8Array(), 0);
    await file.close();
    expect((await inspectStoreFile(process, "/copy"))?.kind).toBe(kind);
  }
});

test("what is no file of a store is not described", async () => {
  const { process } = await setUp();
  const file = await process.open("/other.bin", { write: true, create: true });
  await file.write(Buffer.alloc(100_000, 7), 0);
  await file.close();
  expect(await inspectStoreFile(process, "/other.bin")).toBeUndefined();
  expect(await inspectStoreFile(process, directory)).toBeUndefined();
  await expect(inspectStoreFile(process, "/nothing")).rejects.toMatchObject({ code: "store-not-found" });
});
