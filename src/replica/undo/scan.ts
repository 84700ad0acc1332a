/**
 * What recovery has to know of an open log before anything is applied: where it ends, which checkpoint is in force, and what of it
 * is damaged. Reads the heads of all batches, and the contents of those nothing proves to have been durable.
 */
import { countParts } from "../../base/part-mask.ts";
import { crc32 } from "node:zlib";
import {
  damagedAt,
  type KnownUndoFile,
  openUndoFile,
  readHeads,
  readLog,
  surveyBatches,
  type UndoFile,
  type UndoStretch,
  walkBatches,
} from "./batches.ts";
import type { UndoEntry, UndoHeader } from "./entry.ts";
import { EntryList, packHeads } from "./entry-list.ts";
import {
  type BatchHeader,
  batchKinds,
  decodeCheckpoint,
  type FooterRun,
  type FooterTotals,
  seedAt,
  UNDO_PAGE_BYTES,
} from "./format.ts";
import { decodeFences, decodeIndexPage } from "./index-run.ts";

export interface UndoScan {
  readonly file: KnownUndoFile;
  readonly header: UndoHeader;
  /**
   * End of the last good batch, a multiple of 4096: what lies behind it is to be cut. The file may end a little before it, where the
   * padding of the last batch was not written.
   */
  readonly goodEnd: number;
  /** A footer at `goodEnd`, to be cut too. */
  readonly footerOffset: number | undefined;
  /** Largest offset a batch named as durable. */
  readonly durable: number;
  /** Offset of the checkpoint in force: entries of batches that end behind it may not have reached the replica. 0: of all batches. */
  readonly checkpoint: number;
  /** Stretches that were durable and cannot be read. What they held is not known. */
  readonly damage: readonly UndoStretch[];
  /** Damage of index runs: what they hold is in the batches too. */
  readonly indexDamage: readonly UndoStretch[];
  /** Of the entries that can be read. For the footer: `batchesEnd` is `goodEnd`. */
  readonly totals: FooterTotals;
  /** Index runs, those whose heads are damaged among them. */
  readonly runs: readonly FooterRun[];
  /** Entries of batches that begin here or behind are in no index run. */
  readonly indexedTo: number;
}

/** Synchronous; memory for the heads of one batch. Throws `store-damaged` for a bad header, `store-version-unsupported`. */
export function scanUndoLog(log: UndoFile): UndoScan {
  const file = openUndoFile(log);
  const survey = surveyBatches(file, UNDO_PAGE_BYTES, undefined, () => undefined);
  const state: Scanned = {
    goodEnd: survey.end,
    checkpoint: 0,
    damage: [...survey.gaps],
    indexDamage: [],
    runs: [],
    indexedTo: UNDO_PAGE_BYTES,
    entries: 0,
    parts: 0,
    damagedEntries: 0,
  };
  walkBatches(file, { from: UNDO_PAGE_BYTES, end: survey.end, gaps: survey.gaps }, (batch) => {
    const durable = batch.offset < survey.durable;
    if (takeBatch(file, batch, durable, state)) return true;
    if (!durable) {
      state.goodEnd = batch.offset;
      return false;
    }
    const stretches = batch.kind === batchKinds.index ? state.indexDamage : state.damage;
    stretches.push({ offset: batch.offset, length: batch.end - batch.offset });
    return true;
  });
  const { goodEnd, entries, parts, damagedEntries } = state;
  return {
    file,
    header: file.header,
    goodEnd,
    footerOffset: survey.footerOffset === goodEnd ? goodEnd : undefined,
    durable: survey.durable,
    checkpoint: state.checkpoint,
    damage: state.damage.sort((a, b) => a.offset - b.offset),
    indexDamage: state.indexDamage,
    totals: { entries, parts, damagedEntries, batchesEnd: goodEnd },
    runs: state.runs,
    indexedTo: state.indexedTo,
  };
}

interface Scanned {
  goodEnd: number;
  checkpoint: number;
  readonly damage: UndoStretch[];
  readonly indexDamage: UndoStretch[];
  readonly runs: FooterRun[];
  indexedTo: number;
  entries: number;
  parts: number;
  damagedEntries: number;
}

