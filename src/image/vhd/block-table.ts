/** The block allocation table of a dynamic or differencing VHD file, and the bitmap before each payload block. */
import { ReplicationError } from "../../base/errors.ts";
import type { BlockMap, BlockStretch } from "../mapped-reader.ts";
import { sectorRun } from "../sector-bits.ts";
import { type TableFile, TablePages } from "../table-pages.ts";
import type { VhdHeader } from "./footer.ts";

const sectorBytes = 512;
const entryBytes = 4;
const unused = 0xffff_ffff;
/** A bitmap is 512 bytes in front of 2 MiB: no more than a page is read for it. */
const pageBytes = 4096;

/** Bytes of the bitmap in front of a payload block: a bit a sector, in whole sectors. */
export function bitmapBytes(payloadBlockBytes: number): number {
  return Math.ceil(payloadBlockBytes / sectorBytes / 8 / sectorBytes) * sectorBytes;
}

export class VhdBlockTable implements BlockMap {
  readonly payloadBlockBytes: number;
  readonly #file: TableFile;
  readonly #tableAt: number;
  /** Where nothing of the disk's content can lie. */
  readonly #taken: readonly { readonly name: string; readonly offset: number; readonly length: number }[];
  readonly #pages: TablePages;

  constructor(
    file: TableFile,
    header: VhdHeader,
    taken: readonly { readonly name: string; readonly offset: number; readonly length: number }[],
    cacheBytes?: number,
  ) {
    this.#file = file;
    this.payloadBlockBytes = header.payloadBlockBytes;
    this.#tableAt = header.tableAt;
    this.#taken = taken;
    this.#pages = new TablePages(file, { pageBytes, cacheBytes });
  }

  async fetch(block: number): Promise<void> {
    const at = this.#tableAt + block * entryBytes;
    await this.#pages.fetch(Math.floor(at / pageBytes) * pageBytes);
  }

  stretch(first: number, end: number): BlockStretch {
    const at = this.#tableAt + first * entryBytes;
    // Entries do not straddle pages only where the table begins at a multiple of their length, which sectors are.
    const sector = this.#pages.view(at, entryBytes).getUint32(0);
    if (sector !== unused) {
      const place = sector * sectorBytes;
      this.#checkPlace(place, first);
      return { kind: "partly", first, end: first + 1, at: place + bitmapBytes(this.payloadBlockBytes) };
    }
    const pageEnd = Math.floor(at / pageBytes) * pageBytes + pageBytes;
    let block = first + 1;
    for (; block < end; block++) {
      const next = this.#tableAt + block * entryBytes;
      if (next >= pageEnd || this.#pages.view(next, entryBytes).getUint32(0) !== unused) break;
    }
    return { kind: "elsewhere", first, end: block };
  }

  /**
   * Of a disk without a parent too: what was never written is zeros, whatever lies there (a block that a host allocated on a volume is not
   * cleared).
   */
  sectors(block: number, sector: number, count: number): { readonly here: boolean; readonly count: number } {
    const place = this.#pages.view(this.#tableAt + block * entryBytes, entryBytes).getUint32(0) * sectorBytes;
    const index = sector - (block * this.payloadBlockBytes) / sectorBytes;
    return sectorRun(this.#pages, { at: place, first: "highest" }, { index, count });
  }

  #checkPlace(place: number, block: number): void {
    const end = place + bitmapBytes(this.payloadBlockBytes) + this.payloadBlockBytes;
    const over = this.#taken.find(({ offset, length }) => place < offset + length && end > offset);
    if (over === undefined) return;
    const path = this.#file.file.path;
    throw new ReplicationError(
      "image-damaged",
      `${path} is a damaged VHD file: payload block ${block} at ${place} lies over ${over.name}. Check it with the tool that made it, or restore it`,
      { details: { file: path, offset: place } },
    );
  }
}
