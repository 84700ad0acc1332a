/** How long digests of parts are, and what room a digester needs. */
import { BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, PART_BYTES } from "../base/units.ts";

/** Bytes of the digest of one part: its xxh64, little endian. */
export const PART_DIGEST_BYTES = 8;

/** Parts of the largest block. */
export const partsMax: number = BLOCK_BYTES_MAX / PART_BYTES;

export const blocksMax: number = BLOCK_BYTES_MAX / BLOCK_BYTES_MIN;
const digestBytesMax = 16;

/** Bytes a digester needs in the memory whose blocks it digests in place. A mask has at least a byte. */
export const digestRoomBytes: number = partsMax * (PART_DIGEST_BYTES + 4) + blocksMax * (digestBytesMax + 1);
