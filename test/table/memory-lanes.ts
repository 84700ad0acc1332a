/** Two files in memory for a table, with every access counted. */
import type { LaneStorage } from "../../src/storage/seam.ts";
import { SimulatedContent } from "../../src/testing/simulated-content.ts";
import type { Geometry } from "../../src/base/units.ts";
import { type DigestTable, openDigestTable, tableFileBytes } from "../../src/table/digest-table.ts";

export interface TableFiles {
  readonly digests: SimulatedContent;
  readonly pages: SimulatedContent;
  readonly lanes: LaneStorage;
  readonly counts: { reads: number; writes: number; punches: number };
  open(
    geometry: Geometry,
    options?: { readonly cacheBytes?: number; readonly onDamage?: (page: number) => void },
  ): DigestTable;
  /** Gives both files the length for the geometry. */
  resize(geometry: Geometry): void;
}

export function createTableFiles(geometry: Geometry, options: { readonly punch?: boolean } = {}): TableFiles {
  const files = [new SimulatedContent(), new SimulatedContent()] as const;
  const [digests, pages] = files;
  const counts = { reads: 0, writes: 0, punches: 0 };
  const file = (fd: number): SimulatedContent => {
    const found = files[fd];
    if (found === undefined) throw new Error(`no file ${fd}`);
    return found;
  };
  const lanes: LaneStorage = {
    read(fd, target, offset) {
      counts.reads++;
      return file(fd).read(target, offset);
    },
    write(fd, source, offset) {
      counts.writes++;
      file(fd).write(new Uint8Array(source), offset);
    },
    punch(fd, offset, length) {
      counts.punches++;
      if (options.punch === false) return false;
      file(fd).punch(offset, length);
      return true;
    },
    datasync: () => undefined,
    startWriteback: () => undefined,
    dropCache: () => undefined,
    readAhead: () => undefined,
  };
  const resize = (next: Geometry): void => {
    const bytes = tableFileBytes(next);
    digests.truncate(bytes.digests);
    pages.truncate(bytes.pages);
  };
  resize(geometry);
  return {
    digests,
    pages,
    lanes,
    counts,
    resize,
    open: (next, openOptions) =>
      openDigestTable({
        geometry: next,
        lanes,
        digestsFd: 0,
        pagesFd: 1,
        nextPagesData: (offset) => pages.nextData(offset),
        ...openOptions,
      }),
  };
}
