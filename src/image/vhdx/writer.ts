/**
 * Writes a disk in a VHDX file, in place. What is in its tables changes with `flush` alone, through the log, so that a crash at any moment leaves a
 * file that is what it was at the last flush or at this one, with content written since then or not.
 *
 * A payload block keeps its place for good, and its state once it is present: zeros are a hole in the file. Space is never given to another block, or an old
 * table after a crash would show the content of one disk block in another. New places come from the end of the file.
 */
import { InvariantError, invariant } from "../../base/errors.ts";
import type { Random } from "../../base/random.ts";
import { MIB } from "../../base/units.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import type { BlockReader, BlockWriter } from "../block-device.ts";
import { type BlockMap, type BlockStretch, MappedReader } from "../mapped-reader.ts";
import { PlainFile } from "../plain-file.ts";
import { checkRange } from "../range.ts";
import { zeroRaw } from "../raw.ts";
import { Bat, batEntries, presentEntry } from "./bat.ts";
import { vhdxDamaged, vhdxUnsupported } from "./damage.ts";
import { noGuid } from "./guid.ts";
import { encodeHeader, headerOffsets, type VhdxHeader } from "./headers.ts";
import { completeSector, encodeEntry, LOG_SECTOR_BYTES } from "./log-entries.ts";
import { batOf, readVhdxFacts, takenPlaces, type VhdxFacts } from "./open.ts";

/** Sectors of the table in one entry of a log, which has 1 MiB at least. */
const sectorsPerEntry = 128;
const sequenceMax = 2n ** 64n - 1n;

/**
 * Opens a file for writing (itself opened so) that nobody else has open. A log that was not written out is, first. Takes the file over. Errors: those of reading;
 * `image-format-unsupported` for a differencing file; `image-truncated` for one that does not hold all of its content. Methods of the writer throw
 * the system's errors unchanged; after a flush that failed, or a header that could not be written, all further ones throw.
 */
