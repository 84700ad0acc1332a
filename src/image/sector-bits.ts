/** Bitmaps of sectors: which of them a differencing image has itself. */
import type { TablePages } from "./table-pages.ts";

/**
 * The bit at `index` of the bitmap at `bitmapAt` of a file, and how many, at most `count`, are the same from there on. `first`: which bit of a byte
 * is that of the first sector, the lowest or the highest.
 */
export function sectorRun(
  pages: TablePages,
  bitmap: { readonly at: number; readonly first: "lowest" | "highest" },
  { index, count }: { readonly index: number; readonly count: number },
): { readonly here: boolean; readonly count: number } {
  let pageAt = -1;
  let page: Uint8Array = new Uint8Array(0);
  const byteOf = (bit: number): number => {
    const at = bitmap.at + Math.floor(bit / 8);
    if (at < pageAt || at >= pageAt + page.length || pageAt < 0) {
      pageAt = Math.floor(at / pages.pageBytes) * pages.pageBytes;
      page = pages.page(pageAt);
      // The file may end in the middle of a page.
      if (at - pageAt >= page.length) pages.view(at, 1);
    }
    return page[at - pageAt] as number;
  };
  const isSet = (bit: number): boolean => {
    const shift = bitmap.first === "lowest" ? bit % 8 : 7 - (bit % 8);
    return ((byteOf(bit) >> shift) & 1) === 1;
  };
  const here = isSet(index);
  const all = here ? 0xff : 0;
  let length = 1;
  while (length < count) {
    const bit = index + length;
    if (bit % 8 === 0 && length + 8 <= count && byteOf(bit) === all) length += 8;
    else if (isSet(bit) === here) length++;
    else break;
  }
  return { here, count: length };
}
