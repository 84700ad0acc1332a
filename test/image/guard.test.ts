import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { appendFileSync, closeSync, openSync, statSync, utimesSync, writeSync } from "node:fs";
import { truncate, writeFile } from "node:fs/promises";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Clock } from "../../src/base/clock.ts";
import { InvariantError } from "../../src/base/errors.ts";
import { MIB } from "../../src/base/units.ts";
import type { OpenImage } from "../../src/image/open-image.ts";
import { openImage } from "../../src/image/open-image.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { attachLoop, createScratch, hasCommand, type Scratch, whyNoLoop } from "../storage/scratch.ts";

const storage = createNodeStorage();
const noLoop = await whyNoLoop();
const noQemu = hasCommand("qemu-io", "--version") ? storage.capabilities.missing : "no qemu-io";
const noFormat = hasCommand("mkfs.ext4", "-V") ? noLoop : "no mkfs.ext4";
const why = (reason: string | undefined): string => (reason === undefined ? "" : ` (skipped: ${reason})`);

let scratch: Scratch;
let path: string;
let image: OpenImage | undefined;
beforeEach(async () => {
  scratch = await createScratch();
  path = scratch.file("disk.raw");
  await writeFile(path, Buffer.alloc(MIB, 1));
});
afterEach(async () => {
  await image?.reader.close();
  image = undefined;
  await scratch.remove();
});

/** A clock that stands `aheadMillis` after the file's last change; `onSleep` is what happens while it sleeps. */
function clockAt(aheadMillis: number, onSleep: () => void = () => {}): Clock & { slept: number } {
  let now = Number(statSync(path, { bigint: true }).ctimeNs) / 1e6 + aheadMillis;
  return {
    slept: 0,
    now: () => now,
    monotonic: () => now,
    async sleep(millis) {
      now += millis;
      this.slept++;
      onSleep();
    },
    every: () => () => {},
  };
}

async function watched(clock: Clock): Promise<OpenImage> {
  image = await openImage(path, { storage, clock });
  return image;
}

describe("a file", () => {
  test("that rests passes, however often it is asked", async () => {
    const { guard } = await watched(clockAt(1000));
    await expect(guard.check()).rejects.toThrow(InvariantError);
    for (let attempt = 0; attempt < 2; attempt++) {
      await guard.begin();
      await guard.check();
    }
    expect(guard.blindness).toBeUndefined();
  });

  test("that changed between two attempts of a cycle is caught: the watch spans them", async () => {
    const { guard } = await watched(clockAt(1000));
    await guard.begin();
    await guard.check();
    appendFileSync(path, "more");
    await guard.begin();
    await expect(guard.check()).rejects.toMatchObject({ code: "image-changed" });
    await expect(guard.check()).rejects.toMatchObject({ code: "image-changed" });
  });

  test("that is written to while it is read is caught, even when its mtime is put back", async () => {
    const { guard } = await watched(clockAt(1000));
    await guard.begin();
    const before = statSync(path);
    const fd = openSync(path, "r+");
    writeSync(fd, Buffer.from("x"), 0, 1, 5000);
    closeSync(fd);
    utimesSync(path, before.atime, before.mtime);
    await expect(guard.check()).rejects.toMatchObject({
      code: "image-changed",
      message: expect.stringMatching(/disk\.raw.*change time from/),
    });
  });

  test("that grows or shrinks is caught with both sizes", async () => {
    const { guard } = await watched(clockAt(1000));
    await guard.begin();
    appendFileSync(path, "more");
    await expect(guard.check()).rejects.toMatchObject({
      code: "image-changed",
      message: expect.stringContaining(`size from ${MIB} to ${MIB + 4} bytes`),
    });
  });

  test("that changed a moment ago is waited for: two writes within a tick leave one ctime", async () => {
    const clock = clockAt(5);
    const { guard } = await watched(clock);
    await guard.begin();
    expect(clock.slept).toBe(1);
    await guard.check();
  });

  test("whose clock lies ahead of ours (a server's) is not waited for for ever", async () => {
    const clock = clockAt(-3_600_000);
    const { guard } = await watched(clock);
    await guard.begin();
    expect(clock.slept).toBe(1);
  });

  test("that is written to all the time is refused at the start", async () => {
    const clock = clockAt(0, () => appendFileSync(path, "x"));
    clock.now = () => Number(statSync(path, { bigint: true }).ctimeNs) / 1e6 + 1;
    const { guard } = await watched(clock);
    await expect(guard.begin()).rejects.toMatchObject({ code: "image-changed" });
    expect(clock.slept).toBe(10);
  });

  test.skipIf(noQemu !== undefined)(
    `that QEMU has open for writing is refused, open for reading not${why(noQemu)}`,
    async () => {
      for (const [flags, writes] of [
        [[], true],
        [["--read-only"], false],
      ] as const) {
        const qemu = spawn("qemu-io", ["--format=raw", ...flags, path], { stdio: ["pipe", "pipe", "inherit"] });
        const exited = once(qemu, "exit");
        // The prompt appears when the image is open.
        await once(qemu.stdout, "data");
        const { guard, reader } = await watched(clockAt(1000));
        if (writes) {
          await expect(guard.begin()).rejects.toMatchObject({
            code: "image-in-use",
            message: expect.stringContaining("QEMU"),
          });
        } else await guard.begin();
        await reader.close();
        qemu.stdin.end("quit\n");
        await exited;
      }
    },
  );
});

describe.skipIf(noLoop !== undefined)(`a block device${why(noLoop)}`, () => {
  let detach: () => void;
  beforeEach(async () => {
    await truncate(path, 16 * MIB);
    const loop = attachLoop(path, 512);
    path = loop.path;
    detach = () => loop.detach();
  });
  afterEach(async () => {
    await image?.reader.close();
    detach();
  });

  test("opens with its capacity and number, rests, and is held", async () => {
    const { guard, reader, identity } = await watched(clockAt(1000));
    expect(reader.sizeBytes).toBe(16 * MIB);
    expect(identity).toMatch(/^device:7:\d+$/);
    await guard.begin();
    await reader.read(new Uint8Array(MIB), 0);
    await guard.check();
    expect(guard.blindness).toBeUndefined();
    await expect(openImage(path, { storage })).rejects.toMatchObject({ code: "image-in-use" });
    const second = await openImage(path, { storage, allowLive: true });
    await second.reader.close();
  });

  test("that somebody writes to is caught, though the write is still in the page cache", async () => {
    const { guard } = await watched(clockAt(1000));
    await guard.begin();
    const fd = openSync(path, "r+");
    writeSync(fd, Buffer.alloc(512, 3), 0, 512, 4096);
    await expect(guard.check()).rejects.toMatchObject({
      code: "image-changed",
      message: expect.stringContaining("counted writes"),
    });
    closeSync(fd);
  });

  test.skipIf(noFormat !== undefined)(`that is mounted is refused${why(noFormat)}`, async () => {
    execFileSync("mkfs.ext4", ["-q", path]);
    execFileSync("mkdir", [scratch.file("mnt")]);
    execFileSync("mount", ["-o", "ro", path, scratch.file("mnt")]);
    try {
      await expect(openImage(path, { storage })).rejects.toMatchObject({
        code: "image-in-use",
        message: expect.stringContaining("mounted"),
      });
    } finally {
      execFileSync("umount", [scratch.file("mnt")]);
    }
  });
});
