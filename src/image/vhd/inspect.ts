/** A VHD file in words. */
import { ReplicationError } from "../../base/errors.ts";
import type { Storage } from "../../storage/seam.ts";
import { readVhdFacts, tableOf, type VhdFacts } from "./open.ts";

/** Of the file alone: its parent need not be there. What is damaged is told, not thrown. `trouble` undefined: nothing is. */
export async function inspectVhd(
  storage: Storage,
  path: string,
): Promise<{ readonly facts: Readonly<Record<string, unknown>>; readonly trouble: string | undefined }> {
  const file = await storage.open(path);
  const fileBytes = (await file.stat()).sizeBytes;
  let known: Record<string, unknown> = {};
  try {
    const facts = await readVhdFacts(file, storage);
    known = describe(facts);
    const blocks = facts.header === undefined ? {} : await countBlocks(facts, facts.header.payloadBlockBytes);
    const trouble = facts.remarks.length === 0 ? undefined : facts.remarks.join("; ");
    return { facts: { format: "vhd", fileBytes, ...known, ...blocks }, trouble };
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    return { facts: { format: "vhd", fileBytes, ...known }, trouble: error.message };
  } finally {
    await file.close();
  }
}

function describe({ footer, header, parentPaths }: VhdFacts): Record<string, unknown> {
  const { type, sizeBytes, creator, id } = footer;
  const dynamic =
    header === undefined
      ? {}
      : { payloadBlockBytes: header.payloadBlockBytes, table: `at ${header.tableAt}, ${header.entries} entries` };
  const parent =
    type === "differencing"
      ? { parentId: header?.parentId, parent: parentPaths.map(({ kind, path }) => `${kind} ${path}`).join("; ") }
      : {};
  return { type, sizeBytes, creator, id, ...dynamic, ...parent };
}

async function countBlocks(facts: VhdFacts, payloadBlockBytes: number): Promise<Record<string, unknown>> {
  const table = tableOf(facts);
  const payloadBlocks = Math.ceil(facts.footer.sizeBytes / payloadBlockBytes);
  let present = 0;
  for (let block = 0; block < payloadBlocks; ) {
    await table.fetch(block);
    const { kind, end } = table.stretch(block, payloadBlocks);
    if (kind === "partly") present += end - block;
    block = end;
  }
  return { payloadBlocks, present, absent: payloadBlocks - present };
}
