/** The inline driver. */
import { doJob } from "./do-job.ts";
import type { Lane } from "./lane.ts";
import type { Lanes } from "./lanes.ts";

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
