/**
 * Is this the image the disk was made from? Asked when another source sends under a used name without `--adopt`: a sample of blocks
 * is compared before anything is sent. A newer state of the same machine shares most of its blocks, a wrong image next to none.
 */
import type { BufferPool } from "../base/buffer-pool.ts";
import { ReplicationError } from "../base/errors.ts";
import { blockLength, digestBytes, type Geometry, pageBlocks, pageCount } from "../base/units.ts";
import { isZero } from "../base/zero.ts";
import type { BlockReader } from "../image/block-device.ts";
import { holdRuns } from "../image/held-runs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { areaA } from "../lanes/slot-layout.ts";
import { BaseTable } from "./base-table.ts";
import type { SenderSession } from "./sender-session.ts";

const pagesSampled = 32;
/** Of all pages together: a small disk has few pages, and gets more looks at each. */
const blocksSampled = 128;
/** Fewer blocks with content than this say nothing. */
const blocksMin = 8;
/** At least this share must be equal. */
const shareMin = 0.05;

/** Throws `another-image` when the sample says that this is another disk. */
export async function checkResemblance(options: {
  readonly session: SenderSession;
  readonly geometry: Geometry;
  /** Size of the receiver's disk. */
  readonly baseBytes: number;
  readonly reader: BlockReader;
  readonly name: string;
  readonly disk: string;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly signal: AbortSignal;
}): Promise<void> {
  const { session, geometry } = options;
  const table = new BaseTable(session, geometry, { empty: false, sizeBytes: options.baseBytes });
  const width = digestBytes(geometry.digestKind);
  let compared = 0;
  let equal = 0;
  const pages = await pagesWithContent(table, geometry);
  const perPage = Math.max(1, Math.ceil(blocksSampled / pages.length));
  for (const page of pages) {
    const { first, count } = pageBlocks(geometry, page);
    const digests = await table.blocks(page);
    const digestAt = (index: number): Uint8Array => digests.subarray(index * width, (index + 1) * width);
    const filled = Array.from({ length: count }, (_unused, index) => index).filter((index) => !isZero(digestAt(index)));
    const stride = Math.max(1, Math.floor(filled.length / perPage));
    for (const index of filled.filter((_index, position) => position % stride === 0)) {
      const mine = await digestOf(options, first + index);
      compared++;
      if (Buffer.compare(mine, digestAt(index)) === 0) equal++;
    }
  }
  if (compared < blocksMin || equal >= compared * shareMin) return;
  throw new ReplicationError(
    "another-image",
    `disk ${options.disk} holds another image than ${options.name}: of ${compared} blocks compared ${equal} are equal; send it under another name, or say --adopt to replace what the disk holds`,
    { details: { compared, equal } },
  );
}

async function pagesWithContent(table: BaseTable, geometry: Geometry): Promise<readonly number[]> {
  const pages = pageCount(geometry);
  const found: number[] = [];
  // At most a few thousand looks, spread over the disk.
  const stride = Math.max(1, Math.floor(pages / 4_096));
  for (let page = 0; page < pages; page += stride) if (!isZero(await table.page(page))) found.push(page);
  const keep = Math.max(1, Math.ceil(found.length / pagesSampled));
  return found.filter((_page, index) => index % keep === 0);
}

async function digestOf(options: Parameters<typeof checkResemblance>[0], block: number): Promise<Uint8Array> {
  const { geometry, reader, lanes, pool, signal } = options;
  const offset = block * geometry.blockBytes;
  const length = blockLength(geometry, block);
  const slot = await pool.acquire(signal);
  const { runs, release } = holdRuns(reader, offset, length);
  try {
    if (runs === undefined) await reader.read(slot.bytes.subarray(areaA, areaA + length), offset);
    const result = await lanes.run("scan", {
      slot: slot.index,
      file: options.name,
      pieces: [{ runs, length }],
      base: "unknown",
      codec: "stored",
      blockBytes: geometry.blockBytes,
      digestKind: geometry.digestKind,
    });
    return result.digests;
  } finally {
    release();
    slot.release();
  }
}
