import { systemClock } from "../base/clock.ts";
import { ReplicationError } from "../base/errors.ts";
import { verifyPoint } from "../library/points.ts";
import type { Store } from "../replica/store.ts";
import { optional, parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { type OpenedStore, openStoreOf, storeFlags, storeHelp, storeOptions } from "./open-store.ts";
import { parseDiskPoint, pointHelp, withChosenPoint } from "./point-name.ts";
import { showWork, type Work } from "./progress.ts";
import { formatSize, parseRate, parseSize } from "./values.ts";
import type { CliIo, Verb } from "./verb.ts";

const help = `usage: replicate verify --store DIR [DISK[@POINT]] [--all] [options]

Reads the newest recovery point of a disk again, or the one that is named, beside a live recv: every block is compared with
its digest, and the digests with the point's root. Damaged ranges are listed (20 of them), each with the newest other point
that has the same content there, or else other, good content. Without DISK all disks are read.

${pointHelp}

  --all                  all points, not only the newest
  --from OFFSET          of one point: go on where a run said it was stopped
  --rate SIZE            bytes read a second at most, such as 50MiB
${storeHelp}

Exit codes: 0 all is good, 1 failed, 2 wrong usage, 3 something is damaged, 130 interrupted.

Example:
  replicate verify --store /srv/replicas web --rate 100MiB
`;

type Report = Awaited<ReturnType<typeof verifyPoint>>;

export const verifyVerb: Verb = {
  help,
  exitCodes: { "store-damaged": exitCodes.differs },
  async run(args, io) {
    const given = parseArguments(args, {
      verb: "verify",
      flags: ["all", ...storeFlags],
      options: ["from", "rate", ...storeOptions],
      positionals: [],
      optional: 1,
    });
    const [name] = given.positionals;
    const named = name === undefined ? undefined : parseDiskPoint(name, "verify");
    const all = given.flag("all");
    if (all && named?.point !== undefined) {
      throw new ReplicationError("usage", "verify: --all reads all points; name a disk without a point");
    }
    const from = optional(given.text("from"), (text) => parseSize(text, "--from")) ?? 0;
    if (from > 0 && (all || named === undefined)) {
      throw new ReplicationError("usage", "verify: --from is for one point; name its disk, and leave --all out");
    }
    const rate = optional(given.text("rate"), parseRate);
    const opened = await openStoreOf(given, "verify", io);
    const { store } = opened;
    const reading = new Reading(opened, io, { json: given.flag("json"), from, rate });
    try {
      for (const disk of named === undefined ? await store.disks() : [named.disk]) {
        if (all) await reading.readAll(disk);
        else await reading.readOne(disk, named?.point, named !== undefined);
      }
    } finally {
      await store.close();
    }
    return reading.isGood ? exitCodes.done : exitCodes.differs;
  },
};

interface ReadingOptions {
  readonly json: boolean;
  readonly from: number;
  readonly rate: number | undefined;
}

class Reading {
  isGood = true;
  readonly #store: Store;
  readonly #engine: OpenedStore["engine"];
  readonly #io: CliIo;
  readonly #o: ReadingOptions;

  constructor({ store, engine }: OpenedStore, io: CliIo, options: ReadingOptions) {
    this.#store = store;
    this.#engine = engine;
    this.#io = io;
    this.#o = options;
  }

  /** A disk without points is no error unless somebody asked for it. */
  async readOne(disk: string, point: string | undefined, asked: boolean): Promise<void> {
    await this.#guarded(disk, undefined, async () => {
      const { points, unreadable } = await this.#store.points(disk);
      if (points.length === 0 && unreadable.length === 0 && !asked) {
        if (!this.#o.json) this.#io.out(`${disk}: no points yet\n`);
        return;
      }
      await withChosenPoint(this.#store, disk, point, (sequence) => this.#read(disk, sequence));
    });
  }

  async readAll(disk: string): Promise<void> {
    await this.#guarded(disk, undefined, async () => {
      const { points, unreadable } = await this.#store.points(disk);
      if (points.length === 0 && unreadable.length === 0 && !this.#o.json) this.#io.out(`${disk}: no points yet\n`);
      for (const { point, message } of unreadable) this.#tellTrouble(disk, point, message);
      for (const { point } of points) {
        await this.#guarded(disk, point, async () => {
          try {
            await this.#read(disk, point);
          } catch (error) {
            // Removed beside us since it was listed.
            if (!(error instanceof ReplicationError && error.code === "point-not-found")) throw error;
          }
        });
      }
    });
  }

  /** What is damaged as a whole must not hide the others. */
  async #guarded(disk: string, point: number | undefined, read: () => Promise<void>): Promise<void> {
    try {
      await read();
    } catch (error) {
      if (!(error instanceof ReplicationError && error.code === "store-damaged")) throw error;
      this.#tellTrouble(disk, point, error.message);
    }
  }

  async #read(disk: string, point: number): Promise<void> {
    const { json, from, rate } = this.#o;
    const startedAt = systemClock.monotonic();
    const work: Work = { title: `reading ${disk}@${point}`, facts: { disk, point }, doneBytes: 0, totalBytes: 0 };
    const stop = showWork(work, this.#io, { json });
    try {
      const report = await verifyPoint(this.#store, {
        engine: this.#engine,
        disk,
        point,
        from,
        rate,
        signal: this.#io.signal,
        onProgress(doneBytes, totalBytes) {
          work.doneBytes = doneBytes;
          work.totalBytes = totalBytes;
        },
      });
      stop();
      const seconds = (systemClock.monotonic() - startedAt) / 1000;
      this.isGood &&= report.good;
      this.#io.out(json ? `${JSON.stringify(verifiedEvent(report, seconds))}\n` : verifiedText(report, seconds));
    } catch (error) {
      throw withOption(error);
    } finally {
      stop();
    }
  }

  #tellTrouble(disk: string, point: number | undefined, trouble: string): void {
    this.isGood = false;
    const event = { event: "verified", disk, point: point ?? null, good: false, trouble };
    const name = point === undefined ? disk : `${disk}@${point}`;
    this.#io.out(this.#o.json ? `${JSON.stringify(event)}\n` : `${name}: DAMAGED: ${trouble}\n`);
  }
}

