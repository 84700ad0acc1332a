/**
 * A VHDX file that is written in place: where the payload blocks of its disk are, and how its tables change. They do with `flush` alone, through the log, so
 * that a crash at any moment leaves the tables of the last flush or of this one, with content written since then or not. Content itself is the caller's.
 *
 * A payload block keeps its place for good, and its state once it is present: zeros are a hole in the file. Space is never given to another block, or an old
 * table after a crash would show the content of one disk block in another. New places come from the end of the file.
 */
import { invariant } from "../../base/errors.ts";
import type { Random } from "../../base/random.ts";
import { MIB } from "../../base/units.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import type { BlockMap } from "../mapped-reader.ts";
import { PlainFile } from "../plain-file.ts";
import { zeroRaw } from "../raw.ts";
import { Bat, batEntries, presentEntry } from "./bat.ts";
import { vhdxDamaged, vhdxUnsupported } from "./damage.ts";
import { noGuid } from "./guid.ts";
import { encodeHeader, headerOffsets, type VhdxHeader } from "./headers.ts";
import { completeSector, encodeEntry, LOG_SECTOR_BYTES } from "./log-entries.ts";
import { metadataItems, type VhdxDisk } from "./metadata.ts";
import { batOf, readVhdxFacts, takenPlaces, type VhdxFacts } from "./open.ts";
import { PendingMap } from "./pending-map.ts";
import { metadataRegion } from "./region-table.ts";

/** Sectors of the tables in one entry of a log, which has 1 MiB at least. */
const sectorsPerEntry = 128;
const sequenceMax = 2n ** 64n - 1n;

export interface PlacesOptions {
  readonly storage: Storage;
  readonly random: Random;
}

export class VhdxPlaces {
  readonly file: PlainFile;
  readonly disk: VhdxDisk;
  /** The table, with what was given a place since it was written. */
  readonly map: BlockMap;
  readonly #storage: Storage;
  readonly #random: Random;
  readonly #bat: Bat;
  /** Entries of blocks the table has room for. */
  readonly #blocksMax: number;
  /** Where in the file the size of the disk is. */
  readonly #sizeAt: number;
  readonly #pending: PendingMap;
  #sizeBytes: number;
  #resized = false;
  #header: VhdxHeader;
  #touched: Promise<void> | undefined;
  #failed: { readonly error: unknown } | undefined;
  #logSequence = 1n;
  /** Where the next place begins. */
  #end: number;
  /** Extensions of the file, one after the other. */
  #extending: Promise<void> = Promise.resolve();

  /**
   * `file` is open for writing, and nobody else has it so. A log that was not written out is, first. Errors: those of reading; `image-format-unsupported` for a
   * differencing file; `image-truncated` for one that does not hold all of its content; the system's, unchanged. The file stays the caller's.
   */
  static async open(file: StorageFile, options: PlacesOptions): Promise<VhdxPlaces> {
    let facts = await readVhdxFacts(file, options.storage);
    // Before anything is written: a file that is not to be written to stays as it is.
    if (facts.disk.hasParent) throw vhdxUnsupported(file.path, "it is a differencing image to be written to");
    await endOf(facts);
    if (facts.overlay !== undefined) {
      await writeOutLog(facts, file, options);
      facts = await readVhdxFacts(file, options.storage);
    }
    return new VhdxPlaces(facts, await endOf(facts), file, options);
  }

  private constructor(facts: VhdxFacts, end: number, file: StorageFile, { storage, random }: PlacesOptions) {
    const { disk, header, bat } = facts;
    this.#storage = storage;
    this.#random = random;
    this.disk = disk;
    this.#sizeBytes = disk.sizeBytes;
    this.#header = header;
    this.file = new PlainFile(file, storage.lanes, facts.file.sizeBytes);
    this.#end = Math.ceil(end / MIB) * MIB;
    this.#bat = new Bat({ file: this.file, disk, region: bat, taken: takenPlaces(facts) });
    this.#blocksMax = this.#bat.blocksMax;
    this.#pending = new PendingMap(this.#bat);
    this.map = this.#pending;
    const region = facts.regions.find(({ guid }) => guid === metadataRegion);
    const item = facts.metadata.find((entry) => entry.item === metadataItems.diskSize && !entry.isUser);
    invariant(region !== undefined && item !== undefined, "a file that was read has its metadata");
    this.#sizeAt = region.offset + item.offset;
  }

