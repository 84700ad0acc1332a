/** Reading a file the system has in memory: the floor of every scan. */
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { KIB, MIB } from "../src/base/units.ts";
import { noise, ring } from "./contents.ts";
import type { Stage } from "./measuring.ts";

const fileBytes = 256 * MIB;

export interface FileStages {
  readonly stages: readonly Stage[];
  /** Removes the file. */
  remove(): void;
}

export function fileStages(): FileStages {
  const folder = mkdtempSync(join(tmpdir(), "replicate-bench-"));
  const fd = openSync(join(folder, "image"), "w+");
  const piece = ring(MIB, noise);
  for (let offset = 0; offset < fileBytes; offset += MIB) writeSync(fd, piece(), 0, MIB, offset);
  const stages = [MIB, 64 * KIB].map((bytes): Stage => {
    const slot = new Uint8Array(new SharedArrayBuffer(bytes));
    let offset = 0;
    return {
      name: `read of a cached file in pieces of ${bytes / KIB} KiB`,
      bytes,
      cases: [
        {
          name: "readSync into a slot",
          run() {
            const read = readSync(fd, slot, 0, bytes, offset);
            offset = (offset + read) % fileBytes;
          },
        },
      ],
    };
  });
  return {
    stages,
    remove() {
      closeSync(fd);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
