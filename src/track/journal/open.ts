/** Opens the journal of an image, or begins a new one where it is not there or not to be believed. */
import { dirname } from "node:path";
import type { Clock } from "../../base/clock.ts";
import { errnoOf, invariant } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import type { Random } from "../../base/random.ts";
import type { Storage, StorageFile } from "../../storage/seam.ts";
import { type Belief, believe, type ImageNow, type JournalMode } from "../belief.ts";
import { DirtyBitmap, type DiskBlocks } from "../dirty-bitmap.ts";
import type { Fingerprint } from "../fingerprint.ts";
import { type Scan, scan } from "../scan-reason.ts";
import { journalBytesMax, LOG_BYTES_DEFAULT, pagesOf } from "./format.ts";
import { BitmapJournal } from "./journal.ts";
import type { JournalParts } from "./journal-parts.ts";
import { invalidateJournal, JournalFile } from "./journal-file.ts";
import { type LoadedJournal, readJournal } from "./load.ts";
import { PageDirectory } from "./page-directory.ts";
import { JournalState } from "./state.ts";

export interface JournalOptions extends DiskBlocks {
  readonly storage: Storage;
  /** Of the journal. Who opens it holds the image: two at once would ruin it. */
  readonly path: string;
  /** Default `power`. */
  readonly mode?: JournalMode;
  /** What the image is. */
  readonly kind: ImageNow["kind"];
  /** The image as it is when it is called: fingerprint.ts. Called once before anything is written, and once in `close`. */
  readonly image: () => Promise<Fingerprint>;
  readonly clock: Clock;
  readonly random: Random;
  /** Regions that are hot at a time, at most {@link limits.journalHotRegionsMax}, the default; at least 2. */
  readonly hotRegionsMax?: number;
  /** Of the log; default 1 MiB. */
  readonly logBytes?: number;
  /** Told when the journal cannot be written any more. */
  readonly onFailure?: ((failure: Scan) => void) | undefined;
  /** Told when a journal that could not be written is kept again: {@link BitmapJournal.retire}. */
  readonly onKept?: (() => void) | undefined;
}

export interface OpenedJournal {
  readonly journal: BitmapJournal;
  /** `scan`: the journal is a new one, in which everything is dirty, and there is no base. */
  readonly belief: Belief;
}

/** The name of an image's journal, beside it. */
export function journalPathOf(imagePath: string): string {
  return `${imagePath}.rbj`;
}

/**
 * Nothing may be written to the image before it resolves, nor to it past the journal afterwards. Throws only what `image` throws: whatever is wrong with the
 * journal is a reason to scan.
 */
export async function openJournal(options: JournalOptions): Promise<OpenedJournal> {
  const { storage, clock } = options;
  const thisBoot = await storage.boot?.();
  const image = await options.image();
  const nowMillis = clock.now();
  const boot = thisBoot && { id: thisBoot.id, beganMillis: nowMillis - thisBoot.ageMillis };
  const now = { kind: options.kind, sizeBytes: options.sizeBytes, image, boot, nowMillis };
  const found = await findJournal(options, now);
  const isThere = "loaded" in found;
  const parts = partsOf(options, boot?.id ?? "");
  const journal = isThere ? goOn(options, parts, found) : await begin(options, parts);
  await journal.start(image);
  const belief = journal.failure ?? (isThere ? found.belief : found);
  return { journal, belief };
}

type CommonParts = Omit<JournalParts, "state" | "file" | "failure">;

function partsOf(options: JournalOptions, bootId: string): CommonParts {
  const { storage, path, mode = "power", clock, random, image, onFailure, onKept } = options;
  const invalidate = (): Promise<boolean> => invalidateJournal(storage, path, mode);
  const makeFile = (disk: DiskBlocks, id: string): Promise<JournalFile> => makeJournalFile(options, disk, id);
  const hasRoom = (disk: DiskBlocks): Promise<boolean> => hasRoomFor(options, disk);
  return { path, clock, random, bootId, image, invalidate, hasRoom, makeFile, onFailure, onKept };
}

function goOn(options: JournalOptions, parts: CommonParts, { loaded, file }: Found): BitmapJournal {
  const { header } = loaded;
  const state = new JournalState({
    ...header,
    ...loaded,
    hotMax: hotMaxOf(options),
    epoch: loaded.epoch + epochStep(options.random),
  });
  const { id, logBytes } = header;
  const writer = new JournalFile({
    ...loaded,
    file,
    random: options.random,
    id,
    mode: options.mode ?? "power",
    logBytes,
  });
  return new BitmapJournal({ ...parts, state, file: writer });
}

