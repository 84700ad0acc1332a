/**
 * Index runs: the entries of earlier batches, sorted by block, in pages that are read one by one. docs/formats.md, "Undo log".
 *
 *     page    0 checksum u32 · 4 count u16 · 6 reserved · 8 entries (entry-list.ts)
 */
import { crc32 } from "node:zlib";
import { invariant } from "../../base/errors.ts";
import { EntryList, indexEntryBytes, indexEntryFault } from "./entry-list.ts";
import {
  type BatchHeader,
  batchKinds,
  bodyChecksum,
  get16,
  get32,
  get64,
  nextPage,
  put32,
  put64,
  seedAt,
  UNDO_BATCH_HEADER_BYTES,
  UNDO_PAGE_BYTES,
  type UndoShape,
  writeBatchHeader,
} from "./format.ts";

const pageHeaderBytes = 8;

/** Entries of one page. */
export function entriesPerIndexPage(shape: UndoShape): number {
  return Math.floor((UNDO_PAGE_BYTES - pageHeaderBytes) / indexEntryBytes(shape));
}

/**
 * The whole batch. `entries`: every entry of the batches behind the previous index run.
 */
export function encodeIndexRun(
  id: Uint8Array,
  offset: number,
  durable: number,
  entries: EntryList,
  shape: UndoShape,
): Uint8Array {
  const each = indexEntryBytes(shape);
  const perPage = entriesPerIndexPage(shape);
  const pages = Math.ceil(entries.count / perPage);
  const pagesAt = nextPage(UNDO_BATCH_HEADER_BYTES + pages * 8);
  const bytes = new Uint8Array(pagesAt + pages * UNDO_PAGE_BYTES);
  const fences = bytes.subarray(UNDO_BATCH_HEADER_BYTES, UNDO_BATCH_HEADER_BYTES + pages * 8);
  let before = 0;
  for (let page = 0; page < pages; page++) {
    const held = entries.slice(page * perPage, Math.min((page + 1) * perPage, entries.count));
    const at = pagesAt + page * UNDO_PAGE_BYTES;
    const target = bytes.subarray(at, at + UNDO_PAGE_BYTES);
    put32(target, 4, held.count);
    target.set(held.bytes, pageHeaderBytes);
    for (let index = 0; index < held.count; index++) {
      const block = held.block(index);
      invariant(block >= before, "the entries of an index run are sorted");
      before = block;
      const fault = indexEntryFault(target, pageHeaderBytes + index * each, offset, shape);
      invariant(fault === undefined, `an index entry can be read back: ${fault ?? ""}`);
    }
    put64(fences, page * 8, held.block(0));
    put32(target, 0, crc32(target.subarray(4), seedAt(id, offset + at)));
  }
  writeBatchHeader(bytes, 0, {
    id,
    offset,
    durable,
    kind: batchKinds.index,
    count: entries.count,
    headsBytes: fences.length,
    contentBytes: pages * UNDO_PAGE_BYTES,
    bodyChecksum: bodyChecksum(id, fences),
  });
  return bytes;
}

/** First block of each page. `heads`: of an index run, checked. Undefined: they are not sorted. */
export function decodeFences(heads: Uint8Array): Float64Array | undefined {
  const fences = new Float64Array(heads.length / 8);
  for (let page = 0; page < fences.length; page++) {
    fences[page] = get64(heads, page * 8);
    if (page > 0 && (fences[page] ?? 0) < (fences[page - 1] ?? 0)) return undefined;
  }
  return fences;
}

/**
 * Page `page` of the run `header`, whose bytes are `bytes` (kept by the list); undefined: damaged, or not the page that belongs
 * there.
 */
export function decodeIndexPage(
  bytes: Uint8Array,
  header: BatchHeader,
  fences: Float64Array,
  page: number,
  shape: UndoShape,
): EntryList | undefined {
  const offset = header.contentStart + page * UNDO_PAGE_BYTES;
  if (get32(bytes, 0) !== crc32(bytes.subarray(4), seedAt(header.id, offset)) || get16(bytes, 6) !== 0)
    return undefined;
  const perPage = entriesPerIndexPage(shape);
  // All pages but the last are full.
  const count = page < fences.length - 1 ? perPage : header.count - page * perPage;
  if (get16(bytes, 4) !== count || count < 1 || count > perPage) return undefined;
  const each = indexEntryBytes(shape);
  const list = new EntryList(bytes.subarray(pageHeaderBytes, pageHeaderBytes + count * each), shape);
  let before = fences[page] ?? 0;
  if (list.block(0) !== before) return undefined;
  for (let index = 0; index < count; index++) {
    const block = list.block(index);
    if (block < before) return undefined;
    if (indexEntryFault(bytes, pageHeaderBytes + index * each, header.offset, shape) !== undefined) return undefined;
    before = block;
  }
  return before <= (fences[page + 1] ?? Number.POSITIVE_INFINITY) ? list : undefined;
}
