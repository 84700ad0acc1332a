/**
 * Reads the blocks of a page, in lanes wherever they can read by themselves, and sees to what is found: new over zero is shipped at once, what differs from content
 * is given to {@link Patches}. Bounded: pieces read at a time by a gate, block memory by the pool.
 */
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import { Gate, settleAll } from "../base/gate.ts";
import { digestBytes, EXTENT_BYTES_MAX, type Geometry, partsPerBlock } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { CodecName } from "../codec/compression.ts";
import type { BlockReader, FileRun } from "../image/block-device.ts";
import { type HeldRuns, holdRuns } from "../image/held-runs.ts";
import { blockState, type CompareResult, type ScanPiece, type ScanRequest, type ScanResult } from "../lanes/jobs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { areaA } from "../lanes/slot-layout.ts";
import type { CodecChoice } from "./codec-choice.ts";
import { type BlockRange, cutRanges } from "./data-cursor.ts";
import type { FrameShipper } from "./frame-shipper.ts";
import type { PageWork } from "./page-work.ts";
import { runsOfRanges } from "./part-ranges.ts";
import type { Patches } from "./patches.ts";
import type { Funnel } from "./report.ts";

/** Pieces under way for each lane: one in work, one ready. */
const piecesPerLane = 2;
/** Pieces compared in one job: 8 MiB, so that jobs are few, and a slow disk does not hold a lane for long. */
const piecesTogether = 8;

export interface PageReaderOptions {
  readonly reader: BlockReader;
  /** Name of the image, for messages. */
  readonly name: string;
  readonly geometry: Geometry;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly codec: CodecChoice;
  readonly funnel: Funnel;
  readonly shipper: FrameShipper;
  readonly patches: Patches;
  readonly signal: AbortSignal;
  /** Throws when the scan has failed or is to stop. */
  readonly check: () => void;
}

/** Blocks whose bytes lie in files. */
interface PlacedPiece {
  readonly first: number;
  /** Exclusive. */
  readonly end: number;
  readonly length: number;
  readonly runs: readonly FileRun[];
}

export class PageReader {
  readonly #o: PageReaderOptions;
  readonly #geometry: Geometry;
  readonly #width: number;
  readonly #patches: Patches;
  readonly #shipper: FrameShipper;
  /** Pieces read at a time: few, so that the slots they use stay in the processor's cache. */
  readonly #readGate: Gate;

  constructor(options: PageReaderOptions) {
    this.#o = options;
    this.#geometry = options.geometry;
    this.#width = digestBytes(this.#geometry.digestKind);
    this.#patches = options.patches;
    this.#shipper = options.shipper;
    this.#readGate = new Gate(options.lanes.count * piecesPerLane);
  }

