/**
 * The log of a VHDX file, replayed in memory: a file that was not closed in order is read as it would be after its log was written out, and
 * not touched. Only places are kept of what the log holds; content is read from the log when it is asked for.
 */
import { firstFrom } from "../../base/halving.ts";
import { limits } from "../../base/limits.ts";
import { MIB } from "../../base/units.ts";
import type { StorageFile } from "../../storage/seam.ts";
import { crc32c } from "./crc32c.ts";
import { vhdxDamaged, vhdxUnsupported } from "./damage.ts";
import type { VhdxHeader } from "./headers.ts";
import {
  activeSequence,
  descriptorSectors,
  type EntryHead,
  isDataSector,
  LOG_SECTOR_BYTES,
  type LogChange,
  parseChanges,
  parseEntryHead,
} from "./log-entries.ts";

/** What the log puts in place of a sector of the file. */
interface Content {
  readonly kind: "data";
  /** Where in the file. */
  readonly logAt: number;
  readonly first: Uint8Array;
  readonly last: Uint8Array;
}

/** From `start` to `end`, exclusive. */
interface Range {
  readonly start: number;
  readonly end: number;
}

/** Entries that overlap in the log would have it read again and again: real ones do not. */
const readFactorMax = 4;
const pieceBytes = MIB;

/** What a log changes of its file. */
export class LogOverlay {
  readonly #sectors: ReadonlyMap<number, Content>;
  /** Those of the sectors, ascending. */
  readonly #offsets: Float64Array;
  /** Zeros where no sector is, ascending, none beside another. */
  readonly #zeros: readonly Range[];
  /** The file is at least this long. */
  readonly fileBytes: number;
  /** Entries that were replayed. */
  readonly entries: number;
  /** Changes that they made. */
  readonly changeCount: number;

  constructor(
    header: VhdxHeader,
    entries: readonly { readonly head: EntryHead; readonly changes: readonly LogChange[] }[],
  ) {
    const { logBytes, logOffset } = header;
    const sectors = new Map<number, Content>();
    const zeros: Range[] = [];
    let fileBytes = entries.at(-1)?.head.lastFileBytes ?? 0;
    for (const { head, changes } of entries) {
      for (const change of changes) {
        const { offset } = change;
        const end = offset + changeBytes(change);
        // A change behind the end makes the file longer.
        fileBytes = Math.max(fileBytes, end);
        if (change.kind === "zero") {
          if (end > offset) zeros.push({ start: offset, end });
          dropRange(sectors, offset, end);
        } else {
          const logAt = logOffset + ((head.at + change.sector * LOG_SECTOR_BYTES) % logBytes);
          sectors.set(offset, { kind: "data", logAt, first: change.first, last: change.last });
        }
      }
    }
    this.#sectors = sectors;
    this.#offsets = Float64Array.from(sectors.keys()).sort();
    this.#zeros = joinedRanges(zeros);
    this.fileBytes = fileBytes;
    this.entries = entries.length;
    this.changeCount = entries.reduce((sum, { changes }) => sum + changes.length, 0);
  }

  /** Whether any byte of the range is another one than in the file. */
  touches(offset: number, length: number): boolean {
    const end = offset + length;
    const zero = this.#zeros[firstFrom(this.#zeros.length, (index) => (this.#zeros[index]?.end ?? 0) > offset)];
    if (zero !== undefined && zero.start < end) return true;
    const at =
      this.#offsets[
        firstFrom(this.#offsets.length, (index) => (this.#offsets[index] ?? 0) + LOG_SECTOR_BYTES > offset)
      ];
    return at !== undefined && at < end;
  }

