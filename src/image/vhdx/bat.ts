/** The block allocation table of a VHDX file, read page by page. [MS-VHDX] 2.5 */
import type { ReplicationError } from "../../base/errors.ts";
import { firstFrom } from "../../base/halving.ts";
import { limits } from "../../base/limits.ts";
import { PagedBits } from "../../base/paged-bits.ts";
import { GIB, MIB } from "../../base/units.ts";
import { vhdxDamaged } from "./damage.ts";
import type { VhdxDisk } from "./metadata.ts";
import type { BlockMap, BlockStretch } from "../mapped-reader.ts";
import { sectorRun } from "../sector-bits.ts";
import { TABLE_PAGE_BYTES, type TableFile, TablePages } from "../table-pages.ts";
import { headerSectionBytes, type Region } from "./region-table.ts";

/** States of payload blocks. */
export const payloadState = {
  notPresent: 0,
  undefined: 1,
  zero: 2,
  unmapped: 3,
  present: 6,
  partlyPresent: 7,
} as const;

const bitmapPresent = 6;
const entryBytes = 8;
/** Sectors whose bits one bitmap block has. */
const sectorsPerBitmap = 2 ** 23;
const bitmapBlockBytes = MIB;
/** Of regions: their length has 32 bits. */
const tableBytesMax = 4 * GIB;

/** Payload blocks between two entries of sector bitmaps. A power of two. */
export function chunkRatio({ sectorBytes, payloadBlockBytes }: VhdxDisk): number {
  return (sectorsPerBitmap * sectorBytes) / payloadBlockBytes;
}

/** Entries that a disk needs. */
export function batEntries(disk: VhdxDisk): number {
  const blocks = Math.ceil(disk.sizeBytes / disk.payloadBlockBytes);
  const ratio = chunkRatio(disk);
  if (blocks === 0) return 0;
  return disk.hasParent ? Math.ceil(blocks / ratio) * (ratio + 1) : blocks + Math.floor((blocks - 1) / ratio);
}

export class Bat implements BlockMap {
  readonly #file: TableFile;
  readonly #disk: VhdxDisk;
  readonly #region: Region;
  readonly #ratio: number;
  readonly #entries: number;
  /** Where nothing of a disk's content can lie, none over another, ascending. */
  readonly #taken: readonly { readonly name: string; readonly offset: number; readonly length: number }[];
  readonly #pages: TablePages;
  readonly #oneForEach: boolean;
  /** Pages of the table of which every entry was looked at, by number. */
  readonly #checked = new PagedBits(tableBytesMax / TABLE_PAGE_BYTES);
  /** What of the file, in MiB, an entry of those pages gives to a block. */
  readonly #given = new PagedBits(limits.imageFileBytesMax / MIB);
  /** That it gave one place twice: then no entry of it is believed. */
  #broken: ReplicationError | undefined;

  readonly payloadBlockBytes: number;

  constructor(options: {
    readonly file: TableFile;
    readonly disk: VhdxDisk;
    readonly region: Region;
    readonly taken: readonly { readonly name: string; readonly offset: number; readonly length: number }[];
    /** Default: all that the tables of one image may have. */
    readonly cacheBytes?: number;
    /** Who knows by other means what a block must hold need not lose them all to two entries that name one place. Default: they do. */
    readonly oneForEach?: boolean;
  }) {
    this.#file = options.file;
    this.#disk = options.disk;
    this.payloadBlockBytes = options.disk.payloadBlockBytes;
    this.#region = options.region;
    this.#taken = [...options.taken].sort((a, b) => a.offset - b.offset);
    this.#ratio = chunkRatio(options.disk);
    this.#entries = batEntries(options.disk);
    this.#pages = new TablePages(options.file, { cacheBytes: options.cacheBytes });
    this.#oneForEach = options.oneForEach ?? true;
  }

