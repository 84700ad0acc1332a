/** Copies a point to an image, with proof that what was written is the point. */
import { ReplicationError } from "../base/errors.ts";
import { MIB } from "../base/units.ts";
import type { BlockWriter } from "../image/block-device.ts";
import { type LostRanges, readAround } from "./damaged-blocks.ts";
import type { PointReader } from "./points/reader.ts";
import { ContentRoot } from "./root-check.ts";

const pieceBytes = MIB;
/** One is read while the other is written. */
const pieceCount = 2;

export interface CopyOptions {
  /** The target may hold other content: what is zero at the point is zeroed there. Otherwise it is left as it is, which is zero. */
  readonly clear: boolean;
  /** Takes blocks that cannot be told, which are written as zeros; the root is not compared then. Undefined: the first one is thrown. */
  readonly lost?: LostRanges | undefined;
  /** Called at the end where the root of what was written is another one though each block could be told. Undefined: that is thrown. */
  readonly onOtherRoot?: (() => void) | undefined;
  readonly signal: AbortSignal | undefined;
  /** Bytes of data copied so far. */
  readonly onProgress: (bytes: number) => void;
}

/** Bytes of the point that are data: what has to be read and written. */
export async function dataBytesOf(point: PointReader): Promise<number> {
  let bytes = 0;
  for await (const extent of point.extents(0, point.sizeBytes)) if (extent.kind === "data") bytes += extent.length;
  return bytes;
}

/**
 * Order: everything written → the root of what was written compared with the point's. Neither flushes nor closes the target. Returns the
 * bytes of data written. Throws `store-damaged` for a block that cannot be told or a root that differs, `replica-unreadable`, `aborted`,
 * and what the target throws; then the target holds a part of the point.
 */
export async function copyPoint(point: PointReader, target: BlockWriter, options: CopyOptions): Promise<number> {
  const { disk, sizeBytes } = point;
  const { blockBytes, digestKind } = disk;
  const root = await ContentRoot.create({ sizeBytes, blockBytes, digestKind });
  const buffers = Array.from({ length: pieceCount }, () => new Uint8Array(Math.max(pieceBytes, blockBytes)));
  let turn = 0;
  let done = 0;
  let writing: Promise<{ readonly error: unknown } | undefined> = Promise.resolve(undefined);
  const written = async (): Promise<void> => {
    const failed = await writing;
    if (failed !== undefined) throw failed.error;
  };
  try {
    for await (const { kind, offset, length } of point.extents(0, sizeBytes)) {
      if (kind !== "data") {
        if (options.clear) await target.zero(offset, length);
        continue;
      }
      for (let at = offset; at < offset + length; at += pieceBytes) {
        if (options.signal?.aborted === true) throw abortedBy(options.signal);
        const buffer = buffers[turn++ % pieceCount] ?? new Uint8Array();
        const piece = buffer.subarray(0, Math.min(pieceBytes, offset + length - at));
        if (options.lost === undefined) await point.read(piece, at);
        else await readAround(point, piece, at, options.lost);
        root.add(piece, at);
        await written();
        writing = target.write(piece, at).then(
          () => undefined,
          (error: unknown) => ({ error }),
        );
        done += piece.length;
        options.onProgress(done);
      }
    }
    await written();
  } finally {
    // The buffer is the target's until then.
    await writing;
  }
  const found = root.root();
  if (found === point.point.root || (options.lost?.count ?? 0) > 0) return done;
  if (options.onOtherRoot !== undefined) {
    options.onOtherRoot();
    return done;
  }
  throw new ReplicationError(
    "store-damaged",
    `disk ${disk.name}: what was read of point ${point.point.point} does not have the root its record names (${found}, not ${point.point.root}): ` +
      "its undo logs or its digest table are damaged; replicate verify --all says which points are whole",
    { details: { disk: disk.name, point: point.point.point } },
  );
}

export function abortedBy(signal: AbortSignal): unknown {
  return signal.reason instanceof ReplicationError
    ? signal.reason
    : new ReplicationError("aborted", "stopped on request");
}
