/**
 * Sends one image to one disk of a receiver until its state is a committed point there, over as many attempts as it takes.
 *
 * The commit is the receiver's: nothing is reported as done before its `durable`, and a commit whose answer was lost is recognised by
 * its cycle id, which all attempts of one run share.
 */
import { hash } from "node:crypto";
import type { BufferPool } from "../base/buffer-pool.ts";
import type { Clock } from "../base/clock.ts";
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { DigestKind, Geometry } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";
import type { BlockReader } from "../image/block-device.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { checkDiskName } from "../base/disk-name.ts";
import type { Link } from "../transport/link.ts";
import { encodeFrame } from "../wire/frame.ts";
import { offer } from "../wire/handshake.ts";
import { isName } from "../wire/field-kinds.ts";
import type { Commit, Durable, Open, Opened, Synced } from "../wire/messages.ts";
import { tellMiss } from "./audit-report.ts";
import { backoffMillis } from "./backoff.ts";
import { CodecChoice } from "./codec-choice.ts";
import { type Plan, planSession } from "./plan.ts";
import { createRateLimit, type RateLimit } from "./rate.ts";
import { RepeatQueue } from "./repeat-queue.ts";
import { emptyFunnel, type Funnel, type SendReason, type SendReport } from "./report.ts";
import { checkResemblance } from "./resemblance.ts";
import { createScanMemory, type ScanMemory } from "./scan-memory.ts";
import { Scan } from "./sender-scan.ts";
import { SenderSession } from "./sender-session.ts";
import { knownBase, reasonWith, type SourceChanges } from "./source-changes.ts";

/** The image to send, and what is known of it beside its bytes. */
export interface SendSource {
  readonly reader: BlockReader;
  /** For messages and lists; a path, usually. */
  readonly name: string;
  /** Stable identity of this image, any text: the receiver notices when another one comes under the same disk name. */
  readonly identity: string;
  /** Notices an image that changes while it is read; absent: the caller vouches for a frozen view. */
  readonly guard?: { begin(): Promise<void>; check(): Promise<void> } | undefined;
  /** Absent: nobody tracks the image, and everything is compared. */
  readonly changes?: SourceChanges | undefined;
}

/** What a sender has to do with those of other disks that are cut at the same moment; see machine.ts. */
export interface SharedCut {
  /** What all points of the cut have in common, and the names of all its disks. */
  readonly group: string;
  readonly members: readonly string[];
  /** Milliseconds since 1970 UTC: the time of all its points. */
  readonly time: number;
  /** All of this disk lies at the receiver, and its image has not changed. True: of the others too, and the point may be made. */
  shipped(): boolean;
  /** Resolves when {@link shipped} would say so. */
  allShipped(signal: AbortSignal): Promise<void>;
}

export interface SenderOptions {
  readonly source: SendSource;
  /** Name of the disk at the receiver: 1 to 63 of a-z 0-9 . _ -; another one is `disk-name-invalid`. */
  readonly disk: string;
  /** Makes one connection to the receiver. */
  readonly connect: (signal: AbortSignal) => Promise<Link>;
  /** Stable id of this sending instance: hash(host, source name). */
  readonly instance: string;
  readonly software: string;
  readonly lanes: Lanes;
  readonly pool: BufferPool;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  /** Bytes, for a new disk; default: the receiver's (64 KiB). */
  readonly blockBytes?: number | undefined;
  readonly digestKind?: DigestKind | undefined;
  /** `auto` measures the link. */
  readonly codec?: CodecName | "auto" | undefined;
  /** Codecs of this process. */
  readonly codecs: readonly CodecName[];
  /** Bytes a second that are sent, all connections together. */
  readonly rate?: number | undefined;
  /** In place of `rate`: what this sender shares with others of its process. */
  readonly limit?: RateLimit | undefined;
  /** Connections of the session; default 1. */
  readonly connections?: number | undefined;
  readonly label?: string | undefined;
  readonly consistency?: "crash" | "application" | "none" | undefined;
  readonly skipEmpty?: boolean | undefined;
  readonly adopt?: boolean | undefined;
  /** The disk may become smaller than its newest point; without it that is `size-shrunk`. Older points keep their size. */
  readonly allowShrink?: boolean | undefined;
  readonly cut?: SharedCut | undefined;
  /**
   * No point is made: the run resolves when all that was read of the image lies at the receiver, durably, for the next send to go on from. The image may change
   * meanwhile. `created` of the report is false, and `point` the newest there was, 0 for none.
   */
  readonly isPass?: boolean | undefined;
  /** Attempts in a row without any progress before giving up; default 8. While the receiver has never answered: 3. */
  readonly attemptsMax?: number | undefined;
}

