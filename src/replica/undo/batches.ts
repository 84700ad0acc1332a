/**
 * The batches of a log: read, walked, and judged. A batch that cannot be read is *damage* when something says that it was durable
 * (a later batch whose header names a durable offset behind it, or a commit that closed the log); else the log ends before it.
 */
import type { LaneStorage } from "../../storage/seam.ts";
import { KIB } from "../../base/units.ts";
import { ReplicationError } from "../../base/errors.ts";
import { fileError } from "../file-error.ts";
import type { UndoHeader, UndoStretch } from "./entry.ts";
import { decodeFences } from "./index-run.ts";
import {
  type BatchHeader,
  batchKinds,
  bodyChecksum,
  decodeBatchHeader,
  decodeCheckpoint,
  decodeFooter,
  decodeUndoHeader,
  UNDO_BATCH_HEADER_BYTES,
  UNDO_HEADER_BYTES,
  UNDO_PAGE_BYTES,
  undoBatchMagic,
} from "./format.ts";

export type { UndoStretch } from "./entry.ts";

/** An open log. The descriptor belongs to the caller. */
export interface UndoFile {
  readonly path: string;
  readonly lanes: LaneStorage;
  readonly fd: number;
}

/** An open log whose header is known. */
export interface KnownUndoFile extends UndoFile {
  readonly header: UndoHeader;
}

/** What a walk over batch headers found. */
export interface Survey {
  /** End of the last batch that counts, or of the last stretch of damage. */
  readonly end: number;
  /** Largest offset a header was found to name as durable. */
  readonly durable: number;
  /** Damage: skipped, in order. */
  readonly gaps: readonly UndoStretch[];
  /** A footer that ends an open log. */
  readonly footerOffset: number | undefined;
  /** Where the file ended when the log's end was judged; undefined: it was not searched. */
  readonly searchedTo: number | undefined;
}

const searchBytes = 64 * KIB;

/** Throws `store-damaged`, `store-version-unsupported`. */
export function openUndoFile({ path, lanes, fd }: UndoFile): KnownUndoFile {
  const bytes = new Uint8Array(UNDO_HEADER_BYTES);
  const count = readLog({ path, lanes, fd }, bytes, 0);
  return { path, lanes, fd, header: decodeUndoHeader(path, bytes.subarray(0, count)) };
}

/** Fills `target`; returns bytes read, fewer only at the end of the file. Throws `store-damaged` for what the device refuses. */
export function readLog(file: UndoFile, target: Uint8Array, offset: number): number {
  try {
    return file.lanes.read(file.fd, target, offset);
  } catch (error) {
    throw fileError(error, "store-damaged", `reading ${file.path} at offset ${offset}`);
  }
}

/** `store-damaged` for one place of a log. */
export function damagedAt(path: string, offset: number, why: string, cause?: unknown): ReplicationError {
  return new ReplicationError(
    "store-damaged",
    `${path} is damaged at offset ${offset}: ${why}. Its point and older ones cannot be read there; newer points can`,
    { details: { offset }, cause },
  );
}

/** The header of the batch at `offset`; undefined: none that can be trusted. */
export function batchAt(file: KnownUndoFile, offset: number): BatchHeader | undefined {
  const bytes = new Uint8Array(UNDO_BATCH_HEADER_BYTES);
  return readLog(file, bytes, offset) < bytes.length ? undefined : decodeBatchHeader(bytes, file.header, offset);
}

/** Whether the file reaches the end of the batch's content; the padding behind it may be missing. */
export function isWritten(file: KnownUndoFile, batch: BatchHeader): boolean {
  return reaches(file, batch.contentEnd - 1);
}

/** Whether the file has a byte at `offset`. */
export function reaches(file: UndoFile, offset: number): boolean {
  return readLog(file, new Uint8Array(1), offset) === 1;
}

/** The heads of a batch; undefined: damaged, or nothing a writer writes. Entries themselves are checked by packHeads. */
export function readHeads(file: KnownUndoFile, batch: BatchHeader): Uint8Array | undefined {
  const heads = new Uint8Array(batch.headsBytes);
  if (readLog(file, heads, batch.offset + UNDO_BATCH_HEADER_BYTES) < heads.length) return undefined;
  if (bodyChecksum(batch.id, heads) !== batch.bodyChecksum) return undefined;
  const { kind } = batch;
  const fits =
    kind === batchKinds.entries ||
    (kind === batchKinds.checkpoint && decodeCheckpoint(heads, batch.offset) !== undefined) ||
    (kind === batchKinds.index && decodeFences(heads) !== undefined) ||
    (kind === batchKinds.footer && decodeFooter(heads, batch.offset) !== undefined);
  return fits ? heads : undefined;
}

