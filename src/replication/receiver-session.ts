/**
 * The receiver's end of one session: opens the disk, answers questions from its table, applies what comes, commits.
 *
 * Order: nothing is written before `begin` made the undo log durable; a block's digest enters the table only after its bytes were given to
 * the file; `commit` runs when every frame the sender counted was applied and both roots are equal. A session is over only when its last
 * queued write has settled: then what was applied is kept for a resume, and the disk is free.
 */
import type { Slot } from "../base/buffer-pool.ts";
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import { PagedBits } from "../base/paged-bits.ts";
import { blockCount, digestBytes, type Geometry } from "../base/units.ts";
import { applyState } from "../lanes/jobs.ts";
import { areaB } from "../lanes/slot-layout.ts";
import type { DiskWriter } from "../replica/store.ts";
import type { ControlFrame, Link, PeerIdentity } from "../transport/link.ts";
import { createCredit, createFrameCounts, type Credit, type FrameCounts } from "../wire/credit.ts";
import { toErrorMessage } from "../wire/error-message.ts";
import type { DecodedFrame } from "../wire/frame.ts";
import type { Commit, Data, Hello, Message, Open, Pass, Zero } from "../wire/messages.ts";
import { createSessionRules, type SessionRules } from "../wire/session-rules.ts";
import { checkDataShape } from "./data-shape.ts";
import { watchLiveness } from "./liveness.ts";
import { leavesDoubt } from "./leaves-doubt.ts";
import { makeRoomAfter, withShortage } from "./make-room.ts";
import { answerBlocks, answerPages, answerParts } from "./receiver-answers.ts";
import { SessionDisk } from "./receiver-disk.ts";
import { checkedRoot, commitPoint } from "./receiver-commit.ts";
import { checkShrink, openedMessage, openForSender } from "./receiver-open.ts";
import type { ReceiverSurroundings } from "./receiver.ts";
import { SpareSlot } from "./spare-slot.ts";

/** Answers given and not yet taken by the socket: a peer that asks and does not read is ended, not served for ever. */
const answerBytesMax = 16 * 1024 * 1024;
/** Questions asked and not yet answered: far more than any sender has open, and bounded work for the lanes. */
const openQuestionsMax = 256;

/** A disk open for writing, and what this session did to it so far. */
interface Work {
  readonly writer: DiskWriter;
  readonly disk: SessionDisk;
  readonly geometry: Geometry;
  readonly credit: Credit;
  readonly counts: FrameCounts;
  /** Blocks received: each at most once. */
  readonly seen: PagedBits;
  readonly open: Open;
  /** Frames to grant, gathered. */
  ungranted: number;
  readonly grantEvery: number;
}

export class ReceiverSession {
  readonly peer: PeerIdentity;
  readonly instance: string;
  /** Resolves, never rejects, when the session is over and the disk is free. */
  readonly over: Promise<void>;
  readonly #s: ReceiverSurroundings;
  readonly #links: Link[];
  readonly #rules: SessionRules = createSessionRules("receiver");
  readonly #abort = new AbortController();
  readonly #tasks = new Set<Promise<void>>();
  /** Blocks asked for whole and not sent yet. */
  readonly #repeats = new Set<number>();
  #questions = 0;
  readonly #free: Slot[] = [];
  #slots: readonly Slot[] = [];
  readonly #landing = new Map<Message, Slot>();
  readonly #stopWatching: () => void;
  #resolveOver: () => void = () => {};
  #work: Work | undefined;
  #writer: DiskWriter | undefined;
  /** What the sender asked for at the end. */
  #last: Commit | Pass | undefined;
  #committing = false;
  /** What was asked for is durable. */
  #settled = false;
  #ended = false;
  #poisoned = false;
  /** For what is free, to tell it with an error: nothing else counts meanwhile. */
  #isAsking = false;
  #openDisk: SessionDisk | undefined;
  #appliedBytes = 0;
  #highestBlock = 0;
  #phase = "idle";
  #disk = "";

  constructor(surroundings: ReceiverSurroundings, link: Link, hello: Hello) {
    this.#s = surroundings;
    this.peer = link.peer;
    this.instance = hello.instance;
    this.#links = [link];
    this.#rules.received(hello);
    this.over = new Promise((resolve) => {
      this.#resolveOver = resolve;
    });
    this.#stopWatching = watchLiveness({
      clock: surroundings.clock,
      links: () => this.#links,
      beat: () => ({ bytes: this.#appliedBytes, phase: this.#phase }),
      onSilent: (error) => {
        this.fail(error);
      },
    });
  }