export async function openVhdxWriter(
  file: StorageFile,
  options: { readonly storage: Storage; readonly random: Random },
): Promise<BlockWriter> {
  const { storage } = options;
  try {
    let facts = await readVhdxFacts(file, storage);
    // Before anything is written: a file that is not to be written to stays as it is.
    if (facts.disk.hasParent) throw vhdxUnsupported(file.path, "it is a differencing image to be written to");
    await endOf(facts);
    if (facts.overlay !== undefined) {
      await writeOutLog(facts, file, options);
      facts = await readVhdxFacts(file, storage);
    }
    return new VhdxWriter(facts, await endOf(facts), { file, ...options }).asWriter();
  } catch (error) {
    await file.close();
    throw error;
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
  { storage, random }: { readonly storage: Storage; readonly random: Random },
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

class VhdxWriter {
  readonly #file: StorageFile;
  readonly #plain: PlainFile;
  readonly #storage: Storage;
  readonly #random: Random;
  readonly #blockBytes: number;
  readonly #sizeBytes: number;
  readonly #bat: Bat;
  readonly #map: PendingMap;
  readonly #reader: BlockReader;
  #header: VhdxHeader;
  /** Of everything that has a place in the file; the file itself may be shorter. */
  #end: number;
  #touched = false;
  #logSequence = 1n;
  /** One call after the other. */
  #turn: Promise<unknown> = Promise.resolve();
  #failed: { readonly error: unknown } | undefined;

  constructor(
    facts: VhdxFacts,
    end: number,
    { file, storage, random }: { readonly file: StorageFile; readonly storage: Storage; readonly random: Random },
  ) {
    const { disk, header } = facts;
    this.#file = file;
    this.#storage = storage;
    this.#random = random;
    this.#blockBytes = disk.payloadBlockBytes;
    this.#sizeBytes = disk.sizeBytes;
    this.#header = header;
    this.#end = end;
    this.#plain = new PlainFile(file, storage.lanes, facts.file.sizeBytes);
    this.#bat = new Bat({ file: this.#plain, disk, region: facts.bat, taken: takenPlaces(facts) });
    this.#map = new PendingMap(this.#bat);
    const { sizeBytes, sectorBytes } = disk;
    this.#reader = new MappedReader({ sizeBytes, sectorBytes, file: this.#plain, map: this.#map, parent: undefined });
  }

  asWriter(): BlockWriter {
    const reader = this.#reader;
    return {
      sizeBytes: reader.sizeBytes,
      sectorBytes: reader.sectorBytes,
      read: (target, offset) => this.#after(() => reader.read(target, offset)),
      extents: (offset, length) => reader.extents(offset, length),
      runs: (offset, length) => reader.runs?.(offset, length),
      write: async (source, offset) => {
        checkRange(this.#sizeBytes, offset, source.length);
        await this.#after(() => this.#write(source, offset));
      },
      zero: async (offset, length) => {
        checkRange(this.#sizeBytes, offset, length);
        await this.#after(() => this.#zero(offset, length));
      },
      flush: () => this.#after(() => this.#orFail(() => this.#flush())),
      close: () => this.#after(() => reader.close(), true),
    };
  }

  #after<T>(work: () => Promise<T>, always = false): Promise<T> {
    const next = this.#turn.then(() => {
      if (this.#failed !== undefined && !always) throw this.#failed.error;
      return work();
    });
    this.#turn = next.then(
      () => undefined,
      () => undefined,
    );
    return next;
  }

  async #write(source: Uint8Array, offset: number): Promise<void> {
    await this.#touch();
    for (let done = 0; done < source.length; ) {
      const position = offset + done;
      const block = Math.floor(position / this.#blockBytes);
      const within = position - block * this.#blockBytes;
      const length = Math.min(source.length - done, this.#blockBytes - within);
      const place = await this.#placeOf(block);
      await this.#file.write(source.subarray(done, done + length), place + within);
      done += length;
    }
  }

  async #placeOf(block: number): Promise<number> {
    const stretch = this.#map.stretch(block, block + 1);
    if (stretch.kind === "present") return stretch.at;
    const place = Math.ceil(this.#end / MIB) * MIB;
    await this.#file.truncate(place + this.#blockBytes);
    this.#end = place + this.#blockBytes;
    this.#plain.grew(this.#end);
    this.#map.add(block, place);
    return place;
  }

  async #zero(offset: number, length: number): Promise<void> {
    await this.#touch();
    const end = offset + length;
    const lastBlock = Math.ceil(end / this.#blockBytes);
    for (let position = offset; position < end; ) {
      const block = Math.floor(position / this.#blockBytes);
      const stretch = this.#map.stretch(block, lastBlock);
      const stop = Math.min(end, stretch.end * this.#blockBytes);
      if (stretch.kind === "present") {
        const at = stretch.at - block * this.#blockBytes;
        await zeroRaw(this.#file, this.#storage, at + position, at + stop);
      }
      position = stop;
    }
  }

  /** Whoever keeps something about the content, or a child of this file, must see that it is another one: before the first change. */
  async #touch(): Promise<void> {
    if (this.#touched) return;
    const guids = { fileWriteGuid: this.#random.uuid(), dataWriteGuid: this.#random.uuid() };
    await this.#orFail(async () => {
      this.#header = await writeHeader(this.#file, this.#header, guids);
      await this.#file.datasync();
    });
    this.#touched = true;
  }

  /** After a header or a table that may be anything by now, the next one could take the place of the last that is whole. */
  async #orFail(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#failed = { error };
      throw error;
    }
  }

  /**
   * Order: content, and an entry of a log that no header names yet, durable → a header that names it → the table itself → a header that names none. So
   * there is never a log without a whole entry, nor a place in the table whose content is not there.
   */
  async #flush(): Promise<void> {
    const pending = this.#map.pending();
    if (pending.length === 0) {
      await this.#file.datasync();
      return;
    }
    const sectors = this.#changedSectors(pending);
    for (let first = 0; first < sectors.length; first += sectorsPerEntry) {
      const some = sectors.slice(first, first + sectorsPerEntry);
      const logGuid = this.#random.uuid();
      const entry = encodeEntry({
        ...{ logGuid, sequence: this.#logSequence++, tail: 0, sectors: some },
        ...{ flushedFileBytes: this.#plain.sizeBytes, lastFileBytes: this.#plain.sizeBytes },
      });
      invariant(entry.length <= this.#header.logBytes, "an entry fits its log");
      await this.#file.write(entry, this.#header.logOffset);
      await this.#file.datasync();
      this.#header = await writeHeader(this.#file, this.#header, { logGuid });
      await this.#file.datasync();
      for (const { offset, bytes } of some) await this.#file.write(bytes, offset);
      await this.#file.datasync();
      this.#header = await writeHeader(this.#file, this.#header, { logGuid: noGuid });
      await this.#file.datasync();
    }
    for (const { offset } of sectors) this.#bat.written(offset, LOG_SECTOR_BYTES);
    this.#map.settle();
  }

  #changedSectors(
    pending: readonly { readonly block: number; readonly place: number }[],
  ): { readonly offset: number; readonly bytes: Uint8Array }[] {
    const sectors = new Map<number, Uint8Array>();
    for (const { block, place } of pending) {
      const at = this.#bat.entryAt(block);
      const offset = at - (at % LOG_SECTOR_BYTES);
      let bytes = sectors.get(offset);
      if (bytes === undefined) {
        bytes = this.#bat.copy(offset, LOG_SECTOR_BYTES);
        sectors.set(offset, bytes);
      }
      new DataView(bytes.buffer, bytes.byteOffset).setBigUint64(at - offset, presentEntry(place), true);
    }
    return [...sectors].map(([offset, bytes]) => ({ offset, bytes })).sort((a, b) => a.offset - b.offset);
  }
}

/** The table with what was given a place since it was written. */
class PendingMap implements BlockMap {
  readonly payloadBlockBytes: number;
  readonly #bat: Bat;
  readonly #places = new Map<number, number>();

  constructor(bat: Bat) {
    this.#bat = bat;
    this.payloadBlockBytes = bat.payloadBlockBytes;
  }

  add(block: number, place: number): void {
    this.#places.set(block, place);
  }

  pending(): { readonly block: number; readonly place: number }[] {
    return [...this.#places].map(([block, place]) => ({ block, place }));
  }

  settle(): void {
    this.#places.clear();
  }

  fetch(block: number): Promise<void> {
    return this.#bat.fetch(block);
  }

  stretch(first: number, end: number): BlockStretch {
    const at = this.#places.get(first);
    if (at !== undefined) return { kind: "present", first, end: first + 1, at };
    const stretch = this.#bat.stretch(first, end);
    if (stretch.end === first + 1) return stretch;
    let stop = stretch.end;
    for (const block of this.#places.keys()) if (block > first && block < stop) stop = block;
    return { ...stretch, end: stop };
  }

  sectors(): never {
    throw new InvariantError("a disk without a parent is never partly there");
  }
}
