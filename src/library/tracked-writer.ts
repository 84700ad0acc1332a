/** Tracks writers of one's own: what a hypervisor or a backup tool writes to, whatever it is made of. */
import { resolve } from "node:path";
import { BLOCK_BYTES_DEFAULT } from "../base/units.ts";
import type { BlockWriter } from "../image/block-device.ts";
import { leastAuditShareOf } from "../track/belief.ts";
import { openJournal } from "../track/journal/open.ts";
import { knownStatePathOf, openKnownStates } from "../track/known-state.ts";
import { TrackedImage } from "../track/tracked-image.ts";
import { identityOf } from "./sending.ts";
import { type OpenTrackedOptions, spillBeside, type Tracked } from "./tracking.ts";

export interface TrackWriterOptions extends Omit<OpenTrackedOptions, "format"> {
  /** For messages; with `identity` it says which image this is. */
  readonly name: string;
  /** Stable over restarts, any text; default: the name. */
  readonly identity?: string | undefined;
  /** Path of the journal; the known state and old content of cuts lie beside it. */
  readonly journal: string;
}

/**
 * A tracked image over a writer. From now on everything is written through `image` of the result, which is a {@link BlockWriter} itself; `close` closes both. Nothing tells
 * whether the writer was used past it while it was not tracked: the caller vouches that it was not, and the first cycle after a start audits
 * 1 % of the blocks called clean at least. Only one process at a time may track it. Errors: of the writer; `sync-failed`.
 */
export async function trackWriter(writer: BlockWriter, options: TrackWriterOptions): Promise<Tracked> {
  const { engine, name, identity = name, mode = "power", blockBytes = BLOCK_BYTES_DEFAULT } = options;
  const { storage, clock, random } = engine;
  const { sizeBytes } = writer;
  const path = resolve(options.journal);
  const { journal, belief } = await openJournal({
    ...{ storage, clock, random, mode, path, sizeBytes, blockBytes },
    // As of a block device: it has no time of its last change.
    kind: "device",
    image: async () => ({ sizeBytes, device: identity, inode: "0", changedNanos: 0n, dataWriteGuid: undefined }),
    ...{ onFailure: options.onFailure, onKept: options.onKept },
  });
  const image = new TrackedImage({
    ...{ image: writer, journal, ...spillBeside(storage, path) },
    leastAuditShare: leastAuditShareOf(belief),
  });
  const stateFile = knownStatePathOf(path);
  const states = await openKnownStates(storage, stateFile, {
    sync: mode === "power",
    onFailure: (words) => engine.log.warn({ image: name }, words),
  });
  return {
    ...{ name, image, states, stateFile, belief, file: undefined },
    identity: identityOf(engine, name, identity),
    async close() {
      try {
        await image.flush();
      } finally {
        await image.close();
      }
    },
  };
}
