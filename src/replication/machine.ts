/**
 * Sends several disks as they are at one moment, such as all disks of a machine, so that their points belong together.
 *
 * Order: every image's guard begins → each disk is compared and shipped, a few at a time, and its guard finds the image unchanged → only when that holds of
 * all, the points are made, each with the name of the cut. So nothing is committed when one of them changed, failed or was aborted before; and
 * when the sender dies between two commits the cut stays incomplete, which the store tells from its points.
 */
import type { Clock } from "../base/clock.ts";
import { InvariantError, ReplicationError, toReplicationError } from "../base/errors.ts";
import { Gate } from "../base/gate.ts";
import { limits } from "../base/limits.ts";
import type { Logger } from "../base/logger.ts";
import type { Random } from "../base/random.ts";
import type { SendReport } from "./report.ts";
import type { Sender, SendProgress, SendSource, SharedCut } from "./sender.ts";

/** Disks compared and shipped at a time: each takes memory of the receiver while it is. */
const disksAtOnce = 3;

/** One disk of the cut. */
export interface CutDisk {
  /** Name at the receiver. */
  readonly disk: string;
  readonly source: SendSource;
}

export interface MachineOptions {
  readonly disks: readonly CutDisk[];
  /** A sender of one of them that takes part in the cut. Its source is the one that is given here: its guard has begun. */
  readonly createSender: (disk: CutDisk, cut: SharedCut) => Sender;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
}

export interface MachineReport {
  /** Names the cut in all of its points. */
  readonly cut: string;
  /** In the order of the disks that were given. */
  readonly disks: readonly SendReport[];
  readonly seconds: number;
}

export interface MachineSender {
  /**
   * Runs until every disk has its point of the cut. Once. Rejects with the first failure; then no disk has one, or (`details.committed`) those that are named
   * have: running it again makes a new cut.
   */
  run(signal?: AbortSignal): Promise<MachineReport>;
  /** Live, a disk each, in the order given. */
  progress(): readonly { readonly disk: string; readonly progress: SendProgress }[];
}

/** Throws `usage` when there are no disks, too many, or two of one name. */
export function createMachineSender(options: MachineOptions): MachineSender {
  const { disks } = options;
  const names = disks.map(({ disk }) => disk);
  if (disks.length === 0 || disks.length > limits.groupDisksMax) {
    throw new ReplicationError(
      "usage",
      `${disks.length} disks to cut together: 1 to ${limits.groupDisksMax} are possible`,
    );
  }
  if (new Set(names).size < names.length) throw new ReplicationError("usage", "two of the disks have the same name");
  return new MachineRun(options, names);
}

interface Member {
  readonly disk: string;
  readonly sender: Sender;
  readonly leaveGate: () => void;
  /** Its own: many listeners of one signal look like a leak. */
  readonly abort: AbortController;
}

class MachineRun implements MachineSender {
  readonly #o: MachineOptions;
  readonly #names: readonly string[];
  readonly #group: string;
  readonly #gate = new Gate(disksAtOnce);
  #stopped: { readonly reason: unknown } | undefined;
  readonly #shipped = new Set<string>();
  readonly #committed: string[] = [];
  #allShipped: () => void = () => {};
  readonly #whenAllShipped: Promise<void>;
  #senders: readonly Member[] = [];

