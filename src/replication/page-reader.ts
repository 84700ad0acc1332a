/**
 * Reads blocks of pages, in lanes wherever they can read by themselves, and sees to what is found: new over zero is shipped at once, what differs from content
 * is given to {@link Patches}. Bounded: pieces read at a time by a gate, block memory by the pool.
 */
import type { BufferPool, Slot } from "../base/buffer-pool.ts";
import { invariant } from "../base/errors.ts";
import { Gate, settleAll } from "../base/gate.ts";
import { digestBytes, EXTENT_BYTES_MAX, type Geometry, partsPerBlock } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";
import type { BlockReader, FileRun } from "../image/block-device.ts";
import { type HeldRuns, holdRuns } from "../image/held-runs.ts";
import { blockState, type CompareResult, type ScanPiece, type ScanRequest, type ScanResult } from "../lanes/jobs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { areaA } from "../lanes/slot-layout.ts";
import type { CodecChoice } from "./codec-choice.ts";
import { type BlockRange, blocksIn, cutRanges } from "./data-cursor.ts";
import { DirtyBlocks, dirtyBlocksMax } from "./dirty-blocks.ts";
import type { FrameShipper } from "./frame-shipper.ts";
import type { PageWork } from "./page-work.ts";
import { runsOfRanges } from "./part-ranges.ts";
import type { Patches } from "./patches.ts";
import { baseOf, bytesTogether, Gathered, hasZero, type Piece, type PlacedPiece, piecesTogether } from "./pieces.ts";
import type { Funnel } from "./report.ts";
import type { SenderSession } from "./sender-session.ts";

/** Pieces under way for each lane: one in work, one ready. */
const piecesPerLane = 2;
export interface PageReaderOptions {
  readonly session: SenderSession;
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

/** A page, and which of its blocks are read. */
export interface PageRead extends Pick<Piece, "work" | "base"> {
  readonly ranges: readonly BlockRange[];
  /** These blocks are known to have changed, and the receiver holds none of them as zeros: what differs is packed by the job that reads them. */
  readonly changed?: boolean;
}

export class PageReader {
  readonly #o: PageReaderOptions;
  readonly #geometry: Geometry;
  readonly #width: number;
  readonly #patches: Patches;
  readonly #shipper: FrameShipper;
  /** Pieces read at a time: few, so that the slots they use stay in the processor's cache. */
  readonly #readGate: Gate;
  readonly #dirty: DirtyBlocks;

  constructor(options: PageReaderOptions) {
    this.#o = options;
    this.#geometry = options.geometry;
    this.#width = digestBytes(this.#geometry.digestKind);
    this.#patches = options.patches;
    this.#shipper = options.shipper;
    this.#readGate = new Gate(options.lanes.count * piecesPerLane);
    this.#dirty = new DirtyBlocks({ ...options, readGate: this.#readGate });
  }

