/** Content to measure with: made from fixed numbers, so every run measures the same bytes. */

/** More than the caches hold for one core, so that a stage reads memory as it does in use. */
const ringBytes = 32 * 1024 * 1024;

/** Hands out units of a ring of content, one after the other. */
export function ring(unitBytes: number, fill: (bytes: Uint8Array) => void): () => Uint8Array {
  const units: Uint8Array[] = [];
  const memory = new Uint8Array(new SharedArrayBuffer(ringBytes));
  fill(memory);
  for (let offset = 0; offset < ringBytes; offset += unitBytes) units.push(memory.subarray(offset, offset + unitBytes));
  let next = 0;
  return () => {
    const unit = units[next];
    next = (next + 1) % units.length;
    if (unit === undefined) throw new Error("a ring has units");
    return unit;
  };
}

/** Shrinks to about a third with lz4. */
export function textLike(bytes: Uint8Array): void {
  const target = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  let offset = 0;
  for (let line = 0; offset < target.length; line++) {
    const took = (line * 31) % 997;
    offset += target.write(
      `${line} GET /item/${(line * 7919) % 100_003} 200 in ${took} ms by worker ${took % 7}\n`,
      offset,
    );
  }
}

/** Shrinks with nothing. */
export function noise(bytes: Uint8Array): void {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
  let state = 0x2545_f491;
  for (let index = 0; index < words.length; index++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[index] = state;
  }
}

export function zeros(bytes: Uint8Array): void {
  bytes.fill(0);
}
