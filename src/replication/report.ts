/** What a send did, as plain data: the reduction funnel from the size of the disk down to bytes on the wire. */

/** Why blocks were looked at. */
export type SendReason = "initial" | "scan" | "resume" | "bitmap" | `resync:${string}`;

/** The funnel. All in bytes unless the name says otherwise. Grows while a send runs; each stage is at most the one before it (wire aside). */
export interface Funnel {
  /** Size of the disk. */
  sizeBytes: number;
  /** Of it, not a hole at the source. */
  allocatedBytes: number;
  /** Looked at so far, holes included: progress. */
  scannedBytes: number;
  /** Read from the image (a block read a second time counts again). */
  readBytes: number;
  /** Blocks whose digest differed. */
  changedBlockBytes: number;
  /** Parts that differed (a block that became zero counts whole). */
  changedBytes: number;
  /** Of them, not zero: what had to travel. */
  shippedBytes: number;
  /** After compression. */
  packedBytes: number;
  /** Both directions, TLS included. */
  wireBytes: number;
  /** Blocks that became zero. */
  zeroBlocks: number;
  /** Blocks sent again at the receiver's request. */
  repeatedBlocks: number;
}

export function emptyFunnel(sizeBytes: number): Funnel {
  return {
    sizeBytes,
    allocatedBytes: 0,
    scannedBytes: 0,
    readBytes: 0,
    changedBlockBytes: 0,
    changedBytes: 0,
    shippedBytes: 0,
    packedBytes: 0,
    wireBytes: 0,
    zeroBlocks: 0,
    repeatedBlocks: 0,
  };
}

/** The result of a send that committed. */
export interface SendReport {
  readonly disk: string;
  /** Sequence number of the point. */
  readonly point: number;
  /** False when the point was there already (a commit whose answer was lost) or `skipEmpty` made none. */
  readonly created: boolean;
  /** Hex. */
  readonly root: string;
  readonly reason: SendReason;
  readonly funnel: Readonly<Funnel>;
  readonly seconds: number;
  /** Connections that were made, 1 when nothing was lost. */
  readonly attempts: number;
  readonly blockBytes: number;
  readonly consistency: "crash" | "application" | "none";
}