/** Says of a run that was stopped how to go on. */
function withOption(error: unknown): unknown {
  if (!(error instanceof ReplicationError) || error.code !== "aborted") return error;
  const { offset } = error.details;
  if (typeof offset !== "number" || offset === 0) return error;
  return new ReplicationError("aborted", `${error.message} (--from ${offset})`, {
    cause: error,
    details: error.details,
  });
}

function verifiedEvent(report: Report, seconds: number): object {
  return {
    event: "verified",
    disk: report.disk,
    point: report.point,
    good: report.good,
    rootMatches: report.rootMatches,
    bytes: report.sizeBytes,
    from: report.fromBytes,
    bytesRead: report.readBytes,
    bytesDamaged: report.damagedBytes,
    rangesDamaged: report.damagedRanges,
    ranges: report.damaged.map((range) => ({ ...range, goodPoint: range.goodPoint ?? null })),
    seconds: Number(seconds.toFixed(3)),
  };
}

function verifiedText(report: Report, seconds: number): string {
  const { disk, point, sizeBytes, fromBytes, readBytes, damaged, damagedRanges, damagedBytes } = report;
  const what = `${formatSize(sizeBytes)}, ${formatSize(readBytes)} read in ${seconds.toFixed(1)} s`;
  if (report.good) return `${disk}@${point}: good${fromBytes > 0 ? ` from ${fromBytes} on` : ""}; ${what}\n`;
  const lines: string[] = [];
  if (damagedRanges > 0) {
    lines.push(
      `${disk}@${point}: DAMAGED: ${formatSize(damagedBytes)} in ${damagedRanges} range${damagedRanges === 1 ? "" : "s"}; ${what}`,
    );
  } else lines.push(`${disk}@${point}: DAMAGED: its digests do not have the root its record names; ${what}`);
  for (const { offset, length, reason, goodPoint, sameContent } of damaged) {
    const other =
      goodPoint === undefined
        ? "no other point has it"
        : `point ${goodPoint} has ${sameContent ? "the same content" : "other, good content"} there`;
    lines.push(`  at ${offset}, ${length} bytes: ${reason}; ${other}`);
  }
  if (damagedRanges > damaged.length) lines.push(`  and ${damagedRanges - damaged.length} more`);
  return `${lines.join("\n")}\n`;
}
