/** A replica whose file is the disk, byte for byte. */
import type { StorageFile } from "../storage/seam.ts";
import type { Replica } from "./replica.ts";

/** Takes the file over. */
export function rawReplica(file: StorageFile, sizeBytes: number): Replica {
  let size = sizeBytes;
  return {
    path: file.path,
    fd: file.fd,
    directFd: file.directFd,
    get sizeBytes() {
      return size;
    },
    places: () => undefined,
    claim: () => undefined,
    runs: (offset, length) => [{ kind: "file", fd: file.fd, offset, length }],
    nextData: (offset) => file.nextData(offset),
    touch: () => Promise.resolve(),
    async resize(wanted) {
      await file.truncate(wanted);
      size = wanted;
    },
    datasync: () => file.datasync(),
    stat: () => file.stat(),
    close: () => file.close(),
  };
}
