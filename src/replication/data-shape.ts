/** What the wire cannot check of a data frame, because it does not know the disk. */
import { ReplicationError } from "../base/errors.ts";
import { digestBytes, type Geometry, maskBytes, partsPerBlock } from "../base/units.ts";
import type { Data } from "../wire/messages.ts";

/** Throws `message-malformed` when masks or digests are not those of such blocks. */
export function checkDataShape(message: Data, geometry: Geometry, disk: string): void {
  const { blocks, masks, digests } = message;
  const { blockBytes, digestKind } = geometry;
  if (
    digests.length === blocks.length * digestBytes(digestKind) &&
    masks.length === blocks.length * maskBytes(blockBytes) &&
    masksFit(masks, partsPerBlock(blockBytes))
  ) {
    return;
  }
  throw new ReplicationError("message-malformed", `data for disk ${disk}: masks or digests do not fit its blocks`);
}

/** No mask names a part behind the end of its block: only where a block has fewer parts than a byte has bits. */
function masksFit(masks: Uint8Array, parts: number): boolean {
  return parts >= 8 || masks.every((mask) => mask >> parts === 0);
}
