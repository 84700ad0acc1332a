/** The pack job: parts that were found to differ become one payload. */
import type { PackRequest, PackResult } from "./jobs.ts";
import type { Lane } from "./lane.ts";
import { readRuns } from "./reading.ts";
import { packRaw } from "./shipping.ts";
import { areaA } from "./slot-layout.ts";

export function pack(lane: Lane, request: PackRequest): PackResult {
  const slot = lane.slot(request.slot);
  if (request.runs !== undefined) {
    const target = slot.subarray(areaA, areaA + request.rawBytes);
    readRuns(lane, request.runs, target, { file: request.file });
  }
  return packRaw(lane, slot, request.rawBytes, request.codec);
}
