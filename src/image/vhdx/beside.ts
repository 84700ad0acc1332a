/** Reads a VHDX file while another process writes it by {@link VhdxPlaces}. */
import { ReplicationError } from "../../base/errors.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import { PlainFile } from "../plain-file.ts";
import type { TableFile } from "../table-pages.ts";
import { Bat } from "./bat.ts";
import { completeSector, LOG_SECTOR_BYTES } from "./log-entries.ts";
import { readVhdxFacts, takenPlaces, type VhdxFacts } from "./open.ts";

/** A flush of the writer changes the header twice, each followed by a sync: more than a few looks are not needed. */
const looksMax = 100;

export interface DiskBeside {
  /** Fills `target`; with zeros where the disk has no place yet, or none that can be made out: the caller knows what must be there. Returns its length. */
  read(target: Uint8Array, offset: number): Promise<number>;
}

/**
 * The disk as its tables are now or become meanwhile: a payload block never changes its place, so what is read is what the writer had written, or zeros in
 * place of what was given a place since. The file stays the caller's. Errors: those of {@link readVhdxFacts}.
 */
export async function readVhdxBeside(file: StorageFile, storage: Storage): Promise<DiskBeside> {
  const { facts, logged } = await readSettled(file, storage);
  const tables = new TablesBeside(file, storage, facts.file.sizeBytes, logged);
  const { payloadBlockBytes } = facts.disk;
  const taken = takenPlaces(facts);
  const bat = new Bat({ file: tables, disk: facts.disk, region: facts.bat, taken, oneForEach: false });
  return {
    async read(target, offset) {
      for (let done = 0; done < target.length; ) {
        const at = offset + done;
        const block = Math.floor(at / payloadBlockBytes);
        const piece = target.subarray(done, done + (block + 1) * payloadBlockBytes - at);
        const place = placeOf(bat, block);
        const count = place === undefined ? 0 : await file.read(piece, place + at - block * payloadBlockBytes);
        piece.fill(0, count);
        done += piece.length;
      }
      return target.length;
    },
  };
}

function placeOf(bat: Bat, block: number): number | undefined {
  if (block >= bat.blocksMax) return undefined;
  try {
    const stretch = bat.stretch(block, block + 1);
    return stretch.kind === "present" ? stretch.at : undefined;
  } catch (error) {
    // A damaged entry costs its own payload block.
    if (error instanceof ReplicationError && error.code === "image-damaged") return undefined;
    throw error;
  }
}

/** Facts between two changes of the header, and the sectors of tables that the log has, which the next flush of the writer writes over. */
async function readSettled(
  file: StorageFile,
  storage: Storage,
): Promise<{ readonly facts: VhdxFacts; readonly logged: ReadonlyMap<number, Uint8Array> }> {
  let trouble = new ReplicationError("image-changed", `${file.path} changes without end`, {
    details: { file: file.path },
  });
  for (let looks = 0; looks < looksMax; looks++) {
    try {
      const facts = await readVhdxFacts(file, storage);
      const logged = await loggedSectors(file, facts);
      const again = await readVhdxFacts(file, storage);
      if (again.header.sequence === facts.header.sequence) return { facts, logged };
    } catch (error) {
      // What is being written just now may look damaged for a moment.
      if (!(error instanceof ReplicationError)) throw error;
      trouble = error;
    }
  }
  throw trouble;
}

async function loggedSectors(file: StorageFile, { overlay }: VhdxFacts): Promise<ReadonlyMap<number, Uint8Array>> {
  const sectors = new Map<number, Uint8Array>();
  for (const change of overlay?.changes() ?? []) {
    if (change.kind === "zero") {
      for (let at = change.start; at < change.end; at += LOG_SECTOR_BYTES) {
        sectors.set(at, new Uint8Array(LOG_SECTOR_BYTES));
      }
      continue;
    }
    const sector = new Uint8Array(LOG_SECTOR_BYTES);
    await file.read(sector, change.logAt);
    completeSector(sector, 0, change);
    sectors.set(change.offset, sector);
  }
  return sectors;
}

/** The tables in the file, with what the log had of them when it was opened. */
class TablesBeside implements TableFile {
  readonly file: StorageFile;
  readonly sizeBytes: number;
  readonly #plain: PlainFile;
  readonly #logged: ReadonlyMap<number, Uint8Array>;

  constructor(file: StorageFile, { lanes }: Storage, sizeBytes: number, logged: ReadonlyMap<number, Uint8Array>) {
    this.file = file;
    this.sizeBytes = sizeBytes;
    this.#plain = new PlainFile(file, lanes, sizeBytes);
    this.#logged = logged;
  }

  isPlain(offset: number, length: number): boolean {
    if (offset + length > this.sizeBytes) return false;
    for (const at of this.#logged.keys()) if (at < offset + length && at + LOG_SECTOR_BYTES > offset) return false;
    return true;
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    await this.#plain.read(target, offset);
    this.#overlay(target, offset);
  }

  readNow(target: Uint8Array, offset: number): void {
    this.#plain.readNow(target, offset);
    this.#overlay(target, offset);
  }

  #overlay(target: Uint8Array, offset: number): void {
    for (const [at, bytes] of this.#logged) {
      const start = Math.max(at, offset);
      const end = Math.min(at + bytes.length, offset + target.length);
      if (start < end) target.set(bytes.subarray(start - at, end - at), start - offset);
    }
  }

  truncated(endsAt: number, what: string): Error {
    return this.#plain.truncated(endsAt, what);
  }
}
