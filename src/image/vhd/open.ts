/** Opens a VHD file, and the files it builds upon. */
import { invariant, ReplicationError } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import type { BlockReader } from "../block-device.ts";
import { MappedReader } from "../mapped-reader.ts";
import { type NamedPath, openParent } from "../parents.ts";
import { PlainFile } from "../plain-file.ts";
import { createRawReader } from "../raw.ts";
import { VhdBlockTable } from "./block-table.ts";
import {
  dynamicHeaderBytes,
  footerBytes,
  parseDynamicHeader,
  parseFooter,
  utf16,
  type VhdFooter,
  type VhdHeader,
} from "./footer.ts";

/** Everything a VHD file says of itself. */
export interface VhdFacts {
  readonly file: PlainFile;
  readonly footer: VhdFooter;
  /** Of a fixed file undefined. */
  readonly header: VhdHeader | undefined;
  /** Of a differencing file. */
  readonly parentPaths: readonly NamedPath[];
  /** What is wrong with the file and does no harm. */
  readonly remarks: readonly string[];
}

/** Bytes of a path in a parent locator. */
const locatorBytesMax = 8192;

/** Reads the tables of a VHD file; writes nothing. The file stays the caller's. Errors: `image-damaged`, `image-truncated`, `image-unreadable`. */
export async function readVhdFacts(file: StorageFile, storage: Storage): Promise<VhdFacts> {
  const fileBytes = (await file.stat()).sizeBytes;
  const plain = new PlainFile(file, storage.lanes, fileBytes);
  const remarks: string[] = [];
  const { footer, footerAt } = await findFooter(plain, remarks);
  const base = { file: plain, footer, remarks };
  if (footer.type === "fixed") {
    if (footer.sizeBytes > footerAt) {
      throw plain.truncated(footerAt, `the disk has ${footer.sizeBytes} bytes`);
    }
    return { ...base, header: undefined, parentPaths: [] };
  }
  const { headerAt } = footer;
  if (!Number.isSafeInteger(headerAt) || headerAt + dynamicHeaderBytes > fileBytes) {
    throw damaged(file.path, `its dynamic header at ${headerAt} lies beyond the end of the file`, headerAt);
  }
  const header = parseDynamicHeader(await readAt(plain, headerAt, dynamicHeaderBytes));
  if (typeof header === "string") throw damaged(file.path, header, headerAt);
  if (!header.checksumRight) remarks.push("checksum of the dynamic header wrong");
  const needed = Math.ceil(footer.sizeBytes / header.payloadBlockBytes);
  if (header.entries < needed) {
    throw damaged(
      file.path,
      `its table has ${header.entries} entries, and a disk of this size needs ${needed}`,
      headerAt,
    );
  }
  if (!Number.isSafeInteger(header.tableAt) || header.tableAt % 512 !== 0 || header.tableAt + needed * 4 > fileBytes) {
    throw damaged(file.path, `its table at ${header.tableAt} reaches beyond the end of the file`, headerAt);
  }
  const parentPaths = footer.type === "differencing" ? await readLocators(plain, header) : [];
  return { ...base, header, parentPaths };
}

/** The table of a file that is not fixed; one of `files` that are read together, and share the memory for pages of their tables. */
export function tableOf({ file, footer, header }: VhdFacts, files = 1): VhdBlockTable {
  invariant(header !== undefined, "a fixed file has no table");
  const entries = Math.ceil(footer.sizeBytes / header.payloadBlockBytes);
  const taken = [
    { name: "the copy of the footer", offset: 0, length: footerBytes },
    { name: "the dynamic header", offset: footer.headerAt, length: dynamicHeaderBytes },
    { name: "the table", offset: header.tableAt, length: entries * 4 },
  ];
  return new VhdBlockTable(file, header, taken, limits.imageTableCacheBytes / files);
}

export interface VhdChain {
  readonly reader: BlockReader;
  readonly files: readonly { readonly file: StorageFile; readonly facts: VhdFacts }[];
}

/**
 * Opens an image and what it builds upon. `before`: called with each file before anything of it is read. Takes `file` over, and closes it when it
 * fails. Errors: those of {@link readVhdFacts}; `image-not-found`, `image-damaged`, `image-format-unsupported` for a parent.
 */
export async function openVhd(
  file: StorageFile,
  storage: Storage,
  before: (file: StorageFile) => Promise<void> = () => Promise.resolve(),
): Promise<VhdChain> {
  const opened: StorageFile[] = [file];
  const files: { readonly file: StorageFile; readonly facts: VhdFacts }[] = [];
  try {
    for (let next: StorageFile | undefined = file; next !== undefined; ) {
      await before(next);
      const facts = await readVhdFacts(next, storage);
      files.push({ file: next, facts });
      checkChild(files);
      if (facts.footer.type !== "differencing") break;
      const words = `the image with the id ${facts.header?.parentId ?? ""}`;
      next = await openParent(files, { paths: facts.parentPaths, words }, storage);
      opened.push(next);
    }
    let reader: BlockReader | undefined;
    for (const { facts } of [...files].reverse()) reader = readerOf(facts, files.length, reader);
    invariant(reader !== undefined, "a chain has a file");
    return { reader, files };
  } catch (error) {
    for (const each of opened) await each.close();
    throw error;
  }
}

