/** Chooses blocks called clean that are looked at all the same: a miss shows that the image is written past its tracker. Pure but for chance. */
import type { Random } from "../base/random.ts";
import { DirtyBitmap, type DiskBlocks } from "./dirty-bitmap.ts";

/** Blocks looked at side by side: their digests are asked for together. */
const blocksTogether = 64;

/** About `share` of all blocks (all for 1), in runs at places of chance, whatever is dirty among them; at least one run. Undefined: none are wanted, or there are none. */
export function chooseAudit(disk: DiskBlocks, share: number, random: Random): DirtyBitmap | undefined {
  if (share <= 0 || disk.sizeBytes === 0) return undefined;
  const chosen = new DirtyBitmap(disk);
  if (share >= 1) chosen.setAll();
  const runs = Math.ceil((chosen.blocks * Math.min(1, share)) / blocksTogether);
  const places = Math.ceil(chosen.blocks / blocksTogether);
  for (let run = 0; run < runs; run++) {
    const first = Math.min(places - 1, Math.floor(fraction(random) * places)) * blocksTogether;
    chosen.setRange({ first, count: Math.min(blocksTogether, chosen.blocks - first) });
  }
  return chosen.freeze();
}

/** From 0 to less than 1. */
function fraction(random: Random): number {
  return Buffer.from(random.bytes(6)).readUIntBE(0, 6) / 2 ** 48;
}
