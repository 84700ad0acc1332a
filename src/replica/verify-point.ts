/** Reads a point again, all of it, and says what is wrong with it and where good content is still to be had. */
import { ReplicationError } from "../base/errors.ts";
import { blockCount, type Geometry, MIB, pageBlocks, pageCount } from "../base/units.ts";
import { createPageDigests, pageDigest } from "../table/page-digests.ts";
import { isDamage, type LostRange, LostRanges, readAround } from "./damaged-blocks.ts";
import type { PointReader } from "./points/reader.ts";
import { abortedBy } from "./restore-point.ts";
import type { Store } from "./store.ts";

const pieceBytes = MIB;
/** Blocks side by side that cannot be served, in bytes of the disk. */
export interface DamagedRange {
  readonly offset: number;
  readonly length: number;
  /** Of its first block, in words. */
  readonly reason: string;
  /**
   * The newest other point that has this point's content for the whole range, else the newest that has other, good content there;
   * undefined: none has any.
   */
  readonly goodPoint: number | undefined;
  /** `goodPoint` has this point's content. */
  readonly sameContent: boolean;
}

export interface VerifyReport {
  readonly disk: string;
  readonly point: number;
  /** Every block matches its digest, and the root of the digests the point's record. */
  readonly good: boolean;
  readonly rootMatches: boolean;
  readonly sizeBytes: number;
  /** Where reading began: the block `from` lies in. */
  readonly fromBytes: number;
  /** Blocks that are zero by their digest are not read. */
  readonly readBytes: number;
  /** The first 20. */
  readonly damaged: readonly DamagedRange[];
  readonly damagedRanges: number;
  readonly damagedBytes: number;
}

export interface VerifyOptions {
  /** Offset to begin at; what lies before was read by an earlier call. Digests and root are looked at as a whole in any case. */
  readonly from: number;
  /** Waits until so many bytes may be read. */
  readonly pace: (bytes: number) => Promise<void>;
  readonly signal: AbortSignal | undefined;
  /** Bytes of the disk passed so far, and its size. */
  readonly onProgress: (doneBytes: number, sizeBytes: number) => void;
}

/**
 * Throws what opening the point throws, `usage` for a `from` behind the end, and what is not damage. Of `aborted` the details say where to go on
 * (`offset`), and what was found up to there (`damagedRanges`, `damagedBytes`).
 */
export async function verifyStoredPoint(
  store: Store,
  disk: string,
  sequence: number | "newest",
  options: VerifyOptions,
): Promise<VerifyReport> {
  const point = await store.openPoint(disk, sequence);
  try {
    if (options.from > point.sizeBytes) {
      throw new ReplicationError("usage", `point ${point.point.point} of disk ${disk} ends before ${options.from}`);
    }
    const pass = new Pass(point, options);
    const rootMatches = await pass.run().catch((error: unknown) => {
      throw error instanceof ReplicationError && error.code === "aborted" ? stopped(point, pass, error) : error;
    });
    const found = pass.ranges;
    const damaged = found.named.length === 0 ? [] : await lookElsewhere(store, point, found.named, options);
    return {
      disk,
      point: point.point.point,
      good: rootMatches && found.count === 0,
      rootMatches,
      sizeBytes: point.sizeBytes,
      fromBytes: pass.from,
      readBytes: pass.readBytes,
      damaged,
      damagedRanges: found.count,
      damagedBytes: found.bytes,
    };
  } finally {
    await point.close();
  }
}

function stopped(point: PointReader, { reached, ranges }: Pass, cause: ReplicationError): ReplicationError {
  const { count, bytes } = ranges;
  const damage = count === 0 ? "nothing damaged" : `${bytes} bytes damaged in ${count} range${count === 1 ? "" : "s"}`;
  return new ReplicationError(
    "aborted",
    `stopped; of ${point.disk.name}@${point.point.point} ${damage} up to ${reached}: go on from ${reached}`,
    { cause, details: { offset: reached, damagedRanges: count, damagedBytes: bytes } },
  );
}

function geometryAt(point: PointReader): Geometry {
  const { blockBytes, digestKind } = point.disk;
  return { sizeBytes: point.sizeBytes, blockBytes, digestKind };
}

class Pass {
  readonly ranges = new LostRanges();
  readonly from: number;
  readBytes = 0;
  /** All before was read, or is zero, or lies before `from`. */
  reached: number;
  readonly #point: PointReader;
  readonly #o: VerifyOptions;
  readonly #geometry: Geometry;
  readonly #buffer: Uint8Array;

