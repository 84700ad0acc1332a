/** A source whose changes somebody else tracks: a dirty bitmap that an NBD server, QEMU's above all, has for its export. */
import { resolve } from "node:path";
import { BLOCK_BYTES_DEFAULT } from "../base/units.ts";
import type { BlockReader } from "../image/block-device.ts";
import type { DirtyRange } from "../nbd/client.ts";
import type { Engine } from "../replication/engine.ts";
import type { SendReport } from "../replication/report.ts";
import type { SourceChanges } from "../replication/source-changes.ts";
import { chooseAudit } from "../track/audit.ts";
import { DirtyBitmap, type DirtyBits, type DiskBlocks } from "../track/dirty-bitmap.ts";
import { openKnownStates } from "../track/known-state.ts";
import type { OpenLocation } from "./locations.ts";

export interface BitmapOptions {
  /**
   * Name of the bitmap at the server. It has everything that was written since the source of the last send that succeeded was cut, and may have more. Undefined: everything
   * may have changed, and the send is the first of a row.
   */
  readonly bitmap?: string | undefined;
  /** File in which what was sent is kept for the next send; made when it is missing. One for each source and disk. */
  readonly stateFile: string;
  /** Share of the blocks called clean that is looked at all the same, 0 to 1; default 0. */
  readonly auditShare?: number | undefined;
}

export interface BitmapChanges {
  readonly changes: SourceChanges;
  /** After the send. What the next one is relative to, unless blocks had changed that the bitmap calls clean: then that one compares everything. */
  sent(report: SendReport): Promise<void>;
}

/** Reads the bitmap. The source is as it was cut: all of it can be read. */
export async function readBitmap(
  { reader, dirtyExtents }: Pick<OpenLocation, "dirtyExtents"> & { readonly reader: BlockReader },
  { stateFile, auditShare = 0 }: BitmapOptions,
  { storage, random, log }: Pick<Engine, "storage" | "random" | "log">,
): Promise<BitmapChanges> {
  const { sizeBytes } = reader;
  const states = await openKnownStates(storage, resolve(stateFile), {
    sync: true,
    onFailure: (words) => log.warn({ stateFile }, words),
  });
  const disk = { sizeBytes, blockBytes: BLOCK_BYTES_DEFAULT };
  const dirty = await bitsOf(disk, dirtyExtents?.(0, sizeBytes) ?? [{ offset: 0, length: sizeBytes }]);
  const cycle = random.uuid();
  const isRelative = dirtyExtents !== undefined && states.known.length > 0;
  return {
    changes: {
      ...{ cycle, dirty, isExact: false, complete: true, grainBytes: dirty.blockBytes },
      // A send whose answer was lost counts as failed: its bitmap is in this one.
      bases: states.known.map((state) => state.cycle),
      states: isRelative ? states.known : [],
      audited: isRelative ? chooseAudit(dirty, auditShare, random) : undefined,
      keep: (state) => states.keep(state),
      missed: () => states.forget(),
    },
    async sent({ audit, created }) {
      if (audit !== undefined && audit.missedBytes > 0) await states.forget();
      else if (created) await states.settle(cycle);
    },
  };
}

/** The blocks that these stretches of a disk touch. */
export async function bitsOf(
  disk: DiskBlocks,
  extents: AsyncIterable<DirtyRange> | Iterable<DirtyRange>,
): Promise<DirtyBits> {
  const bits = new DirtyBitmap(disk);
  for await (const { offset, length } of extents) bits.setBytes(offset, length);
  return bits.freeze();
}
