/** Which names a disk may have. Pure. */
import { ReplicationError } from "./errors.ts";

const diskName = /^[a-z0-9][a-z0-9._-]{0,62}$/;

/** `[a-z0-9][a-z0-9._-]{0,62}`, never a path. Throws `disk-name-invalid` saying what is allowed. */
export function checkDiskName(name: string): void {
  if (isDiskName(name)) return;
  throw new ReplicationError(
    "disk-name-invalid",
    `${JSON.stringify(name.slice(0, 80))} cannot be the name of a disk: use 1 to 63 characters of a-z, 0-9, ".", "_" and "-", ` +
      "the first of them a letter or a digit",
  );
}

export function isDiskName(name: string): boolean {
  return diskName.test(name);
}
