/**
 * The messages of a session, as values. `message-codec.ts` turns them into msgpack headers with short keys and back, with
 * one validator each; `docs/protocol.md` has the byte tables. After validation inner code trusts these types.
 *
 * Directions: S sender of blocks (the client), R receiver (the server).
 */
import type { CodecName } from "../codec/compression.ts";
import type { DigestKind } from "../base/units.ts";

/** S→R, first frame of a connection, and R→S as the answer. Readable in a packet dump. */
export interface Hello {
  readonly type: "hello";
  /** Highest and lowest protocol version spoken. In the answer: both the agreed one. */
  readonly version: number;
  readonly versionMin: number;
  /** Features offered; in the answer: the agreed ones. */
  readonly features: readonly string[];
  /** Features without which this side will not go on. */
  readonly required: readonly string[];
  /** Stable id of the sending instance: hash(host id, absolute source name). A new session of the same identity and instance supersedes the old one. */
  readonly instance: string;
  /** Program and version, for logs only. */
  readonly software: string;
  /** R→S: opaque token with which further connections join this session. */
  readonly token?: string;
  /** S→R: joins the session of this token as a further connection (its number, from 1). */
  readonly join?: { readonly token: string; readonly connection: number };
}

/** S→R: which disk, and what the sender knows of it. */
export interface Open {
  readonly type: "open";
  readonly disk: string;
  readonly sizeBytes: number;
  /** Wanted for a new disk; undefined: the receiver's default. */
  readonly blockBytes?: number;
  readonly digestKind?: DigestKind;
  /** True where the user named block size or digest explicitly: a disk that differs is then an error, else the disk's wins. */
  readonly explicit: boolean;
  /** Identity of the source image, for "another image under a used name": hash(host id, absolute name, file identity). */
  readonly source: string;
  /** The source's name, for people. */
  readonly sourceName: string;
  readonly sectorBytes: number;
  /** Cycle id of this attempt's run: the same in all attempts of one run. */
  readonly cycle: string;
  /** Cycle the sender's dirty bits are relative to; undefined: none, everything is compared. */
  readonly baseCycle?: string;
  readonly generation?: string;
  readonly term?: number;
  readonly allowShrink: boolean;
  readonly adopt: boolean;
}

/** R→S: what the disk is. The disk's block size and digest kind win. */
export interface Opened {
  readonly type: "opened";
  /** True when the disk has no committed point yet. */
  readonly fresh: boolean;
  /** Newest committed point. */
  readonly point?: number;
  /** Its cycle. Equal to the sender's own cycle: that commit was durable already, nothing is to be done. */
  readonly cycle?: string;
  readonly root?: Uint8Array;
  /** Size of the disk the receiver answers for: of the replica before this session, at most of the source. */
  readonly sizeBytes: number;
  readonly blockBytes: number;
  readonly digestKind: DigestKind;
  /** True when every block is zero at the receiver: no digest need be asked. */
  readonly empty: boolean;
  /** True when the source that wrote the newest point was another one than the `source` of `open`. */
  readonly anotherSource: boolean;
  /** True when a delta was begun after the newest point and not committed: this session goes on with it. Undefined: false, or not told. */
  readonly interrupted?: boolean;
  /** Block where a resumed scan may start (it wraps round). A hint. */
  readonly resumeBlock: number;
  readonly generation: string;
  readonly term: number;
  /** Data and zero frames the sender may send before the first grant. */
  readonly credit: number;
  /** Codecs the receiver can decode. */
  readonly codecs: readonly CodecName[];
}

/** S→R: digests of table pages. */
export interface AskPages {
  readonly type: "ask-pages";
  readonly request: number;
  readonly first: number;
  readonly count: number;
}

/** R→S. Payload: a bit a page (bit i%8 of byte i>>3: page is not all zero blocks), then 32 bytes for each page whose bit is set, ascending. */
export interface Pages {
  readonly type: "pages";
  readonly request: number;
  readonly first: number;
  readonly count: number;
}

/** S→R: block digests of table pages. */
export interface AskBlocks {
  readonly type: "ask-blocks";
  readonly request: number;
  /** Page numbers, strictly ascending. */
  readonly pages: readonly number[];
}

/**
 * R→S. Some of the pages asked, in the order asked; the others follow in further frames. Payload: the pages' digests, {@link digestBytes} each, only of blocks that exist, one
 * page behind the other.
 */
export interface Blocks {
  readonly type: "blocks";
  readonly request: number;
  /** The first of these pages. */
  readonly page: number;
  readonly count: number;
}

