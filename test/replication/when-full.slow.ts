/** A receiver that runs out of room: it refuses (`stop`), or drops the oldest points of the disk that wants more (`drop-oldest`). */
import { afterEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import type { Logger } from "../../src/base/logger.ts";
import { KIB, MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { Storage } from "../../src/storage/seam.ts";
import { Changing, methodsOf, PointKit } from "../replica/point-kit.ts";

const block = 64 * KIB;

/** A file system on which undo logs are what takes room. */
class LogRoom {
  /** Bytes of all undo logs there is room for. */
  capacity = Number.POSITIVE_INFINITY;
  readonly #logs = new Map<string, number>();
  readonly #paths = new Map<number, string>();

  get free(): number {
    let taken = 0;
    for (const bytes of this.#logs.values()) taken += bytes;
    return Math.max(0, Math.min(this.capacity, 2 ** 40) - taken);
  }

  over(storage: Storage): Storage {
    return {
      ...methodsOf(storage),
      lanes: {
        ...storage.lanes,
        writeDirect: () => false,
        write: (fd, source, offset) => {
          this.#take(fd, offset + source.length);
          storage.lanes.write(fd, source, offset);
        },
      },
      open: async (path, options) => {
        const file = await storage.open(path, options);
        if (path.endsWith(".undo")) this.#paths.set(file.fd, path);
        else this.#paths.delete(file.fd);
        return file;
      },
      unlink: async (path) => {
        await storage.unlink(path);
        this.#logs.delete(path);
      },
      space: async (path) => ({ ...(await storage.space(path)), freeBytes: this.free }),
    };
  }

  #take(fd: number, end: number): void {
    const path = this.#paths.get(fd);
    if (path === undefined) return;
    const before = this.#logs.get(path) ?? 0;
    if (end - before > this.free) throw Object.assign(new Error(`ENOSPC: ${path}`), { code: "ENOSPC" });
    this.#logs.set(path, Math.max(before, end));
  }
}

interface LogLine {
  readonly fields: Record<string, unknown>;
  readonly message: string;
}

let kit: PointKit;
let room = new LogRoom();
let mayWrite = true;
const lines: LogLine[] = [];
const note = (fields: object, message: string): void => void lines.push({ fields: { ...fields }, message });
const log: Logger = { debug: note, info: note, warn: note, error: note };
const content = new Changing(4 * MIB);

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
});

/** Four points, each with a log of about half a megabyte but the newest; then free space is set. */
async function fill(
  options: { readonly whenFull?: "stop" | "drop-oldest"; readonly reserveBytes?: number },
  freeBytes: number,
): Promise<void> {
  const { whenFull, reserveBytes = MIB } = options;
  lines.length = 0;
  mayWrite = true;
  room = new LogRoom();
  const authorize = (): ReplicationError | undefined =>
    mayWrite ? undefined : new ReplicationError("not-allowed", "this one may not");
  kit = await PointKit.create(
    {},
    {
      receiverStorage: (storage) => room.over(storage),
      receiverLog: log,
      reserveBytes,
      receiver: { authorize, ...(whenFull === undefined ? {} : { whenFull }) },
    },
  );
  content.write(0, 4 * MIB);
  for (let point = 1; point <= 4; point++) await kit.commit(Buffer.from(content.write(0, 8 * block).content));
  room.capacity = 2 ** 40 - room.free + freeBytes;
  expect(room.free).toBe(freeBytes);
}

async function pointsLeft(): Promise<readonly number[]> {
  const left = (await kit.pair.store.points("disk")).points.map(({ point }) => point);
  for (const point of kit.contents.keys()) if (!left.includes(point)) kit.contents.delete(point);
  await kit.expectAll();
  expect(kit.contents.size).toBe(left.length);
  return left;
}

function dropped(): readonly unknown[] {
  return lines.filter(({ message }) => /was dropped to make room/.test(message)).map(({ fields }) => fields["point"]);
}

function change(): Buffer {
  return Buffer.from(content.write(0, 8 * block).content);
}

