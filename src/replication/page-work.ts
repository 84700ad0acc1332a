import type { FileRun } from "../image/block-device.ts";

/** One page of the table on its way through a scan. */
export interface PageWork {
  readonly page: number;
  readonly first: number;
  readonly count: number;
  /** Digests of the source, filled as blocks are read. */
  readonly digests: Uint8Array;
  /** Blocks not settled, and 1 for the scan itself. */
  open: number;
  /** What this page brought into the page cache. */
  cold: readonly FileRun[];
}
