/** Temporary directories, loop devices and mounts for tests, removed by the caller. */
import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Scratch {
  readonly path: string;
  file(name: string): string;
  remove(): Promise<void>;
}

export async function createScratch(): Promise<Scratch> {
  const path = await mkdtemp(join(tmpdir(), "replicate-test-"));
  return {
    path,
    file: (name) => join(path, name),
    remove: () => rm(path, { recursive: true, force: true }),
  };
}

/** Whether a command can be run at all. */
export function hasCommand(command: string, ...args: readonly string[]): boolean {
  try {
    execFileSync(command, args, { stdio: "ignore" });
    return true;
  } catch {
    return false;
  }
}

/** Attaches a file to a loop device. */
export function attachLoop(path: string, sectorBytes: 512 | 4096): { readonly path: string; detach(): void } {
  const device = execFileSync("losetup", ["--find", "--show", "--sector-size", String(sectorBytes), path], {
    encoding: "utf8",
  }).trim();
  return {
    path: device,
    detach() {
      execFileSync("losetup", ["--detach", device]);
    },
  };
}

/** Why loop devices cannot be used here, or undefined. */
export async function whyNoLoop(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return "needs root for losetup";
  const scratch = await createScratch();
  try {
    execFileSync("truncate", ["--size", "1M", scratch.file("probe.img")]);
    attachLoop(scratch.file("probe.img"), 4096).detach();
    return undefined;
  } catch (error) {
    return `losetup does not work here: ${error instanceof Error ? error.message.split("\n", 1)[0] : String(error)}`;
  } finally {
    await scratch.remove();
  }
}

/** Why a tmpfs cannot be mounted here, or undefined. */
export async function whyNoTmpfs(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return "needs root for mount";
  const scratch = await createScratch();
  try {
    mountTmpfs(scratch.path, "1m").unmount();
    return undefined;
  } catch (error) {
    return `mount does not work here: ${error instanceof Error ? error.message.split("\n", 1)[0] : String(error)}`;
  } finally {
    await scratch.remove();
  }
}

export function mountTmpfs(path: string, size: string): { unmount(): void } {
  execFileSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "tmpfs", path], { stdio: "pipe" });
  return {
    unmount() {
      execFileSync("umount", [path]);
    },
  };
}