/**
 * The epoch that was open may have been cut without a trace, so that its number is not given again. Nor may others behind it be: image and journal may have been rolled
 * back together, as by a snapshot, after a receiver got states of these numbers, and would be taken for those. So it goes on by chance, as far as two million opens can.
 */
function epochStep(random: Random): number {
  return 1 + Buffer.from(random.bytes(4)).readUInt32LE();
}

function hotMaxOf({ hotRegionsMax = limits.journalHotRegionsMax }: JournalOptions): number {
  invariant(hotRegionsMax <= limits.journalHotRegionsMax, "hot regions fit a header");
  return hotRegionsMax;
}

interface Found {
  readonly loaded: LoadedJournal;
  readonly file: StorageFile;
  readonly belief: Belief;
}

/** A scan: there is none to go on with. */
async function findJournal(options: JournalOptions, now: ImageNow): Promise<Found | Scan> {
  const { storage, path, blockBytes } = options;
  let file: StorageFile;
  try {
    file = await storage.open(path, { write: true });
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === "ENOENT") return scan("journal-new", `there is no journal ${path} yet`);
    return scan("journal-unreadable", `${path} cannot be opened (${errno ?? String(error)})`);
  }
  const reading = await readJournal(file);
  const belief = "bad" in reading ? reading.bad : judge(reading.loaded, blockBytes, now);
  if (belief.kind === "exact" && "loaded" in reading) return { loaded: reading.loaded, file, belief };
  await file.close().catch(() => undefined);
  invariant(belief.kind === "scan", "what is not gone on with is begun anew");
  return belief;
}

function judge(loaded: LoadedJournal, blockBytes: number, now: ImageNow): Belief {
  const { header, heartbeatMillis } = loaded;
  if (header.blockBytes === blockBytes) return believe({ ...header, heartbeatMillis }, now);
  return scan(
    "block-size-differs",
    `the journal has blocks of ${header.blockBytes} bytes, and ${blockBytes} are asked for`,
  );
}

/**
 * A journal in which everything is dirty. The old one is gone, durably, before anything of the new one is there; a crash in between leaves none, which
 * means the same.
 */
async function begin(options: JournalOptions, parts: CommonParts): Promise<BitmapJournal> {
  const { path, random } = options;
  const bits = new DirtyBitmap(options);
  bits.setAll();
  const changedPages = Array.from({ length: pagesOf(options) }, (_, page) => page);
  const { sizeBytes, blockBytes } = options;
  const start = { sizeBytes, blockBytes, bits, changedPages, epoch: 1, base: 0, pending: 0 };
  const state = new JournalState({ ...start, hotMax: hotMaxOf(options) });
  try {
    const file = await makeJournalFile(options, options, random.uuid());
    return new BitmapJournal({ ...parts, state, file });
  } catch (error) {
    const invalid = await parts.invalidate();
    const more = invalid
      ? ""
      : ". What lies there could not be taken back: remove it before the image is tracked again";
    const words = `the journal ${path} cannot be made (${errnoOf(error) ?? String(error)}): everything is compared, until it can${more}`;
    return new BitmapJournal({ ...parts, state, file: undefined, failure: scan("journal-write-failed", words) });
  }
}

/**
 * Twice the room for all a journal will ever have, so that one which had none is not begun in what its own end has freed, to fail again. It is asked for and not taken:
 * the image may want it, of the same file system.
 */
async function hasRoomFor(
  { storage, path, logBytes = LOG_BYTES_DEFAULT }: JournalOptions,
  disk: DiskBlocks,
): Promise<boolean> {
  try {
    const { freeBytes } = await storage.space(dirname(path));
    return freeBytes >= 2 * journalBytesMax(disk, logBytes);
  } catch {
    return false;
  }
}

/** The old one is gone, durably, before anything of the new one is there. */
async function makeJournalFile(
  { storage, path, random, mode = "power", logBytes = LOG_BYTES_DEFAULT }: JournalOptions,
  disk: DiskBlocks,
  id: string,
): Promise<JournalFile> {
  const file = await storage.open(path, { write: true, create: true, truncate: true });
  try {
    if (mode === "power") {
      await file.datasync();
      await storage.syncDirectory(dirname(path));
    }
  } catch (error) {
    await file.close().catch(() => undefined);
    throw error;
  }
  const empty = { directory: new PageDirectory(pagesOf(disk)), slot: 1, generationMax: 0, heartbeatCount: 0 };
  return new JournalFile({ ...empty, file, random, id, mode, logBytes });
}