function readerOf(facts: VhdFacts, files: number, parent: BlockReader | undefined): BlockReader {
  const { file, footer } = facts;
  const { sizeBytes } = footer;
  if (footer.type === "fixed") return createRawReader(file.file, { sizeBytes });
  return new MappedReader({ sizeBytes, sectorBytes: 512, file, map: tableOf(facts, files), parent });
}

/** The newest file of `files` is the right parent of the one before it. */
function checkChild(files: readonly { readonly file: StorageFile; readonly facts: VhdFacts }[]): void {
  const [child, parent] = files.slice(-2);
  if (child === undefined || parent === undefined) return;
  const wanted = child.facts.header?.parentId ?? "";
  const details = { file: child.file.path, parent: parent.file.path };
  const name = `${child.file.path} builds upon ${parent.file.path}`;
  if (parent.facts.footer.id !== wanted) {
    throw new ReplicationError(
      "image-damaged",
      `${name}, which is another image: it wants the id ${wanted} and finds ${parent.facts.footer.id}. Put back the parent it was made from`,
      { details },
    );
  }
  const [a, b] = [child.facts.footer.sizeBytes, parent.facts.footer.sizeBytes];
  if (a === b) return;
  throw new ReplicationError(
    "image-format-unsupported",
    `${name}, which has another size: ${a} bytes, the parent ${b}. Merge the image into its parent first`,
    { details },
  );
}

/**
 * The footer is at the end of the file (the first versions left out its last byte), and in a file that is not fixed at its start as well. The
 * one at the end counts, unless its checksum is wrong and the other's is right. Where both are wrong and the same, as some tools write them, it is believed.
 */
async function findFooter(
  file: PlainFile,
  remarks: string[],
): Promise<{ readonly footer: VhdFooter; readonly footerAt: number }> {
  const {
    sizeBytes: fileBytes,
    file: { path },
  } = file;
  const copy = await readAt(file, 0, footerBytes);
  const places = [fileBytes - footerBytes, fileBytes - footerBytes + 1].filter((at) => at >= 0);
  let last: { readonly footer: VhdFooter; readonly bytes: Uint8Array; readonly at: number } | undefined;
  let problem: string | undefined;
  for (const at of places) {
    const bytes = await readAt(file, at, footerBytes);
    const footer = parseFooter(bytes);
    if (typeof footer === "string") problem ??= footer;
    else if (footer !== undefined) last ??= { footer, bytes, at };
  }
  const first = parseFooter(copy);
  if (last?.footer.checksumRight === true) {
    if (last.footer.type !== "fixed" && (typeof first !== "object" || !first.checksumRight)) {
      remarks.push("the copy of the footer at the start is damaged, the one at the end used");
    }
    return { footer: last.footer, footerAt: last.at };
  }
  if (typeof first === "object" && first.checksumRight && first.type !== "fixed") {
    remarks.push("the footer at the end is damaged or missing, its copy at the start used");
    return { footer: first, footerAt: fileBytes };
  }
  if (last !== undefined && last.footer.type !== "fixed" && Buffer.compare(last.bytes, copy) === 0) {
    remarks.push("checksum of the footer wrong, and the same in both of its copies");
    return { footer: last.footer, footerAt: last.at };
  }
  const what =
    last !== undefined
      ? "checksum of the footer wrong"
      : (problem ?? (typeof first === "string" ? first : "its footer is missing"));
  throw damaged(path, what, fileBytes - footerBytes);
}

/** Relative paths first; the deprecated ones in a code page of Windows are not used. */
async function readLocators(file: PlainFile, header: VhdHeader): Promise<readonly NamedPath[]> {
  const found: NamedPath[] = [];
  for (const platform of ["W2ru", "MacX", "W2ku"]) {
    for (const locator of header.locators) {
      const { at, length } = locator;
      if (locator.platform !== platform || length > locatorBytesMax || at + length > file.sizeBytes) continue;
      const bytes = await readAt(file, at, length);
      if (platform === "MacX") {
        const path = Buffer.from(bytes)
          .toString("utf8")
          .replace(/^file:\/\/(localhost)?/, "");
        found.push({ kind: path.startsWith("/") ? "absolute" : "relative", path: decoded(path) });
      } else found.push({ kind: platform === "W2ru" ? "relative" : "absolute", path: utf16(bytes, "little") });
    }
  }
  if (header.parentName !== "") found.push({ kind: "absolute", path: header.parentName });
  return found.map(({ kind, path }) => ({ kind, path: path.replace(/\0.*$/s, "") }));
}

/** Of a URL. What is none is taken as it is. */
function decoded(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    // A percent sign of the name itself.
    return path;
  }
}

async function readAt(file: PlainFile, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  const held = Math.max(0, Math.min(length, file.sizeBytes - offset));
  await file.read(bytes.subarray(0, held), offset);
  return bytes;
}

function damaged(file: string, what: string, offset: number): ReplicationError {
  return new ReplicationError(
    "image-damaged",
    `${file} is a damaged VHD file: ${what}. Check it with the tool that made it, or restore it`,
    { details: { file, offset } },
  );
}