  /** The answer to the hello that made this session (or joined it) is on its way. */
  greeted(answer: Hello, connection: number): void {
    this.#rules.sent(answer, connection);
  }

  /** A further connection of the same certificate. Throws `protocol-violation`. */
  join(link: Link, hello: Hello, connection: number): void {
    if (this.#ended) throw new ReplicationError("connection-lost", "the session to join is over");
    if (connection !== this.#links.length) {
      throw new ReplicationError("protocol-violation", `connection ${connection} joins out of turn`);
    }
    this.#rules.received(hello, connection);
    this.#links.push(link);
  }

  /** Memory for a payload: a slot for data, which credit has paid for. */
  payloadTarget(message: Message, bytes: number): Uint8Array {
    if (message.type !== "data") throw new ReplicationError("protocol-violation", `a sender sends no ${message.type}`);
    const slot = this.#free.pop();
    if (slot === undefined) throw new ReplicationError("protocol-violation", "data beyond the credit that was granted");
    this.#landing.set(message, slot);
    return slot.bytes.subarray(areaB, areaB + bytes);
  }

  receive(frame: DecodedFrame, connection: number): void {
    if (this.#ended) return;
    const { message } = frame;
    this.#rules.received(message, connection);
    switch (message.type) {
      case "open":
        this.#run(this.#open(message));
        return;
      case "ask-pages":
        this.#answer(answerPages(this.#opened().disk, message));
        return;
      case "ask-blocks":
        this.#answer(answerBlocks(this.#opened().disk, message));
        return;
      case "ask-parts":
        this.#answer(answerParts(this.#opened().disk, message));
        return;
      case "data":
        this.#run(this.#data(message, frame.payload.length, connection));
        return;
      case "zero":
        this.#run(this.#zero(message, connection));
        return;
      case "commit":
      case "pass":
        this.#last = message;
        this.#tryCommit();
        return;
      case "error":
        this.#peerFailed(message.code, message.message);
        return;
      case "bye":
        void this.#end();
        return;
      case "heartbeat":
        return;
      default:
        throw new ReplicationError("protocol-violation", `a sender sends no ${message.type}`);
    }
  }

  linkEnded(connection: number, error: ReplicationError | undefined): void {
    if (this.#ended) return;
    if (error === undefined && this.#settled) {
      void this.#end();
      return;
    }
    this.fail(
      error ??
        new ReplicationError("connection-lost", `${this.peer.name} closed connection ${connection} before it was done`),
    );
  }

  /** Keeps one step of work; its failure is the session's. */
  #run(task: Promise<void>): void {
    const tracked: Promise<void> = task
      .catch((error: unknown) => {
        this.fail(toReplicationError(error));
      })
      .finally(() => {
        this.#tasks.delete(tracked);
        this.#tryCommit();
      });
    this.#tasks.add(tracked);
  }

  #send({ message, payload }: ControlFrame): void {
    if (this.#ended) return;
    const first = this.#links[0];
    invariant(first !== undefined, "a session has a connection");
    if (first.bytesQueued > answerBytesMax) {
      throw new ReplicationError("limit-exceeded", `${this.peer.name} asks without reading the answers`);
    }
    this.#rules.sent(message);
    first.send(message, payload);
  }

  // opening

  async #open(open: Open): Promise<void> {
    const { log } = this.#s;
    this.#disk = open.disk;
    const { writer, interrupted } = await openForSender(this.#s, this, open);
    this.#writer = writer;
    this.#abort.signal.throwIfAborted();
    this.#slots = this.#s.reserveSlots();
    const [kept, ...promised] = this.#slots;
    invariant(kept !== undefined && promised.length > 0, "a session has slots");
    this.#free.push(...promised);
    const disk = new SessionDisk({
      name: open.disk,
      writer,
      ...{ lanes: this.#s.lanes, log, clock: this.#s.clock },
      slots: promised,
      pool: new SpareSlot(this.#s.pool, kept),
      signal: this.#abort.signal,
      onProgress: (bytes) => {
        this.#appliedBytes = bytes;
      },
    });
    this.#openDisk = disk;
    this.#phase = "rebuild";
    await disk.rebuild();
    if (this.#s.tableChecks.isDue(open.disk)) {
      await disk.mendTable(() => this.#s.clock.sleep(0, this.#abort.signal));
      this.#s.tableChecks.done(open.disk);
    }
    this.#phase = "idle";
    const already = writer.newest?.cycle === open.cycle;
    if (!already) {
      checkShrink(open, writer.newest);
      await disk.resizeTo(open.sizeBytes);
    }
    const window = promised.length;
    const { sizeBytes } = disk.geometry;
    const geometry: Geometry = { ...disk.geometry, sizeBytes: already ? sizeBytes : open.sizeBytes };
    this.#work = {
      writer,
      disk,
      geometry,
      credit: createCredit("receiver", window),
      counts: createFrameCounts(this.#links.length),
      seen: new PagedBits(blockCount(geometry)),
      open,
      ungranted: 0,
      grantEvery: Math.max(1, window >> 2),
    };
    this.#send({ message: openedMessage(this.#s, writer, open, { sizeBytes, credit: window, interrupted }) });
    log.info(
      {
        disk: open.disk,
        peer: this.peer.name,
        address: this.peer.address,
        source: open.sourceName,
        sizeBytes: open.sizeBytes,
      },
      "session open",
    );
  }

  #opened(): Work {
    if (this.#work === undefined) throw new ReplicationError("protocol-violation", "the disk is not open yet");
    return this.#work;
  }

  // answering

  #answer(answers: AsyncIterable<ControlFrame>): void {
    if (++this.#questions > openQuestionsMax) {
      throw new ReplicationError("limit-exceeded", `${this.peer.name} has ${this.#questions} questions open at a time`);
    }
    this.#run(
      (async () => {
        for await (const frame of answers) this.#send(frame);
        this.#questions--;
      })(),
    );
  }

  // applying

  /** Enforces "at most once" (repeats the receiver asked for excepted). */
  #admit(work: Work, blocks: readonly number[], repeat: boolean): void {
    const count = blockCount(work.geometry);
    for (const block of blocks) {
      if (block >= count) throw new ReplicationError("protocol-violation", `there is no block ${block}`);
      if (repeat ? !this.#repeats.delete(block) : !work.seen.add(block)) {
        const what = repeat ? "was repeated without being asked for" : "was sent twice";
        throw new ReplicationError("protocol-violation", `block ${block} of disk ${this.#disk} ${what}`);
      }
    }
  }

  async #data(message: Data, payloadBytes: number, connection: number): Promise<void> {
    const slot = this.#landing.get(message);
    this.#landing.delete(message);
    invariant(slot !== undefined, "data lies in a slot");
    const work = this.#opened();
    work.credit.take();
    work.counts.count(connection);
    try {
      const { blocks } = message;
      checkDataShape(message, work.geometry, this.#disk);
      this.#admit(work, blocks, message.repeat);
      await work.disk.begin();
      this.#phase = "apply";
      const states = await work.disk.apply(message, slot, payloadBytes);
      this.#record(work, message, states);
      this.#appliedBytes += blocks.length * work.geometry.blockBytes;
    } finally {
      this.#free.push(slot);
      this.#grant(work);
    }
  }

  /** Enters what was written into the table and asks again for what did not come out. */
  #record(work: Work, message: Data, states: Uint8Array): void {
    const { blocks, digests, repeat } = message;
    const width = digestBytes(work.geometry.digestKind);
    const again: number[] = [];
    for (let index = 0; index < blocks.length; ) {
      const first = blocks[index] ?? 0;
      if (states[index] !== applyState.written) {
        again.push(first);
        index++;
        continue;
      }
      let count = 1;
      while (blocks[index + count] === first + count && states[index + count] === applyState.written) count++;
      work.writer.table.set(first, count, digests.subarray(index * width, (index + count) * width));
      index += count;
      this.#highestBlock = Math.max(this.#highestBlock, first + count);
    }
    if (repeat) {
      if (again.length > 0) {
        throw new ReplicationError(
          "digest-mismatch",
          `disk ${this.#disk}: block ${again[0]} was sent whole and does not match its digest`,
        );
      }
      return;
    }
    if (again.length === 0) return;
    for (const block of again) this.#repeats.add(block);
    const damaged = states.filter((state) => state === applyState.damaged).length;
    this.#s.log.warn(
      { disk: this.#disk, blocks: again.length, damaged },
      "blocks did not come out as digested; asking for them whole",
    );
    this.#send({ message: { type: "ask-repeat", blocks: again } });
  }

  async #zero(message: Zero, connection: number): Promise<void> {
    const work = this.#opened();
    const { first, count, repeat } = message;
    work.credit.take();
    work.counts.count(connection);
    try {
      const blocks = Array.from({ length: count }, (_unused, index) => first + index);
      this.#admit(work, blocks, repeat);
      await work.disk.begin();
      await work.disk.clear(first, count);
      this.#appliedBytes += count * work.geometry.blockBytes;
    } finally {
      this.#grant(work);
    }
  }

