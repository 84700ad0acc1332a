/** Points made by real deltas, and what each of them must read as. */
import { createHash } from "node:crypto";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { type Geometry, pageCount } from "../../src/base/units.ts";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { Lanes } from "../../src/lanes/lanes.ts";
import type { PointReader } from "../../src/replica/store.ts";
import { undoBatchMagic } from "../../src/replica/undo/format.ts";
import type { Storage, StorageFile } from "../../src/storage/seam.ts";
import { createPageDigests, pageDigest } from "../../src/table/digest-table.ts";
import { randomBytes } from "../random.ts";
import { type KitOptions, PairKit, type SendOptions } from "../replication/pair-kit.ts";

export async function imageOf(content: Uint8Array): Promise<BlockReader> {
  const image = createMemoryImage(content.length);
  const zeros = Buffer.alloc(4096);
  for (let at = 0; at < content.length; at += 4096) {
    const piece = content.subarray(at, at + 4096);
    // What was never written is a hole.
    if (zeros.compare(piece, 0, piece.length, 0, piece.length) !== 0) await image.write(piece, at);
  }
  return image;
}

export function sha(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

export class PointKit {
  readonly pair: PairKit;
  /** Content of each point. */
  readonly contents = new Map<number, Buffer>();
  readonly #options: SendOptions;

  private constructor(pair: PairKit, options: SendOptions) {
    this.pair = pair;
    this.#options = options;
  }

  static async create(options: SendOptions = {}, kit: KitOptions = {}): Promise<PointKit> {
    return new PointKit(await PairKit.create(kit), options);
  }

  get points(): string {
    return this.path("points");
  }

  path(...names: string[]): string {
    return join(this.pair.folder, "store/disks/disk", ...names);
  }

  logPath(point: number): string {
    return join(this.points, `${point.toString().padStart(10, "0")}.undo`);
  }

  /** Makes a point of `content`. */
  async commit(content: Buffer, options: SendOptions = {}): Promise<number> {
    // A session is over only a little after its sender was told.
    await this.pair.idle();
    const { point } = await this.pair.send(await imageOf(content), { ...this.#options, ...options });
    this.contents.set(point, Buffer.from(content));
    await this.pair.idle();
    return point;
  }

  content(point: number): Buffer {
    const content = this.contents.get(point);
    if (content === undefined) throw new Error(`there is no point ${point}`);
    return content;
  }

  open(point: number | "newest"): Promise<PointReader> {
    return this.pair.store.openPoint("disk", point);
  }

  /** Opens, reads all, closes. */
  async expectPoint(sequence: number | "newest", expected?: number): Promise<void> {
    const reader = await this.open(sequence);
    try {
      await expectContent(reader, this.content(expected ?? reader.point.point));
    } finally {
      await reader.close();
    }
  }

  async expectAll(): Promise<void> {
    for (const point of this.contents.keys()) await this.expectPoint(point);
  }

  close(): Promise<boolean> {
    return this.pair.close();
  }
}

/** Everything a reader says of a point is true of `content`. */
export async function expectContent(reader: PointReader, content: Buffer): Promise<void> {
  expect(reader.sizeBytes).toBe(content.length);
  const found = Buffer.alloc(content.length, 0xee);
  if (content.length > 0) await reader.read(found, 0);
  expect(firstDifference(found, content), `point ${reader.point.point}`).toBe(undefined);
  await expectExtents(reader, content);
  expect(await rootOf(reader)).toBe(reader.point.root);
}

export async function expectExtents(reader: PointReader, content: Buffer): Promise<void> {
  let at = 0;
  let before: string | undefined;
  for await (const extent of reader.extents(0, content.length)) {
    expect(extent.offset).toBe(at);
    expect(extent.length).toBeGreaterThan(0);
    expect(extent.kind).not.toBe(before);
    before = extent.kind;
    at += extent.length;
    const bytes = content.subarray(extent.offset, at);
    if (extent.kind !== "data") expect(bytes.every((byte) => byte === 0)).toBe(true);
  }
  expect(at).toBe(content.length);
}

/** Root over the digests a reader gives. */
export async function rootOf(reader: PointReader): Promise<string> {
  const { sizeBytes, disk } = reader;
  const geometry: Geometry = { sizeBytes, blockBytes: disk.blockBytes, digestKind: disk.digestKind };
  const pages = createPageDigests(geometry);
  for (let page = 0; page < pageCount(geometry); page++) pages.set(page, pageDigest(await reader.digests(page)));
  return Buffer.from(pages.root()).toString("hex");
}

export function firstDifference(found: Buffer, wanted: Buffer): number | undefined {
  if (found.equals(wanted)) return undefined;
  return wanted.findIndex((byte, at) => found[at] !== byte);
}

/**
 * Reads a point as far as it goes. Throws when something is served that is not what it must be. Returns the blocks that are not served.
 */
export async function readDamaged(reader: PointReader, content: Buffer): Promise<number[]> {
  const { blockBytes } = reader.disk;
  const refused: number[] = [];
  const found = Buffer.alloc(content.length);
  if ((await attempt(reader, found, 0)) === undefined) {
    expect(firstDifference(found, content)).toBe(undefined);
    return [];
  }
  for (let block = 0; block * blockBytes < content.length; block++) {
    const wanted = content.subarray(block * blockBytes, (block + 1) * blockBytes);
    const target = Buffer.alloc(wanted.length, 0xee);
    const error = await attempt(reader, target, block * blockBytes);
    if (error === undefined) {
      expect(firstDifference(target, wanted), `block ${block}`).toBe(undefined);
    } else {
      expect(error.code).toBe("store-damaged");
      refused.push(block);
    }
  }
  expect(refused.length).toBeGreaterThan(0);
  return refused;
}

async function attempt(reader: PointReader, target: Buffer, offset: number): Promise<ReplicationError | undefined> {
  try {
    await reader.read(target, offset);
    return undefined;
  } catch (error) {
    if (error instanceof ReplicationError) return error;
    throw error;
  }
}

/** Calls `hook` before and after each job of the receiver's lanes. */
export function hookedLanes(hook: (job: string, when: "before" | "after") => Promise<void>): (lanes: Lanes) => Lanes {
  return (lanes) => ({
    count: lanes.count,
    async run(name, request) {
      await hook(name, "before");
      const result = await lanes.run(name, request);
      await hook(name, "after");
      return result;
    },
    close: () => lanes.close(),
  });
}

/** Changes bytes of a file by `change` for the time of `work`. */
export async function whileChanged(
  path: string,
  change: (bytes: Buffer) => Buffer,
  work: () => Promise<void>,
): Promise<void> {
  const before = readFileSync(path);
  // In place: the inode stays, as with a medium that fails. A mode of 0400 stands in the way of nobody but a user without rights.
  writeAll(path, change(Buffer.from(before)));
  try {
    await work();
  } finally {
    writeAll(path, before);
  }
}

function writeAll(path: string, bytes: Buffer): void {
  writeFileSync(path, bytes, { flag: "r+" });
  truncateSync(path, bytes.length);
}

/** Content of a disk that is changed step by step, always in the same way. */
export class Changing {
  content: Buffer;

  constructor(sizeBytes: number) {
    this.content = Buffer.alloc(sizeBytes);
  }

  /** Numbers from 0 to 1. */
  static chance(): number {
    return randomBytes(4).readUInt32LE() / 2 ** 32;
  }

  write(offset: number, length: number): this {
    const end = Math.min(offset + length, this.content.length);
    this.content.set(randomBytes(Math.max(0, end - offset)), Math.min(offset, this.content.length));
    return this;
  }

  zero(offset: number, length: number): this {
    this.content.fill(0, offset, Math.min(offset + length, this.content.length));
    return this;
  }

  grow(bytes: number): this {
    this.content = Buffer.concat([this.content, Buffer.alloc(bytes)]);
    return this;
  }

  /** Content that compresses. */
  text(offset: number, length: number): this {
    this.content.fill(
      `line ${Math.floor(Changing.chance() * 1e9)} of a log file\n`,
      offset,
      Math.min(offset + length, this.content.length),
    );
    return this;
  }
}

/** Six points: written, overwritten in parts, zeroed, written over zeros, grown, mostly zeroed. */
export async function makePoints(kit: PointKit, sizeBytes: number, unit: number): Promise<void> {
  const disk = new Changing(sizeBytes);
  const end = (): number => disk.content.length;
  await kit.commit(
    disk
      .write(0, unit * 5)
      .text(unit * 9, unit * 3)
      .write(end() - 999, 999).content,
  );
  await kit.commit(
    disk
      .write(unit + 100, 5000)
      .write(unit * 3, unit)
      .text(unit * 10, 4096).content,
  );
  await kit.commit(
    disk
      .zero(unit * 2, unit * 2)
      .zero(unit * 9 + 4096, 8192)
      .write(end() - 10, 10).content,
  );
  await kit.commit(disk.write(unit * 2 + 4096, 100).write(unit * 14, unit * 2 + 77).content);
  await kit.commit(
    disk
      .grow(unit * 7 + 1234)
      .write(end() - unit * 7 - 1300, 200)
      .write(end() - unit, unit).content,
  );
  await kit.commit(
    disk
      .zero(0, unit * 6)
      .write(unit * 9, unit)
      .write(end() - 50, 50).content,
  );
}

export function logName(point: number): string {
  return `points/${point.toString().padStart(10, "0")}.undo`;
}

export function flip(at: number): (bytes: Buffer) => Buffer {
  return (bytes) => {
    bytes[at] = (bytes[at] ?? 0) ^ (1 << (at & 7));
    return bytes;
  };
}

export async function changed(
  kit: PointKit,
  name: string,
  change: (bytes: Buffer) => Buffer,
  work: () => Promise<void>,
): Promise<void> {
  await whileChanged(kit.path(name), change, work);
}

/** All of a storage, to put some of its methods in place of others. */
export function methodsOf(storage: Storage): Storage {
  return {
    capabilities: storage.capabilities,
    lanes: storage.lanes,
    open: (...args) => storage.open(...args),
    rename: (...args) => storage.rename(...args),
    link: (...args) => storage.link(...args),
    unlink: (...args) => storage.unlink(...args),
    makeDirectory: (...args) => storage.makeDirectory(...args),
    removeDirectory: (...args) => storage.removeDirectory(...args),
    list: (...args) => storage.list(...args),
    syncDirectory: (...args) => storage.syncDirectory(...args),
    stat: (...args) => storage.stat(...args),
    setMode: (...args) => storage.setMode(...args),
    space: (...args) => storage.space(...args),
    lock: (...args) => storage.lock(...args),
  };
}

/** Calls `step` before each change of files by the control face. */
export function steppedStorage(step: () => Promise<void>): (storage: Storage) => Storage {
  const before =
    <Args extends readonly unknown[], T>(call: (...args: Args) => Promise<T>): ((...args: Args) => Promise<T>) =>
    async (...args) => {
      await step();
      const result = await call(...args);
      await step();
      return result;
    };
  return (storage) => ({
    ...storage,
    capabilities: storage.capabilities,
    rename: before(storage.rename),
    unlink: before(storage.unlink),
    syncDirectory: before(storage.syncDirectory),
    async open(path, options) {
      const file = await storage.open(path, options);
      if (options?.write !== true) return file;
      const stepped: StorageFile = {
        path: file.path,
        fd: file.fd,
        read: (...args) => file.read(...args),
        write: before((...args: Parameters<StorageFile["write"]>) => file.write(...args)),
        truncate: before((size: number) => file.truncate(size)),
        nextData: (offset) => file.nextData(offset),
        datasync: before(() => file.datasync()),
        stat: () => file.stat(),
        close: () => file.close(),
      };
      return stepped;
    },
  });
}

/** Storage whose lanes, while `on`, write zeros where the contents of batches belong, until `flush`. */
export function holdContents(): HeldContents {
  const later: (() => void)[] = [];
  const logs = new Set<number>();
  const held: HeldContents = {
    on: false,
    count: 0,
    flush() {
      for (const write of later.splice(0)) write();
    },
    wrap(storage) {
      const { lanes } = storage;
      return {
        ...storage,
        capabilities: storage.capabilities,
        async open(path, options) {
          const file = await storage.open(path, options);
          if (path.endsWith(".undo")) logs.add(file.fd);
          else logs.delete(file.fd);
          return file;
        },
        lanes: {
          ...lanes,
          // Then what is appended comes the other way, content and head apart.
          writeDirect: () => false,
          write(fd, source, offset) {
            if (!held.on || !logs.has(fd) || undoBatchMagic.compare(source, 0, 8) === 0) {
              lanes.write(fd, source, offset);
              return;
            }
            held.count++;
            const content = Buffer.from(source);
            lanes.write(fd, Buffer.alloc(source.length), offset);
            later.push(() => lanes.write(fd, content, offset));
          },
        },
      };
    },
  };
  return held;
}

export interface HeldContents {
  on: boolean;
  /** Contents held back so far. */
  count: number;
  flush: () => void;
  wrap: (storage: Storage) => Storage;
}
