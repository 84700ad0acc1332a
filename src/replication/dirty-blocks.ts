/**
 * Blocks that are known to have changed and replace content: the receiver's digests of their parts are asked before the blocks are read, so that one reading finds
 * what differs and packs it.
 */
import type { Slot } from "../base/buffer-pool.ts";
import type { Gate } from "../base/gate.ts";
import { invariant } from "../base/errors.ts";
import { blockLength, EXTENT_BYTES_MAX, partsPerBlock } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";
import { type HeldRuns, holdRuns } from "../image/held-runs.ts";
import { blockState, type DeltaResult, type ScanPiece } from "../lanes/jobs.ts";
import { areaA } from "../lanes/slot-layout.ts";
import type { PageReaderOptions } from "./page-reader.ts";
import { blocksIn } from "./data-cursor.ts";
import { type KnownPartDigests, partDigestsOf } from "./part-ranges.ts";
import { baseOf, bytesTogether, dropBlocks, type Piece, piecesTogether } from "./pieces.ts";

/** Blocks of one question, and of one frame at most. */
export const dirtyBlocksMax = 256;

export interface DirtyBlocksOptions extends Omit<PageReaderOptions, "patches"> {
  /** Pieces read at a time. */
  readonly readGate: Gate;
}

/** What one job takes of some pieces. */
interface Taken {
  readonly pieces: readonly Piece[];
  readonly places: readonly ScanPiece[];
}

export class DirtyBlocks {
  readonly #o: DirtyBlocksOptions;

  constructor(options: DirtyBlocksOptions) {
    this.#o = options;
  }

  /** Pieces ascending, of at most {@link dirtyBlocksMax} blocks, none of which is zero at the receiver. Resolves when what differs was taken by the sockets. */
  async ship(pieces: readonly Piece[]): Promise<void> {
    const { session, geometry } = this.#o;
    const blocks = blocksIn(pieces);
    const answer = await session.askParts(blocks);
    const theirs = partDigestsOf(answer, blocks.length, geometry.blockBytes);
    let left = pieces;
    let bytesMax = bytesTogether;
    for (let done = 0; done < blocks.length; ) {
      const { count, held } = await this.#shipSome(left, { theirs, from: done, bytesMax });
      invariant(count > 0, "a job takes at least one block");
      done += count;
      left = dropBlocks(left, count);
      // Most of it differs: a guest that writes to it is not to wait for jobs that do not get that far.
      if (count < held) bytesMax = EXTENT_BYTES_MAX;
    }
  }

  /** One job and its frame. Returns how many blocks it took, of those it held. */
  async #shipSome(
    pieces: readonly Piece[],
    at: { readonly theirs: KnownPartDigests; readonly from: number; readonly bytesMax: number },
  ): Promise<{ readonly count: number; readonly held: number }> {
    const { pool, codec, shipper, readGate, signal, check } = this.#o;
    await readGate.enter();
    let inGate = true;
    const leave = (): void => {
      if (inGate) readGate.leave();
      inGate = false;
    };
    let slot: Slot | undefined;
    try {
      slot = await pool.acquire(signal);
      check();
      // As late as can be: a page has 32 MiB of pieces, which would all still get the codec of a trial that is over.
      const pick = codec.next();
      const held: HeldRuns[] = [];
      let taken: Taken;
      let result: DeltaResult;
      try {
        taken = this.#take(pieces, { held, bytesMax: at.bytesMax });
        result = await this.#run(slot, taken, { ...at, codec: pick.codec });
      } finally {
        for (const { release } of held) release();
      }
      leave();
      const all = blocksIn(taken.pieces);
      const blocks = all.slice(0, result.states.length);
      this.#enter(taken.pieces, result);
      const { shipment } = result;
      if (shipment !== undefined) {
        const shipped = shipment.picked.map((nth) => blocks[nth] ?? 0);
        await shipper.ship(slot, { ...shipment, blocks: shipped }, { repeat: false, pick });
      }
      await shipper.shipZeros(
        blocks.filter((_block, nth) => result.states[nth] === blockState.zero),
        false,
      );
      return { count: blocks.length, held: all.length };
    } finally {
      leave();
      slot?.release();
    }
  }

  /** The first pieces that one job can take, all with runs or all without; what holds them goes to `held`. */
  #take(pieces: readonly Piece[], { held, bytesMax }: { readonly held: HeldRuns[]; readonly bytesMax: number }): Taken {
    const { reader, geometry } = this.#o;
    const { blockBytes, sizeBytes } = geometry;
    const taken: Piece[] = [];
    const places: ScanPiece[] = [];
    let blocks = 0;
    for (const piece of pieces) {
      const { first, end } = piece;
      const offset = first * blockBytes;
      const length = Math.min(end * blockBytes, sizeBytes) - offset;
      const place = holdRuns(reader, offset, length);
      const roomBytes = place.runs === undefined ? EXTENT_BYTES_MAX : bytesMax;
      const likeOthers = places[0] === undefined || (places[0].runs === undefined) === (place.runs === undefined);
      const fits = taken.length < piecesTogether && (blocks + end - first) * blockBytes <= roomBytes;
      if (!likeOthers || !fits) {
        place.release();
        break;
      }
      held.push(place);
      places.push({ runs: place.runs, length });
      taken.push(piece);
      blocks += end - first;
    }
    return { pieces: taken, places };
  }

  async #run(
    slot: Slot,
    { pieces, places }: Taken,
    how: {
      readonly theirs: KnownPartDigests;
      readonly from: number;
      readonly codec: CodecName;
    },
  ): Promise<DeltaResult> {
    const { lanes, reader, name, geometry, funnel } = this.#o;
    const { blockBytes, digestKind } = geometry;
    const base = baseOf(pieces);
    invariant(typeof base !== "string", "the receiver's digests of these blocks are known");
    let at = areaA;
    for (const [nth, { runs, length }] of places.entries()) {
      if (runs !== undefined) continue;
      await reader.read(slot.bytes.subarray(at, at + length), (pieces[nth]?.first ?? 0) * blockBytes);
      at += Math.ceil(length / blockBytes) * blockBytes;
    }
    const blocks = blocksIn(pieces);
    const perBlock = partsPerBlock(blockBytes) * 4;
    const { from, theirs, codec } = how;
    const end = from + blocks.length;
    const result = await lanes.run("delta", {
      ...{ slot: slot.index, file: name, pieces: places, base, codec, blockBytes, digestKind },
      known: theirs.known.slice(from, end),
      parts: theirs.parts.slice(from * perBlock, end * perBlock),
    });
    for (const block of blocks.slice(0, result.states.length)) funnel.readBytes += blockLength(geometry, block);
    return result;
  }

  #enter(pieces: readonly Piece[], { digests, states }: DeltaResult): void {
    let done = 0;
    for (const { work, first, end } of pieces) {
      const width = work.digests.length / work.count;
      const count = Math.min(end - first, states.length - done);
      work.digests.set(digests.subarray(done * width, (done + count) * width), (first - work.first) * width);
      done += count;
    }
  }
}