  #grant(work: Work): void {
    work.ungranted++;
    if (work.ungranted < work.grantEvery || this.#ended || this.#committing) return;
    work.credit.grant(work.ungranted);
    this.#send({ message: { type: "grant", frames: work.ungranted } });
    work.ungranted = 0;
  }

  // committing

  /** Commits when all the sender counted was applied and nothing is being repeated. */
  #tryCommit(): void {
    const last = this.#last;
    const work = this.#work;
    if (last === undefined || work === undefined || this.#committing || this.#ended) return;
    if (this.#tasks.size > 0 || this.#repeats.size > 0) return;
    try {
      if (work.counts.compare(last.frames) !== "equal") return;
    } catch (error) {
      this.fail(toReplicationError(error));
      return;
    }
    this.#committing = true;
    this.#run(last.type === "commit" ? this.#doCommit(work, last) : this.#endPass(work, last));
  }

  async #doCommit(work: Work, commit: Commit): Promise<void> {
    this.#phase = "sync";
    const { point, root, created } = await commitPoint(work, commit);
    this.#settled = true;
    this.#phase = "idle";
    this.#send({ message: { type: "durable", point: point.point, root, cycle: commit.cycle, created } });
    this.#s.log.info(
      { disk: this.#disk, point: point.point, peer: this.peer.name, root: point.root, created },
      "point committed",
    );
    this.#s.announce({ disk: this.#disk, point, peer: this.peer });
  }