export interface SendProgress {
  readonly funnel: Readonly<Funnel>;
  readonly phase: "connecting" | "scanning" | "committing" | "waiting" | "done";
  readonly attempt: number;
  /** What the receiver says it is busy with. */
  readonly peerPhase: string;
}

export interface Sender {
  /** Runs to a committed point. Once. Rejects with a ReplicationError; aborting rejects with `aborted` and leaves a state that resumes. */
  run(signal?: AbortSignal): Promise<SendReport>;
  /** Live; for progress lines. */
  progress(): SendProgress;
}

export function createSender(options: SenderOptions): Sender {
  return new SenderRun(options);
}

class SenderRun implements Sender {
  readonly #o: SenderOptions;
  readonly #cycle: string;
  readonly #rate: RateLimit;
  #funnel: Funnel;
  #memory: ScanMemory | undefined;
  #session: SenderSession | undefined;
  #phase: SendProgress["phase"] = "connecting";
  #attempt = 0;
  #wireBefore = 0;
  /** Bytes read when the guard last found the image unchanged. */
  #checkedReadBytes: number | undefined;
  /** The receiver has answered, if only to say that it is busy. */
  #everReached = false;
  #reason: SendReason | undefined;
  readonly #audit = { bytes: 0, missedBytes: 0 };

  constructor(options: SenderOptions) {
    this.#o = options;
    this.#cycle = options.source.changes?.cycle ?? options.random.uuid();
    this.#rate = options.limit ?? createRateLimit(options.clock, options.rate);
    this.#funnel = emptyFunnel(options.source.reader.sizeBytes);
  }

  progress(): SendProgress {
    this.#funnel.wireBytes = this.#wireBefore + (this.#session?.wireBytes ?? 0);
    return {
      funnel: this.#funnel,
      phase: this.#phase,
      attempt: this.#attempt,
      peerPhase: this.#session?.peerPhase ?? "",
    };
  }

  async run(signal: AbortSignal = new AbortController().signal): Promise<SendReport> {
    try {
      return await this.#run(signal);
    } catch (error) {
      await this.#tellMissed();
      throw error;
    }
  }

  /** What an audit found is not forgotten with the send that found it: nothing is known of the image any more. */
  async #tellMissed(): Promise<void> {
    const { disk, log } = this.#o;
    if (this.#audit.missedBytes === 0) return;
    tellMiss(disk, this.#audit, log);
    await this.#forget();
  }

  async #forget(): Promise<void> {
    const { source, disk, log } = this.#o;
    await source.changes?.missed?.().catch((error: unknown) => {
      log.error({ disk, err: error }, "what is known of the image, and is not to be believed, could not be removed");
    });
  }

