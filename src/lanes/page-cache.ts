/**
 * A scan leaves the page cache as it found it: what was not cached is read ahead in large pieces, and let go of when it was used. The
 * kernel's own read-ahead is switched off for these files: it would bring in the next piece before anybody could ask whether it was cached.
 */
import type { LetGoRequest, ReadAheadRequest, ReadAheadResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";

export function readAhead(lane: Lane, request: ReadAheadRequest): ReadAheadResult {
  const { storage } = lane;
  const cold: number[] = [];
  let lastFd = -1;
  for (const [index, run] of request.runs.entries()) {
    if (run.kind !== "file") continue;
    if (run.fd !== lastFd) storage.stopReadAhead?.(run.fd);
    lastFd = run.fd;
    // Undefined: not known here, so nothing is dropped and the hint does no harm.
    const cached = storage.isCached?.(run.fd, run.offset, run.length);
    if (cached === true) continue;
    storage.readAhead(run.fd, run.offset, run.length);
    if (cached === false) cold.push(index);
  }
  return { cold };
}

export function letGo(lane: Lane, request: LetGoRequest): null {
  for (const run of request.runs) {
    if (run.kind === "file") lane.storage.dropCache(run.fd, run.offset, run.length);
  }
  return null;
}