  /** Keeps what was applied as it is kept for a resume. */
  async #endPass({ writer, disk }: Work, pass: Pass): Promise<void> {
    this.#phase = "sync";
    // A new size, if nothing else.
    if (disk.changes) await disk.begin();
    const root = checkedRoot(writer, this.#disk, pass.root);
    if (disk.changed) await writer.suspend(0);
    this.#settled = true;
    this.#phase = "idle";
    this.#send({ message: { type: "synced", root } });
  }

  // ending

  #peerFailed(code: string, message: string): void {
    const text = code === "aborted" ? "the sender was stopped" : `the sender gave up: ${message}`;
    this.fail(new ReplicationError("connection-lost", text, { details: { code }, remote: true }));
  }

  /** Ends the session with an error, which the peer gets. Idempotent: the first error stays. */
  fail(error: ReplicationError): void {
    // Also of a session that has ended: a write under way then may fail half way.
    if (leavesDoubt.has(error.code)) this.#poisoned = true;
    if (this.#ended || this.#isAsking) return;
    if (error.code === "no-space" && !error.remote && error.details["freeBytes"] === undefined) {
      this.#isAsking = true;
      this.#writer?.poison();
      void withShortage(this.#s.store, this.#disk, error).then((told) => this.#fail(told));
    } else this.#fail(error);
  }

  #fail(error: ReplicationError): void {
    if (this.#ended) return;
    const fields = { code: error.code, disk: this.#disk, peer: this.peer.name, address: this.peer.address };
    if (this.#settled && error.action === "reconnect") {
      this.#s.log.info(fields, "the connection ended after the commit");
    } else {
      this.#s.log.warn(fields, error.message);
    }
    for (const link of this.#links) {
      if (!error.remote && error.code !== "connection-lost") {
        link.send(toErrorMessage(error));
        void link.close();
      } else link.destroy(error);
    }
    void this.#end(error);
  }

  async #end(error?: ReplicationError): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#stopWatching();
    this.#abort.abort(error ?? new ReplicationError("aborted", "the session is over"));
    while (this.#tasks.size > 0) await Promise.all([...this.#tasks]);
    try {
      const writer = this.#writer;
      if (writer !== undefined) {
        if (this.#poisoned) writer.poison();
        else if (!this.#settled && this.#openDisk?.changed === true) await writer.suspend(this.#highestBlock);
        await writer.release();
        if (error?.code === "no-space" && !error.remote) await makeRoomAfter(this.#s, this.#disk);
      }
    } catch (failure) {
      // The disk is left as after a crash, which the next open finds and mends.
      this.#s.log.error(
        { disk: this.#disk, cause: String(failure) },
        "what was applied could not be kept for a resume",
      );
      await this.#writer?.release().catch((second: unknown) => {
        this.#s.log.error({ disk: this.#disk, cause: String(second) }, "closing the disk failed");
      });
    }
    if (error === undefined) await Promise.all(this.#links.map((link) => link.close()));
    for (const slot of this.#slots) slot.release();
    this.#resolveOver();
  }
}