  /** All changes, of which none undoes another once they are made in this order. */
  *changes(): Generator<({ readonly kind: "zero" } & Range) | ({ readonly offset: number } & Content)> {
    for (const zero of this.#zeros) yield { kind: "zero", ...zero };
    for (const [offset, content] of this.#sectors) yield { ...content, offset };
  }

  /** What is in place of the sector at `offset`: undefined: what the file has. */
  sector(offset: number): "zero" | Content | undefined {
    const content = this.#sectors.get(offset);
    if (content !== undefined) return content;
    const zero = this.#zeros[firstFrom(this.#zeros.length, (index) => (this.#zeros[index]?.end ?? 0) > offset)];
    return zero !== undefined && zero.start <= offset ? "zero" : undefined;
  }
}

function changeBytes(change: LogChange): number {
  return change.kind === "zero" ? change.length : LOG_SECTOR_BYTES;
}

/** What was written before zeros came over it. */
function dropRange(sectors: Map<number, Content>, start: number, end: number): void {
  if ((end - start) / LOG_SECTOR_BYTES > sectors.size) {
    for (const at of sectors.keys()) if (at >= start && at < end) sectors.delete(at);
    return;
  }
  for (let at = start; at < end; at += LOG_SECTOR_BYTES) sectors.delete(at);
}

function joinedRanges(ranges: Range[]): Range[] {
  const joined: Range[] = [];
  for (const range of ranges.sort((a, b) => a.start - b.start)) {
    const last = joined.at(-1);
    if (last === undefined || range.start > last.end) joined.push(range);
    else if (range.end > last.end) joined[joined.length - 1] = { start: last.start, end: range.end };
  }
  return joined;
}

/** Where the log must not write, and what it says the file is. */
interface Bounds {
  readonly fileBytes: number;
  /** Signature and headers, which are never logged. */
  readonly headersEnd: number;
}

/**
 * Finds what is to be replayed. Errors: `image-damaged`: no sequence of entries is whole, the file is shorter than it was when they were
 * written, or they write where they must not; `image-format-unsupported`: the log is longer than {@link limits.vhdxLogBytesMax}.
 */
export async function replayInMemory(file: StorageFile, header: VhdxHeader, bounds: Bounds): Promise<LogOverlay> {
  const { logBytes, logOffset, logGuid } = header;
  if (logBytes > limits.vhdxLogBytesMax) {
    throw vhdxUnsupported(file.path, `its log of ${logBytes} bytes is longer than ${limits.vhdxLogBytesMax}`);
  }
  if (logOffset + logBytes > bounds.fileBytes) {
    throw vhdxDamaged(
      file.path,
      `the log at ${logOffset} reaches beyond the end of the file (${bounds.fileBytes} bytes)`,
    );
  }
  const log = new Log(file, header);
  const sequence = activeSequence(await log.entries(), logBytes);
  const last = sequence.at(-1);
  if (last === undefined) {
    throw vhdxDamaged(
      file.path,
      `log present but no valid log sequence: header at ${header.offset} names the log ${logGuid} at ${logOffset}, and no whole entry of it was found, ` +
        "so that the file cannot be read as it was last",
      { offset: logOffset },
    );
  }
  // The newest entry says how long the file is: one that was made shorter since an older one was written is whole.
  const { flushedFileBytes: flushed, lastFileBytes } = last;
  if (bounds.fileBytes < flushed) {
    throw vhdxDamaged(
      file.path,
      `it has ${bounds.fileBytes} bytes, and had at least ${flushed} when its log was written: it was cut short`,
    );
  }
  if (!Number.isSafeInteger(lastFileBytes)) {
    throw vhdxDamaged(file.path, `its log says that it has ${lastFileBytes} bytes, as no file has`, {
      offset: logOffset,
    });
  }
  const count = sequence.reduce((sum, { descriptors }) => sum + descriptors, 0);
  if (count > limits.vhdxLogChangesMax) {
    throw vhdxUnsupported(file.path, `its log makes ${count} changes, more than ${limits.vhdxLogChangesMax}`);
  }
  const entries: { readonly head: EntryHead; readonly changes: readonly LogChange[] }[] = [];
  for (const head of sequence) entries.push({ head, changes: await log.changes(head, bounds) });
  return new LogOverlay(header, entries);
}

class Log {
  readonly #file: StorageFile;
  readonly #header: VhdxHeader;
  #read = 0;

  constructor(file: StorageFile, header: VhdxHeader) {
    this.#file = file;
    this.#header = header;
  }

  /** All whole entries, by where they begin. */
  async entries(): Promise<Map<number, EntryHead>> {
    const { logBytes, logGuid } = this.#header;
    const found = new Map<number, EntryHead>();
    const piece = new Uint8Array(Math.min(pieceBytes, logBytes));
    for (let start = 0; start < logBytes; start += piece.length) {
      await this.#fill(piece, start);
      for (let within = 0; within < piece.length; within += LOG_SECTOR_BYTES) {
        const at = start + within;
        const head = parseEntryHead(piece.subarray(within, within + LOG_SECTOR_BYTES), { at, logBytes, logGuid });
        if (head !== undefined && (await this.#isWhole(head))) found.set(at, head);
      }
    }
    return found;
  }

  async changes(head: EntryHead, bounds: Bounds) {
    const bytes = new Uint8Array(descriptorSectors(head) * LOG_SECTOR_BYTES);
    await this.#fill(bytes, head.at);
    const changes = parseChanges(bytes, head) ?? [];
    const { logOffset, logBytes } = this.#header;
    for (const change of changes) {
      const { offset } = change;
      const end = offset + changeBytes(change);
      const intoLog = offset < logOffset + logBytes && end > logOffset;
      if (offset < bounds.headersEnd || intoLog) {
        throw vhdxDamaged(
          this.#file.path,
          `an entry of its log writes to ${offset}, which belongs to ${intoLog ? "the log itself" : "the headers"}`,
          { offset },
        );
      }
    }
    return changes;
  }

  /** Its checksum is right, and everything in it belongs to it. */
  async #isWhole(head: EntryHead): Promise<boolean> {
    const frontBytes = descriptorSectors(head) * LOG_SECTOR_BYTES;
    // One with more changes than can be replayed is whole by its checksum alone: what it claims is not brought into memory.
    const isLong = head.descriptors > limits.vhdxLogChangesMax;
    const front = new Uint8Array(isLong ? LOG_SECTOR_BYTES : frontBytes);
    await this.#fill(front, head.at);
    const checksum = new DataView(front.buffer).getUint32(4, true);
    if (!isLong && parseChanges(front, head) === undefined) return false;
    front.fill(0, 4, 8);
    let crc = crc32c(front);
    const piece = new Uint8Array(Math.min(pieceBytes, head.length - front.length));
    for (let done = front.length; done < head.length; ) {
      const part = piece.subarray(0, head.length - done);
      await this.#fill(part, head.at + done);
      crc = crc32c(part, crc);
      for (let at = Math.max(0, frontBytes - done); at < part.length; at += LOG_SECTOR_BYTES) {
        if (!isDataSector(part.subarray(at, at + LOG_SECTOR_BYTES), head.sequence)) return false;
      }
      done += part.length;
    }
    return crc === checksum;
  }

  /** Round the end of the log. */
  async #fill(target: Uint8Array, at: number): Promise<void> {
    const { logBytes, logOffset } = this.#header;
    this.#read += target.length;
    if (this.#read > logBytes * (1 + readFactorMax)) {
      throw vhdxDamaged(this.#file.path, "entries of its log overlap", { offset: logOffset });
    }
    for (let done = 0; done < target.length; ) {
      const place = (at + done) % logBytes;
      const part = target.subarray(done, done + Math.min(target.length - done, logBytes - place));
      const count = await this.#file.read(part, logOffset + place);
      if (count < part.length) {
        throw vhdxDamaged(this.#file.path, "it ends in its log", { offset: logOffset + place + count });
      }
      done += part.length;
    }
  }
}
