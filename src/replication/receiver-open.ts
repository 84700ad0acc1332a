/** Which disk a sender gets, and how: authorised, made when it is new, claimed and locked. */
import { ReplicationError } from "../base/errors.ts";
import { BLOCK_BYTES_DEFAULT, type Geometry, isBlockSize } from "../base/units.ts";
import { checkWholeSectors, type DiskSummary, type DiskWriter, type Point } from "../replica/store.ts";
import type { Open, Opened } from "../wire/messages.ts";
import { makeRoom } from "./make-room.ts";
import type { ReceiverSurroundings } from "./receiver.ts";
import type { ReceiverSession } from "./receiver-session.ts";

export interface DiskForSender {
  /** The session's from here on: it releases it. */
  readonly writer: DiskWriter;
  /** A delta was begun by an earlier session and not committed. */
  readonly interrupted: boolean;
}

/**
 * Throws `not-allowed`, `disk-owned`, `disk-busy` naming who holds it, `limit-exceeded`, `no-space`, `target-too-small`, and what the store throws.
 */
export async function openForSender(
  surroundings: ReceiverSurroundings,
  session: ReceiverSession,
  open: Open,
): Promise<DiskForSender> {
  const { quota } = surroundings;
  // Before the claim, which could end another's session; and after it, because until then another may have made the disk.
  await allowedSummary(surroundings, session, open);
  await surroundings.claim(open.disk, session);
  const summary = await allowedSummary(surroundings, session, open);
  if (summary !== undefined) checkWholeSectors(open.disk, summary.record, open.sizeBytes);
  await makeRoom(surroundings, open.disk, summary === undefined);
  if (open.sizeBytes > (summary?.record.sizeBytes ?? -1)) {
    const owner = summary?.record.owner ?? session.peer.name;
    await quota.claim(open.disk, { owner, sizeBytes: open.sizeBytes });
  }
  if (summary === undefined) await createDisk(surroundings, session, open);
  const holder = { identity: session.peer.name, instance: session.instance };
  const opened = await surroundings.store.openWriter(open.disk, holder);
  if (opened.kind === "open") return { writer: opened.writer, interrupted: summary?.state === "interrupted" };
  const { holder: other } = opened;
  const who = other === undefined ? "another process" : `${other.identity} (process ${other.pid} on ${other.host})`;
  throw new ReplicationError("disk-busy", `disk ${open.disk} is being written by ${who}`, {
    details: { holder: other?.identity ?? null, pid: other?.pid ?? null },
  });
}

async function allowedSummary(
  { store, authorize }: ReceiverSurroundings,
  session: ReceiverSession,
  open: Open,
): Promise<DiskSummary | undefined> {
  const summary = await store.summary(open.disk);
  const refused = authorize(session.peer, open.disk, summary?.record.owner);
  if (refused !== undefined) throw refused;
  return summary;
}

async function createDisk(surroundings: ReceiverSurroundings, session: ReceiverSession, open: Open): Promise<void> {
  const blockBytes = open.blockBytes ?? BLOCK_BYTES_DEFAULT;
  if (!isBlockSize(blockBytes)) {
    throw new ReplicationError("message-malformed", `${blockBytes} is no block size: a power of two, 16 KiB to 1 MiB`);
  }
  const geometry: Geometry = { sizeBytes: open.sizeBytes, blockBytes, digestKind: open.digestKind ?? "xxh64" };
  await surroundings.store.create(open.disk, { geometry, owner: session.peer.name, sectorBytes: open.sectorBytes });
  surroundings.log.info({ disk: open.disk, peer: session.peer.name, ...geometry }, "disk created");
}

/**
 * Refuses a disk that becomes smaller than its newest point, unless the sender has leave. What an interrupted delta made it longer by no point has: that
 * may go. Throws `size-shrunk`.
 */
export function checkShrink(open: Open, newest: Point | undefined): void {
  const before = newest?.sizeBytes ?? 0;
  if (open.allowShrink || open.sizeBytes >= before) return;
  throw new ReplicationError(
    "size-shrunk",
    `disk ${open.disk} has ${before} bytes here and the image only ${open.sizeBytes}; say --allow-shrink to make the disk smaller (older points keep their size), send it under another name, or make the image as large as it was`,
    { details: { sizeBytes: before, imageBytes: open.sizeBytes } },
  );
}

/** What the disk is, before this session changed anything. */
export function openedMessage(
  surroundings: ReceiverSurroundings,
  writer: DiskWriter,
  open: Open,
  facts: { readonly sizeBytes: number; readonly credit: number; readonly interrupted: boolean },
): Opened {
  const { newest, record } = writer;
  const { sizeBytes, credit, interrupted } = facts;
  const committed =
    newest === undefined ? {} : { point: newest.point, cycle: newest.cycle, root: Buffer.from(newest.root, "hex") };
  return {
    type: "opened",
    fresh: newest === undefined,
    ...committed,
    sizeBytes,
    credit,
    ...(interrupted ? { interrupted } : {}),
    blockBytes: record.blockBytes,
    digestKind: record.digestKind,
    empty: writer.table.isEmpty(),
    anotherSource: newest !== undefined && newest.source !== open.source,
    resumeBlock: writer.resumeBlock,
    generation: record.generation,
    term: record.term,
    codecs: surroundings.codecs,
  };
}
