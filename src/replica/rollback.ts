/**
 * Puts a replica back to its newest point: what an interrupted delta overwrote is written again from the undo log. The log's entries stay: they
 * are true before and after.
 */
import { ReplicationError } from "../base/errors.ts";
import { blockCount, blockLength, type Geometry, pageCount } from "../base/units.ts";
import type { LaneStorage } from "../storage/seam.ts";
import { createPageDigests, type DigestTable } from "../table/digest-table.ts";
import { fileError } from "./file-error.ts";
import type { PointReader } from "./point-reader.ts";
import { hexOf } from "./table-files.ts";
import type { LoggedParts } from "./undo/logged.ts";

export interface RollbackParts {
  readonly lanes: LaneStorage;
  readonly disk: string;
  readonly replicaFd: number;
  readonly table: DigestTable;
  readonly logged: LoggedParts;
  /** The newest point. */
  readonly reader: PointReader;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes replica and table, and syncs nothing: the caller says before that every block the log names is in doubt, and syncs afterwards. Returns
 * the blocks that were put back. Throws `store-damaged` where the old content cannot be told, `write-failed`, `no-space`, `root-mismatch`.
 */
export async function putBack(parts: RollbackParts): Promise<number> {
  const { table, logged, reader, lanes, replicaFd, disk, signal } = parts;
  const { geometry } = table;
  const content = Buffer.alloc(geometry.blockBytes);
  const pointBlocks = Math.ceil(reader.sizeBytes / geometry.blockBytes);
  let done = 0;
  for (let block = 0; block < blockCount(geometry); block++) {
    if (!logged.has(block)) continue;
    signal?.throwIfAborted();
    const digest = block < pointBlocks ? Uint8Array.from(await reader.digest(block)) : undefined;
    if (digest === undefined || digest.every((byte) => byte === 0)) {
      if (table.isZero(block)) continue;
      clearBlock(parts, block, content);
      table.clear(block, 1);
    } else {
      if (Buffer.compare(digest, table.get(block)) === 0) continue;
      const offset = block * geometry.blockBytes;
      content.fill(0);
      await reader.read(content.subarray(0, Math.min(geometry.blockBytes, reader.sizeBytes - offset)), offset);
      const bytes = content.subarray(0, blockLength(geometry, block));
      writing(disk, offset, () => {
        lanes.write(replicaFd, bytes, offset);
      });
      table.set(block, 1, digest);
    }
    done++;
  }
  checkRoot(table, reader);
  return done;
}

function clearBlock({ lanes, disk, replicaFd, table }: RollbackParts, block: number, zeros: Buffer): void {
  const offset = block * table.geometry.blockBytes;
  const length = blockLength(table.geometry, block);
  writing(disk, offset, () => {
    if (lanes.punch(replicaFd, offset, length)) return;
    lanes.write(replicaFd, zeros.fill(0).subarray(0, length), offset);
  });
}

function writing(disk: string, offset: number, write: () => void): void {
  try {
    write();
  } catch (error) {
    throw fileError(error, "write-failed", `disk ${disk}: writing the replica at offset ${offset}`);
  }
}

/** The table is that of the point: of a disk that has grown meanwhile, in the point's part of it. */
function checkRoot(table: DigestTable, { point, disk }: PointReader): void {
  const geometry: Geometry = { ...table.geometry, sizeBytes: point.sizeBytes };
  const pages = createPageDigests(geometry);
  for (let page = 0; page < pageCount(geometry); page++) pages.set(page, table.pages.get(page));
  if (hexOf(pages.root()) === point.root) return;
  throw new ReplicationError(
    "root-mismatch",
    `disk ${disk.name}: put back to point ${point.point}, its table is not that of the point; verify the disk`,
  );
}
