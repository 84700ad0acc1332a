/**
 * The jobs lanes do, as values: what goes in, what comes out. Requests and results hold plain values and small arrays only (they are
 * copied between threads); block content stays in slots. Blocks are named by number, slots by index.
 */
import type { DigestKind } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";
import type { FileRun } from "../image/block-device.ts";

/** What both ends must agree on to digest. */
export interface BlockShape {
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
}

/** What became of a block in a scan. */
export const blockState = {
  /** Equal to what the receiver holds. */
  same: 0,
  /** All zero now and not at the receiver. */
  zero: 1,
  /** In the payload. */
  shipped: 2,
  /** Differs from a base that is not zero: its parts are to be compared. */
  differs: 3,
  /** Digested; the base was not given. */
  digested: 4,
} as const;

/** Blocks of a data frame whose payload lies in a slot. */
export interface Shipment {
  /** Indexes into the blocks of the request, ascending. */
  readonly picked: readonly number[];
  readonly masks: Uint8Array;
  readonly digests: Uint8Array;
  readonly codec: CodecName;
  readonly rawBytes: number;
  /** Where in the slot the payload lies. */
  readonly payloadOffset: number;
  readonly payloadBytes: number;
}

/** Blocks that follow one another; the last block of the disk is shorter. */
export interface ScanPiece {
  /** Where their bytes lie; undefined: they lie at their place in area A of the slot already. */
  readonly runs: readonly FileRun[] | undefined;
  /** Bytes of the disk. */
  readonly length: number;
}

/** Sender: reads blocks, digests them, ships those that are new over zero. Also rebuilds tables (base `unknown`). */
export interface ScanRequest extends BlockShape {
  readonly slot: number;
  /** Name of the image, for messages. */
  readonly file: string;
  /** In ascending order; one behind the other in area A, each from a whole block on. Together at most 1 MiB of blocks. */
  readonly pieces: readonly ScanPiece[];
  /** Digests of these blocks at the receiver. */
  readonly base: Uint8Array | "zero" | "unknown";
  readonly codec: CodecName;
}

export interface ScanResult {
  readonly digests: Uint8Array;
  /** A {@link blockState} for each block. */
  readonly states: Uint8Array;
  /** Part digests of the blocks that differ, in order: 4 bytes little endian a part. */
  readonly parts: Uint8Array;
  readonly shipment: Shipment | undefined;
}

/** Sender: digests stretches of a disk and compares them; nothing of them is shipped from here, and no slot is needed. */
export interface CompareRequest extends BlockShape {
  /** Name of the image, for messages. */
  readonly file: string;
  /** Stretches of whole blocks, the last block of the disk shorter: where their bytes lie, and how many. */
  readonly pieces: readonly { readonly runs: readonly FileRun[]; readonly length: number }[];
  /** Digests of their blocks at the receiver, one behind the other, none of a zero block. */
  readonly base: Uint8Array | "unknown";
}

/** Of the blocks of all pieces, one behind the other; as in {@link ScanResult}, and none `shipped`. */
export type CompareResult = Omit<ScanResult, "shipment">;

/** Sender: reads blocks of which the receiver's part digests were asked before, and packs the parts that differ. */
export interface DeltaRequest extends BlockShape {
  readonly slot: number;
  /** Name of the image, for messages. */
  readonly file: string;
  /** As in {@link ScanRequest}: at most 256 blocks, as many of which are read as there is room for what differs. Without runs together at most 1 MiB. */
  readonly pieces: readonly ScanPiece[];
  /** Digests of these blocks at the receiver, none of a zero block. */
  readonly base: Uint8Array;
  /** 1 for a block of which `parts` says something. */
  readonly known: Uint8Array;
  /** The receiver's part digests of these blocks: 4 bytes little endian a part. */
  readonly parts: Uint8Array;
  readonly codec: CodecName;
}

/** Of the blocks that were read: the first ones, at least one. States as in {@link ScanResult}, and none `differs`. */
export type DeltaResult = Omit<ScanResult, "parts">;

/** Sender: has runs read ahead that are not in the page cache. */
export interface ReadAheadRequest {
  readonly runs: readonly FileRun[];
}

export interface ReadAheadResult {
  /** Indexes of the runs that were not cached before: theirs is what to let go of afterwards. */
  readonly cold: readonly number[];
}

/** Sender: takes runs out of the page cache again. */
export interface LetGoRequest {
  readonly runs: readonly FileRun[];
}

/** Blocks that follow one another, and where their bytes lie. */
export interface BlockStretch {
  readonly blocks: number;
  /** Bytes of the disk: less than these blocks have only at its end. */
  readonly length: number;
  readonly runs: readonly FileRun[];
}

/** Sender: puts parts together that were found to differ, and compresses them. */
export interface PackRequest {
  readonly slot: number;
  readonly file: string;
  readonly blockBytes: number;
  /** Blocks of which parts are to be read, in order; undefined: area A of the slot holds the parts already. */
  readonly stretches: readonly BlockStretch[] | undefined;
  /** A part mask for each of these blocks. */
  readonly masks: Uint8Array;
  /** Bytes of the parts: a multiple of the part size. */
  readonly rawBytes: number;
  readonly codec: CodecName;
}

export interface PackResult {
  readonly codec: CodecName;
  /** Where in the slot the payload lies. */
  readonly payloadOffset: number;
  readonly payloadBytes: number;
}

/** What became of a block that was received. */
export const applyState = {
  written: 0,
  /** Parts over the old content did not give the digest: send it whole. */
  mismatch: 1,
  /** The old content cannot be read: send it whole. */
  damaged: 2,
  /** Not looked at yet. */
  unchecked: 3,
} as const;

