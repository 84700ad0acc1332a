/**
 * What of a seed's data a disk still needs. A seed's frames are made over an empty disk; where an earlier session left blocks behind, what is equal is
 * skipped, and what differs is sent whole, because the parts that are zero in the seed do not travel in it.
 */
import { ownCopy } from "../../base/copy-bytes.ts";
import { countParts, fullMask, hasPart } from "../../base/part-mask.ts";
import { PagedBits } from "../../base/paged-bits.ts";
import {
  blockCount,
  blocksPerPage,
  digestBytes,
  type Geometry,
  maskBytes,
  PART_BYTES,
  pageBlocks,
  pageCount,
} from "../../base/units.ts";
import type { CodecSet } from "../../codec/compression.ts";
import { isZero } from "../../base/zero.ts";
import { encodeFrame } from "../../wire/frame.ts";
import type { Data } from "../../wire/messages.ts";
import type { BaseTable } from "../base-table.ts";
import { RecentPages } from "../page-work.ts";
import type { SeedFrame } from "./reader.ts";

/** Pages whose digests are kept: frames come in the order of few pages at a time. */
const recentPages = 64;
/** Blocks of one `zero` frame. */
const blocksPerZero = 1_024;

/** A frame to send. */
export interface Sendable {
  readonly message: Data;
  readonly frame: Uint8Array;
}

export class SeedBlocks {
  readonly #geometry: Geometry;
  readonly #base: BaseTable;
  readonly #codecs: CodecSet;
  readonly #width: number;
  readonly #recent = new RecentPages(recentPages);
  /** Blocks the seed has content for. */
  readonly #seen: PagedBits;
  /** Blocks the disk had already. */
  skipped = 0;

  constructor(options: { readonly geometry: Geometry; readonly base: BaseTable; readonly codecs: CodecSet }) {
    this.#geometry = options.geometry;
    this.#base = options.base;
    this.#codecs = options.codecs;
    this.#width = digestBytes(options.geometry.digestKind);
    this.#seen = new PagedBits(blockCount(options.geometry));
  }

  /** The block will be told. One that does not exist is the receiver's to refuse. */
  see(block: number): void {
    if (block < this.#seen.size) this.#seen.add(block);
  }

  /** What to send in place of a data frame of the seed: nothing, itself, or blocks one by one. */
  async needed({ message, frameView, payloadView }: SeedFrame<Data>): Promise<readonly Sendable[]> {
    const { blocks, digests } = message;
    for (const block of blocks) this.see(block);
    if (this.#base.empty) return [{ message, frame: frameView }];
    const states: ("equal" | "zero" | "other")[] = [];
    for (const [index, block] of blocks.entries()) {
      const old = await this.#digestOf(block);
      const mine = digests.subarray(index * this.#width, (index + 1) * this.#width);
      states.push(isZero(old) ? "zero" : Buffer.compare(old, mine) === 0 ? "equal" : "other");
    }
    const equal = states.filter((state) => state === "equal").length;
    if (equal === blocks.length) {
      this.skipped += equal;
      return [];
    }
    // What is equal may come again: its parts are what they were.
    if (!states.includes("other")) return [{ message, frame: frameView }];
    this.skipped += equal;
    const raw = new Uint8Array(message.rawBytes);
    this.#codecs.get(message.codec).decompress(payloadView, raw);
    return this.#oneByOne(message, raw, states);
  }

  #oneByOne(message: Data, raw: Uint8Array, states: readonly ("equal" | "zero" | "other")[]): readonly Sendable[] {
    const { blocks, masks, digests } = message;
    const { blockBytes } = this.#geometry;
    const perMask = maskBytes(blockBytes);
    const found: Sendable[] = [];
    let at = 0;
    for (const [index, block] of blocks.entries()) {
      const mask = ownCopy(masks.subarray(index * perMask, (index + 1) * perMask));
      const parts = raw.subarray(at, at + countParts(mask) * PART_BYTES);
      at += parts.length;
      const state = states[index];
      if (state === "equal") continue;
      const payload = state === "zero" ? parts : spread(parts, mask, blockBytes);
      const single: Data = {
        type: "data",
        blocks: [block],
        masks: state === "zero" ? mask : fullMask(blockBytes),
        digests: ownCopy(digests.subarray(index * this.#width, (index + 1) * this.#width)),
        codec: "stored",
        rawBytes: payload.length,
        repeat: false,
      };
      found.push({ message: single, frame: encodeFrame(single, payload) });
    }
    return found;
  }

  /** After the last frame: runs of blocks that hold something and are zero in the seed. */
  async *leftOver(): AsyncGenerator<{ readonly first: number; readonly count: number }> {
    if (this.#base.empty) return;
    for (let page = 0; page < pageCount(this.#geometry); page++) {
      if (isZero(await this.#base.page(page))) continue;
      const digests = await this.#base.blocks(page);
      const { first, count } = pageBlocks(this.#geometry, page);
      const stale = (index: number): boolean =>
        index < count &&
        !this.#seen.has(first + index) &&
        !isZero(digests.subarray(index * this.#width, (index + 1) * this.#width));
      for (let index = 0; index < count; index++) {
        if (!stale(index)) continue;
        let length = 1;
        while (length < blocksPerZero && stale(index + length)) length++;
        yield { first: first + index, count: length };
        index += length - 1;
      }
    }
  }

  /** A block is sent once, so what the table says of one that was not sent yet is what it was at the start. */
  async #digestOf(block: number): Promise<Uint8Array> {
    const per = blocksPerPage(this.#geometry.digestKind);
    const page = Math.floor(block / per);
    const none = new Uint8Array(this.#width);
    if (block >= this.#seen.size || isZero(await this.#base.page(page))) return none;
    let digests = this.#recent.get(page);
    if (digests === undefined) {
      digests = await this.#base.blocks(page);
      this.#recent.set(page, digests);
    }
    const at = (block - page * per) * this.#width;
    return digests.subarray(at, at + this.#width);
  }
}

/** A whole block from its parts; the others are zero. */
function spread(parts: Uint8Array, mask: Uint8Array, blockBytes: number): Uint8Array {
  const block = new Uint8Array(blockBytes);
  let at = 0;
  for (let part = 0; part < blockBytes / PART_BYTES; part++) {
    if (!hasPart(mask, part)) continue;
    block.set(parts.subarray(at, at + PART_BYTES), part * PART_BYTES);
    at += PART_BYTES;
  }
  return block;
}
