/**
 * Applies a seed to a store: its frames go to a receiver's session over a link within the process, with every check a sender over the network would meet.
 * What was applied is kept when it is interrupted, and skipped by the next run.
 */
import type { BufferPool } from "../../base/buffer-pool.ts";
import type { Clock } from "../../base/clock.ts";
import { type ErrorCode, ReplicationError, toReplicationError } from "../../base/errors.ts";
import type { Logger } from "../../base/logger.ts";
import type { Random } from "../../base/random.ts";
import { type CodecName, loadCodecs } from "../../codec/compression.ts";
import type { Lanes } from "../../lanes/lanes.ts";
import type { Point, Store } from "../../replica/store.ts";
import type { Storage } from "../../storage/seam.ts";
import type { PeerIdentity } from "../../transport/link.ts";
import { createLocalPair } from "../../transport/local-link.ts";
import { offer } from "../../wire/handshake.ts";
import type { Commit, Opened } from "../../wire/messages.ts";
import { BaseTable } from "../base-table.ts";
import { createReceiver } from "../receiver.ts";
import { SeedBlocks } from "./blocks.ts";
import { openSeed, type Seed, SeedReader } from "./reader.ts";
import { SenderSession } from "../sender-session.ts";

export interface ImportOptions {
  readonly store: Store;
  readonly storage: Storage;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly codecs: readonly CodecName[];
  readonly software: string;
  /** The folder of the seed. */
  readonly directory: string;
  /** Certificate name the disk will belong to. */
  readonly owner: string;
  readonly signal?: AbortSignal | undefined;
  /** Bytes of the seed's files passed so far, and in all. */
  readonly onProgress?: ((doneBytes: number, totalBytes: number) => void) | undefined;
}

export interface ImportReport {
  readonly disk: string;
  readonly point: number;
  /** Hex. */
  readonly root: string;
  /** False: the store had this very copy already, and nothing was done. */
  readonly created: boolean;
  /** Cycle id of the point: uuid of the run that made the seed. */
  readonly cycle: string;
  readonly sizeBytes: number;
  /** Of the seed's files. */
  readonly bytes: number;
  /** Blocks an interrupted run had applied. */
  readonly blocksSkipped: number;
  readonly seconds: number;
}

/** What a damaged seed can look like from inside a session: then its checksum is asked. */
const suspicious: ReadonlySet<ErrorCode> = new Set([
  "frame-malformed",
  "message-malformed",
  "protocol-violation",
  "codec-damaged",
  "digest-mismatch",
  "root-mismatch",
  "internal",
]);

/**
 * Resolves when the seed's state is a durable point. Throws `seed-not-found`, `seed-damaged`, `version-unsupported`, `feature-unsupported`; `target-exists` when the disk has
 * points of anything else; `block-size-differs`, `digest-kind-differs` when an interrupted copy of another kind lies there; `disk-owned`, `disk-busy`,
 * `no-space` and the other errors of a receiver; `aborted`, which leaves a state that the next run goes on from.
 */
export async function importSeed(options: ImportOptions): Promise<ImportReport> {
  const { storage, store, codecs, clock, owner } = options;
  const signal = options.signal ?? new AbortController().signal;
  const startedAt = clock.monotonic();
  signal.throwIfAborted();
  const seed = await openSeed(storage, options.directory);
  const missing = seed.codecs.find((codec) => !codecs.some((name) => name === codec));
  if (missing !== undefined) {
    throw new ReplicationError(
      "feature-unsupported",
      `${seed.manifest}: the copy uses codec ${missing}, which this program lacks; make it again without --codec ${missing}`,
    );
  }
  const report = (found: Pick<ImportReport, "point" | "created">, blocksSkipped = 0): ImportReport => ({
    ...{ disk: seed.disk, ...found, root: seed.root, cycle: seed.run, sizeBytes: seed.sizeBytes, bytes: seed.bytes },
    ...{ blocksSkipped, seconds: (clock.monotonic() - startedAt) / 1000 },
  });
  const there = await pointOf(store, seed, owner);
  if (there !== undefined) return report({ point: there.point, created: false });
  const { point, blocksSkipped } = await feed(options, seed, signal);
  return report({ point, created: true }, blocksSkipped);
}

/** The point this seed has become already. Throws `target-exists` when the disk has others, `disk-owned`. */
async function pointOf(store: Store, seed: Seed, owner: string): Promise<Point | undefined> {
  const summary = await store.summary(seed.disk);
  if (summary === undefined) return undefined;
  if (summary.record.owner !== owner) throw owned(seed.disk, summary.record.owner, owner);
  const { points, unreadable } = await store.points(seed.disk);
  const found = points.find(({ cycle }) => cycle === seed.run);
  if (found !== undefined || (points.length === 0 && unreadable.length === 0)) return found;
  throw hasPoints(seed);
}

function owned(disk: string, owner: string, wanted: string): ReplicationError {
  return new ReplicationError("disk-owned", `disk ${disk} belongs to ${owner}, not to ${wanted}`, {
    details: { owner },
  });
}