  constructor(options: MachineOptions, names: readonly string[]) {
    this.#o = options;
    this.#names = names;
    this.#group = options.random.uuid();
    this.#whenAllShipped = new Promise((resolve) => {
      this.#allShipped = resolve;
    });
  }

  progress(): readonly { readonly disk: string; readonly progress: SendProgress }[] {
    return this.#senders.map(({ disk, sender }) => ({ disk, progress: sender.progress() }));
  }

  async run(signal?: AbortSignal): Promise<MachineReport> {
    const { disks, clock } = this.#o;
    const startedAt = clock.monotonic();
    const stop = (): void => {
      this.#stop(signal?.reason);
    };
    signal?.addEventListener("abort", stop, { once: true });
    try {
      signal?.throwIfAborted();
      for (const { source } of disks) await source.guard?.begin();
      const time = clock.now();
      this.#senders = disks.map((disk) => this.#prepare(disk, time));
      const reports = await this.#runAll();
      this.#tellNew(reports);
      return { cut: this.#group, disks: reports, seconds: (clock.monotonic() - startedAt) / 1000 };
    } catch (thrown) {
      throw this.#failure(thrown, signal);
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  #prepare({ disk, source }: CutDisk, time: number): Member {
    let inGate = true;
    const leaveGate = (): void => {
      if (inGate) this.#gate.leave();
      inGate = false;
    };
    const { guard } = source;
    const begun = guard === undefined ? undefined : { begin: () => Promise.resolve(), check: () => guard.check() };
    const sender = this.#o.createSender(
      { disk, source: { ...source, guard: begun } },
      {
        group: this.#group,
        members: this.#names,
        time,
        shipped: () => {
          this.#shipped.add(disk);
          const all = this.#shipped.size === this.#names.length;
          if (all) this.#allShipped();
          else leaveGate();
          return all;
        },
        allShipped: (signal) => this.#wait(signal),
      },
    );
    return { disk, sender, leaveGate, abort: new AbortController() };
  }

  #stop(reason: unknown): void {
    this.#stopped ??= { reason };
    for (const { abort } of this.#senders) abort.abort(reason);
  }

  #wait(signal: AbortSignal): Promise<void> {
    const aborted = new Promise<never>((_resolve, reject) => {
      const fail = (): void => {
        reject(toReplicationError(signal.reason, "aborted"));
      };
      if (signal.aborted) fail();
      else signal.addEventListener("abort", fail, { once: true });
    });
    return Promise.race([this.#whenAllShipped, aborted]);
  }

  /** The first failure stops the others; nothing is under way when this rejects. */
  async #runAll(): Promise<readonly SendReport[]> {
    const reports = new Map<string, SendReport>();
    let failed: { readonly error: unknown } | undefined;
    await Promise.all(
      this.#senders.map(async ({ disk, sender, leaveGate, abort }) => {
        await this.#gate.enter();
        try {
          if (this.#stopped !== undefined) throw toReplicationError(this.#stopped.reason, "aborted");
          reports.set(disk, await sender.run(abort.signal));
          this.#committed.push(disk);
        } catch (error) {
          failed ??= { error };
          this.#stop(new ReplicationError("aborted", "another disk of the same cut failed"));
        } finally {
          leaveGate();
        }
      }),
    );
    if (failed !== undefined) throw failed.error;
    return this.#names.map((name) => {
      const report = reports.get(name);
      if (report === undefined) throw new InvariantError("each disk has its report");
      return report;
    });
  }

  /** A disk that had nothing at the receiver while others had: it is new, or its replica was lost, and then a person should know. */
  #tellNew(reports: readonly SendReport[]): void {
    const isNew = ({ reason }: SendReport): boolean => reason === "initial";
    if (reports.every(isNew)) return;
    for (const { disk } of reports.filter(isNew)) {
      this.#o.log.warn(
        { disk },
        `${disk}: the receiver had nothing of it, though it has points of other disks of the cut; it was copied whole. Unless it is new, its replica and points were lost`,
      );
    }
  }

  #failure(thrown: unknown, signal: AbortSignal | undefined): ReplicationError {
    const error = signal?.aborted === true ? toReplicationError(signal.reason, "aborted") : toReplicationError(thrown);
    if (this.#committed.length === 0) return error;
    const committed = this.#committed.join(", ");
    return new ReplicationError(
      error.code,
      `${error.message} (the cut is incomplete: only ${committed} got its point)`,
      {
        cause: error,
        details: { ...error.details, committed },
      },
    );
  }
}
