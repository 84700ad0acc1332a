/**
 * The library for tracked images (`replicate/tracking`): everything is written through an image of it, cuts are made while its writers go on, and a delta
 * reads what was written and no more. Engine, receivers and certificates are those of `replicate`.
 */
export type { BlockWriter } from "./image/block-device.ts";
export type { Quiescing } from "./replication/quiescing.ts";
export type { TrackedSender } from "./replication/tracked-sender.ts";
export type { TrackedImage } from "./track/tracked-image.ts";
export {
  createTrackedMachineSender,
  createTrackedSender,
  openTracked,
  type ServedImages,
  serveTracked,
  type Tracked,
} from "./library/tracking.ts";
export { sendContinuously } from "./library/continuous.ts";
export { trackWriter } from "./library/tracked-writer.ts";
