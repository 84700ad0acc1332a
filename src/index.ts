/**
 * The library: what it offers, by where it is made.
 *
 * A process makes one {@link createEngine | engine} (memory and lanes), and from it senders and receivers. Memory stays below the engine's pool
 * plus about 150 MiB for Node.js, lanes and tables, whatever the size and number of disks.
 */
export { ReplicationError, type ErrorCode } from "./base/errors.ts";
export type { Logger } from "./base/logger.ts";
export type { BlockReader, Extent } from "./image/block-device.ts";
export { createEngine, type Engine } from "./replication/engine.ts";
export type { SendReport } from "./replication/report.ts";
export type { Sender, SendProgress, SendSource } from "./replication/sender.ts";
export { openStore, type DiskSummary, type Point, type PointReader, type Store } from "./replica/store.ts";
export { loadCredentials } from "./transport/credentials.ts";
export { watchCredentials } from "./transport/credential-watch.ts";
export { createAuthority, issueCertificate } from "./transport/pki.ts";
export {
  type CreateMachineSenderOptions,
  createMachineSender,
  type CreateSenderOptions,
  createSender,
  openSource,
} from "./library/sending.ts";
export type { MachineReport, MachineSender } from "./replication/machine.ts";
export {
  adoptImage,
  type CreateReceiverOptions,
  createReceiver,
  importSeed,
  type Receiver,
} from "./library/receiving.ts";
export { repair, restorePoint, rollBack, verifyPoint } from "./library/points.ts";