/**
 * Walks the headers of the batches from `from`, reading no heads. `closedAt`: everything below it was durable when the log was closed;
 * undefined: an open log, whose end is judged. `visit` gets each batch but a footer.
 */
export function surveyBatches(
  file: KnownUndoFile,
  from: number,
  closedAt: number | undefined,
  visit: (batch: BatchHeader) => void,
): Survey {
  const gaps: UndoStretch[] = [];
  let at = from;
  let durable = 0;
  let evidence = 0;
  let searchedTo: number | undefined;
  while (closedAt === undefined || at < closedAt) {
    const batch = batchAt(file, at);
    if (batch !== undefined && batch.end <= (closedAt ?? Number.POSITIVE_INFINITY) && isWritten(file, batch)) {
      durable = Math.max(durable, batch.durable);
      if (batch.kind !== batchKinds.footer) visit(batch);
      else if (closedAt === undefined)
        return { end: at, durable: Math.max(durable, evidence), gaps, footerOffset: at, searchedTo };
      at = batch.end;
      continue;
    }
    // Longer than the file: still being written, or cut. Nothing can follow it.
    if (batch !== undefined && closedAt === undefined) break;
    if (closedAt === undefined && !reaches(file, at)) {
      searchedTo = at;
      break;
    }
    const judged = judge(file, at, { closedAt, evidence });
    ({ searchedTo, evidence } = judged);
    if (judged.next === undefined) break;
    if (judged.next > at) gaps.push({ offset: at, length: judged.next - at });
    at = judged.next;
  }
  return { end: at, durable: Math.max(durable, evidence), gaps, footerOffset: undefined, searchedTo };
}

/**
 * Walks once more the batches a survey found from `from` to `end`. `visit` returns false to stop. Throws `store-damaged` when the
 * log is no longer what it was.
 */
export function walkBatches(
  file: KnownUndoFile,
  range: { readonly from: number; readonly end: number; readonly gaps: readonly UndoStretch[] },
  visit: (batch: BatchHeader) => boolean,
): void {
  const skip = new Map(range.gaps.map((gap) => [gap.offset, gap.length]));
  for (let at = range.from; at < range.end; ) {
    const length = skip.get(at);
    if (length !== undefined) {
      at += length;
      continue;
    }
    const batch = batchAt(file, at);
    if (batch === undefined) throw damagedAt(file.path, at, "a batch that was there a moment ago cannot be read");
    if (!visit(batch)) return;
    at = batch.end;
  }
}

interface Judgement {
  /** Where to go on behind damage; undefined: the log ends; equal to the bad offset: the batch is good by now. */
  readonly next: number | undefined;
  readonly searchedTo: number | undefined;
  /** A durable offset some later batch names: what lies before it need not be judged by a search to the end again. */
  readonly evidence: number;
}

/** Whether the bad batch at `bad` is damage. */
function judge(
  file: KnownUndoFile,
  bad: number,
  { closedAt, evidence }: { readonly closedAt: number | undefined; readonly evidence: number },
): Judgement {
  const first = findBatch(file, bad + UNDO_PAGE_BYTES, closedAt);
  if (closedAt !== undefined) return { next: first.batch?.offset ?? closedAt, searchedTo: undefined, evidence };
  let later = first;
  let durable = evidence;
  while (later.batch !== undefined && durable <= bad) {
    durable = Math.max(durable, later.batch.durable);
    const follower = batchAt(file, later.batch.end);
    later = follower === undefined ? findBatch(file, later.batch.end, undefined) : { ...later, batch: follower };
  }
  const { searchedTo } = later;
  if (first.batch === undefined || durable <= bad) return { next: undefined, searchedTo, evidence };
  // A log that is being written: the batch may have been finished between the two looks.
  const again = batchAt(file, bad);
  const good = again !== undefined && isWritten(file, again);
  return { next: good ? bad : first.batch.offset, searchedTo, evidence: durable };
}

/** The first batch header at or behind `from`, a multiple of the page, and before `end`. */
function findBatch(
  file: KnownUndoFile,
  from: number,
  end: number | undefined,
): { readonly batch: BatchHeader | undefined; readonly searchedTo: number } {
  const chunk = new Uint8Array(searchBytes);
  for (let at = from; ; at += searchBytes) {
    const count = readLog(file, chunk, at);
    for (let within = 0; within + UNDO_BATCH_HEADER_BYTES <= count; within += UNDO_PAGE_BYTES) {
      if (end !== undefined && at + within >= end) return { batch: undefined, searchedTo: at + within };
      if (undoBatchMagic.compare(chunk, within, within + 8) !== 0) continue;
      const batch = decodeBatchHeader(chunk.subarray(within, count), file.header, at + within);
      if (batch !== undefined) return { batch, searchedTo: at + within };
    }
    if (count < searchBytes) return { batch: undefined, searchedTo: at + count };
  }
}
