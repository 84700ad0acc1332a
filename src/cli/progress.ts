/** Progress lines, and the closing lines of a send. */
import { type Clock, systemClock } from "../base/clock.ts";
import type { Logger } from "../base/logger.ts";
import type { MachineSender } from "../replication/machine.ts";
import type { SendReport } from "../replication/report.ts";
import type { Lag } from "../replication/schedule.ts";
import type { Sender, SendProgress } from "../replication/sender.ts";
import type { Funnel } from "../replication/report.ts";
import { formatDuration, formatSize, formatTime } from "./values.ts";
import type { CliIo } from "./verb.ts";

const redrawMillis = 200;
const reportMillis = 2_000;

interface ProgressOptions {
  readonly json: boolean;
  /** Default: the system's. */
  readonly clock?: Clock;
}

/** Draws (terminal) or prints (JSON) the progress of a send until the returned function is called. */
export function showProgress(sender: Sender, io: CliIo, options: ProgressOptions): () => void {
  return showLine(io, {
    ...options,
    facts: (seconds) => facts(sender.progress(), seconds),
    line: (seconds) => progressLine(sender.progress(), seconds),
  });
}

/** The same for several disks at once: their sums, on a terminal; a line for each, as JSON. */
export function showMachineProgress(sender: MachineSender, io: CliIo, options: ProgressOptions): () => void {
  const sum = (of: (funnel: Funnel) => number): number =>
    sender.progress().reduce((total, { progress }) => total + of(progress.funnel), 0);
  return showLine(io, {
    ...options,
    facts: (seconds) => sender.progress().map(({ disk, progress }) => ({ ...facts(progress, seconds), disk })),
    line: (seconds) => {
      const disks = sender.progress();
      const shipped = disks.filter(({ progress }) => progress.phase === "waiting" || progress.phase === "done").length;
      const work = {
        facts: {},
        doneBytes: sum((funnel) => funnel.scannedBytes),
        totalBytes: sum((funnel) => funnel.sizeBytes),
      };
      return workLine({ ...work, title: `${shipped} of ${disks.length} disks` }, seconds);
    },
  });
}

/** Bytes done of bytes in all. */
export interface Work {
  /** What is being done, for the line. */
  title: string;
  facts: Readonly<Record<string, string | number>>;
  doneBytes: number;
  totalBytes: number;
}

/** The same for work that is counted in bytes. `work` is read each time; its counts start again with each piece of work. */
export function showWork(work: Work, io: CliIo, options: ProgressOptions): () => void {
  return showLine(io, {
    ...options,
    facts: (seconds) => ({
      ...work.facts,
      bytesDone: work.doneBytes,
      bytesTotal: work.totalBytes,
      seconds: Number(seconds.toFixed(1)),
    }),
    line: (seconds) => workLine(work, seconds),
  });
}

export function workLine({ title, doneBytes, totalBytes }: Work, seconds: number): string {
  const share = totalBytes === 0 ? 0 : doneBytes / totalBytes;
  const rate = formatSize(doneBytes / Math.max(seconds, 0.1));
  const left = share > 0.01 ? formatDuration((seconds / share) * (1 - share)) : "?";
  return `${title}: ${Math.floor(share * 100)} % of ${formatSize(totalBytes)}, ${rate}/s, ${left} left`;
}

function showLine(
  io: CliIo,
  options: ProgressOptions & {
    readonly facts: (seconds: number) => object | readonly object[];
    readonly line: (seconds: number) => string;
  },
): () => void {
  const { json, clock = systemClock } = options;
  if (!json && !io.isTerminal) return () => {};
  const startedAt = clock.monotonic();
  const width = io.columns - 1;
  const show = (): void => {
    const seconds = (clock.monotonic() - startedAt) / 1000;
    if (json) {
      for (const facts of [options.facts(seconds)].flat())
        io.out(`${JSON.stringify({ event: "progress", ...facts })}\n`);
    } else io.err(`\r${options.line(seconds).slice(0, width).padEnd(width)}`);
  };
  const stop = clock.every(json ? reportMillis : redrawMillis, show);
  let stopped = false;
  return () => {
    if (stopped) return;
    stopped = true;
    stop();
    if (!json) io.err(`\r${" ".repeat(width)}\r`);
  };
}

function facts(progress: SendProgress, seconds: number): object {
  const { funnel, phase, attempt, peerPhase } = progress;
  return {
    phase,
    attempt,
    receiver: peerPhase,
    bytesSize: funnel.sizeBytes,
    bytesScanned: funnel.scannedBytes,
    bytesChanged: funnel.changedBytes,
    bytesWire: funnel.wireBytes,
    seconds: Number(seconds.toFixed(1)),
  };
}