  /** Before the first read of pages. */
  async readAhead(reads: readonly Pick<PageRead, "work" | "ranges">[]): Promise<void> {
    const owners: PageWork[] = [];
    const runs: FileRun[] = [];
    for (const { work, ranges } of reads) {
      for (const run of runsOfRanges(this.#o.reader, this.#geometry, ranges)) {
        owners.push(work);
        runs.push(run);
      }
    }
    if (runs.length === 0) return;
    const { cold } = await this.#o.lanes.run("readAhead", { runs });
    for (const index of cold) {
      const run = runs[index];
      if (run !== undefined) owners[index]?.cold.push(run);
    }
  }

  /**
   * Reads ranges of pages, ascending: pieces of which something may be shipped at once in slots, as many in one as there is room for (a sparse image has its content
   * in many small ranges), those that are known to have changed by {@link DirtyBlocks}, the others 8 MiB together.
   */
  async read(reads: readonly PageRead[]): Promise<void> {
    const tasks: Promise<void>[] = [];
    const { blockBytes } = this.#geometry;
    const blocksMax = EXTENT_BYTES_MAX / blockBytes;
    const together = new Gathered<PlacedPiece>(
      { blocks: bytesTogether / blockBytes, pieces: piecesTogether },
      (pieces) => {
        tasks.push(this.#compareAll(pieces));
      },
    );
    const group = new Gathered<Piece>({ blocks: blocksMax, pieces: piecesTogether }, (pieces) => {
      tasks.push(this.#scanAll(pieces));
    });
    const dirty = new Gathered<Piece>({ blocks: dirtyBlocksMax, pieces: dirtyBlocksMax }, (pieces) => {
      tasks.push(this.#dirty.ship(pieces));
    });
    for (const { work, ranges, base, changed } of reads) {
      for (const { first, end } of cutRanges(ranges, blocksMax)) {
        const piece = { work, base, first, end };
        if (changed === true) {
          dirty.add(piece);
          continue;
        }
        const placed = base !== "zero" && !hasZero(piece) ? this.#placed(piece) : undefined;
        if (placed === undefined) group.add(piece);
        else together.add(placed);
      }
    }
    dirty.finish();
    group.finish();
    together.finish();
    await settleAll(tasks);
  }

  /** Undefined: only the reader can read it. */
  #placed(piece: Piece): PlacedPiece | undefined {
    const { blockBytes, sizeBytes } = this.#geometry;
    const offset = piece.first * blockBytes;
    const length = Math.min(piece.end * blockBytes, sizeBytes) - offset;
    const runs = this.#o.reader.runs?.(offset, length);
    return runs === undefined ? undefined : { ...piece, length, runs };
  }

  /** Digests pieces in one job, and compares them. */
  async #compareAll(placed: readonly PlacedPiece[]): Promise<void> {
    const { lanes, name, reader, funnel } = this.#o;
    const { blockBytes, digestKind } = this.#geometry;
    await this.#readGate.enter();
    let result: CompareResult;
    const held: HeldRuns[] = [];
    const pieces: PlacedPiece[] = [];
    const moved: PlacedPiece[] = [];
    try {
      this.#o.check();
      for (const piece of placed) {
        const { runs, release } = holdRuns(reader, piece.first * blockBytes, piece.length);
        held.push({ runs, release });
        if (runs === undefined) moved.push(piece);
        else pieces.push({ ...piece, runs });
      }
      const base = baseOf(pieces);
      invariant(base !== "zero", "what is new is not compared");
      result = await lanes.run("compare", {
        file: name,
        pieces: pieces.map(({ runs, length }) => ({ runs, length })),
        ...{ base, blockBytes, digestKind },
      });
    } finally {
      for (const { release } of held) release();
      this.#readGate.leave();
    }
    for (const { length } of pieces) funnel.readBytes += length;
    await this.#shipper.shipZeros(this.#enter(pieces, result), false);
    for (const piece of moved) await this.#scanAll([piece]);
  }

  /** Enters what a job found: digests, and what differs. Returns the blocks that are zero now. */
  #enter(pieces: readonly Piece[], { digests, states, parts }: CompareResult): readonly number[] {
    const width = this.#width;
    const zeros: number[] = [];
    let index = 0;
    let partsEnd = 0;
    for (const { work, first, end } of pieces) {
      work.digests.set(digests.subarray(index * width, (index + end - first) * width), (first - work.first) * width);
      for (let block = first; block < end; block++, index++) {
        const state = states[index];
        if (state === blockState.zero) zeros.push(block);
        else if (state === blockState.differs) {
          this.#patches.add(work, block, parts.subarray(partsEnd, partsEnd + this.#partBytes));
          partsEnd += this.#partBytes;
        }
      }
    }
    return zeros;
  }

  /** Digests pieces that fit a slot together, and ships what is new over zero. */
  async #scanAll(pieces: readonly Piece[]): Promise<void> {
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
      const base = baseOf(pieces);
      // As late as can be: a page has 32 MiB of pieces, which would all still get the codec of a trial that is over.
      const pick = base === "unknown" ? undefined : this.#o.codec.next();
      const result = await this.scanBlocks(slot, pieces, base, pick?.codec ?? "stored");
      leave();
      const zeros = this.#enter(pieces, result);
      if (result.shipment !== undefined && pick !== undefined) {
        const { shipment } = result;
        const blocks = blocksIn(pieces);
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
