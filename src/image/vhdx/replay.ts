/**
 * The log of a VHDX file, replayed in memory: a file that was not closed in order is read as it would be after its log was written out, and
 * not touched. Only places are kept of what the log holds; content is read from the log when it is asked for.
 */
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
  parseChanges,
  parseEntryHead,
} from "./log-entries.ts";

/** What the log puts in place of a sector of the file. */
interface Content {
  readonly kind: "data";
  readonly logAt: number;
  readonly first: Uint8Array;
  readonly last: Uint8Array;
  /** Changes are numbered in the order in which they are made. */
  readonly order: number;
}

interface ZeroRange {
  readonly start: number;
  readonly end: number;
  readonly order: number;
}

/** Entries that overlap in the log would have it read again and again: real ones do not. */
const readFactorMax = 4;
const pieceBytes = MIB;

/** What a log changes of its file. */
export class LogOverlay {
  readonly #header: VhdxHeader;
  readonly #sectors = new Map<number, Content>();
  readonly #zeros: ZeroRange[] = [];
  #order = 0;
  /** The file is at least this long. */
  lastFileBytes = 0;
  /** First and last byte that is changed, exclusive. */
  #start = Number.POSITIVE_INFINITY;
  #end = 0;
  /** Entries that were replayed. */
  entries = 0;

  constructor(header: VhdxHeader) {
    this.#header = header;
  }

  add(entry: EntryHead, changes: NonNullable<ReturnType<typeof parseChanges>>): void {
    const { logBytes, logOffset } = this.#header;
    this.lastFileBytes = Math.max(this.lastFileBytes, entry.lastFileBytes);
    this.entries++;
    for (const change of changes) {
      const order = this.#order++;
      const { offset } = change;
      const end = offset + (change.kind === "zero" ? change.length : LOG_SECTOR_BYTES);
      if (change.kind === "zero") this.#zeros.push({ start: offset, end, order });
      else {
        const logAt = logOffset + ((entry.at + change.sector * LOG_SECTOR_BYTES) % logBytes);
        this.#sectors.set(offset, { kind: "data", logAt, first: change.first, last: change.last, order });
      }
      this.#start = Math.min(this.#start, offset);
      this.#end = Math.max(this.#end, end);
    }
  }

  /** Whether any byte of the range is another one than in the file. */
  touches(offset: number, length: number): boolean {
    const end = offset + length;
    if (end <= this.#start || offset >= this.#end) return false;
    if (this.#zeros.some((zero) => zero.start < end && zero.end > offset)) return true;
    const first = Math.floor(offset / LOG_SECTOR_BYTES) * LOG_SECTOR_BYTES;
    if ((end - first) / LOG_SECTOR_BYTES > this.#sectors.size) {
      for (const at of this.#sectors.keys()) if (at < end && at + LOG_SECTOR_BYTES > offset) return true;
      return false;
    }
    for (let at = first; at < end; at += LOG_SECTOR_BYTES) if (this.#sectors.has(at)) return true;
    return false;
  }

  /** All changes in the order in which they are made. `logAt`: where in the file the content is. */
  *changes(): Generator<
    | { readonly kind: "zero"; readonly offset: number; readonly length: number }
    | ({ readonly offset: number } & Content)
  > {
    const all = [
      ...this.#zeros.map((zero) => ({ order: zero.order, zero, offset: zero.start, content: undefined })),
      ...[...this.#sectors].map(([offset, content]) => ({ order: content.order, zero: undefined, offset, content })),
    ].sort((a, b) => a.order - b.order);
    for (const { zero, offset, content } of all) {
      if (zero !== undefined) yield { kind: "zero", offset, length: zero.end - zero.start };
      else if (content !== undefined) yield { ...content, offset };
    }
  }

  /** What is in place of the sector at `offset`: undefined: what the file has. */
  sector(offset: number): "zero" | Content | undefined {
    const content = this.#sectors.get(offset);
    let zeroed = -1;
    for (const { start, end, order } of this.#zeros) if (start <= offset && offset < end) zeroed = order;
    if (zeroed >= 0 && (content === undefined || content.order < zeroed)) return "zero";
    return content;
  }
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
  const flushed = Math.max(...sequence.map((entry) => entry.flushedFileBytes));
  if (bounds.fileBytes < flushed) {
    throw vhdxDamaged(
      file.path,
      `it has ${bounds.fileBytes} bytes, and had at least ${flushed} when its log was written: it was cut short`,
    );
  }
  const overlay = new LogOverlay(header);
  for (const entry of sequence) overlay.add(entry, await log.changes(entry, bounds));
  return overlay;
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
      const end = offset + (change.kind === "zero" ? change.length : LOG_SECTOR_BYTES);
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
    const first = descriptorSectors(head) * LOG_SECTOR_BYTES;
    const front = new Uint8Array(first);
    await this.#fill(front, head.at);
    const checksum = new DataView(front.buffer).getUint32(4, true);
    const changes = parseChanges(front, head);
    if (changes === undefined) return false;
    front.fill(0, 4, 8);
    let crc = crc32c(front);
    const piece = new Uint8Array(Math.min(pieceBytes, head.length - first));
    for (let done = first; done < head.length; ) {
      const part = piece.subarray(0, head.length - done);
      await this.#fill(part, head.at + done);
      crc = crc32c(part, crc);
      for (let at = 0; at < part.length; at += LOG_SECTOR_BYTES) {
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
