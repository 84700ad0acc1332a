/** A VHDX file in words. */
import { ReplicationError } from "../../base/errors.ts";
import type { Storage } from "../../storage/seam.ts";
import type { BlockStretch } from "../mapped-reader.ts";
import { noGuid } from "./guid.ts";
import { metadataItems } from "./metadata.ts";
import { batOf, readVhdxFacts, type VhdxFacts } from "./open.ts";
import { regionName } from "./region-table.ts";

export interface VhdxDescription {
  readonly facts: Readonly<Record<string, unknown>>;
  /** Undefined: nothing is wrong with the file. */
  readonly trouble: string | undefined;
}

/** Of the file alone: its parent need not be there. What is damaged is told, not thrown. */
export async function inspectVhdx(storage: Storage, path: string): Promise<VhdxDescription> {
  const file = await storage.open(path);
  const fileBytes = (await file.stat()).sizeBytes;
  let facts: VhdxFacts | undefined;
  try {
    facts = await readVhdxFacts(file, storage);
    const blocks = await countBlocks(facts);
    const trouble = facts.remarks.length === 0 ? undefined : facts.remarks.join("; ");
    return { facts: { format: "vhdx", fileBytes, ...describe(facts), ...blocks }, trouble };
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    const known = facts === undefined ? {} : describe(facts);
    return { facts: { format: "vhdx", fileBytes, ...known }, trouble: error.message };
  } finally {
    await file.close();
  }
}

const itemNames = new Map<string, string>(Object.entries(metadataItems).map(([name, guid]) => [guid, name]));

function describe({ header, creator, regions, metadata, disk, parent, overlay }: VhdxFacts): Record<string, unknown> {
  const { sizeBytes, sectorBytes, physicalSectorBytes, payloadBlockBytes } = disk;
  const log = header.logGuid === noGuid ? "empty" : `${overlay?.entries ?? 0} entries not written out`;
  return {
    type: disk.hasParent ? "differencing" : disk.fixed ? "fixed" : "dynamic",
    ...{ sizeBytes, sectorBytes, physicalSectorBytes, payloadBlockBytes },
    creator,
    header: `the one at ${header.offset}, sequence ${header.sequence}`,
    fileWriteGuid: header.fileWriteGuid,
    dataWriteGuid: header.dataWriteGuid,
    ...(disk.diskId === undefined ? {} : { diskId: disk.diskId }),
    log: `${log}, at ${header.logOffset}, ${header.logBytes} bytes`,
    regions: regions.map(({ guid, offset, length }) => `${regionName(guid)} at ${offset}, ${length} bytes`).join("; "),
    metadata: metadata.map(({ item }) => itemNames.get(item) ?? item).join(", "),
    ...(parent === undefined
      ? {}
      : {
          parent: Object.entries(parent.pairs)
            .map(([key, value]) => `${key} ${value}`)
            .join("; "),
        }),
  };
}

/** Payload blocks by what they are, and how much of the file their content takes. */
async function countBlocks(facts: VhdxFacts): Promise<Record<string, unknown>> {
  const { disk } = facts;
  const bat = batOf(facts);
  const counts: Record<BlockStretch["kind"], number> = { elsewhere: 0, zero: 0, present: 0, partly: 0 };
  const blocks = Math.ceil(disk.sizeBytes / disk.payloadBlockBytes);
  for (let block = 0; block < blocks; ) {
    await bat.fetch(block);
    const { kind, end } = bat.stretch(block, blocks);
    counts[kind] += end - block;
    block = end;
  }
  const { elsewhere, zero, present, partly } = counts;
  return {
    payloadBlocks: blocks,
    ...{ present, ...(disk.hasParent ? { partlyPresent: partly, ofParent: elsewhere } : { absent: elsewhere }), zero },
    contentBytes: (present + partly) * disk.payloadBlockBytes,
  };
}
