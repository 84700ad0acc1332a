/** Block status descriptors as stretches of a disk. Pure. */

export interface StatusRange {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** Stretches one behind the other from `offset` on; neighbours with the same flags are one. `descriptors`: pairs of length and flags. */
export function* statusRanges(descriptors: Uint32Array, offset: number): Generator<StatusRange, void, undefined> {
  let start = offset;
  let end = offset;
  let flags = -1;
  for (let index = 0; index < descriptors.length; index += 2) {
    const next = descriptors[index + 1] ?? 0;
    if (next !== flags && end > start) {
      yield { offset: start, length: end - start, flags };
      start = end;
    }
    flags = next;
    end += descriptors[index] ?? 0;
  }
  if (end > start) yield { offset: start, length: end - start, flags };
}
