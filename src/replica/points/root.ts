/** The root of a point from its digests: what says that none of them was made of content that had rotted before. */
import { pageCount } from "../../base/units.ts";
import { createPageDigests, pageDigest } from "../../table/page-digests.ts";
import { isDamage } from "../damaged-blocks.ts";
import type { PointReader } from "./reader.ts";

/** Pages between two turns for whatever else this process does. */
const pagesPerTurn = 32;

/**
 * Whether the digests of all blocks have the root the point was committed with. Undefined: some cannot be told, and reading those says so. Reads the table, and no content.
 * Throws `aborted`, and what is not damage.
 */
export async function hasItsRoot(
  reader: PointReader,
  how: { readonly pause: () => Promise<void>; readonly signal: AbortSignal },
): Promise<boolean | undefined> {
  const { blockBytes, digestKind } = reader.disk;
  const geometry = { sizeBytes: reader.sizeBytes, blockBytes, digestKind };
  const pages = createPageDigests(geometry);
  try {
    for (let page = 0; page < pageCount(geometry); page++) {
      if (page % pagesPerTurn === 0) await how.pause();
      how.signal.throwIfAborted();
      pages.set(page, pageDigest(await reader.digests(page)));
    }
  } catch (error) {
    if (isDamage(error)) return undefined;
    throw error;
  }
  return Buffer.from(pages.root()).toString("hex") === reader.point.root;
}