  /** Of the disk, as the tables say or will after the next flush. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  get payloadBlockBytes(): number {
    return this.disk.payloadBlockBytes;
  }

  /** Where in the file a byte of the disk is; undefined: nowhere, it is zero. Errors: those of reading. */
  find(offset: number): number | undefined {
    const block = Math.floor(offset / this.payloadBlockBytes);
    const stretch = this.map.stretch(block, block + 1);
    return stretch.kind === "present" ? stretch.at + offset - block * this.payloadBlockBytes : undefined;
  }

  /** The first byte at or behind `offset` of a payload block that has a place; undefined: there is none before `end`. */
  nextPlaced(offset: number, end: number): number | undefined {
    const last = Math.min(Math.ceil(end / this.payloadBlockBytes), this.#blocksMax);
    for (let block = Math.floor(offset / this.payloadBlockBytes); offset < end && block < last; ) {
      const stretch = this.map.stretch(block, last);
      if (stretch.kind === "present") return Math.max(offset, block * this.payloadBlockBytes);
      block = stretch.end;
    }
    return undefined;
  }

  /**
   * Whoever keeps something about the content, or a child of this file, must see that it is another one: durable before the first change of content. Further
   * calls do nothing.
   */
  touch(): Promise<void> {
    this.#touched ??= this.#orFail(async () => {
      await this.#writeHeader({ fileWriteGuid: this.#random.uuid(), dataWriteGuid: this.#random.uuid() });
      await this.file.file.datasync();
    });
    return this.#touched;
  }

  /** Gives payload blocks a place that have none; those read as zeros. Any number of calls at a time. */
  async claim(blocks: Iterable<number>): Promise<void> {
    const fresh: number[] = [];
    for (const block of blocks) {
      if (this.map.stretch(block, block + 1).kind === "present") continue;
      this.#pending.add(block, this.#end);
      this.#end += this.payloadBlockBytes;
      fresh.push(block);
    }
    // Also for those that another call has given a place a moment ago.
    await (fresh.length === 0 ? this.#extending : this.#extend());
    this.#pending.settled(fresh);
  }

  async #extend(): Promise<void> {
    // Never to a length that a later call has gone beyond: what is written there must stay.
    const next = this.#extending.then(async () => {
      const { sizeBytes } = this.file;
      if (sizeBytes >= this.#end) return;
      const end = this.#end;
      await this.file.file.truncate(end);
      this.file.grew(end);
      this.#clear(sizeBytes, end);
    });
    this.#extending = next;
    await next;
  }

  /** Gives the disk another size, of whole sectors, with the next flush. What lies behind the smaller of both reads as zeros from now on. Nothing else is done meanwhile. */
  async resize(sizeBytes: number): Promise<void> {
    invariant(sizeBytes % this.disk.sectorBytes === 0, "a VHDX has whole sectors");
    const from = Math.min(sizeBytes, this.#sizeBytes);
    await this.#clearFrom(from);
    if (sizeBytes === this.#sizeBytes) return;
    this.#sizeBytes = sizeBytes;
    this.#resized = true;
  }

  async #clearFrom(from: number): Promise<void> {
    const { file } = this.file;
    const end = this.#blocksMax * this.payloadBlockBytes;
    for (let at = this.nextPlaced(from, end); at !== undefined; at = this.nextPlaced(at, end)) {
      const stop = (Math.floor(at / this.payloadBlockBytes) + 1) * this.payloadBlockBytes;
      const place = this.find(at) ?? 0;
      const fileEnd = Math.min(place + stop - at, this.file.sizeBytes);
      const data = file.nextData(place);
      if (data !== undefined && data.start < fileEnd) await zeroRaw(file, this.#storage, place, fileEnd);
      else this.#clear(place, fileEnd);
      at = stop;
    }
  }

  /**
   * What reads as zeros need not be zeros on disk: a session may have cut it off, or punched it, and then failed to sync; the next sync does not try that again. With the next flush it
   * is zeros. Where holes cannot be made there is no way to be sure short of writing them.
   */
  #clear(from: number, end: number): void {
    if (from < end) this.#storage.lanes.punch(this.file.file.fd, from, end - from);
  }

  /**
   * Order: content, and an entry of a log that no header names yet, durable → a header that names it → the table itself → a header that names none. So
   * there is never a log without a whole entry, nor a place in the table whose content is not there. Places that are claimed meanwhile are of the next flush.
   * After a flush or a {@link touch} that failed, all further ones do.
   */
  flush(): Promise<void> {
    return this.#orFail(() => this.#flush());
  }

  /** After a header or a table that may be anything by now, the next one could take the place of the last that is whole. */
  async #orFail(work: () => Promise<void>): Promise<void> {
    if (this.#failed !== undefined) throw this.#failed.error;
    try {
      await work();
    } catch (error) {
      this.#failed = { error };
      throw error;
    }
  }

  async #flush(): Promise<void> {
    const { file } = this.file;
    const places = this.#pending.ready();
    const resized = this.#resized;
    const sectors = this.#changedSectors(places, resized);
    if (sectors.length === 0) {
      await file.datasync();
      return;
    }
    const fileBytes = this.file.sizeBytes;
    for (let first = 0; first < sectors.length; first += sectorsPerEntry) {
      const some = sectors.slice(first, first + sectorsPerEntry);
      const logGuid = this.#random.uuid();
      const entry = encodeEntry({
        ...{ logGuid, sequence: this.#logSequence++, tail: 0, sectors: some },
        ...{ flushedFileBytes: fileBytes, lastFileBytes: fileBytes },
      });
      invariant(entry.length <= this.#header.logBytes, "an entry fits its log");
      await file.write(entry, this.#header.logOffset);
      await file.datasync();
      await this.#writeHeader({ logGuid });
      await file.datasync();
      for (const { offset, bytes } of some) await file.write(bytes, offset);
      await file.datasync();
      await this.#writeHeader({ logGuid: noGuid });
      await file.datasync();
    }
    for (const { offset } of sectors) this.#bat.written(offset, LOG_SECTOR_BYTES);
    this.#pending.flushed(places);
    if (resized) this.#resized = false;
  }

  async #writeHeader(changes: Partial<Pick<VhdxHeader, "fileWriteGuid" | "dataWriteGuid" | "logGuid">>): Promise<void> {
    this.#header = await writeHeader(this.file.file, this.#header, changes);
  }

  #changedSectors(
    places: ReadonlyMap<number, number>,
    resized: boolean,
  ): { readonly offset: number; readonly bytes: Uint8Array }[] {
    const sectors = new Map<number, Uint8Array>();
    const set = (at: number, value: bigint): void => {
      const offset = at - (at % LOG_SECTOR_BYTES);
      let bytes = sectors.get(offset);
      if (bytes === undefined) {
        bytes = this.#bat.copy(offset, LOG_SECTOR_BYTES);
        sectors.set(offset, bytes);
      }
      new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(at - offset, value, true);
    };
    for (const [block, place] of places) set(this.#bat.entryAt(block), presentEntry(place));
    if (resized) set(this.#sizeAt, BigInt(this.#sizeBytes));
    return [...sectors].map(([offset, bytes]) => ({ offset, bytes })).sort((a, b) => a.offset - b.offset);
  }

  /**
   * What a crash leaves at the end of the file was given to blocks whose entries never got into the table: cut off. Before anything is claimed. Refuses a table
   * that has two blocks in one place, or one where the file ends: what is written to them would go over another's content. True: the file was changed. Throws
   * `image-damaged`.
   */
  async trim(): Promise<boolean> {
    const places: number[] = [];
    const limit = this.#blocksMax * this.payloadBlockBytes;
    for (
      let at = this.nextPlaced(0, limit);
      at !== undefined;
      at = this.nextPlaced(at + this.payloadBlockBytes, limit)
    ) {
      places.push(this.find(at) ?? 0);
    }
    const { file } = this.file;
    const sorted = Float64Array.from(places).sort();
    let end = this.#bat.tablesEnd;
    for (const place of sorted) {
      if (place < end) throw vhdxDamaged(file.path, "two of its payload blocks lie over each other", { offset: place });
      end = place + this.payloadBlockBytes;
    }
    if (end > this.file.sizeBytes) {
      throw vhdxDamaged(file.path, `it ends at ${this.file.sizeBytes}, and its last payload block at ${end}`);
    }
    if (end === this.file.sizeBytes) return false;
    await file.truncate(end);
    this.file.grew(end);
    this.#end = Math.ceil(end / MIB) * MIB;
    return true;
  }
}

/**
 * Where new payload blocks may lie: behind everything that the tables name. Errors: `image-truncated` when the file does not hold all of that, so that
 * what is missing would come to lie over what is new.
 */
async function endOf(facts: VhdxFacts): Promise<number> {
  const { file, disk, bat: region } = facts;
  const { sizeBytes: fileBytes } = file;
  const { sizeBytes, payloadBlockBytes } = disk;
  const tableEnd = region.offset + batEntries(disk) * 8;
  if (tableEnd > fileBytes) throw file.truncated(fileBytes, `the BAT reaches to ${tableEnd}`);
  let end = fileBytes;
  for (const { offset, length } of takenPlaces(facts)) end = Math.max(end, offset + length);
  const bat = batOf(facts);
  const blocks = Math.ceil(sizeBytes / payloadBlockBytes);
  for (let block = 0; block < blocks; ) {
    await bat.fetch(block);
    const stretch = bat.stretch(block, blocks);
    if (stretch.kind === "present") {
      const stop = stretch.at + Math.min(payloadBlockBytes, sizeBytes - block * payloadBlockBytes);
      if (stop > fileBytes) {
        throw file.truncated(fileBytes, `payload block ${block} at ${stretch.at} reaches to ${stop}`);
      }
      end = Math.max(end, stretch.at + payloadBlockBytes);
    }
    block = stretch.end;
  }
  return end;
}

/** Order: a header that says that the file is changed → changes of the log made and durable → the header names no log any more. */
async function writeOutLog(
  { header, overlay }: VhdxFacts,
  file: StorageFile,
  { storage, random }: PlacesOptions,
): Promise<void> {
  if (overlay === undefined) return;
  const touched = await writeHeader(file, header, { fileWriteGuid: random.uuid() });
  await file.datasync();
  const { sizeBytes } = await file.stat();
  for (const change of overlay.changes()) {
    if (change.kind === "zero") {
      // What lies behind the end is zero when the file is made longer.
      if (change.start < sizeBytes) await zeroRaw(file, storage, change.start, Math.min(change.end, sizeBytes));
      continue;
    }
    const sector = new Uint8Array(LOG_SECTOR_BYTES);
    await file.read(sector, change.logAt);
    completeSector(sector, 0, change);
    await file.write(sector, change.offset);
  }
  if (sizeBytes < overlay.fileBytes) await file.truncate(overlay.fileBytes);
  await file.datasync();
  await writeHeader(file, touched, { logGuid: noGuid });
  await file.datasync();
}

/** Into the place of the older one, so that one is whole whatever happens. */
async function writeHeader(
  file: StorageFile,
  header: VhdxHeader,
  changes: Partial<Pick<VhdxHeader, "fileWriteGuid" | "dataWriteGuid" | "logGuid">>,
): Promise<VhdxHeader> {
  if (header.sequence >= sequenceMax) {
    throw vhdxDamaged(file.path, "the sequence number of its header is the greatest there is", {
      offset: header.offset,
    });
  }
  const next = { ...header, ...changes, sequence: header.sequence + 1n };
  const offset = headerOffsets.find((at) => at !== header.offset) ?? header.offset;
  const bytes = encodeHeader(next);
  await file.write(bytes, offset);
  return { ...next, offset, bytes };
}
