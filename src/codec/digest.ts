/** Digests of blocks and parts. */
import type { DigestKind } from "../base/units.ts";

/**
 * Digests with one scratch memory; not shared between threads. All methods are synchronous and pure.
 * A digest of a zero block is written as all zero bytes; a digest that comes out zero for other content is written as 1.
 */
export interface Digester {
  readonly kind: DigestKind;
  readonly digestBytes: 8 | 16;
  /**
   * Writes the digest of `block` (a whole block: the caller pads the last, shorter one with zeros) to `target` at `offset`,
   * big endian. Returns true when the block is all zeros (every byte was looked at).
   */
  digest(block: Uint8Array, target: Uint8Array, offset: number): boolean;
  /** 32 bits of a part of {@link PART_BYTES}: the low half of its xxh64, whatever the kind of the block digest. */
  part(part: Uint8Array): number;
}

// Implemented by the codec helper: replace this declaration.
export declare function createDigester(kind: DigestKind): Promise<Digester>;
/** True when every byte is zero. */
export declare function isZero(bytes: Uint8Array): boolean;
