/** Facts about an undo log, for `inspect`: everything in it is read but the contents, and those on request. */
import { countParts } from "../../base/part-mask.ts";
import {
  batchAt,
  isWritten,
  type KnownUndoFile,
  openUndoFile,
  reaches,
  readHeads,
  surveyBatches,
  type UndoFile,
  walkBatches,
} from "./batches.ts";
import type { ClosedLog, UndoHeader } from "./entry.ts";
import { type BatchHeader, batchKinds, decodeCheckpoint, decodeFooter, UNDO_PAGE_BYTES } from "./format.ts";
import { badContent, badIndexPage } from "./scan.ts";
import { readEntries } from "./segment.ts";

/** Something wrong in a log, and where. */
export interface UndoTrouble {
  readonly offset: number;
  readonly length: number;
  readonly what: string;
}

export interface UndoFacts {
  readonly header: UndoHeader;
  /** Where its batches end: where a footer is, or an open log goes on. */
  readonly endBytes: number;
  /** Good ones, by kind. */
  readonly batches: {
    readonly entries: number;
    readonly checkpoint: number;
    readonly index: number;
    readonly footer: number;
  };
  readonly entries: number;
  /** Of them: of zeros; with content that did not match the table; without parts. */
  readonly zeroEntries: number;
  readonly damagedEntries: number;
  readonly emptyEntries: number;
  readonly parts: number;
  /** As stored. */
  readonly contentBytes: number;
  /** Offset of the checkpoint in force; 0: none. */
  readonly checkpoint: number;
  /** The first ones, in the order of the file. */
  readonly trouble: readonly UndoTrouble[];
  /** All that was found. */
  readonly troubleCount: number;
}

const troubleMax = 100;

/**
 * Synchronous; memory for the heads of one batch. `closed`: what the newer point's record says. `contents`: check them too. Throws
 * `store-damaged` for a bad header, `store-version-unsupported`.
 */
export function describeUndoLog(
  log: UndoFile,
  options: { readonly closed?: ClosedLog | undefined; readonly contents?: boolean } = {},
): UndoFacts {
  const file = openUndoFile(log);
  const facts = new Facts(file, options.contents ?? false);
  const closedAt = options.closed?.footerOffset;
  const survey = surveyBatches(file, UNDO_PAGE_BYTES, closedAt, () => undefined);
  for (const { offset, length } of survey.gaps) facts.add({ offset, length, what: "cannot be read, and was durable" });
  walkBatches(file, { from: UNDO_PAGE_BYTES, end: survey.end, gaps: survey.gaps }, (batch) => {
    facts.take(batch);
    return true;
  });
  facts.end(survey.end, options.closed);
  return facts.result();
}

class Facts {
  readonly #file: KnownUndoFile;
  readonly #contents: boolean;
  readonly #batches = { entries: 0, checkpoint: 0, index: 0, footer: 0 };
  readonly #sums = { entries: 0, zeroEntries: 0, damagedEntries: 0, emptyEntries: 0, parts: 0, contentBytes: 0 };
  readonly #trouble: UndoTrouble[] = [];
  #troubleCount = 0;
  #checkpoint = 0;
  #endBytes = 0;
  /** Entries behind the last index run. */
  #unindexed = 0;

  constructor(file: KnownUndoFile, contents: boolean) {
    this.#file = file;
    this.#contents = contents;
  }

  add(trouble: UndoTrouble): void {
    this.#troubleCount++;
    if (this.#trouble.length < troubleMax) this.#trouble.push(trouble);
  }

  take(batch: BatchHeader): void {
    const heads = readHeads(this.#file, batch);
    if (heads === undefined) {
      this.#bad(batch, "heads do not match their checksum");
    } else if (batch.kind === batchKinds.entries) {
      this.#takeEntries(batch);
    } else if (batch.kind === batchKinds.checkpoint) {
      this.#batches.checkpoint++;
      this.#checkpoint = decodeCheckpoint(heads, batch.offset) ?? 0;
    } else if (batch.kind === batchKinds.index) {
      this.#batches.index++;
      const page = badIndexPage(this.#file, batch, heads);
      if (page !== undefined) this.#bad(batch, `page ${page} of the index run is damaged`);
      if (batch.count < this.#unindexed) {
        this.#bad(batch, `the index run lists ${batch.count} of ${this.#unindexed} entries`);
      }
      this.#unindexed = 0;
    }
  }

  end(endBytes: number, closed: ClosedLog | undefined): void {
    this.#endBytes = endBytes;
    const batch = batchAt(this.#file, endBytes);
    const heads = batch?.kind === batchKinds.footer && isWritten(this.#file, batch) && readHeads(this.#file, batch);
    const footer = batch !== undefined && heads instanceof Uint8Array ? decodeFooter(heads, endBytes) : undefined;
    const end = batch !== undefined && footer !== undefined ? batch.end : endBytes;
    if (footer !== undefined) this.#batches.footer++;
    if (closed !== undefined) {
      const { footerOffset: offset, sizeBytes } = closed;
      if (footer === undefined || batch?.bodyChecksum !== closed.footerChecksum || end !== sizeBytes) {
        this.add({ offset, length: sizeBytes - offset, what: "the footer is not the one the newer point names" });
      }
    }
    if (footer !== undefined && footer.totals.entries !== this.#sums.entries) {
      const what = `the footer counts ${footer.totals.entries} entries, ${this.#sums.entries} can be read`;
      this.add({ offset: endBytes, length: end - endBytes, what });
    }
    if (reaches(this.#file, end)) {
      const what = closed === undefined ? "a torn write, to be cut by the next writer" : "bytes behind the log's end";
      this.add({ offset: end, length: 0, what });
    }
  }

  result(): UndoFacts {
    return {
      header: this.#file.header,
      endBytes: this.#endBytes,
      batches: this.#batches,
      ...this.#sums,
      checkpoint: this.#checkpoint,
      trouble: this.#trouble.sort((a, b) => a.offset - b.offset),
      troubleCount: this.#troubleCount,
    };
  }

  #bad(batch: BatchHeader, what: string): void {
    this.add({ offset: batch.offset, length: batch.end - batch.offset, what });
  }

  #takeEntries(batch: BatchHeader): void {
    this.#unindexed += batch.count;
    const list = readEntries(this.#file, batch);
    if (list === undefined) {
      this.#bad(batch, "entries that cannot be");
      return;
    }
    this.#batches.entries++;
    const sums = this.#sums;
    sums.entries += list.count;
    for (let index = 0; index < list.count; index++) {
      const entry = list.entry(index);
      const parts = countParts(entry.mask);
      sums.parts += parts * entry.run;
      sums.contentBytes += entry.contentBytes;
      if (entry.zero) sums.zeroEntries++;
      if (entry.damaged) sums.damagedEntries++;
      if (parts === 0) sums.emptyEntries++;
    }
    if (!this.#contents) return;
    const bad = badContent(this.#file, list);
    if (bad === undefined) return;
    const what = `content of block ${bad.block} does not match its checksum`;
    this.add({ offset: bad.contentOffset, length: bad.contentBytes, what });
  }
}