  /** Before the first read of a page. */
  async readAhead(work: PageWork, ranges: readonly BlockRange[]): Promise<void> {
    const runs = runsOfRanges(this.#o.reader, this.#geometry, ranges);
    if (runs.length === 0) return;
    const { cold } = await this.#o.lanes.run("readAhead", { runs });
    work.cold = cold.flatMap((index) => runs[index] ?? []);
  }

  /**
   * Reads ranges of a page: pieces of which something may be shipped at once in slots, as many in one as there is room for (a sparse image has its content
   * in many small ranges), the others 8 MiB together.
   */
  async read(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array | "zero" | "unknown"): Promise<void> {
    const tasks: Promise<void>[] = [];
    const blocksMax = EXTENT_BYTES_MAX / this.#geometry.blockBytes;
    let together: PlacedPiece[] = [];
    const compare = (): void => {
      if (together.length > 0 && base !== "zero") tasks.push(this.#compareAll(work, together, base));
      together = [];
    };
    let group: BlockRange[] = [];
    let grouped = 0;
    const scan = (): void => {
      if (group.length > 0) tasks.push(this.#scanAll(work, group, base));
      group = [];
      grouped = 0;
    };
    for (const range of cutRanges(ranges, blocksMax)) {
      const { first, end } = range;
      const placed = base !== "zero" && !this.#hasZero(work, first, end, base) ? this.#placed(first, end) : undefined;
      if (placed !== undefined) {
        if (together.push(placed) === piecesTogether) compare();
        continue;
      }
      if (grouped + end - first > blocksMax) scan();
      group.push(range);
      grouped += end - first;
    }
    scan();
    compare();
    await settleAll(tasks);
  }

  /** Whether the receiver holds one of these blocks as zeros: then it may be new, and is shipped at once. */
  #hasZero(work: PageWork, first: number, end: number, base: Uint8Array | "unknown"): boolean {
    if (base === "unknown") return false;
    for (let block = first; block < end; block++) {
      const at = (block - work.first) * this.#width;
      if (base[at] === 0 && isZero(base.subarray(at, at + this.#width))) return true;
    }
    return false;
  }

  /** Undefined: only the reader can read it. */
  #placed(first: number, end: number): PlacedPiece | undefined {
    const { blockBytes, sizeBytes } = this.#geometry;
    const offset = first * blockBytes;
    const length = Math.min(end * blockBytes, sizeBytes) - offset;
    const runs = this.#o.reader.runs?.(offset, length);
    return runs === undefined ? undefined : { first, end, length, runs };
  }

  /** Digests pieces of a page in one job, and compares them. */
  async #compareAll(work: PageWork, placed: readonly PlacedPiece[], base: Uint8Array | "unknown"): Promise<void> {
    const { lanes, name, funnel } = this.#o;
    const { blockBytes, digestKind } = this.#geometry;
    const width = this.#width;
    const placeOf = (block: number): number => (block - work.first) * width;
    await this.#readGate.enter();
    let result: CompareResult;
    const held: HeldRuns[] = [];
    const pieces: PlacedPiece[] = [];
    const moved: BlockRange[] = [];
    try {
      this.#o.check();
      for (const piece of placed) {
        const { runs, release } = holdRuns(this.#o.reader, piece.first * blockBytes, piece.length);
        held.push({ runs, release });
        if (runs === undefined) moved.push(piece);
        else pieces.push({ ...piece, runs });
      }
      result = await lanes.run("compare", {
        file: name,
        pieces: pieces.map(({ runs, length }) => ({ runs, length })),
        base:
          base === "unknown"
            ? base
            : Buffer.concat(pieces.map(({ first, end }) => base.subarray(placeOf(first), placeOf(end)))),
        ...{ blockBytes, digestKind },
      });
    } finally {
      for (const { release } of held) release();
      this.#readGate.leave();
    }
    const zeros: number[] = [];
    let index = 0;
    let partsEnd = 0;
    for (const { first, end, length } of pieces) {
      funnel.readBytes += length;
      work.digests.set(result.digests.subarray(index * width, (index + end - first) * width), placeOf(first));
      for (let block = first; block < end; block++, index++) {
        const state = result.states[index];
        if (state === blockState.zero) zeros.push(block);
        else if (state === blockState.differs) {
          this.#patches.add(work, block, result.parts.subarray(partsEnd, partsEnd + this.#partBytes));
          partsEnd += this.#partBytes;
        }
      }
    }
    await this.#shipper.shipZeros(zeros, false);
    for (const range of moved) await this.#scanAll(work, [range], base);
  }

  /** Digests ranges of a page that fit a slot together, and ships what is new over zero. */
  async #scanAll(work: PageWork, ranges: readonly BlockRange[], base: Uint8Array | "zero" | "unknown"): Promise<void> {
    const blocks = ranges.flatMap(({ first, end }) =>
      Array.from({ length: end - first }, (_unused, nth) => first + nth),
    );
    const placeOf = (block: number): number => (block - work.first) * this.#width;
    await this.#readGate.enter();
    let inGate = true;
    const leave = (): void => {
      if (inGate) this.#readGate.leave();
      inGate = false;
    };
    let slot: Slot | undefined;
    try {
      slot = await this.#o.pool.acquire(this.#o.signal);
      this.#o.check();
      // As late as can be: a page has 32 MiB of pieces, which would all still get the codec of a trial that is over.
      const pick = base === "unknown" ? undefined : this.#o.codec.next();
      const mine =
        typeof base === "string"
          ? base
          : Buffer.concat(ranges.map(({ first, end }) => base.subarray(placeOf(first), placeOf(end))));
      const result = await this.scanBlocks(slot, ranges, mine, pick?.codec ?? "stored");
      leave();
      let index = 0;
      for (const { first, end } of ranges) {
        const digests = result.digests.subarray(index * this.#width, (index + end - first) * this.#width);
        work.digests.set(digests, placeOf(first));
        index += end - first;
      }
      const zeros: number[] = [];
      let parts = 0;
      for (const [nth, state] of result.states.entries()) {
        const block = blocks[nth] ?? 0;
        if (state === blockState.zero) zeros.push(block);
        else if (state === blockState.differs) {
          this.#patches.add(work, block, result.parts.subarray(parts, parts + this.#partBytes));
          parts += this.#partBytes;
        }
      }
      if (result.shipment !== undefined && pick !== undefined) {
        const { shipment } = result;
        const shipped = shipment.picked.map((nth) => blocks[nth] ?? 0);
        await this.#shipper.ship(slot, { ...shipment, blocks: shipped }, { repeat: false, pick });
      }
      await this.#shipper.shipZeros(zeros, false);
    } finally {
      leave();
      slot?.release();
    }
  }

  /** Bytes of the part digests of one block. */
  get #partBytes(): number {
    return partsPerBlock(this.#geometry.blockBytes) * 4;
  }

  /** One scan job. */
  async scanBlocks(
    slot: Slot,
    ranges: readonly BlockRange[],
    base: ScanRequest["base"],
    codec: CodecName,
  ): Promise<ScanResult> {
    const { lanes, reader, funnel } = this.#o;
    const { blockBytes, digestKind, sizeBytes } = this.#geometry;
    const pieces: ScanPiece[] = [];
    const held: HeldRuns[] = [];
    let at = areaA;
    try {
      for (const { first, end } of ranges) {
        const offset = first * blockBytes;
        const length = Math.min(end * blockBytes, sizeBytes) - offset;
        const place = holdRuns(reader, offset, length);
        held.push(place);
        if (place.runs === undefined) await reader.read(slot.bytes.subarray(at, at + length), offset);
        funnel.readBytes += length;
        pieces.push({ runs: place.runs, length });
        at += (end - first) * blockBytes;
      }
      return await lanes.run("scan", {
        slot: slot.index,
        file: this.#o.name,
        pieces,
        base,
        codec,
        blockBytes,
        digestKind,
      });
    } finally {
      for (const { release } of held) release();
    }
  }
}
