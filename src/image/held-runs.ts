/** Where bytes lie, for who has them read by a lane: good until it is let go. */
import type { BlockReader, FileRun } from "./block-device.ts";

export interface HeldRuns {
  /** Undefined: only `read` can tell, and nothing is held. */
  readonly runs: readonly FileRun[] | undefined;
  /** After the lane has read. Idempotent. */
  release(): void;
}

const nothing = (): void => undefined;

export function holdRuns(reader: BlockReader, offset: number, length: number): HeldRuns {
  if (reader.hold === undefined) return { runs: reader.runs?.(offset, length), release: nothing };
  const release = reader.hold(offset, length);
  const runs = reader.runs?.(offset, length);
  if (runs !== undefined) return { runs, release };
  release();
  return { runs, release: nothing };
}