function hasPoints(seed: Seed): ReplicationError {
  return new ReplicationError(
    "target-exists",
    `disk ${seed.disk} has points already, and none of them is this copy (run ${seed.run}): a copy in files starts a new disk; send newer states over the network`,
    { details: { disk: seed.disk, cycle: seed.run } },
  );
}

async function feed(
  options: ImportOptions,
  seed: Seed,
  signal: AbortSignal,
): Promise<{ readonly point: number; readonly blocksSkipped: number }> {
  const { store, storage, lanes, pool, clock, random, log, codecs, software, owner } = options;
  const receiver = createReceiver({
    ...{ store, lanes, pool, clock, random, log, codecs, software },
    // Who can write to the store's directory needs no leave of its receiver, but a disk has one owner.
    authorize: (_peer, disk, has) => (has === undefined || has === owner ? undefined : owned(disk, has, owner)),
    perIdentity: { disks: Number.POSITIVE_INFINITY, diskBytes: Number.POSITIVE_INFINITY },
  });
  const reader = new SeedReader(storage, seed);
  const session = new SenderSession({
    clock,
    connect: () => {
      const near: PeerIdentity = { name: owner, address: seed.directory, fingerprint: "", ownAuthority: true };
      const { client, server } = createLocalPair({ clock, client: near, server: { ...near, name: store.path } });
      receiver.accept(server);
      return Promise.resolve(client);
    },
    connections: 1,
    // The version of the frames: a receiver that does not speak it refuses them.
    hello: offer({ instance: `seed-${seed.run}`, software, version: seed.protocol, versionMin: seed.protocol }),
    onRepeat: (blocks) => {
      throw new ReplicationError(
        "digest-mismatch",
        `disk ${seed.disk}: block ${blocks[0] ?? 0} did not come out as it was copied; run it again`,
      );
    },
    beat: () => ({ bytes: reader.doneBytes, phase: "scan" }),
    signal,
  });
  try {
    return await applySeed({ ...options, signal }, session, reader);
  } catch (thrown) {
    const error = toReplicationError(thrown);
    session.fail(error);
    if (signal.aborted) throw toReplicationError(signal.reason, "aborted");
    if (suspicious.has(error.code)) await reader.verifyRest();
    throw error;
  } finally {
    // Resolves when the last write has settled and what was applied is put away for the next run.
    await receiver.close();
    await reader.close();
  }
}

async function applySeed(
  options: ImportOptions & { readonly signal: AbortSignal },
  session: SenderSession,
  reader: SeedReader,
): Promise<{ readonly point: number; readonly blocksSkipped: number }> {
  const { seed } = reader;
  const { signal, onProgress } = options;
  const opened = await session.open(await reader.open());
  const found = alreadyThere(seed, opened);
  if (found !== undefined) return { point: found, blocksSkipped: 0 };
  const base = new BaseTable(session, seed, { empty: opened.empty, sizeBytes: opened.sizeBytes });
  const blocks = new SeedBlocks({ geometry: seed, base, codecs: await loadCodecs() });
  for (;;) {
    signal.throwIfAborted();
    const frame = await reader.content();
    onProgress?.(reader.doneBytes, seed.bytes);
    if (frame.message.type === "commit") {
      const point = await commit(session, blocks, frame.message);
      return { point, blocksSkipped: blocks.skipped };
    }
    if (frame.message.type === "zero") {
      const { first, count } = frame.message;
      for (let block = first; block < first + count; block++) blocks.see(block);
      await session.takeCredit();
      session.sendZero(frame.message);
      continue;
    }
    for (const { message, frame: bytes } of await blocks.needed({ ...frame, message: frame.message })) {
      await session.takeCredit();
      await session.sendData(message, bytes);
    }
  }
}

/** The point, when another process has applied the seed meanwhile. Throws when it does not fit the disk. */
function alreadyThere(seed: Seed, opened: Opened): number | undefined {
  if (opened.cycle === seed.run && opened.point !== undefined) return opened.point;
  if (!opened.fresh) throw hasPoints(seed);
  for (const [code, has, wanted] of [
    ["block-size-differs", opened.blockBytes, seed.blockBytes],
    ["digest-kind-differs", opened.digestKind, seed.digestKind],
  ] as const) {
    if (has === wanted) continue;
    throw new ReplicationError(
      code,
      `disk ${seed.disk} was begun with ${has} and this copy has ${wanted}: remove the disk's folder from the store, or make the copy again with the disk's`,
    );
  }
  return undefined;
}

async function commit(session: SenderSession, blocks: SeedBlocks, message: Commit): Promise<number> {
  for await (const { first, count } of blocks.leftOver()) {
    await session.takeCredit();
    session.sendZero({ type: "zero", first, count, repeat: false });
  }
  const { root, cycle, sizeBytes, time, label, consistency } = message;
  const durable = await session.commit({
    ...{ root, cycle, sizeBytes, time, consistency, skipEmpty: false },
    ...(label === undefined ? {} : { label }),
  });
  await session.close();
  return durable.point;
}
