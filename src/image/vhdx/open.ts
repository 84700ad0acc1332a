/** Opens a VHDX file, and the files it builds upon. */
import { invariant, ReplicationError } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import type { BlockReader } from "../block-device.ts";
import { MappedReader } from "../mapped-reader.ts";
import { openParent, type WantedParent } from "../parents.ts";
import { Bat, batEntries } from "./bat.ts";
import { vhdxDamaged, vhdxUnsupported } from "./damage.ts";
import { noGuid } from "./guid.ts";
import {
  chooseHeader,
  fileSignature,
  headerBytes,
  headerOffsets,
  logProblem,
  type Parsed,
  parseHeader,
  type VhdxHeader,
} from "./headers.ts";
import { LoggedFile } from "./logged-file.ts";
import {
  type MetadataEntry,
  metadataItems,
  metadataTableBytes,
  parseDisk,
  parseMetadataTable,
  unknownRequired,
  type VhdxDisk,
} from "./metadata.ts";
import { type ParentLocator, parseParentLocator } from "./parent-locator.ts";
import {
  batRegion,
  metadataRegion,
  parseRegionTable,
  placesProblem,
  type Region,
  regionName,
  regionTableBytes,
  regionTableOffsets,
} from "./region-table.ts";
import { type LogOverlay, replayInMemory } from "./replay.ts";

/** Everything a VHDX file says of itself. */
export interface VhdxFacts {
  readonly file: LoggedFile;
  readonly header: VhdxHeader;
  readonly creator: string;
  readonly regions: readonly Region[];
  readonly bat: Region;
  readonly metadata: readonly MetadataEntry[];
  readonly disk: VhdxDisk;
  readonly parent: ParentLocator | undefined;
  /** What a log that was not written out changes; undefined: there is none. */
  readonly overlay: LogOverlay | undefined;
  /** What is wrong with the file and does no harm: "header 1: checksum wrong, header 2 used". */
  readonly remarks: readonly string[];
}

/** Nobody reads a name that is longer than this. */
const creatorBytes = 512;

/**
 * Reads the tables of a VHDX file; writes nothing. The file stays the caller's. Errors: `image-damaged`, `image-truncated`,
 * `image-unreadable`, `image-format-unsupported`.
 */
export async function readVhdxFacts(file: StorageFile, storage: Storage): Promise<VhdxFacts> {
  const { path } = file;
  const fileBytes = (await file.stat()).sizeBytes;
  const plain = new LoggedFile({ file, lanes: storage.lanes, fileBytes, overlay: undefined });
  const identifier = await readSome(plain, 0, 8 + creatorBytes);
  if (Buffer.from(identifier.subarray(0, 8)).toString("latin1") !== fileSignature) {
    throw new ReplicationError("image-format-mismatch", `${path} is no VHDX file: its signature is missing`, {
      details: { file: path },
    });
  }
  const chosen = chooseHeader(
    await Promise.all(headerOffsets.map(async (at) => parseHeader(await readSome(plain, at, headerBytes), at))),
  );
  if (chosen.problem !== undefined) throw vhdxDamaged(path, chosen.problem, { offset: headerOffsets[0] ?? 0 });
  const { header, remark } = chosen.value;
  const remarks = remark === undefined ? [] : [remark];
  if (header.version !== 1) throw vhdxUnsupported(path, `it has version ${header.version} of the format`);
  const overlay = await openLog(file, header, fileBytes);
  const logged = new LoggedFile({ file, lanes: storage.lanes, fileBytes, overlay });
  const regions = await readRegions(logged, header, remarks);
  const find = (guid: string, name: string): Region => {
    const found = regions.filter((region) => region.guid === guid);
    const [region] = found;
    if (region === undefined || found.length > 1) {
      throw vhdxDamaged(path, `its region table names ${name} ${found.length} times`);
    }
    return region;
  };
  const bat = find(batRegion, "the BAT");
  const place = find(metadataRegion, "the metadata");
  const { entries: metadata, disk, parent } = await readMetadata(logged, place);
  const needed = batEntries(disk) * 8;
  if (needed > bat.length) {
    throw vhdxDamaged(path, `the BAT has ${bat.length} bytes, and a disk of this size needs ${needed}`, {
      offset: bat.offset,
    });
  }
  return {
    file: logged,
    header,
    creator: creatorOf(identifier),
    ...{ regions, bat, metadata, disk, parent, overlay, remarks },
  };
}