  async #run(signal: AbortSignal): Promise<SendReport> {
    const { clock, log, source } = this.#o;
    checkDiskName(this.#o.disk);
    const startedAt = clock.monotonic();
    await source.guard?.begin();
    for (let failures = 0; ; ) {
      this.#attempt++;
      const before = this.#progressMark();
      try {
        const report = await this.#tryOnce(signal, startedAt);
        if (report !== undefined) {
          this.#phase = "done";
          return report;
        }
        this.#phase = "waiting";
        await this.#o.cut?.allShipped(signal);
        failures = 0;
        this.#attempt--;
      } catch (thrown) {
        if (signal.aborted) throw toReplicationError(signal.reason, "aborted");
        const error = toReplicationError(thrown);
        failures = this.#advanced(before, error) ? 1 : failures + 1;
        this.#everReached ||= error.remote;
        const limit = this.#everReached ? (this.#o.attemptsMax ?? 8) : Math.min(3, this.#o.attemptsMax ?? 3);
        if (error.action === "never" || failures >= limit) throw error;
        if (error.action === "resync") this.#reason = `resync:${error.code}`;
        const wait = backoffMillis(failures);
        log.warn(
          { code: error.code, disk: this.#o.disk, attempt: this.#attempt, waitSeconds: wait / 1000 },
          `${error.message}; trying again in ${wait / 1000} s`,
        );
        this.#phase = "waiting";
        await clock.sleep(wait, signal).catch((reason: unknown) => {
          throw toReplicationError(reason, "aborted");
        });
      }
    }
  }

  #progressMark(): ProgressMark {
    return { pages: this.#memory?.done.count ?? 0, bytes: this.#memory?.sentBytes ?? 0 };
  }

  /**
   * Whether an attempt got anywhere: pages settled, or bytes shipped that the receiver kept. After a failed write it keeps nothing for sure,
   * and the same bytes may be shipped to the same bad place for ever.
   */
  #advanced(before: ProgressMark, error: ReplicationError): boolean {
    const { pages, bytes } = this.#progressMark();
    const keeps = error.action === "reconnect" && error.code !== "lane-crashed";
    return pages > before.pages || (keeps && bytes > before.bytes);
  }

  /** One session. Undefined: everything is there, and the point waits for other disks of the cut; what was applied is kept for a resume. */
  async #tryOnce(signal: AbortSignal, startedAt: number): Promise<SendReport | undefined> {
    const { clock } = this.#o;
    const repeats = new RepeatQueue();
    const session = new SenderSession({
      clock,
      connect: this.#o.connect,
      connections: this.#o.connections ?? 1,
      hello: offer({ instance: this.#o.instance, software: this.#o.software }),
      onRepeat: (blocks) => {
        repeats.push(blocks);
      },
      beat: () => ({ bytes: this.#funnel.scannedBytes, phase: this.#phase }),
      onControl: (message) => {
        this.#rate.spent(() => encodeFrame(message).length);
      },
      signal,
    });
    this.#session = session;
    this.#phase = "connecting";
    const stopWatching = this.#watchForStalls();
    try {
      const open = this.#openMessage();
      const opened = await session.open(open);
      this.#everReached = true;
      const plan = planSession(open, opened);
      const ended = plan.kind === "already-durable" ? undefined : await this.#compare(session, plan, opened, repeats);
      if (ended === "waits") {
        await session.close();
        return undefined;
      }
      const report = this.#report(plan, ended, opened, startedAt);
      await session.close();
      return { ...report, funnel: { ...this.progress().funnel } };
    } catch (thrown) {
      const first = toReplicationError(thrown);
      // A session that failed closes its connections: what was under way on them then ends with that, and not with the cause.
      const isEcho = first.code === "connection-lost" && session.signal.aborted;
      const error = isEcho ? toReplicationError(session.signal.reason) : first;
      session.fail(error);
      throw error;
    } finally {
      stopWatching();
      // Neither slots nor the image are touched after this.
      await repeats.settled().catch(() => {
        // The session's failure, which is thrown already.
      });
      this.#wireBefore += session.wireBytes;
      this.#session = undefined;
    }
  }

  /** Says so when nothing moves, with what the receiver is busy with. The session goes on: long work at the other end is no fault. */
  #watchForStalls(): () => void {
    let mark = this.#stallMark();
    return this.#o.clock.every(limits.stallMillis, () => {
      const before = mark;
      mark = this.#stallMark();
      if (mark !== before) return;
      const peerPhase = this.#session?.peerPhase ?? "";
      const doing = peerPhase === "" ? "" : `; the receiver is busy: ${peerPhase}`;
      this.#o.log.warn(
        { disk: this.#o.disk, phase: this.#phase, peerPhase },
        `no progress for ${limits.stallMillis / 1000} s${doing}`,
      );
    });
  }

