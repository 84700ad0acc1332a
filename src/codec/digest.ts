/** Digests of blocks and parts. */
import { hash } from "node:crypto";
import { invariant } from "../base/errors.ts";
import { type DigestKind, digestBytes, maskBytes, PART_BYTES } from "../base/units.ts";
import { addPart } from "../base/part-mask.ts";
import { isZero } from "../base/zero.ts";
import { PART_DIGEST_BYTES, partsMax } from "./digest-sizes.ts";
import { createPartHasher, type DigestRoom, type PartHasher } from "./part-hasher.ts";

/** What there is to know of some blocks one behind the other. Views: they hold until the digester is used again. */
export interface BlockDigests {
  /** One a block, big endian. */
  readonly digests: Uint8Array;
  /** A part mask a block: parts that are not zeros. */
  readonly masks: Uint8Array;
  /** {@link PART_DIGEST_BYTES} a part. */
  readonly wide: Uint8Array;
  /** The low half of each of these, 4 bytes little endian: what travels. */
  readonly low: Uint8Array;
}

/**
 * Digests with one scratch memory; not shared between threads. All methods are synchronous and pure. A digest of a zero
 * block is written as all zero bytes; a digest that comes out zero for other content is written as 1.
 */
export interface Digester {
  readonly kind: DigestKind;
  readonly digestBytes: 8 | 16;
  /** The digest of a block is one of the digests of its parts. */
  readonly ofParts: boolean;
  /**
   * Writes the digest of `block` (a whole block: the caller pads the last, shorter one with zeros) to `target` at
   * `offset`, big endian. Returns true when the block is all zeros (every byte was looked at).
   */
  digest(block: Uint8Array, target: Uint8Array, offset: number): boolean;
  /** Of whole blocks, together at most as long as the largest one (1 MiB). */
  blocks(content: Uint8Array, blockBytes: number): BlockDigests;
  /** Writes the digest, {@link PART_DIGEST_BYTES}, of each part of `content` to `target` at `offset`, whatever the kind. */
  parts(content: Uint8Array, target: Uint8Array, offset: number): void;
  /** Digests of the parts of the largest block of zeros. */
  readonly zeroParts: Uint8Array;
}

/**
 * `xxh64`: xxh64 with seed 0 over the xxh64 of each part, little endian one behind the other; so a block of which parts change is digested by
 * these alone. `sha256`: the first 16 bytes of that of the block. Blocks may lie in any memory; those that lie in that of `room` are not copied.
 */
export async function createDigester(kind: DigestKind, room?: DigestRoom): Promise<Digester> {
  return new BlockDigester(kind, await createPartHasher(room));
}

class BlockDigester implements Digester {
  readonly kind: DigestKind;
  readonly digestBytes: 8 | 16;
  readonly ofParts: boolean;
  readonly zeroParts: Uint8Array;
  readonly #hasher: PartHasher;

  constructor(kind: DigestKind, hasher: PartHasher) {
    this.kind = kind;
    this.digestBytes = digestBytes(kind);
    this.ofParts = kind === "xxh64";
    this.#hasher = hasher;
    hasher.parts(new Uint8Array(PART_BYTES));
    const zeroPart = Uint8Array.from(hasher.wide.subarray(0, PART_DIGEST_BYTES));
    this.zeroParts = Uint8Array.from(Buffer.alloc(partsMax * PART_DIGEST_BYTES, zeroPart));
  }

  digest(block: Uint8Array, target: Uint8Array, offset: number): boolean {
    this.#checkTarget(target, offset);
    if (isZero(block)) {
      target.fill(0, offset, offset + this.digestBytes);
      return true;
    }
    if (this.ofParts) {
      const count = this.#hasher.parts(block);
      writeDigest(this.#hasher.xxh64(this.#hasher.wide.subarray(0, count * PART_DIGEST_BYTES)), target, offset);
    } else writeDigest(sha256(block), target, offset);
    return false;
  }

  blocks(content: Uint8Array, blockBytes: number): BlockDigests {
    invariant(content.length > 0 && content.length % blockBytes === 0, "content has whole blocks");
    const count = content.length / blockBytes;
    const parts = content.length / PART_BYTES;
    invariant(parts <= partsMax, "the parts of blocks fit their room");
    const { digests, masks, wide, low } = this.#hasher;
    const found = {
      digests: digests.subarray(0, count * this.digestBytes),
      masks: masks.subarray(0, count * maskBytes(blockBytes)),
      wide: wide.subarray(0, parts * PART_DIGEST_BYTES),
      low: low.subarray(0, parts * 4),
    };
    if (this.#hasher.blocks(content, blockBytes)) {
      if (!this.ofParts) this.#digestEach(content, blockBytes, found);
    } else {
      this.#hasher.parts(content);
      maskParts(content, blockBytes, found.masks);
      this.#digestEach(content, blockBytes, found);
    }
    return found;
  }

  parts(content: Uint8Array, target: Uint8Array, offset: number): void {
    const step = partsMax * PART_BYTES;
    for (let at = 0; at < content.length; at += step) {
      const count = this.#hasher.parts(content.subarray(at, at + step));
      const digests = this.#hasher.wide.subarray(0, count * PART_DIGEST_BYTES);
      target.set(digests, offset + (at / PART_BYTES) * PART_DIGEST_BYTES);
    }
  }

  /** Where masks and parts are in `found` already. */
  #digestEach(content: Uint8Array, blockBytes: number, { digests, masks, wide }: BlockDigests): void {
    const width = this.digestBytes;
    const perMask = maskBytes(blockBytes);
    const perBlock = (blockBytes / PART_BYTES) * PART_DIGEST_BYTES;
    for (let block = 0; block < content.length / blockBytes; block++) {
      if (isZero(masks.subarray(block * perMask, (block + 1) * perMask))) {
        digests.fill(0, block * width, (block + 1) * width);
      } else if (this.ofParts) {
        const digest = this.#hasher.xxh64(wide.subarray(block * perBlock, (block + 1) * perBlock));
        writeDigest(digest, digests, block * width);
      } else {
        writeDigest(sha256(content.subarray(block * blockBytes, (block + 1) * blockBytes)), digests, block * width);
      }
    }
  }

  #checkTarget(target: Uint8Array, offset: number): void {
    invariant(offset >= 0 && offset + this.digestBytes <= target.length, "a digest fits its target");
  }
}

/** Of what is not a zero block. */
export function writeDigest(digest: Uint8Array, target: Uint8Array, offset: number): void {
  target.set(digest, offset);
  // Zero means zero block; content must never look like one.
  if (isZero(digest)) target[offset + digest.length - 1] = 1;
}

function sha256(bytes: Uint8Array): Uint8Array {
  return hash("sha256", bytes, "buffer").subarray(0, digestBytes("sha256"));
}

/** Sets in `masks` the parts of blocks that are not zeros. */
function maskParts(content: Uint8Array, blockBytes: number, masks: Uint8Array): void {
  const perMask = maskBytes(blockBytes);
  masks.fill(0);
  for (let at = 0; at < content.length; at += PART_BYTES) {
    if (isZero(content.subarray(at, at + PART_BYTES))) continue;
    const block = Math.floor(at / blockBytes);
    addPart(masks.subarray(block * perMask), (at - block * blockBytes) / PART_BYTES);
  }
}