/** Where nothing of the disk's content can lie. */
export function takenPlaces({ regions, header }: VhdxFacts): ConstructorParameters<typeof Bat>[0]["taken"] {
  return [
    { name: "the log", offset: header.logOffset, length: header.logBytes },
    ...regions.map(({ guid, offset, length }) => ({ name: regionName(guid), offset, length })),
  ];
}

/** The BAT of one of `files` files that are read together, and share the memory for pages of their tables. */
export function batOf(facts: VhdxFacts, files = 1): Bat {
  const { file, disk, bat } = facts;
  const cacheBytes = limits.imageTableCacheBytes / files;
  return new Bat({ file, disk, region: bat, taken: takenPlaces(facts), cacheBytes });
}

/** A file of a chain: the image itself, then its parent, and so on. */
export interface ChainFile {
  readonly file: StorageFile;
  readonly facts: VhdxFacts;
}

export interface VhdxChain {
  readonly reader: BlockReader;
  readonly files: readonly ChainFile[];
}

/**
 * Opens an image and what it builds upon. `before`: called with each file before anything of it is read. Takes `file` over, and closes it when it fails. Errors: those of {@link readVhdxFacts}; a parent that is not
 * found, or is another one than when the image was made, is `image-not-found` or `image-damaged` and names both files.
 */
export async function openVhdx(
  file: StorageFile,
  storage: Storage,
  before: (file: StorageFile) => Promise<void> = () => Promise.resolve(),
): Promise<VhdxChain> {
  const files: ChainFile[] = [];
  try {
    let next: StorageFile | undefined = file;
    let unread: StorageFile | undefined = file;
    try {
      while (next !== undefined) {
        await before(next);
        const facts: VhdxFacts = await readVhdxFacts(next, storage);
        files.push({ file: next, facts });
        unread = undefined;
        checkChild(files);
        checkLogs(files);
        next = facts.parent === undefined ? undefined : await openParent(files, wantedParent(facts.parent), storage);
        unread = next;
      }
    } finally {
      await unread?.close();
    }
    let reader: BlockReader | undefined;
    for (const { facts } of [...files].reverse()) {
      const { sizeBytes, sectorBytes } = facts.disk;
      const map = batOf(facts, files.length);
      reader = new MappedReader({ sizeBytes, sectorBytes, file: facts.file, map, parent: reader });
    }
    invariant(reader !== undefined, "a chain has a file");
    return { reader, files };
  } catch (error) {
    for (const each of files) await each.file.close();
    throw error;
  }
}

function wantedParent({ paths, linkages }: ParentLocator): WantedParent {
  return { paths, words: `the data ${linkages.join(" or ")}` };
}

/** The newest file of `files` is the right parent of the one before it. */
function checkChild(files: readonly ChainFile[]): void {
  const parent = files.at(-1);
  const child = files.at(-2);
  if (parent === undefined || child === undefined) return;
  const [a, b] = [child.facts, parent.facts];
  const wanted = a.parent?.linkages ?? [];
  const name = `${child.file.path} builds upon ${parent.file.path}`;
  if (!wanted.includes(b.header.dataWriteGuid)) {
    throw new ReplicationError(
      "image-damaged",
      `${name}, which was changed since: it wants the data ${wanted.join(" or ")} and finds ${b.header.dataWriteGuid}. Put back the parent it was made from`,
      { details: { file: child.file.path, parent: parent.file.path } },
    );
  }
  if (a.disk.sizeBytes !== b.disk.sizeBytes || a.disk.sectorBytes !== b.disk.sectorBytes) {
    throw new ReplicationError(
      "image-format-unsupported",
      `${name}, which has another size: ${a.disk.sizeBytes} bytes in sectors of ${a.disk.sectorBytes}, the parent ${b.disk.sizeBytes} in sectors of ${b.disk.sectorBytes}. ` +
        "Merge the image into its parent first",
      { details: { file: child.file.path, parent: parent.file.path } },
    );
  }
}

