/** The digest table of a disk of 1 TiB. */
import { type Geometry, KIB, TABLE_PAGE_BYTES, TIB, pageCount } from "../src/base/units.ts";
import { createPageDigests, pageDigest } from "../src/table/digest-table.ts";
import { noise, ring } from "./contents.ts";
import type { Stage } from "./measuring.ts";

export function tableStages(): readonly Stage[] {
  const geometry: Geometry = { sizeBytes: TIB, blockBytes: 64 * KIB, digestKind: "xxh64" };
  const pages = createPageDigests(geometry);
  const page = ring(TABLE_PAGE_BYTES, noise);
  const count = pageCount(geometry);
  for (let number = 0; number < count; number++) pages.set(number, pageDigest(page()));
  let changed = 0;
  return [
    { name: "table page", bytes: TABLE_PAGE_BYTES, cases: [{ name: "page digest", run: () => pageDigest(page()) }] },
    {
      name: "root over 1 TiB of data",
      bytes: 32 * count,
      cases: [
        {
          name: "root after one page changed",
          run() {
            changed = (changed + 1) % count;
            pages.set(changed, pageDigest(page()));
            return pages.root();
          },
        },
      ],
    },
  ];
}
