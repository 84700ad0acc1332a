/** What runs in a lane's worker thread. */
import { parentPort, workerData } from "node:worker_threads";
import { invariant } from "../base/errors.ts";
import { nodeLaneStorage } from "../storage/node-lanes.ts";
import { carryError } from "./carried-error.ts";
import { doJob } from "./do-job.ts";
import { createLane } from "./lane.ts";
import type { LaneAnswer, LaneCall, LaneSetup } from "./worker-lanes.ts";

const port = parentPort;
invariant(port !== null, "a lane runs in a worker thread");
const setup = workerData as LaneSetup;
const lane = await createLane({ ...setup, storage: nodeLaneStorage() });

port.on("message", (call: LaneCall) => {
  let answer: LaneAnswer;
  try {
    answer = { id: call.id, result: doJob(lane, call.name, call.request as never) };
  } catch (error) {
    answer = { id: call.id, error: carryError(error) };
  }
  port.postMessage(answer);
});
port.postMessage({ ready: true, lz4: lane.codecs.lz4 } satisfies LaneAnswer);
