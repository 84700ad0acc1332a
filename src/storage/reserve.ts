/** Free space that is kept on a file system. */
import { limits } from "../base/limits.ts";
import type { FreeSpace } from "./seam.ts";

/** Where nobody names another: {@link limits.reserveBytesDefault}, but at most 5 % of the file system. */
export function defaultReserveBytes({ totalBytes }: FreeSpace): number {
  const share = totalBytes === undefined ? Number.POSITIVE_INFINITY : Math.floor(totalBytes / 20);
  return Math.min(limits.reserveBytesDefault, share);
}
