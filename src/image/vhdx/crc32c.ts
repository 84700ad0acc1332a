/** CRC-32C (Castagnoli): the checksum of everything VHDX checksums. */

/** Slicing by eight: eight tables of 256, so that eight bytes are taken at a time. */
const tables = makeTables();

function makeTables(): Uint32Array {
  const made = new Uint32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let value = byte;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
    made[byte] = value;
  }
  for (let index = 256; index < made.length; index++) {
    const before = made[index - 256] ?? 0;
    made[index] = (before >>> 8) ^ (made[before & 0xff] ?? 0);
  }
  return made;
}

/** Of `bytes` behind what gave `before`. */
export function crc32c(bytes: Uint8Array, before = 0): number {
  let crc = ~before;
  let at = 0;
  const at8 = (table: number, byte: number): number => tables[table * 256 + byte] as number;
  for (const end = bytes.length - 7; at < end; at += 8) {
    const low =
      crc ^
      ((bytes[at] as number) |
        ((bytes[at + 1] as number) << 8) |
        ((bytes[at + 2] as number) << 16) |
        ((bytes[at + 3] as number) << 24));
    crc =
      at8(7, low & 0xff) ^
      at8(6, (low >>> 8) & 0xff) ^
      at8(5, (low >>> 16) & 0xff) ^
      at8(4, low >>> 24) ^
      at8(3, bytes[at + 4] as number) ^
      at8(2, bytes[at + 5] as number) ^
      at8(1, bytes[at + 6] as number) ^
      at8(0, bytes[at + 7] as number);
  }
  for (; at < bytes.length; at++) crc = (crc >>> 8) ^ at8(0, (crc ^ (bytes[at] as number)) & 0xff);
  return ~crc >>> 0;
}

const checksumAt = 4;
const noChecksum = new Uint8Array(4);

/** Whether a structure has the checksum that it should: four bytes behind its signature, computed as if they were zero. */
export function hasChecksum(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return view.getUint32(checksumAt, true) === structureChecksum(bytes);
}

export function structureChecksum(bytes: Uint8Array): number {
  return crc32c(bytes.subarray(checksumAt + 4), crc32c(noChecksum, crc32c(bytes.subarray(0, checksumAt))));
}
