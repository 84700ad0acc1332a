/**
 * What an undo log holds, as values: old content of blocks, by part. docs/formats.md, "Undo log".
 */
import type { DigestKind } from "../../base/units.ts";

/** What a log says of itself, and what its entries are measured in. */
export interface UndoHeader {
  /** Random; seeds the checksums of everything else in the log. 8 bytes. */
  readonly id: Uint8Array;
  /** The point the log belongs to; 0: before the first. */
  readonly sequence: number;
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
  /** Size of the disk at that point. */
  readonly sizeBytes: number;
}

/** One record of a log: what some parts of a block held before they were overwritten for the first time since the log's point. */
export interface UndoEntry {
  /** First block. */
  readonly block: number;
  /** Blocks; more than one only when `zero`, and never beyond one table page. */
  readonly run: number;
  /** The parts held zeros, and there is no content. */
  readonly zero: boolean;
  /** The content did not match the table when it was read: it is not to be served as good. */
  readonly damaged: boolean;
  /** Digest of the whole old block as the table had it (all zero for a zero block); undefined: an earlier entry of the log has it. */
  readonly digest: Uint8Array | undefined;
  /** Parts, `maskBytes` long; of a run: of each of its blocks. Empty mask: the entry only says that the block was overwritten again. */
  readonly mask: Uint8Array;
  readonly codec: "stored" | "lz4";
  /** Where the content lies in the file; 0 when there is none. */
  readonly contentOffset: number;
  /** Bytes there. Decoded: 4096 for each part of the mask; the last part of the disk is padded with zeros. */
  readonly contentBytes: number;
  /** CRC-32 of these bytes, seeded by the log's id and the block. */
  readonly contentChecksum: number;
}

/** A log that was closed by a commit, as the newer point's record knows it. */
export interface ClosedLog {
  readonly sizeBytes: number;
  /** Offset of the footer batch. */
  readonly footerOffset: number;
  /** Its body checksum. */
  readonly footerChecksum: number;
  /** Stretches that could not be read while the log was open: the footer knows nothing of what they held. */
  readonly damage?: readonly UndoStretch[] | undefined;
}

/** Bytes of a log, by offset. */
export interface UndoStretch {
  readonly offset: number;
  readonly length: number;
}

/** Reads one log. Synchronous, positional; one owner; memory bounded (a few MiB), whatever the log's size. */
export interface UndoLogReader {
  readonly path: string;
  readonly header: UndoHeader;
  /** Read through a footer; an open log is read by its batches, and grows. */
  readonly closed: boolean;
  /** Bytes known so far. */
  readonly sizeBytes: number;
  /** Stretches that cannot be read, as found so far. What they held is not known: a lookup that misses proves nothing then. */
  readonly damage: readonly UndoStretch[];
  /** Open log: takes in the batches that were written since. True when there were any. */
  refresh(): boolean;
  /** Entries that touch blocks `first` to `first + count - 1` (within one table page), by block, then in the order they were written. */
  entries(first: number, count: number): readonly UndoEntry[];
  /** Lowest block at or behind `block` that has an entry; undefined: none. */
  nextBlock(block: number): number | undefined;
  /** Decodes an entry's content into `target`, exactly 4096 bytes for each part of its mask. Throws `store-damaged` naming file and offset. */
  readContent(entry: UndoEntry, target: Uint8Array): void;
}
