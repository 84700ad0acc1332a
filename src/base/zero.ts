/** Content that is all zeros. */

/** True when every byte is zero. Stops at the first byte that is not. */
export function isZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length === 0) return true;
  if (bytes[0] !== 0 || bytes[length - 1] !== 0) return false;
  // The first byte is zero and each byte equals the one before it: one native compare of the array with itself, one
  // place further. Needs no array of zeros, reads the memory once, and ends where the bytes first differ.
  return Buffer.prototype.compare.call(bytes as Buffer, bytes, 1, length, 0, length - 1) === 0;
}
