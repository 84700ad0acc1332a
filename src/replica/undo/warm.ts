/**
 * Before a large log is scanned: what the scan looks at is brought into the page cache. The scan is one synchronous step, which on a slow disk would take
 * longer than other sessions of the process wait for a sign of life: two places a batch, a MiB apart.
 */
import { errnoOf, ReplicationError } from "../../base/errors.ts";
import { MIB } from "../../base/units.ts";
import type { StorageFile } from "../../storage/seam.ts";
import { decodeBatchHeader, decodeUndoHeader, UNDO_BATCH_HEADER_BYTES, UNDO_PAGE_BYTES } from "./format.ts";

/** Of shorter logs the scan is short as well. */
export const WARM_BYTES_MIN = 16 * MIB;

/** Header and heads of every batch, and the byte its content ends with. Judges nothing: where it cannot go on the scan says why. */
export async function warmLog(file: Pick<StorageFile, "path" | "read">, sizeBytes: number): Promise<void> {
  const page = new Uint8Array(UNDO_PAGE_BYTES);
  try {
    const header = decodeUndoHeader(file.path, page.subarray(0, await file.read(page, 0)));
    for (let at = UNDO_PAGE_BYTES; at < sizeBytes; ) {
      const batch = decodeBatchHeader(page.subarray(0, await file.read(page, at)), header, at);
      if (batch === undefined) return;
      const more = UNDO_BATCH_HEADER_BYTES + batch.headsBytes - page.length;
      if (more > 0) await file.read(new Uint8Array(more), at + page.length);
      await file.read(new Uint8Array(1), batch.contentEnd - 1);
      at = batch.end;
    }
  } catch (error) {
    if (!(error instanceof ReplicationError) && errnoOf(error) === undefined) throw error;
  }
}