function progressLine(progress: SendProgress, seconds: number): string {
  const { funnel, phase } = progress;
  const share = funnel.sizeBytes === 0 ? 1 : funnel.scannedBytes / funnel.sizeBytes;
  const percent = `${Math.floor(share * 100)} %`;
  switch (phase) {
    case "connecting":
      return progress.peerPhase === "rebuild" ? "the receiver is reading its replica" : "connecting";
    case "waiting":
      return `connection lost at ${percent}; trying again (attempt ${progress.attempt})`;
    case "committing":
      return `committing: the receiver syncs ${formatSize(funnel.changedBytes)}`;
    case "scanning":
    case "done": {
      const left = share > 0.01 ? formatDuration((seconds / share) * (1 - share)) : "?";
      const rate = formatSize(funnel.wireBytes / Math.max(seconds, 0.1));
      return `${percent} of ${formatSize(funnel.sizeBytes)}, ${formatSize(funnel.changedBytes)} changed, ${formatSize(funnel.wireBytes)} sent, ${rate}/s, ${left} left`;
    }
    default:
      return phase satisfies never;
  }
}

/** The result line that scripts rely on. */
export function doneEvent(report: SendReport): object {
  const { funnel } = report;
  return {
    event: "done",
    disk: report.disk,
    point: report.point,
    created: report.created,
    root: report.root,
    bytesSize: funnel.sizeBytes,
    bytesAllocated: funnel.allocatedBytes,
    bytesScanned: funnel.scannedBytes,
    bytesRead: funnel.readBytes,
    bytesChangedBlocks: funnel.changedBlockBytes,
    bytesChanged: funnel.changedBytes,
    bytesShipped: funnel.shippedBytes,
    bytesPacked: funnel.packedBytes,
    bytesWire: funnel.wireBytes,
    blocksZero: funnel.zeroBlocks,
    blocksRepeated: funnel.repeatedBlocks,
    seconds: Number(report.seconds.toFixed(3)),
    attempts: report.attempts,
    consistency: report.consistency,
    reason: report.reason,
    ...(report.passes === undefined ? {} : { passes: report.passes }),
    ...(report.audit === undefined ? {} : { bytesAudited: report.audit.bytes, bytesMissed: report.audit.missedBytes }),
  };
}

/** The reduction funnel, a line a stage. */
export function funnelText(report: SendReport): string {
  const { funnel } = report;
  const stages: readonly (readonly [string, number])[] = [
    ["size of the disk", funnel.sizeBytes],
    ["allocated", funnel.allocatedBytes],
    ["read", funnel.readBytes],
    ["in changed blocks", funnel.changedBlockBytes],
    ["in changed parts", funnel.changedBytes],
    ["not zero", funnel.shippedBytes],
    ["compressed", funnel.packedBytes],
    ["on the wire, both ways", funnel.wireBytes],
  ];
  const lines = stages.map(
    ([name, bytes]) => `  ${name.padEnd(24)}${formatSize(bytes).padStart(12)}${share(bytes, funnel)}`,
  );
  const what = report.created ? `point ${report.point}` : `nothing changed, point ${report.point} stays`;
  const rate = formatSize(funnel.scannedBytes / Math.max(report.seconds, 0.001));
  return `${report.disk}: ${what} (${report.reason}) in ${report.seconds.toFixed(1)} s, ${rate}/s scanned\n${lines.join("\n")}\n`;
}

function share(bytes: number, funnel: Funnel): string {
  if (funnel.sizeBytes === 0) return "";
  return `${((bytes / funnel.sizeBytes) * 100).toFixed(2).padStart(9)} %`;
}

/** Cycles fall behind, or have caught up: a line of the log, or of JSON. */
export function tellLag({ state, millis }: Lag, { io, json, log, everyMillis }: CycleSurroundings): void {
  const [lag, every] = [formatDuration(millis / 1000), formatDuration(everyMillis / 1000)];
  if (json) io.out(`${JSON.stringify({ event: state, lagSeconds: Math.round(millis / 1000) })}\n`);
  else if (state === "caught-up") log.warn({}, `caught up: what the receiver has is ${lag} old`);
  else log.warn({}, `falling behind: what the receiver has is ${lag} old, and a cycle was to begin every ${every}`);
}

interface CycleSurroundings {
  readonly io: CliIo;
  readonly json: boolean;
  readonly log: Logger;
  readonly everyMillis: number;
}

/** A cycle of many, in one line. */
export function cycleText(report: SendReport, { json, now }: { readonly json: boolean; readonly now: number }): string {
  if (json) return `${JSON.stringify(doneEvent(report))}\n`;
  const { funnel, created, point, reason, disk, seconds, consistency, passes } = report;
  const what = created ? `point ${point}` : `nothing changed, point ${point} stays`;
  const sizes = `${formatSize(funnel.readBytes)} read, ${formatSize(funnel.changedBytes)} changed, ${formatSize(funnel.wireBytes)} on the wire`;
  const before = passes === undefined ? "" : ` after ${passes} ${passes === 1 ? "pass" : "passes"}`;
  return `${formatTime(now)}  ${disk}  ${what} (${reason}, ${consistency})${before}: ${sizes}, in ${seconds.toFixed(1)} s\n`;
}
