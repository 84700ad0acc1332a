/** What is known of file systems by their type: the largest file they hold. */
import { GIB } from "../base/units.ts";

const EXT = 0xef53;
const FAT = 0x4d44;

/**
 * Bytes of the largest file, by the type and block size statfs tells; undefined where no disk we support meets the limit
 * or it is not known. ext4 numbers a file's blocks with 32 bits (16 TiB less a block at 4 KiB); FAT its bytes.
 */
export function fileBytesMax(type: number, blockBytes: number): number | undefined {
  if (type === FAT) return 4 * GIB - 1;
  if (type === EXT) return (2 ** 32 - 1) * blockBytes;
  return undefined;
}
