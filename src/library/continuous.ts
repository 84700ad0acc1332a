/** Tracked disks and machines that are sent again and again over one link. */
import { settleAll } from "../base/gate.ts";
import { RankedGate } from "../base/ranked-gate.ts";
import type { Engine } from "../replication/engine.ts";
import type { SendReport } from "../replication/report.ts";
import { type Lag, runCycles } from "../replication/schedule.ts";

export interface ContinuousSend {
  readonly sender: { cycle(signal: AbortSignal): Promise<readonly SendReport[]> };
  /** Between the beginnings of two cycles. 0: the next begins when one has ended. */
  readonly everyMillis: number;
  /** A cycle is a point, or nothing had changed: one report a disk. */
  readonly onReports?: (reports: readonly SendReport[]) => void;
  /** A cycle failed: what changed is part of the next one. */
  readonly onFailure?: (error: unknown) => void;
  /** What the receiver has is twice as old as the interval, or no longer so. */
  readonly onLag?: (lag: Lag) => void;
}

/**
 * Runs cycles of each until the signal fires, then resolves when the last of them has ended. Cycles that are due together take turns, the one first whose receiver's state is the
 * first to be older than its interval; `together` of them run at a time, default 1: on one link two at once only make both late. A turn lasts as long as the cycle: a first copy, with
 * all its passes, keeps the others waiting. Rejects with what a callback threw.
 */
export async function sendContinuously(
  sends: readonly ContinuousSend[],
  options: { readonly engine: Engine; readonly signal: AbortSignal; readonly together?: number },
): Promise<void> {
  const { engine, together = 1 } = options;
  const turns = new RankedGate(together);
  // What one of the callbacks throws ends all of them.
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const runs = sends.map(async ({ sender, everyMillis, onReports, onFailure, onLag }) => {
    let reports: readonly SendReport[] = [];
    try {
      await runCycles({
        ...{ clock: engine.clock, everyMillis, turns, signal, onLag },
        cycle: async () => {
          reports = await sender.cycle(signal);
        },
        onDone: () => onReports?.(reports),
        onFailure: (error) => onFailure?.(error),
      });
    } finally {
      stop.abort();
    }
  });
  await settleAll(runs);
}
