/** What the kernel tells of a block device in /sys: it needs no right to open the device, and no native call. */
import { readFile } from "node:fs/promises";
import { platform } from "node:os";
import type { LinuxCalls } from "./linux.ts";
import { systemError } from "./system-error.ts";

/** `major:minor` of a device number as stat gives it. */
export function deviceName(number: bigint): string {
  if (platform() !== "linux") return number.toString();
  const major = ((number >> 8n) & 0xfffn) | ((number >> 32n) & 0xfffff000n);
  const minor = (number & 0xffn) | ((number >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

/** Capacity and logical sector. `fd`: of the open device, for where /sys is hidden. */
export async function deviceGeometry(
  name: string,
  linux: LinuxCalls,
  fd: number | undefined,
): Promise<{ readonly sizeBytes: number; readonly sectorBytes: number }> {
  const sectors = await readNumber(`/sys/dev/block/${name}/size`);
  const sector =
    (await readNumber(`/sys/dev/block/${name}/queue/logical_block_size`)) ??
    // A partition has no queue of its own; its directory lies in the disk's.
    (await readNumber(`/sys/dev/block/${name}/../queue/logical_block_size`));
  // In units of 512 bytes whatever the sector.
  if (sectors !== undefined && sector !== undefined) return { sizeBytes: sectors * 512, sectorBytes: sector };
  if (fd === undefined) return { sizeBytes: 0, sectorBytes: 512 };
  const sizeBytes = linux.deviceBytes?.(fd) ?? 0;
  const sectorBytes = linux.deviceSectorBytes?.(fd) ?? 512;
  if (sizeBytes < 0) throw systemError("ioctl", sizeBytes);
  return { sizeBytes, sectorBytes: sectorBytes > 0 ? sectorBytes : 512 };
}

/** Writes and discards completed so far, as a text to compare; undefined where the kernel does not count. */
export async function deviceWriteCounter(name: string): Promise<string | undefined> {
  const counting =
    (await readNumber(`/sys/dev/block/${name}/queue/iostats`)) ??
    (await readNumber(`/sys/dev/block/${name}/../queue/iostats`));
  if (counting === 0) return undefined;
  const line = await readText(`/sys/dev/block/${name}/stat`);
  if (line === undefined) return undefined;
  // Documentation/block/stat.rst: 7th sectors written, 12th discard requests, 14th sectors discarded. Not the 5th, write
  // requests: a flush of an empty cache counts there too.
  const fields = line.trim().split(/\s+/);
  return [fields[6], fields[11] ?? "0", fields[13] ?? "0"].join(" ");
}

async function readNumber(path: string): Promise<number | undefined> {
  const text = await readText(path);
  if (text === undefined) return undefined;
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : undefined;
}

/** The kernel resolves the link `/sys/dev/block/M:m` before a `..` behind it. */
async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch {
    // Nothing is lost: /sys may be hidden in a container, and the caller knows another way or says that it does not know.
    return undefined;
  }
}
