/** The jobs by their names. */
import { apply, clear, oldParts, sync } from "./apply.ts";
import { delta } from "./delta.ts";
import type { JobName, JobTypes } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { pack } from "./pack.ts";
import { letGo, readAhead } from "./page-cache.ts";
import { append, save } from "./save.ts";
import { compare, scan } from "./scan.ts";

const jobs: {
  readonly [Name in JobName]: (lane: Lane, request: JobTypes[Name]["request"]) => JobTypes[Name]["result"];
} = { scan, compare, delta, readAhead, letGo, pack, save, append, apply, oldParts, clear, sync };

/** Does one job here and now. */
export function doJob<Name extends JobName>(
  lane: Lane,
  name: Name,
  request: JobTypes[Name]["request"],
): JobTypes[Name]["result"] {
  return jobs[name](lane, request);
}
