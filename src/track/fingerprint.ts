/** What an image is recognised by, beside its content. */
import type { StorageFile } from "../storage/seam.ts";

export interface Fingerprint {
  /** Of the file, not of the disk in it; of a block device its capacity. */
  readonly sizeBytes: number;
  /** As FileStat has them: device and inode of a file; of a block device its own number, and inode "0". */
  readonly device: string;
  readonly inode: string;
  /** ctime, nanoseconds since 1970: mtime can be set back, ctime cannot. Of a block device it says nothing. */
  readonly changedNanos: bigint;
  /** Of a VHDX: its DataWriteGuid, which changes when another program writes to it. */
  readonly dataWriteGuid: string | undefined;
}

/** The image as it is now. `storage` errors pass. */
export async function fingerprintOf(
  image: Pick<StorageFile, "stat">,
  options: { readonly dataWriteGuid?: string | undefined } = {},
): Promise<Fingerprint> {
  const { sizeBytes, device, inode, changedNanos } = await image.stat();
  return { sizeBytes, device, inode, changedNanos, dataWriteGuid: options.dataWriteGuid };
}