  /** Has the entry of a block in memory, and those around it. */
  async fetch(block: number): Promise<void> {
    const index = this.#indexOf(block);
    if (this.#unwrittenFrom(index) === index) await this.#pages.fetch(this.#place(index).page);
  }

  /**
   * What is true of `first` and of as many blocks behind it as are known to be alike without reading another page; at most up to `end`.
   * Errors: `image-damaged` with block and offset.
   */
  stretch(first: number, end: number): BlockStretch {
    const index = this.#indexOf(first);
    const unwritten = this.#unwrittenFrom(index);
    if (unwritten > index) {
      const stop = Math.min(end, Math.max(first + 1, this.#blockAt(unwritten)));
      return { kind: "elsewhere", first, end: stop };
    }
    const { page, within } = this.#place(index);
    const bytes = this.#pages.page(page);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#checkPage(page, view);
    // The file may end in the middle of the table.
    if (within + entryBytes > bytes.length) this.#pages.view(page + within, entryBytes);
    const kind = this.#kindOf(view, within, first);
    if (kind === "present" || kind === "partly") {
      return { kind, first, end: first + 1, at: this.#placeOf(view, within, first) };
    }
    // Most of a large table is one entry again and again, up to that of the next bitmap: told in one go.
    const ofChunk = Math.min(end, (Math.floor(first / this.#ratio) + 1) * this.#ratio);
    const alike = Math.min(ofChunk - first, Math.floor((bytes.length - within) / entryBytes));
    if (alike > 1 && repeats(bytes.subarray(within, within + alike * entryBytes))) {
      return { kind, first, end: first + alike };
    }
    // Entries of bitmaps lie between those of blocks and say nothing of any.
    let block = first + 1;
    let at = within + entryBytes;
    for (; block < end; block++, at += entryBytes) {
      if (block % this.#ratio === 0) at += entryBytes;
      if (at + entryBytes > view.byteLength) break;
      if (this.#kindOf(view, at, block) !== kind) break;
    }
    return { kind, first, end: block };
  }

  /**
   * Whether the sectors from `sector` on are in this file, and for how many, at most `count`, that is so; all within the payload block
   * `block`, which is partly present.
   */
  sectors(block: number, sector: number, count: number): { readonly here: boolean; readonly count: number } {
    const chunk = Math.floor(block / this.#ratio);
    const bitmapAt = this.#bitmapPlace(chunk, block);
    const inChunk = sector - chunk * sectorsPerBitmap;
    return sectorRun(this.#pages, { at: bitmapAt, first: "lowest" }, { index: inChunk, count });
  }

  /** Blocks the table has room for. */
  get blocksMax(): number {
    return this.#blockAt(Math.floor(this.#region.length / entryBytes));
  }

  /** End of everything in the file that is not content. */
  get tablesEnd(): number {
    return Math.max(headerSectionBytes, ...this.#taken.map(({ offset, length }) => offset + length));
  }

  /** Where in the file the entry of a block lies. */
  entryAt(block: number): number {
    return this.#region.offset + this.#indexOf(block) * entryBytes;
  }

  /** Bytes of the table, as they are in the file. */
  copy(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#file.readNow(bytes, offset);
    return bytes;
  }

  /** A range of the table was written. */
  written(offset: number, length: number): void {
    this.#pages.drop(offset, length);
  }

  #indexOf(block: number): number {
    return block + Math.floor(block / this.#ratio);
  }

  /** The first block whose entry is at `index` or behind it. */
  #blockAt(index: number): number {
    const chunk = Math.floor(index / (this.#ratio + 1));
    return chunk * this.#ratio + Math.min(this.#ratio, index - chunk * (this.#ratio + 1));
  }

  #place(index: number): { readonly page: number; readonly within: number } {
    const at = this.#region.offset + index * entryBytes;
    const page = Math.floor(at / TABLE_PAGE_BYTES) * TABLE_PAGE_BYTES;
    return { page, within: at - page };
  }

  /** The first entry at or behind `index` that may be other than zero, where whole pages of the table were never written. */
  #unwrittenFrom(index: number): number {
    const { page, within } = this.#place(index);
    if (this.#pages.has(page) || !this.#file.isPlain(page, TABLE_PAGE_BYTES)) return index;
    const next = this.#file.file.nextData(page + within);
    const end = this.#region.offset + this.#region.length;
    const dataAt = Math.min(next?.start ?? end, end);
    if (dataAt < page + TABLE_PAGE_BYTES) return index;
    // A log that was not written out may change pages behind this one.
    if (!this.#file.isPlain(page, Math.floor(dataAt / TABLE_PAGE_BYTES) * TABLE_PAGE_BYTES - page)) return index;
    return Math.floor((Math.floor(dataAt / TABLE_PAGE_BYTES) * TABLE_PAGE_BYTES - this.#region.offset) / entryBytes);
  }

  #kindOf(view: DataView, at: number, block: number): BlockStretch["kind"] {
    const state = (view.getUint8(at) & 7) as number;
    if (state === payloadState.notPresent) return "elsewhere";
    if (state <= payloadState.unmapped) return "zero";
    if (state === payloadState.present) return "present";
    if (state === payloadState.partlyPresent && this.#disk.hasParent) return "partly";
    const what =
      state === payloadState.partlyPresent
        ? "partly present, but the file has no parent"
        : `in the unknown state ${state}`;
    throw this.#damaged(`payload block ${block} is ${what}`);
  }

  #placeOf(view: DataView, at: number, block: number): number {
    const place = offsetOf(view, at);
    this.#checkPlace(place, this.#disk.payloadBlockBytes, `payload block ${block}`);
    return place;
  }

  #bitmapPlace(chunk: number, block: number): number {
    const { page, within } = this.#place(chunk * (this.#ratio + 1) + this.#ratio);
    const view = this.#pages.view(page + within, entryBytes);
    const bytes = this.#pages.page(page);
    this.#checkPage(page, new DataView(bytes.buffer, bytes.byteOffset, bytes.length));
    if ((view.getUint8(0) & 7) !== bitmapPresent) {
      throw this.#damaged(`payload block ${block} is partly present, but its sector bitmap ${chunk} is not there`);
    }
    const place = offsetOf(view, 0);
    this.#checkPlace(place, bitmapBlockBytes, `sector bitmap ${chunk}`);
    return place;
  }

  /**
   * No place is given to two blocks, which only the other entries can tell. A page of the table is looked at as a whole when it is first used. What lies where it
   * must not, or behind the end of the file, is found when it is read.
   */
  #checkPage(page: number, view: DataView): void {
    if (!this.#oneForEach) return;
    if (this.#broken !== undefined) throw this.#broken;
    if (!this.#checked.add((page - this.#region.offset) / TABLE_PAGE_BYTES)) return;
    const first = (page - this.#region.offset) / entryBytes;
    const count = Math.min(Math.floor(view.byteLength / entryBytes), this.#entries - first);
    for (let nth = 0; nth < count; nth++) {
      const state = view.getUint8(nth * entryBytes) & 7;
      if (state < payloadState.present) continue;
      const isBitmap = (first + nth) % (this.#ratio + 1) === this.#ratio;
      // Without a parent they say nothing.
      if (isBitmap && !this.#disk.hasParent) continue;
      const place = offsetOf(view, nth * entryBytes);
      const length = isBitmap ? bitmapBlockBytes : this.#disk.payloadBlockBytes;
      if (place + length > limits.imageFileBytesMax || place >= this.#file.sizeBytes) continue;
      for (let unit = place / MIB; unit < (place + length) / MIB; unit++) {
        if (this.#given.add(unit)) continue;
        this.#broken = this.#damaged(`${this.#nameOf(first + nth)} at ${place} lies over another one`, place);
        throw this.#broken;
      }
    }
  }

  #nameOf(index: number): string {
    const chunk = Math.floor(index / (this.#ratio + 1));
    const within = index % (this.#ratio + 1);
    return within === this.#ratio ? `sector bitmap ${chunk}` : `payload block ${chunk * this.#ratio + within}`;
  }

  #damaged(what: string, offset?: number): ReplicationError {
    return vhdxDamaged(this.#file.file.path, what, offset === undefined ? {} : { offset });
  }

  #checkPlace(place: number, length: number, name: string): void {
    if (place < headerSectionBytes || place + length > limits.imageFileBytesMax) {
      throw this.#damaged(`${name} lies at ${place}, where there is no room for it`, place);
    }
    const next = firstFrom(this.#taken.length, (index) => {
      const taken = this.#taken[index];
      return taken === undefined || taken.offset + taken.length > place;
    });
    const over = this.#taken[next];
    if (over !== undefined && place + length > over.offset)
      throw this.#damaged(`${name} at ${place} lies over ${over.name}`, place);
  }
}

/** Whether all entries are the same: each is as the one before it. */
function repeats(entries: Uint8Array): boolean {
  const buffer = Buffer.from(entries.buffer, entries.byteOffset, entries.length);
  return buffer.compare(buffer, entryBytes, undefined, 0, entries.length - entryBytes) === 0;
}

/** The entry of a payload block that is at `place`. */
export function presentEntry(place: number): bigint {
  return BigInt(place) | BigInt(payloadState.present);
}

/** Bits 20 to 63 of an entry are the place in MiB, so that those below, which are state and reserved, leave it in bytes. */
function offsetOf(view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  return low - (low % MIB) + view.getUint32(at + 4, true) * 2 ** 32;
}