describe("below the reserve, a delta", () => {
  test.each([undefined, "stop"] as const)("is refused, and says what is short (%s)", async (whenFull) => {
    await fill(whenFull === undefined ? {} : { whenFull }, MIB - 1);
    await expect(kit.commit(change())).rejects.toMatchObject({
      code: "no-space",
      action: "never",
      details: { freeBytes: MIB - 1, reserveBytes: MIB },
    });
    expect(await pointsLeft()).toEqual([1, 2, 3, 4]);
  });

  test("takes the room of one point, or of as many as it needs, and no more", async () => {
    await fill({ whenFull: "drop-oldest" }, MIB - 1);
    await kit.commit(change());
    expect(dropped()).toEqual([1]);
    expect(lines.find(({ message }) => /was dropped/.test(message))?.fields).toMatchObject({
      disk: "disk",
      bytes: expect.closeTo(8 * block, -5),
      reason: expect.stringContaining("reserve"),
    });
    expect(await pointsLeft()).toEqual([2, 3, 4, 5]);
    room.capacity -= room.free - 100;
    await kit.commit(change());
    expect(dropped()).toEqual([1, 2, 3]);
    expect(await pointsLeft()).toEqual([4, 5, 6]);
  });

  test("is refused when nothing more may go: the newest stays", async () => {
    await fill({ whenFull: "drop-oldest", reserveBytes: 2 ** 40 }, 0);
    await expect(kit.commit(change())).rejects.toMatchObject({
      code: "no-space",
      message: expect.stringMatching(/reserve.*nothing more is dropped: point 4, the oldest, stays: newest/),
      details: { reserveBytes: 2 ** 40 },
    });
    expect(await pointsLeft()).toEqual([4]);
  });

  test("is refused while the oldest point is held, or in use: what lies behind it gives no room", async () => {
    await fill({ whenFull: "drop-oldest" }, 0);
    await kit.pair.store.hold("disk", 1, { owner: "audit", until: undefined });
    await expect(kit.commit(change())).rejects.toMatchObject({ message: expect.stringContaining("held by audit") });
    await kit.pair.store.release("disk", 1, "audit");
    const reader = await kit.open(1);
    await expect(kit.commit(change())).rejects.toMatchObject({ message: expect.stringContaining("in use") });
    await reader.close();
    expect(await pointsLeft()).toEqual([1, 2, 3, 4]);
    await kit.commit(change());
    expect(dropped()).toEqual([1, 2]);
  });

  test("of a new disk has no points to drop, and those of others stay", async () => {
    await fill({ whenFull: "drop-oldest" }, 0);
    await kit.pair.idle();
    const sending = kit.pair.send(createMemoryImage(MIB), { disk: "another" });
    await expect(sending).rejects.toMatchObject({ code: "no-space" });
    expect(await kit.pair.store.summary("another")).toBeUndefined();
    expect(await pointsLeft()).toEqual([1, 2, 3, 4]);
  });

  test("of somebody who may not write the disk drops nothing", async () => {
    await fill({ whenFull: "drop-oldest" }, 0);
    mayWrite = false;
    await expect(kit.commit(change())).rejects.toMatchObject({ code: "not-allowed" });
    expect(await pointsLeft()).toEqual([1, 2, 3, 4]);
  });
});

describe("a delta that runs out of room", () => {
  test("leaves all points as they are (stop)", async () => {
    await fill({ reserveBytes: 0 }, 100_000);
    await expect(kit.commit(change())).rejects.toMatchObject({ code: "no-space" });
    await kit.pair.idle();
    expect(await pointsLeft()).toEqual([1, 2, 3, 4]);
  });

  test("fails, and the next try finds room: the oldest point is gone (drop-oldest)", async () => {
    await fill({ whenFull: "drop-oldest", reserveBytes: 0 }, 100_000);
    const next = change();
    await expect(kit.commit(next)).rejects.toMatchObject({ code: "no-space" });
    await kit.pair.idle();
    expect(dropped()).toEqual([1]);
    expect(await pointsLeft()).toEqual([2, 3, 4]);
    await kit.commit(next);
    expect(dropped()).toEqual([1]);
    expect(await pointsLeft()).toEqual([2, 3, 4, 5]);
  });

  test("drops until the reserve is there again, and says so when it cannot", async () => {
    await fill({ whenFull: "drop-oldest", reserveBytes: 1_100_000 }, 1_100_000);
    content.write(0, 4 * MIB);
    const next = Buffer.from(content.content);
    // All history has less room than this delta needs.
    for (const gone of [
      [1, 2],
      [1, 2, 3],
      [1, 2, 3],
    ]) {
      await expect(kit.commit(next)).rejects.toMatchObject({ code: "no-space" });
      await kit.pair.idle();
      expect(dropped()).toEqual(gone);
    }
    expect(lines.at(-1)?.message).toMatch(/nothing more is dropped: point 4, the oldest, stays: newest/);
    expect(await pointsLeft()).toEqual([4]);
  });
});