  #stallMark(): string {
    const { scannedBytes, readBytes, packedBytes } = this.#funnel;
    return `${this.#phase} ${scannedBytes} ${readBytes} ${packedBytes}`;
  }

  async #compare(
    session: SenderSession,
    plan: Plan & { readonly kind: "compare" },
    opened: Opened,
    repeats: RepeatQueue,
  ): Promise<Ended | "waits"> {
    const { source, lanes, pool, clock } = this.#o;
    const signal = session.signal;
    const known = knownBase(source.changes, opened);
    this.#reason ??= reasonWith(plan.reason, known);
    if (plan.sampleFirst) {
      await checkResemblance({
        session,
        geometry: plan.geometry,
        baseBytes: opened.sizeBytes,
        reader: source.reader,
        name: source.name,
        disk: this.#o.disk,
        lanes,
        pool,
        signal,
      });
    }
    const memory = this.#memoryFor(plan.geometry, opened);
    this.#funnel.scannedBytes = 0;
    const scan = new Scan({
      reader: source.reader,
      name: source.name,
      session,
      lanes,
      pool,
      codec: this.#codecChoice(opened),
      rate: this.#rate,
      clock,
      funnel: this.#funnel,
      memory,
      changes: source.changes,
      audit: this.#audit,
      known: known?.pages,
      empty: opened.empty,
      baseBytes: opened.sizeBytes,
      signal,
    });
    this.#phase = "scanning";
    repeats.handler = async (blocks) => {
      try {
        await scan.repeat(blocks);
      } catch (thrown) {
        session.fail(toReplicationError(thrown));
        throw thrown;
      }
    };
    await scan.run();
    return await this.#commit(session, memory, repeats);
  }

  /** All of the image lies at the receiver, but for what it asks for again meanwhile. */
  async #commit(session: SenderSession, memory: ScanMemory, repeats: RepeatQueue): Promise<Ended | "waits"> {
    const { source } = this.#o;
    this.#phase = "committing";
    for (;;) {
      // Counted before the wait: a request that arrives from here on makes another commit necessary.
      const served = repeats.count;
      await repeats.settled();
      await this.#checkSource();
      if (this.#o.cut?.shipped() === false) return "waits";
      const root = memory.pages.root();
      // Were the answer lost, the next send would have to know what the receiver may have; after a miss it must know nothing, and compares everything.
      if (this.#audit.missedBytes > 0) await this.#forget();
      else await source.changes?.keep?.({ cycle: this.#cycle, pages: memory.pages });
      // What was asked for since, and is there already, would make this commit a second one.
      if (repeats.count > served) continue;
      const ended = this.#o.isPass === true ? session.pass(root) : session.commit(this.#commitMessage(root));
      const answer = await Promise.race([ended, repeats.arrival(served)]);
      if (answer === undefined) continue;
      if (Buffer.compare(answer.root, root) === 0) return answer;
      throw new ReplicationError(
        "root-mismatch",
        `disk ${this.#o.disk}: the receiver made a point of another state than the one it was sent`,
      );
    }
  }

  #commitMessage(root: Uint8Array): Omit<Commit, "type" | "frames"> {
    const { source, clock, cut, label, consistency = "crash", skipEmpty = false } = this.#o;
    return {
      ...{ root, cycle: this.#cycle, sizeBytes: source.reader.sizeBytes, consistency, skipEmpty },
      time: cut?.time ?? clock.now(),
      ...(cut === undefined ? {} : { group: cut.group, members: cut.members }),
      ...(label === undefined ? {} : { label }),
    };
  }

  /**
   * The image has not changed since its guard began. Of disks that are cut together one may change as soon as it is shipped, while the others are
   * not: what lies at the receiver is what counts, and nothing is looked at again unless something was read again.
   */
  async #checkSource(): Promise<void> {
    const { cut, source } = this.#o;
    if (cut !== undefined && this.#checkedReadBytes === this.#funnel.readBytes) return;
    const { readBytes } = this.#funnel;
    await source.guard?.check();
    this.#checkedReadBytes = readBytes;
  }

  /** What was learnt of the source stays while the geometry does. */
  #memoryFor(geometry: Geometry, opened: Opened): ScanMemory {
    const memory = this.#memory;
    if (
      memory !== undefined &&
      memory.geometry.blockBytes === geometry.blockBytes &&
      memory.geometry.digestKind === geometry.digestKind
    ) {
      return memory;
    }
    // Another disk under the name, of which nothing was sent yet.
    if (memory !== undefined) {
      Object.assign(this.#funnel, { changedBlockBytes: 0, changedBytes: 0, shippedBytes: 0, zeroBlocks: 0 });
    }
    const created = createScanMemory(geometry);
    created.nextPage = Math.floor(opened.resumeBlock / (4096 / (geometry.digestKind === "xxh64" ? 8 : 16)));
    this.#memory = created;
    return created;
  }

  #codecChoice(opened: Opened): CodecChoice {
    const wanted = this.#o.codec ?? "auto";
    const usable = this.#o.codecs.filter((codec) => codec === "stored" || opened.codecs.includes(codec));
    if (wanted !== "auto" && !usable.includes(wanted)) {
      throw new ReplicationError(
        "feature-unsupported",
        `the receiver cannot decode ${wanted}; it has ${opened.codecs.join(", ")}`,
      );
    }
    return new CodecChoice({ usable, fixed: wanted === "auto" ? undefined : wanted });
  }

  #openMessage(): Open {
    const { source } = this.#o;
    return {
      type: "open",
      disk: this.#o.disk,
      sizeBytes: source.reader.sizeBytes,
      ...(this.#o.blockBytes === undefined ? {} : { blockBytes: this.#o.blockBytes }),
      ...(this.#o.digestKind === undefined ? {} : { digestKind: this.#o.digestKind }),
      explicit: this.#o.blockBytes !== undefined || this.#o.digestKind !== undefined,
      source: wireIdentity(source.identity),
      sourceName: source.name,
      sectorBytes: source.reader.sectorBytes,
      cycle: this.#cycle,
      ...(source.changes?.bases[0] === undefined ? {} : { baseCycle: source.changes.bases[0] }),
      allowShrink: this.#o.allowShrink ?? false,
      adopt: this.#o.adopt ?? false,
    };
  }

  #report(plan: Plan, ended: Ended | undefined, opened: Opened, startedAt: number): SendReport {
    const durable = ended?.type === "durable" ? ended : undefined;
    const found = plan.kind === "already-durable" ? { point: plan.point, root: plan.root, created: true } : durable;
    return {
      disk: this.#o.disk,
      point: found?.point ?? opened.point ?? 0,
      created: found?.created ?? false,
      root: Buffer.from(found?.root ?? ended?.root ?? []).toString("hex"),
      reason: this.#reason ?? "resume",
      funnel: this.#funnel,
      seconds: (this.#o.clock.monotonic() - startedAt) / 1000,
      attempts: this.#attempt,
      blockBytes: opened.blockBytes,
      consistency: this.#o.consistency ?? "crash",
      audit: this.#o.source.changes?.audited === undefined ? undefined : { ...this.#audit },
    };
  }
}

type Ended = Durable | Synced;

interface ProgressMark {
  readonly pages: number;
  readonly bytes: number;
}

/** An identity as a wire name: itself where it is one, else its hash. */
function wireIdentity(identity: string): string {
  return isName(identity) ? identity : hash("sha256", identity);
}
