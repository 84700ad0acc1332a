/** What a journal is made of, and what it gives out. */
import type { Clock } from "../../base/clock.ts";
import type { Random } from "../../base/random.ts";
import type { DirtyBits, DiskBlocks } from "../dirty-bitmap.ts";
import type { Fingerprint } from "../fingerprint.ts";
import type { Scan } from "../scan-reason.ts";
import type { JournalFile } from "./journal-file.ts";
import type { JournalState } from "./state.ts";

export interface Cut {
  /** Journal's id, ":", epoch. Nothing is sent under it before `durable`. */
  readonly cycle: string;
  readonly frozen: DirtyBits;
  /** The cut will be known after a crash. Never rejects. */
  readonly durable: Promise<void>;
}

export interface JournalParts {
  readonly state: JournalState;
  /** Undefined: it could not be made; `failure` says why. */
  readonly file: JournalFile | undefined;
  readonly failure?: Scan | undefined;
  readonly path: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly bootId: string;
  /** The image as it is now. */
  readonly image: () => Promise<Fingerprint>;
  /** {@link invalidateJournal} of this one. */
  readonly invalidate: () => Promise<boolean>;
  /** Whether the file system has room enough to begin one anew. Never throws. */
  readonly hasRoom: (disk: DiskBlocks) => Promise<boolean>;
  /** A file in place of this one. Nothing of the old one is believed when it resolves, nor of this one before its first checkpoint. */
  readonly makeFile: (disk: DiskBlocks, id: string) => Promise<JournalFile>;
  /** Told each time the journal is lost. */
  readonly onFailure?: ((failure: Scan) => void) | undefined;
  /** Told when one that was lost is kept again. */
  readonly onKept?: (() => void) | undefined;
}