/** A data frame as it lies in a slot. */
export interface ReceivedFrame {
  readonly payloadBytes: number;
  readonly codec: CodecName;
  readonly rawBytes: number;
  readonly blocks: readonly number[];
  readonly masks: Uint8Array;
  readonly digests: Uint8Array;
}

/** Receiver: decompresses, patches, checks digests, writes. */
export interface ApplyRequest extends BlockShape, ReceivedFrame {
  readonly slot: number;
  /** Name of the disk, for messages. */
  readonly disk: string;
  readonly fd: number;
  /** The same file past the page cache, for long runs. */
  readonly directFd: number | undefined;
  readonly sizeBytes: number;
  /** See `ReplicaBlocks`: each block to be written has its place. */
  readonly places?: readonly number[] | undefined;
  /** The table's digests of these blocks. */
  readonly base: Uint8Array;
  /** What `save` found of each block; undefined: nothing was saved. */
  readonly checked: Uint8Array | undefined;
  /** What was written before and still lies in the page cache: it is to go to the device now. Offsets of the file. */
  readonly writeback?: { readonly offset: number; readonly length: number } | undefined;
}

export interface ApplyResult {
  /** An {@link applyState} for each block. Only `written` ones were written. */
  readonly states: Uint8Array;
  readonly writtenBytes: number;
  /** Of these, bytes in the page cache that nobody has told the kernel to write. */
  readonly cachedBytes: number;
}

/**
 * Receiver: reads what parts hold before they are overwritten. Blocks whose base is zero are not asked about: they hold zeros. With a frame
 * the same reading tells whether it gives its digests, so that `apply` only writes.
 */
export interface SaveRequest extends BlockShape {
  readonly slot: number;
  /** Where in the slot the old content goes, one block's parts behind the other's: {@link oldContentAt}. */
  readonly contentAt: number;
  /** Name of the disk, for messages. */
  readonly disk: string;
  readonly fd: number;
  readonly sizeBytes: number;
  readonly blocks: readonly number[];
  /** See `ReplicaBlocks`. */
  readonly places?: readonly number[] | undefined;
  /** Parts to keep of each block; together at most area A. */
  readonly masks: Uint8Array;
  /** The table's digests of these blocks. */
  readonly base: Uint8Array;
  /** Of the checksums: see {@link SaveResult.checksums}. */
  readonly seed: number;
  /** `lz4`: content that shrinks is compressed. */
  readonly codec: "stored" | "lz4";
  /** What is about to overwrite them: these blocks, or more, in the same order. */
  readonly frame: ReceivedFrame | undefined;
  /**
   * Digests of the parts of these blocks ({@link OldPartsResult.wide}), zeros for a block of which they are not known. Of a block with them only the
   * parts to keep are read.
   */
  readonly known?: Uint8Array | undefined;
}

export interface SaveResult {
  /** 1 for a block that does not match its digest, or cannot be read: what was read is there all the same. */
  readonly damaged: Uint8Array;
  /** How many of them cannot be read. The job may be done again, when they perhaps can. */
  readonly unreadable: number;
  /** Bytes kept of each block, as they lie in the slot. */
  readonly contentBytes: Uint32Array;
  /** 1 where these are compressed. */
  readonly packed: Uint8Array;
  /** CRC-32 of these bytes, over that of the block's number (u64, little endian), over `seed`. */
  readonly checksums: Uint32Array;
  /** An {@link applyState} for each block of the frame, `written` standing for "to be written". Empty without a frame. */
  readonly checked: Uint8Array;
}

/** Receiver: writes `contentBytes` of the slot behind the place of `head`, then `head`; with zeros up to a whole page, or without. */
export interface AppendRequest {
  readonly slot: number;
  /** For messages. */
  readonly path: string;
  readonly fd: number;
  /** The same file past the page cache, for long content. */
  readonly directFd: number | undefined;
  readonly offset: number;
  readonly head: Uint8Array;
  readonly contentAt: number;
  readonly contentBytes: number;
}

/** Receiver: part digests of what the replica holds. */
export interface OldPartsRequest extends BlockShape {
  readonly disk: string;
  readonly fd: number;
  readonly sizeBytes: number;
  readonly blocks: readonly number[];
  /** See `ReplicaBlocks`. */
  readonly places?: readonly number[] | undefined;
  /** The table's digests of these blocks. */
  readonly base: Uint8Array;
}

export interface OldPartsResult {
  /** A bit a block: it can be read. */
  readonly known: Uint8Array;
  /** 4 bytes little endian for each part of each known block. */
  readonly parts: Uint8Array;
  /** 8 bytes little endian for each part of each block of `blocks` that is as the table says; zeros for others. Empty where a block's digest is none of parts. */
  readonly wide: Uint8Array;
}

/** Receiver: makes ranges of the replica's file zero. */
export interface ClearRequest {
  readonly disk: string;
  readonly fd: number;
  readonly ranges: readonly { readonly offset: number; readonly length: number }[];
}

/** Waits for what was written: fdatasync of a file. */
export interface SyncRequest {
  readonly disk: string;
  readonly fd: number;
}

export interface JobTypes {
  scan: { request: ScanRequest; result: ScanResult };
  compare: { request: CompareRequest; result: CompareResult };
  delta: { request: DeltaRequest; result: DeltaResult };
  readAhead: { request: ReadAheadRequest; result: ReadAheadResult };
  letGo: { request: LetGoRequest; result: null };
  pack: { request: PackRequest; result: PackResult };
  apply: { request: ApplyRequest; result: ApplyResult };
  save: { request: SaveRequest; result: SaveResult };
  append: { request: AppendRequest; result: null };
  oldParts: { request: OldPartsRequest; result: OldPartsResult };
  clear: { request: ClearRequest; result: null };
  sync: { request: SyncRequest; result: null };
}

export type JobName = keyof JobTypes;
