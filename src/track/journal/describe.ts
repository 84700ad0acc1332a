/** Says what a bitmap journal holds and whether it is whole: for `replicate inspect`. Reads only; takes no lock. */
import type { Storage } from "../../storage/seam.ts";
import { JOURNAL_PAGE_BYTES, type JournalHeader, journalMagic } from "./format.ts";
import { readJournal } from "./load.ts";

export interface JournalDescription {
  readonly kind: "bitmap journal";
  readonly facts: Readonly<Record<string, string | number | boolean | undefined>>;
  /** What is wrong with it, in words; undefined: it is whole. Whether its image was changed past it is not looked at. */
  readonly trouble: string | undefined;
}

/** Undefined: no journal, by content and by name. Storage errors pass. */
export async function describeJournal(storage: Storage, path: string): Promise<JournalDescription | undefined> {
  const file = await storage.open(path);
  try {
    const head = Buffer.alloc(2 * JOURNAL_PAGE_BYTES);
    await file.read(head, 0);
    const isJournal = [0, 1].some((slot) => {
      const at = slot * JOURNAL_PAGE_BYTES;
      return head.subarray(at, at + journalMagic.length).equals(journalMagic);
    });
    if (!isJournal && !path.endsWith(".rbj")) return undefined;
    const { sizeBytes: fileBytes } = await file.stat();
    const reading = await readJournal(file);
    if ("bad" in reading) {
      const facts = reading.header === undefined ? {} : factsOf(reading.header);
      return { kind: "bitmap journal", facts: { fileBytes, ...facts }, trouble: reading.bad.words };
    }
    const { header, bits, hot, epoch, pending, batches, records, heartbeatMillis, remarks } = reading.loaded;
    const facts = {
      fileBytes,
      ...factsOf({ ...header, epoch, pending }),
      blocks: bits.blocks,
      // As the next open sees it: hot regions as a whole.
      dirtyBlocks: bits.count,
      hotRegions: hot.size,
      logBatches: batches,
      logRecords: records,
      heartbeat: new Date(heartbeatMillis).toISOString(),
      remarks: remarks.length === 0 ? undefined : remarks.join("; "),
    };
    return { kind: "bitmap journal", facts, trouble: undefined };
  } finally {
    await file.close();
  }
}

function factsOf(header: JournalHeader): JournalDescription["facts"] {
  const { id, generation, mode, closed, sizeBytes, blockBytes, epoch, base, pending, image, bootId } = header;
  return {
    id,
    generation,
    mode,
    closed,
    sizeBytes,
    blockBytes,
    epoch,
    base: base === 0 ? "none" : `${id}:${base}`,
    pending: pending === 0 ? "none" : `${id}:${pending}`,
    imageDevice: image.device,
    imageInode: image.inode,
    imageBytes: image.sizeBytes,
    imageChangedNanos: image.changedNanos.toString(),
    dataWriteGuid: image.dataWriteGuid,
    boot: bootId === "" ? "not known" : bootId,
  };
}
