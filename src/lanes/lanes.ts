/**
 * Lanes: where the heavy work of a block is done. One pure function a job, two drivers: worker threads, and inline in the calling
 * thread (for simulation, for small tools, and where no worker can be started).
 */
import { InvariantError, isErrorCode, ReplicationError } from "../base/errors.ts";
import { apply, clear, oldParts, sync } from "./apply.ts";
import type { JobName, JobTypes } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { append, save } from "./save.ts";
import { pack } from "./pack.ts";
import { letGo, readAhead } from "./page-cache.ts";
import { compare, scan } from "./scan.ts";

export interface Lanes {
  /** Lanes that work side by side. */
  readonly count: number;
  /**
   * Runs a job on the next free lane. Slots named by the request are the lane's until the promise settles. Rejects with the
   * job's error, or `lane-crashed` for this and every later job when a worker died.
   */
  run<Name extends JobName>(name: Name, request: JobTypes[Name]["request"]): Promise<JobTypes[Name]["result"]>;
  /** Waits for jobs under way, then ends the lanes. */
  close(): Promise<void>;
}

const jobs: {
  readonly [Name in JobName]: (lane: Lane, request: JobTypes[Name]["request"]) => JobTypes[Name]["result"];
} = { scan, compare, readAhead, letGo, pack, save, append, apply, oldParts, clear, sync };

/** Does one job here and now. */
export function doJob<Name extends JobName>(
  lane: Lane,
  name: Name,
  request: JobTypes[Name]["request"],
): JobTypes[Name]["result"] {
  return jobs[name](lane, request);
}

/** All jobs in the calling thread, each in its own turn of the promise queue. */
export function createInlineLanes(lane: Lane): Lanes {
  return {
    count: 1,
    async run(name, request) {
      await Promise.resolve();
      return doJob(lane, name, request);
    },
    close: () => Promise.resolve(),
  };
}

/** An error as a value that crosses threads, with what matters kept. */
export interface CarriedError {
  readonly kind: "replication" | "invariant" | "other";
  readonly code: string;
  readonly message: string;
  readonly details: ReplicationError["details"];
  readonly stack: string | undefined;
}

export function carryError(error: unknown): CarriedError {
  if (error instanceof ReplicationError) {
    const { code, message, details, stack } = error;
    return { kind: "replication", code, message, details, stack };
  }
  const message = error instanceof Error ? error.message : String(error);
  const stack = error instanceof Error ? error.stack : undefined;
  return { kind: error instanceof InvariantError ? "invariant" : "other", code: "", message, details: {}, stack };
}

export function uncarryError(carried: CarriedError): Error {
  const cause = carried.stack === undefined ? undefined : { stackInLane: carried.stack };
  if (carried.kind === "invariant") return new InvariantError(carried.message, { cause });
  const code = isErrorCode(carried.code) ? carried.code : "internal";
  return new ReplicationError(code, carried.message, { details: carried.details, cause });
}