/** False: the batch is bad. Contents of a batch that was durable are not read. */
function takeBatch(file: KnownUndoFile, batch: BatchHeader, durable: boolean, state: Scanned): boolean {
  const heads = readHeads(file, batch);
  if (heads === undefined) {
    // Its place ends what it lists all the same: the next run lists only what lies behind. Who reads finds the heads bad, and looks at the batches.
    if (durable && batch.kind === batchKinds.index) takeRun(batch, state);
    return false;
  }
  if (batch.kind === batchKinds.checkpoint) {
    state.checkpoint = decodeCheckpoint(heads, batch.offset) ?? 0;
    return true;
  }
  if (batch.kind === batchKinds.index) {
    if (!durable && badIndexPage(file, batch, heads) !== undefined) return false;
    takeRun(batch, state);
    return true;
  }
  const list = listOf(file, batch, heads);
  if (list === undefined || (!durable && badContent(file, list) !== undefined)) return false;
  state.entries += list.count;
  for (let index = 0; index < list.count; index++) {
    const entry = list.entry(index);
    state.parts += countParts(entry.mask) * entry.run;
    if (entry.damaged) state.damagedEntries++;
  }
  return true;
}

function takeRun({ offset, contentBytes, count, end }: BatchHeader, state: Scanned): void {
  state.runs.push({ offset, pages: contentBytes / UNDO_PAGE_BYTES, count });
  state.indexedTo = end;
}

function listOf(file: KnownUndoFile, batch: BatchHeader, heads: Uint8Array): EntryList | undefined {
  const packed = packHeads(batch, heads, file.header);
  return packed === undefined ? undefined : new EntryList(packed, file.header);
}

/** The first entry of a list whose content is not what was written. */
export function badContent(file: KnownUndoFile, list: EntryList): UndoEntry | undefined {
  const content = new Uint8Array(file.header.blockBytes);
  for (let index = 0; index < list.count; index++) {
    const entry = list.entry(index);
    if (entry.contentBytes === 0) continue;
    const target = content.subarray(0, entry.contentBytes);
    const count = readLog(file, target, entry.contentOffset);
    if (count < target.length || crc32(target, seedAt(file.header.id, entry.block)) !== entry.contentChecksum) {
      return entry;
    }
  }
  return undefined;
}

/** The first damaged page of an index run, as a number. `heads`: checked. */
export function badIndexPage(file: KnownUndoFile, batch: BatchHeader, heads: Uint8Array): number | undefined {
  const fences = decodeFences(heads) ?? new Float64Array();
  const bytes = new Uint8Array(UNDO_PAGE_BYTES);
  for (let page = 0; page < fences.length; page++) {
    const count = readLog(file, bytes, batch.contentStart + page * UNDO_PAGE_BYTES);
    if (count < bytes.length || decodeIndexPage(bytes, batch, fences, page, file.header) === undefined) return page;
  }
  return undefined;
}

/** A batch of entries, as {@link readUndoBatches} gives it. */
export interface UndoBatch {
  readonly offset: number;
  readonly end: number;
  readonly count: number;
  /** In the order they were written. To be used within the call only. */
  readonly entries: Iterable<UndoEntry>;
}

/**
 * The batches of entries of a scanned log that end behind `from`, in order; those in damage are left out. Memory for one batch.
 * Throws `store-damaged` when the log is no longer what was scanned.
 */
export function readUndoBatches(scan: UndoScan, from: number, each: (batch: UndoBatch) => void): void {
  const { file } = scan;
  walkBatches(file, { from: UNDO_PAGE_BYTES, end: scan.goodEnd, gaps: scan.damage }, (batch) => {
    if (batch.kind !== batchKinds.entries || batch.end <= from) return true;
    const heads = readHeads(file, batch);
    const list = heads === undefined ? undefined : listOf(file, batch, heads);
    // A batch that went bad since the scan: recovery starts again, and finds it as damage or as the end.
    if (list === undefined) throw damagedAt(file.path, batch.offset, "its heads went bad a moment ago");
    each({ offset: batch.offset, end: batch.end, count: list.count, entries: eachEntry(list) });
    return true;
  });
}

function* eachEntry(list: EntryList): Generator<UndoEntry> {
  for (let index = 0; index < list.count; index++) yield list.entry(index);
}
