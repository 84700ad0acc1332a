/** The two drivers, and what lies where in a slot. */
import { existsSync } from "node:fs";
import { closeSync, fsyncSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { InvariantError, ReplicationError } from "../../src/base/errors.ts";
import { allocateShared } from "../../src/base/shared-memory.ts";
import { limits } from "../../src/base/limits.ts";
import {
  BLOCK_BYTES_MAX,
  BLOCK_BYTES_MIN,
  EXTENT_BYTES_MAX,
  KIB,
  maskBytes,
  PART_BYTES,
} from "../../src/base/units.ts";
import type { JobName, JobTypes, ScanRequest } from "../../src/lanes/jobs.ts";
import { carryError, uncarryError } from "../../src/lanes/carried-error.ts";
import { createInlineLanes } from "../../src/lanes/inline-lanes.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import { createLane } from "../../src/lanes/lane.ts";
import {
  areaA,
  areaABytes,
  areaB,
  areaBBytes,
  laneRoomBytes,
  slotBytes,
  slotsFor,
} from "../../src/lanes/slot-layout.ts";
import { createWorkerLanes, failedStartsMax } from "../../src/lanes/worker-lanes.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { encodeHeadBefore } from "../../src/wire/frame.ts";
import type { Data } from "../../src/wire/messages.ts";
import { randomBytes } from "../random.ts";
import { memoryFiles, memoryLane } from "./kit.ts";

describe("a slot", () => {
  test("has room for the largest extent, its compressed form, and a head before either", () => {
    expect(areaABytes).toBe(EXTENT_BYTES_MAX);
    expect(areaBBytes).toBe(limits.framePayloadBytesMax);
    expect(areaB).toBeGreaterThanOrEqual(areaA + areaABytes);
    expect(areaB + areaBBytes).toBe(slotBytes);
    expect([areaA % PART_BYTES, areaB % PART_BYTES]).toEqual([0, 0]);
    expect(slotsFor(limits.poolBytesDefault)).toBeGreaterThan(limits.creditFramesDefault);
    expect(slotsFor(0)).toBe(4);
  });

  test.each([BLOCK_BYTES_MIN, 64 * KIB, BLOCK_BYTES_MAX])("the longest head of blocks of %i fits", (blockBytes) => {
    // One part of each of as many blocks as a frame holds, with the longest numbers.
    const count = EXTENT_BYTES_MAX / PART_BYTES;
    const masks = new Uint8Array(count * maskBytes(blockBytes));
    for (let index = 0; index < count; index++) masks[index * maskBytes(blockBytes)] = 1;
    const last = limits.diskBytesMax / BLOCK_BYTES_MIN - 1;
    const message: Data = {
      type: "data",
      blocks: Array.from({ length: count }, (_unused, index) => Math.floor(last / count) * (index + 1)),
      masks,
      digests: randomBytes(count * 16),
      codec: "stored",
      rawBytes: EXTENT_BYTES_MAX,
      repeat: false,
    };
    const slot = Buffer.alloc(slotBytes);
    expect(encodeHeadBefore(message, EXTENT_BYTES_MAX, slot, areaA)).toBeGreaterThanOrEqual(0);
    expect(encodeHeadBefore({ ...message, codec: "lz4" }, EXTENT_BYTES_MAX, slot, areaB)).toBeGreaterThanOrEqual(
      areaA + areaABytes,
    );
  });

  test("outside the pool is nobody's", async () => {
    const lane = await memoryLane(memoryFiles());
    expect(() => lane.slot(2)).toThrow(InvariantError);
  });
});

describe("errors cross threads", () => {
  test("with code, message and details", () => {
    const error = new ReplicationError("no-space", "full", { details: { offset: 7, errno: null } });
    expect(uncarryError(structuredClone(carryError(error)))).toMatchObject({
      name: "ReplicationError",
      code: "no-space",
      message: "full",
      details: { offset: 7, errno: null },
      remote: false,
    });
  });

  test("an invariant stays one; anything else is internal", () => {
    expect(uncarryError(structuredClone(carryError(new InvariantError("a rule"))))).toBeInstanceOf(InvariantError);
    for (const thrown of [new TypeError("no"), "no", undefined]) {
      expect(uncarryError(structuredClone(carryError(thrown)))).toMatchObject({ code: "internal" });
    }
  });
});

test("inline lanes: a job that fails rejects, the next one runs", async () => {
  const files = memoryFiles();
  const lanes = createInlineLanes(await memoryLane(files));
  files.failing = { datasync: "EIO" };
  await expect(lanes.run("sync", { disk: "disk", fd: 1 })).rejects.toMatchObject({ code: "sync-failed" });
  files.failing = {};
  expect(await lanes.run("sync", { disk: "disk", fd: 1 })).toBeNull();
  await lanes.close();
});

const entryPath = join(import.meta.dirname, "../../dist/lanes/worker-main.js");
const built = existsSync(entryPath);

describe.skipIf(!built)(`worker lanes${built ? "" : " (skipped: dist is not built)"}`, () => {
  const cleanups: (() => void | Promise<void>)[] = [];
  afterEach(async () => {
    for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  });

  async function both(): Promise<{
    readonly inline: Lanes;
    readonly workers: Lanes;
    readonly memory: SharedArrayBuffer;
  }> {
    const memory = allocateShared(4 * slotBytes + 3 * laneRoomBytes);
    const roomAt = 4 * slotBytes;
    const lane = await createLane({ memory, roomAt, storage: createNodeStorage().lanes });
    const workers = createWorkerLanes({
      count: 2,
      memory,
      roomAt: roomAt + laneRoomBytes,
      lz4: lane.codecs.lz4,
      entry: pathToFileURL(entryPath),
    });
    cleanups.push(() => workers.close());
    return { inline: createInlineLanes(lane), workers, memory: memory.buffer };
  }

  function file(content: Uint8Array): { readonly fd: number; readonly path: string } {
    const folder = mkdtempSync(join(tmpdir(), "replicate-lanes-"));
    const path = join(folder, "file");
    const fd = openSync(path, "w+");
    if (content.length > 0) writeSync(fd, content, 0, content.length, 0);
    fsyncSync(fd);
    cleanups.push(() => {
      closeSync(fd);
      rmSync(folder, { recursive: true });
    });
    return { fd, path };
  }

  function scanRequest(fd: number, slot: number, length: number, more: Partial<ScanRequest> = {}): ScanRequest {
    return {
      slot,
      file: "image",
      pieces: [{ runs: [{ kind: "file", fd, offset: 0, length }], length }],
      base: "zero",
      codec: "lz4",
      blockBytes: 64 * KIB,
      digestKind: "xxh64",
      ...more,
    };
  }

  test("do the same as inline lanes, on the same memory", async () => {
    const { inline, workers, memory } = await both();
    const content = Buffer.concat([
      Buffer.alloc(300_000, "words and words "),
      randomBytes(200_000),
      Buffer.alloc(70_000),
    ]);
    const { fd } = file(content);
    const here = await inline.run("scan", scanRequest(fd, 0, content.length));
    const there = await workers.run("scan", scanRequest(fd, 1, content.length));
    expect(there).toEqual(structuredClone(here));
    const { payloadOffset, payloadBytes } = here.shipment ?? { payloadOffset: 0, payloadBytes: 0 };
    const [first, second] = [0, 1].map((slot) => Buffer.from(memory, slot * slotBytes + payloadOffset, payloadBytes));
    expect(first?.equals(second ?? Buffer.alloc(0))).toBe(true);

    // The payload crosses from one slot to the other, and is applied to two replicas.
    const replicas = [file(Buffer.alloc(0)), file(Buffer.alloc(0))];
    const states = await Promise.all(
      replicas.map(async (replica, index) => {
        ftruncateSync(replica.fd, content.length);
        const slot = 2 + index;
        Buffer.from(memory, slot * slotBytes + areaB, payloadBytes).set(first ?? Buffer.alloc(0));
        const shipment = here.shipment;
        if (shipment === undefined) throw new Error("nothing to ship");
        return await (index === 0 ? inline : workers).run("apply", {
          slot,
          disk: "disk",
          fd: replica.fd,
          directFd: undefined,
          checked: undefined,
          sizeBytes: content.length,
          payloadBytes,
          codec: shipment.codec,
          rawBytes: shipment.rawBytes,
          blocks: shipment.picked,
          masks: shipment.masks,
          digests: shipment.digests,
          base: new Uint8Array(shipment.digests.length),
          blockBytes: 64 * KIB,
          digestKind: "xxh64",
        });
      }),
    );
    expect(states[1]).toEqual(structuredClone(states[0]));
    for (const replica of replicas) expect(readFileSync(replica.path).equals(content)).toBe(true);
  });

  test("many jobs at once, each with its own answer; closing waits for them", async () => {
    const { workers } = await both();
    const { fd } = file(Buffer.concat([1, 2, 3, 4].map((fill) => Buffer.alloc(64 * KIB, fill))));
    const jobs = Array.from({ length: 40 }, async (_unused, index) => {
      const offset = (index % 4) * 64 * KIB;
      const request = scanRequest(fd, index % 4, 64 * KIB, {
        pieces: [{ runs: [{ kind: "file", fd, offset, length: 64 * KIB }], length: 64 * KIB }],
        base: "unknown",
      });
      return Buffer.from((await workers.run("scan", request)).digests).toString("hex");
    });
    await workers.close();
    const digests = await Promise.all(jobs);
    expect(new Set(digests).size).toBe(4);
    for (const [index, digest] of digests.entries()) expect(digest).toBe(digests[index % 4]);
    await expect(workers.run("sync", { disk: "disk", fd })).rejects.toBeInstanceOf(InvariantError);
  });

  test("a job that fails rejects with its error, and the lane goes on", async () => {
    const { workers } = await both();
    const { fd } = file(Buffer.alloc(1_000, 1));
    await expect(workers.run("scan", scanRequest(fd, 0, 64 * KIB))).rejects.toMatchObject({
      code: "image-truncated",
      details: { offset: 1_000 },
    });
    await expect(workers.run("scan", scanRequest(fd, 99, 1_000))).rejects.toBeInstanceOf(InvariantError);
    expect((await workers.run("scan", scanRequest(fd, 0, 1_000))).states.length).toBe(1);
  });
});

describe("a thread that ends", () => {
  /** Ends on `sync`; on `clear` waits until it is let go; answers `letGo` with the place of its room, everything else with its number, at once. */
  const program = `
    import { parentPort, threadId, workerData } from "node:worker_threads";
    const flags = new Int32Array(workerData.memory.buffer);
    parentPort.on("message", ({ id, name }) => {
      if (name === "sync") process.exit(3);
      if (name === "clear") {
        Atomics.store(flags, 0, 1);
        Atomics.wait(flags, 1, 0);
      }
      parentPort.postMessage({ id, result: name === "letGo" ? workerData.roomAt : threadId });
    });
    parentPort.postMessage({ ready: true, lz4: workerData.lz4 });
  `;
  const entry = new URL(`data:text/javascript,${encodeURIComponent(program)}`);

  /** Requests are no matter to the program above. */
  function run(lanes: Lanes, name: JobName): Promise<unknown> {
    return lanes.run(name, {} as JobTypes[typeof name]["request"]);
  }

  /** Until both threads have answered: before, two jobs may go to the first that is ready. */
  async function bothReady(lanes: Lanes): Promise<void> {
    const seen = new Set<unknown>();
    while (seen.size < 2) {
      for (const id of await Promise.all([1, 2, 3, 4].map(() => run(lanes, "scan")))) seen.add(id);
    }
  }

  test("its job rejects; a job of another thread is waited for, and later ones run", async () => {
    const memory = allocateShared(8);
    const flags = new Int32Array(memory.buffer);
    const used: string[] = [];
    const onReady = (lz4: string): void => void used.push(lz4);
    const lanes = createWorkerLanes({ count: 2, memory, roomAt: 0, lz4: "wasm", onReady, entry });
    await bothReady(lanes);
    // Told once, not by each thread.
    expect(used).toEqual(["wasm"]);
    let settled = false;
    const held = run(lanes, "clear").finally(() => {
      settled = true;
    });
    const dying = run(lanes, "sync");
    await expect(dying).rejects.toMatchObject({ code: "lane-crashed", action: "reconnect" });
    while (Atomics.load(flags, 0) === 0) await new Promise((resolve) => setImmediate(resolve));
    await new Promise((resolve) => setImmediate(resolve));
    // It still has slots and files in its hands.
    expect(settled).toBe(false);
    // One is given to the thread that is held.
    const later = [run(lanes, "scan"), run(lanes, "scan"), run(lanes, "scan")];
    expect(await Promise.any(later)).toBeTypeOf("number");
    expect(settled).toBe(false);
    const closing = Promise.all([lanes.close(), lanes.close()]);
    Atomics.store(flags, 1, 1);
    Atomics.notify(flags, 1);
    expect(await held).toBeTypeOf("number");
    const ids = await Promise.all(later);
    expect(ids).toContain(await held);
    expect(new Set(ids).size).toBe(2);
    await closing;
  });

  test("its jobs and those that wait reject; another takes its place and its room, as often as that happens", async () => {
    const memory = allocateShared(8);
    const one = createWorkerLanes({ count: 1, memory, roomAt: 64, lz4: "wasm", entry });
    for (let time = 0; time <= failedStartsMax; time++) {
      expect(await run(one, "letGo")).toBe(64);
      const lost = await Promise.allSettled((["sync", "scan", "scan"] as const).map((name) => run(one, name)));
      for (const outcome of lost) expect(outcome).toMatchObject({ reason: { code: "lane-crashed" } });
    }
    await one.close();
    const two = createWorkerLanes({ count: 2, memory, roomAt: 64, lz4: "wasm", entry });
    await bothReady(two);
    await expect(run(two, "sync")).rejects.toMatchObject({ code: "lane-crashed" });
    await bothReady(two);
    const rooms = await Promise.all([run(two, "letGo"), run(two, "letGo")]);
    expect(new Set(rooms)).toEqual(new Set([64, 64 + laneRoomBytes]));
    // Closed while another is on its way.
    await expect(run(two, "sync")).rejects.toMatchObject({ code: "lane-crashed" });
    await two.close();
  });

  test.each([1, failedStartsMax - 1, failedStartsMax])("%i times in a row before it is ready", async (times) => {
    const memory = allocateShared(8);
    const failing = `
      import { parentPort, workerData } from "node:worker_threads";
      if (Atomics.add(new Int32Array(workerData.memory.buffer), 0, 1) < ${times}) throw new Error("no");
      parentPort.on("message", ({ id }) => parentPort.postMessage({ id, result: id }));
      parentPort.postMessage({ ready: true, lz4: "wasm" });
    `;
    const lanes = createWorkerLanes({
      ...{ count: 1, memory, roomAt: 0, lz4: "wasm" },
      entry: new URL(`data:text/javascript,${encodeURIComponent(failing)}`),
    });
    for (let time = 0; time < times; time++) {
      await expect(run(lanes, "scan")).rejects.toMatchObject({ code: "lane-crashed" });
    }
    const next = run(lanes, "scan");
    if (times < failedStartsMax) expect(await next).toBeTypeOf("number");
    else {
      await expect(next).rejects.toMatchObject({ code: "lane-crashed" });
      await expect(run(lanes, "scan")).rejects.toMatchObject({ code: "lane-crashed" });
    }
    await lanes.close();
  });

  test("one that cannot even start", async () => {
    const memory = allocateShared(8);
    const broken = new URL("data:text/javascript,throw new Error('no')");
    const lanes = createWorkerLanes({ count: 1, memory, roomAt: 0, lz4: "native", entry: broken });
    await expect(run(lanes, "scan")).rejects.toMatchObject({ code: "lane-crashed" });
    await lanes.close();
  });
});
