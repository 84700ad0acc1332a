/** What a receiver does when its file system is full: it refuses, or drops the oldest points of the disk that wants more. */
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import type { Logger } from "../base/logger.ts";
import type { Store } from "../replica/store.ts";

export type WhenFull = "stop" | "drop-oldest";

export interface RoomOptions {
  readonly store: Store;
  readonly log: Logger;
  /** Default `stop`. */
  readonly whenFull?: WhenFull | undefined;
}

/**
 * Before a delta of a disk: resolves when free space is not below the reserve. With `drop-oldest` the disk's oldest points go, one after another, until that
 * is so, or the oldest of them stays. `isNew`: the disk does not exist yet. Throws `no-space` saying what is short and by how much.
 */
export async function makeRoom(options: RoomOptions, disk: string, isNew: boolean): Promise<void> {
  const { store, whenFull } = options;
  for (;;) {
    const shortage = await shortageOf(store);
    if (shortage === undefined) return isNew ? undefined : await store.checkImageReserve(disk);
    if (whenFull !== "drop-oldest" || isNew) throw shortage;
    const why = await dropOne(options, disk, shortage.message);
    if (why === undefined) continue;
    const { message, details } = shortage;
    throw new ReplicationError("no-space", `${message}. Of disk ${disk} nothing more is dropped: ${why}`, { details });
  }
}

/**
 * A delta of the disk has run out of room: with `drop-oldest` at least one point goes, and more as {@link makeRoom} says, so that the next try finds room. What fails
 * is logged: the next try meets it again.
 */
export async function makeRoomAfter(options: RoomOptions, disk: string): Promise<void> {
  if (options.whenFull !== "drop-oldest") return;
  try {
    const why = await dropOne(options, disk, "its delta ran out of room");
    if (why === undefined) await makeRoom(options, disk, false);
    else options.log.warn({ disk }, `its delta ran out of room, and nothing is dropped: ${why}`);
  } catch (error) {
    const { code, message } = toReplicationError(error);
    options.log.warn({ disk, code }, message);
  }
}

/** A write met a full disk: the error with what is free, and what is needed to go on. Never throws. */
export async function withShortage(store: Store, disk: string, error: ReplicationError): Promise<ReplicationError> {
  try {
    const shortage = await shortageOf(store);
    if (shortage === undefined) await store.checkImageReserve(disk);
    return shortage === undefined ? error : joined(error, shortage);
  } catch (thrown) {
    const shortage = toReplicationError(thrown);
    return shortage.code === "no-space" ? joined(error, shortage) : error;
  }
}

function joined(error: ReplicationError, { message, details }: ReplicationError): ReplicationError {
  const facts = { cause: error.cause, details: { ...error.details, ...details } };
  return new ReplicationError(error.code, `${error.message}: ${message}`, facts);
}

async function shortageOf(store: Store): Promise<ReplicationError | undefined> {
  try {
    await store.checkReserve();
    return undefined;
  } catch (error) {
    if (error instanceof ReplicationError && error.code === "no-space") return error;
    throw error;
  }
}

/** Undefined: the oldest point is gone. Else why it stays. */
async function dropOne({ store, log }: RoomOptions, disk: string, reason: string): Promise<string | undefined> {
  const oldest = await store.dropOldest(disk);
  if (!oldest.dropped) return oldest.why;
  const { point, bytes } = oldest;
  log.warn(
    { disk, point, bytes, reason },
    `point ${point} was dropped to make room (--when-full drop-oldest): ${reason}`,
  );
  return undefined;
}