/** S→R: part digests of what the replica holds for these blocks. */
export interface AskParts {
  readonly type: "ask-parts";
  readonly request: number;
  /** Strictly ascending. */
  readonly blocks: readonly number[];
}

/**
 * R→S. Payload: a bit a block asked (set: known; a block whose old content does not match its digest is not known and must be
 * sent whole), then 4 bytes little endian for each part of each known block, in the order asked.
 */
export interface Parts {
  readonly type: "parts";
  readonly request: number;
  readonly count: number;
}

/**
 * S→R: parts of blocks, over what the replica holds. A block whose mask is full is whole. Payload: all parts named, 4 KiB each (the
 * one at the end of the disk padded with zeros), in the order of blocks, then parts; compressed as one unit.
 */
export interface Data {
  readonly type: "data";
  /** Block numbers, strictly ascending. */
  readonly blocks: readonly number[];
  /** {@link maskBytes} for each block. */
  readonly masks: Uint8Array;
  /** Digest of each whole new block, {@link digestBytes} each. */
  readonly digests: Uint8Array;
  readonly codec: CodecName;
  /** Bytes of the payload when decompressed: parts named × 4096; at most 1 MiB. */
  readonly rawBytes: number;
  /** True for the answer to `ask-repeat`: the only case in which a block is sent twice. */
  readonly repeat: boolean;
}

/** S→R: blocks that are all zero now. Costs one credit like a data frame. */
export interface Zero {
  readonly type: "zero";
  readonly first: number;
  readonly count: number;
  readonly repeat: boolean;
}

/** R→S: further frames the sender may send. */
export interface Grant {
  readonly type: "grant";
  readonly frames: number;
}

/** R→S: these blocks did not come out as digested; send them whole. */
export interface AskRepeat {
  readonly type: "ask-repeat";
  /** Strictly ascending. */
  readonly blocks: readonly number[];
}

/** S→R, on the first connection, after everything else. The last one counts. */
export interface Commit {
  readonly type: "commit";
  readonly root: Uint8Array;
  /** Data and zero frames sent on each connection since `open`, by its number. */
  readonly frames: readonly number[];
  readonly cycle: string;
  readonly sizeBytes: number;
  /** Milliseconds since 1970 UTC, by the sender's clock: a label. */
  readonly time: number;
  readonly label?: string;
  readonly consistency: "crash" | "application" | "none";
  /** True: when nothing changed, commit no point (`--skip-empty`). */
  readonly skipEmpty: boolean;
  /** Of disks that are cut together: what all their points have in common, chosen anew for each cut. */
  readonly group?: string;
  /** With `group`: names of all disks of the cut, this one among them. */
  readonly members?: readonly string[];
}

/**
 * S→R in place of `commit`, when no point is to be made: all of a pass was sent. The last one counts. What was applied stays, for the next session to go on
 * from.
 */
export interface Pass {
  readonly type: "pass";
  readonly root: Uint8Array;
  /** As of {@link Commit}. */
  readonly frames: readonly number[];
}

/** R→S: exactly the frames of the pass are applied, and durable. */
export interface Synced {
  readonly type: "synced";
  readonly root: Uint8Array;
}

/** R→S: the point is on disk. Nothing before this message retires anything at the sender. */
export interface Durable {
  readonly type: "durable";
  readonly point: number;
  readonly root: Uint8Array;
  readonly cycle: string;
  /** False when `skipEmpty` left the newest point as it was. */
  readonly created: boolean;
}

/** Both ways, when there is nothing else to say. */
export interface Heartbeat {
  readonly type: "heartbeat";
  /** R→S: bytes of the disk received and applied, not durable. S→R: bytes of the disk scanned. */
  readonly bytes: number;
  /** What the side is busy with: `idle`, `scan`, `apply`, `sync`, `rebuild` ... For people. */
  readonly phase: string;
}

/** Both ways, then the connection closes. */
export interface ErrorMessage {
  readonly type: "error";
  readonly code: string;
  readonly message: string;
  readonly details: Readonly<Record<string, string | number | boolean | null>>;
}

/** Both ways: an orderly end. Success never depends on it. */
export interface Bye {
  readonly type: "bye";
}

export type Message =
  | Hello
  | Open
  | Opened
  | AskPages
  | Pages
  | AskBlocks
  | Blocks
  | AskParts
  | Parts
  | Data
  | Zero
  | Grant
  | AskRepeat
  | Commit
  | Durable
  | Pass
  | Synced
  | Heartbeat
  | ErrorMessage
  | Bye;

export type MessageType = Message["type"];

/** Message types that carry a payload behind their header. */
export const payloadTypes: ReadonlySet<MessageType> = new Set(["pages", "blocks", "parts", "data"]);
