/** Where data lies in a sparse file, by SEEK_DATA and SEEK_HOLE, without trusting what a file system answers. */
import { constants } from "node:os";

/** SEEK_DATA or SEEK_HOLE: a position, or a negative errno. */
export type Seek = (offset: number, what: "data" | "hole") => number;

/**
 * The first extent of data at or behind `offset` in a file of `sizeBytes`, or undefined when only a hole is left.
 * Always: offset <= start < end <= sizeBytes. Some file systems answer with the asked offset, with the file's size, or
 * with an error where the rest is a hole; whatever makes no sense counts as data to the end, which costs a read and
 * never a byte. Only ENXIO, and a start at or behind the end, mean "no data".
 */
export function findData(
  seek: Seek,
  offset: number,
  sizeBytes: number,
): { readonly start: number; readonly end: number } | undefined {
  if (offset >= sizeBytes) return undefined;
  const start = seek(offset, "data");
  if (start === -constants.errno.ENXIO || start >= sizeBytes) return undefined;
  if (start < offset) return { start: offset, end: sizeBytes };
  const end = seek(start, "hole");
  return { start, end: end <= start ? sizeBytes : Math.min(end, sizeBytes) };
}