  constructor(point: PointReader, options: VerifyOptions) {
    this.#point = point;
    this.#o = options;
    this.#geometry = geometryAt(point);
    this.from = options.from - (options.from % this.#geometry.blockBytes);
    this.reached = this.from;
    this.#buffer = new Uint8Array(Math.max(pieceBytes, this.#geometry.blockBytes));
  }

  /** True: the root of the digests is the one the record names. */
  async run(): Promise<boolean> {
    const pages = createPageDigests(this.#geometry);
    let told = true;
    for (let page = 0; page < pageCount(this.#geometry); page++) {
      try {
        pages.set(page, pageDigest(await this.#point.digests(page)));
      } catch (error) {
        if (!isDamage(error)) throw error;
        // Which blocks it is about comes out when they are read.
        told = false;
      }
      const { first, count } = pageBlocks(this.#geometry, page);
      await this.#read(first, first + count);
    }
    return told && Buffer.from(pages.root()).toString("hex") === this.#point.point.root;
  }

  async #read(first: number, end: number): Promise<void> {
    const { blockBytes, sizeBytes } = this.#geometry;
    const start = Math.max(first * blockBytes, this.from);
    const stop = Math.min(end * blockBytes, sizeBytes);
    if (start >= stop) return;
    for await (const { kind, offset, length } of this.#point.extents(start, stop - start)) {
      for (let at = offset; kind === "data" && at < offset + length; at += pieceBytes) {
        const count = Math.min(pieceBytes, offset + length - at);
        await this.#readPiece(at, count);
        this.#pass(at + count);
      }
      this.#pass(offset + length);
    }
  }

  #pass(offset: number): void {
    this.reached = offset;
    this.#o.onProgress(offset, this.#geometry.sizeBytes);
  }

  async #readPiece(offset: number, length: number): Promise<void> {
    const { signal, pace } = this.#o;
    if (signal?.aborted === true) throw abortedBy(signal);
    await pace(length);
    this.readBytes += length;
    await readAround(this.#point, this.#buffer.subarray(0, length), offset, this.ranges);
  }
}

interface Elsewhere {
  readonly goodPoint: number;
  readonly sameContent: boolean;
}

/** One point after another, the newest first: a point that is open takes memory. */
async function lookElsewhere(
  store: Store,
  point: PointReader,
  ranges: readonly LostRange[],
  options: VerifyOptions,
): Promise<readonly DamagedRange[]> {
  const found = new Map<LostRange, Elsewhere>();
  const { points } = await store.points(point.disk.name);
  for (const { point: sequence } of [...points].reverse()) {
    const open = ranges.filter((range) => found.get(range)?.sameContent !== true);
    if (open.length === 0) break;
    if (sequence === point.point.point) continue;
    const other = await openOther(store, point.disk.name, sequence);
    if (other === undefined) continue;
    try {
      for (const range of open) {
        const sameContent = await isSame(point, other, range);
        if (found.has(range) && !sameContent) continue;
        if (await isGood(other, range, options)) found.set(range, { goodPoint: sequence, sameContent });
      }
    } finally {
      await other.close();
    }
  }
  return ranges.map((range) => ({ ...range, goodPoint: undefined, sameContent: false, ...found.get(range) }));
}

async function openOther(store: Store, disk: string, sequence: number): Promise<PointReader | undefined> {
  try {
    return await store.openPoint(disk, sequence);
  } catch (error) {
    // It is removed beside us, or damaged as a whole: then it is of no help here.
    if (isDamage(error) || (error instanceof ReplicationError && error.code === "point-not-found")) return undefined;
    throw error;
  }
}

async function isGood(other: PointReader, range: LostRange, { pace, signal }: VerifyOptions): Promise<boolean> {
  if (range.offset + range.length > other.sizeBytes) return false;
  const buffer = new Uint8Array(Math.min(pieceBytes, range.length));
  try {
    for (let at = 0; at < range.length; at += pieceBytes) {
      if (signal?.aborted === true) throw abortedBy(signal);
      const piece = buffer.subarray(0, Math.min(pieceBytes, range.length - at));
      await pace(piece.length);
      await other.read(piece, range.offset + at);
    }
    return true;
  } catch (error) {
    if (isDamage(error)) return false;
    throw error;
  }
}

/** By the digests, which cost next to nothing. */
async function isSame(point: PointReader, other: PointReader, range: LostRange): Promise<boolean> {
  const { blockBytes } = point.disk;
  if (range.offset + range.length > other.sizeBytes) return false;
  const end = Math.min(Math.ceil((range.offset + range.length) / blockBytes), blockCount(geometryAt(point)));
  try {
    for (let block = Math.floor(range.offset / blockBytes); block < end; block++) {
      const [mine, theirs] = [await point.digest(block), await other.digest(block)];
      if (Buffer.compare(mine, theirs) !== 0) return false;
    }
    return true;
  } catch (error) {
    // What the block was cannot be told.
    if (isDamage(error)) return false;
    throw error;
  }
}
