/** Chooses blocks called clean that are looked at all the same: a miss shows that the image is written past its tracker. Pure but for chance. */
import type { Random } from "../base/random.ts";
import { DirtyBitmap, type DirtyBits } from "./dirty-bitmap.ts";

/** Blocks looked at side by side: their digests are asked for together. */
const blocksTogether = 64;

/**
 * About `share` of all blocks (all for 1), in runs at places of chance, each of them with a block that is not dirty; at least one run. Undefined: none are wanted, or
 * all are dirty.
 */
export function chooseAudit(dirty: DirtyBits, share: number, random: Random): DirtyBitmap | undefined {
  if (share <= 0) return undefined;
  const chosen = new DirtyBitmap(dirty);
  if (share >= 1) {
    if (dirty.count === chosen.blocks) return undefined;
    chosen.setAll();
    return chosen.freeze();
  }
  const places = Math.ceil(chosen.blocks / blocksTogether);
  const runs = Math.ceil((chosen.blocks * share) / blocksTogether);
  for (let run = 0; run < runs; run++) {
    const from = Math.floor(fraction(random) * places) * blocksTogether;
    const clean = nextClean(dirty, from) ?? nextClean(dirty, 0);
    if (clean === undefined) break;
    const first = clean - (clean % blocksTogether);
    chosen.setRange({ first, count: Math.min(blocksTogether, chosen.blocks - first) });
  }
  return chosen.count === 0 ? undefined : chosen.freeze();
}

/** The first block at or behind `from` that is not dirty. */
function nextClean(dirty: DirtyBits, from: number): number | undefined {
  const run = dirty.next(from);
  if (run === undefined || run.first > from) return from < dirty.blocks ? from : undefined;
  const behind = run.first + run.count;
  return behind < dirty.blocks ? behind : undefined;
}

/** From 0 to less than 1. */
function fraction(random: Random): number {
  return Buffer.from(random.bytes(6)).readUIntBE(0, 6) / 2 ** 48;
}
