/**
 * Lanes: where the heavy work of a block is done. One pure function a job, two drivers: worker threads, and inline in the calling
 * thread (for simulation, for small tools, and where no worker can be started).
 */
import type { JobName, JobTypes } from "./jobs.ts";

export interface Lanes {
  /** Lanes that work side by side. */
  readonly count: number;
  /**
   * Runs a job on the next free lane. Slots named by the request are the lane's until the promise settles. Rejects with the
   * job's error, or `lane-crashed` when a worker died that had it, or while it waited for one; another worker takes the dead one's place.
   */
  run<Name extends JobName>(name: Name, request: JobTypes[Name]["request"]): Promise<JobTypes[Name]["result"]>;
  /** Waits for jobs under way, then ends the lanes. */
  close(): Promise<void>;
}