/** One log may be as long as all of them together. */
function checkLogs(files: readonly ChainFile[]): void {
  const count = files.reduce((sum, { facts }) => sum + (facts.overlay?.changeCount ?? 0), 0);
  if (count <= limits.vhdxLogChangesMax) return;
  throw vhdxUnsupported(
    files[0]?.file.path ?? "",
    `logs of its chain of parents make ${count} changes, more than ${limits.vhdxLogChangesMax}`,
  );
}

async function openLog(file: StorageFile, header: VhdxHeader, fileBytes: number): Promise<LogOverlay | undefined> {
  const problem = logProblem(header);
  if (problem !== undefined) throw vhdxDamaged(file.path, problem, { offset: header.offset });
  if (header.logGuid === noGuid) return undefined;
  if (header.logVersion !== 0) throw vhdxUnsupported(file.path, `its log has version ${header.logVersion}`);
  return replayInMemory(file, header, { fileBytes, headersEnd: regionTableOffsets[0] ?? 0 });
}

async function readRegions(file: LoggedFile, header: VhdxHeader, remarks: string[]): Promise<readonly Region[]> {
  const tables: Parsed<readonly Region[]>[] = [];
  for (const at of regionTableOffsets) tables.push(parseRegionTable(await readSome(file, at, regionTableBytes)));
  const problems = tables.flatMap(({ problem }, index) =>
    problem === undefined ? [] : [`region table ${index + 1}: ${problem}`],
  );
  const usable = tables.find((table) => table.problem === undefined);
  if (usable?.problem !== undefined || usable === undefined) {
    throw vhdxDamaged(file.path, `neither region table can be used: ${problems.join("; ")}`, {
      offset: regionTableOffsets[0] ?? 0,
    });
  }
  remarks.push(...problems.map((problem) => `${problem}, the other one used`));
  const regions = usable.value;
  const unknown = regions.find(({ guid, required }) => required && guid !== batRegion && guid !== metadataRegion);
  if (unknown !== undefined) throw vhdxUnsupported(file.path, `it has the unknown required region ${unknown.guid}`);
  const problem = placesProblem(regions, header);
  if (problem !== undefined) throw vhdxDamaged(file.path, problem);
  return regions;
}

async function readMetadata(file: LoggedFile, region: Region) {
  const table = parseMetadataTable(await readSome(file, region.offset, metadataTableBytes), region.length);
  if (table.problem !== undefined) {
    throw vhdxDamaged(file.path, `metadata table: ${table.problem}`, { offset: region.offset });
  }
  const entries = table.value;
  const unknown = unknownRequired(entries);
  if (unknown !== undefined) throw vhdxUnsupported(file.path, `it has the unknown required metadata item ${unknown}`);
  const items = new Map<string, Uint8Array>();
  for (const item of Object.values(metadataItems)) {
    const entry = entries.find((each) => each.item === item && !each.isUser);
    if (entry !== undefined) items.set(item, await readSome(file, region.offset + entry.offset, entry.length));
  }
  const disk = parseDisk((item) => items.get(item), limits.diskBytesMax);
  if (disk.problem !== undefined) {
    throw vhdxDamaged(file.path, `metadata: ${disk.problem}`, { offset: region.offset });
  }
  if (!disk.value.hasParent) return { entries, disk: disk.value, parent: undefined };
  const bytes = items.get(metadataItems.parentLocator);
  const locator: Parsed<ParentLocator> = bytes === undefined ? { problem: "it is missing" } : parseParentLocator(bytes);
  if (locator.problem !== undefined) {
    throw vhdxDamaged(file.path, `parent locator: ${locator.problem}`, { offset: region.offset });
  }
  return { entries, disk: disk.value, parent: locator.value };
}

/** A range, with zeros for what lies behind the end of the file. */
async function readSome(file: LoggedFile, offset: number, length: number): Promise<Uint8Array> {
  const held = Math.max(0, Math.min(length, file.sizeBytes - offset));
  const bytes = new Uint8Array(length);
  await file.read(bytes.subarray(0, held), offset);
  return bytes;
}

function creatorOf(identifier: Uint8Array): string {
  const text = Buffer.from(identifier.subarray(8, 8 + creatorBytes)).toString("utf16le");
  const end = text.indexOf("\0");
  return end < 0 ? text : text.slice(0, end);
}
