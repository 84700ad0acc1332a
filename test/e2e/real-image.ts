/** A real file system replicated, changed and replicated again; the same in both tiers, with other sizes. */
import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, type TestContext } from "vitest";
import { differences, MIB, noise, pageAndPartDigests, PART, readParts, scattered, writeAt } from "./content.ts";
import {
  cmpFiles,
  fsck,
  makeExt4,
  needTools,
  type Pki,
  replicaPath,
  runTool,
  send,
  type SendResult,
  startReceiver,
  tempDir,
} from "./kit.ts";

export interface RealImageSizes {
  readonly imageMiB: number;
  /** Folder the file system is filled from. */
  readonly tree: string;
  /** Scattered 4 KiB writes of each kind. */
  readonly writes: number;
}

export async function replicateRealImage(t: TestContext, pki: Pki, sizes: RealImageSizes): Promise<void> {
  needTools(t, "mke2fs", "debugfs", "e2fsck", "cmp");
  const dir = tempDir(t);
  const image = join(dir, "disk.ext4");
  const before = join(dir, "before.ext4");
  makeExt4(image, sizes.imageMiB, sizes.tree);
  const receiver = await startReceiver(t, { storeDir: join(dir, "store"), tls: pki.recv });
  const replica = replicaPath(receiver.storeDir, "fs");
  const transfer = async (): Promise<SendResult> => {
    const result = await send(t, { image, port: receiver.port, disk: "fs", tls: pki.send });
    expect(result.code, result.stderr).toBe(0);
    expect(cmpFiles(image, replica)).toBeUndefined();
    return result;
  };

  const initial = await transfer();
  expect(initial.done).toMatchObject({ reason: "initial" });
  expect(fsck(replica)).toMatchObject({ clean: true });

  // Changes of a guest: files made, removed, renamed in the file system.
  copyFileSync(image, before);
  changeFiles(image, dir);
  expect(fsck(image)).toMatchObject({ clean: true });
  const guest = differences(before, image);
  expect(guest.parts.length).toBeGreaterThan(50);
  const delta = await transfer();
  expect(fsck(replica)).toMatchObject({ clean: true });
  expect(delta.done?.bytesWire).toBeLessThanOrEqual(1.05 * guest.parts.length * PART + pageAndPartDigests(guest));

  // Scattered writes nothing compresses.
  copyFileSync(image, before);
  writeAt(
    image,
    scattered(sizes.imageMiB * MIB, sizes.writes, 11).map((offset) => [offset, noise(offset, PART)] as const),
  );
  const hard = differences(before, image);
  expect(hard.parts.length).toBe(sizes.writes);
  const incompressible = await transfer();
  expect(incompressible.done?.bytesChanged).toBe(sizes.writes * PART);
  expect(incompressible.done?.bytesWire).toBeLessThanOrEqual(1.05 * sizes.writes * PART + pageAndPartDigests(hard));

  // Scattered writes that compress like text, with lz4 alone as the yardstick.
  copyFileSync(image, before);
  writeAt(
    image,
    scattered(sizes.imageMiB * MIB, sizes.writes, 12).map((offset) => [offset, textPart(offset)] as const),
  );
  const soft = differences(before, image);
  const compressible = await send(t, {
    image,
    port: receiver.port,
    disk: "fs",
    tls: pki.send,
    args: ["--codec", "lz4"],
  });
  expect(compressible.code, compressible.stderr).toBe(0);
  expect(cmpFiles(image, replica)).toBeUndefined();
  expect(compressible.done?.bytesChanged).toBe(soft.parts.length * PART);
  // Said aloud: all above has passed, and what follows has not been looked at.
  needTools(t, "lz4");
  const packed = lz4Bytes(dir, readParts(image, soft.parts));
  expect(packed).toBeLessThan(0.75 * soft.parts.length * PART);
  expect(compressible.done?.bytesWire).toBeLessThanOrEqual(1.15 * packed + pageAndPartDigests(soft));
}

function changeFiles(image: string, dir: string): void {
  const files = join(dir, "new-files");
  mkdirSync(files);
  const commands = ["mkdir added"];
  for (let file = 0; file < 40; file++) {
    const path = join(files, `file-${String(file)}`);
    writeFileSync(path, noise(file, 1_000 + file * 997));
    commands.push(`write ${path} added/file-${String(file)}`);
  }
  for (let file = 0; file < 10; file++) commands.push(`rm added/file-${String(file * 3)}`);
  commands.push("ln added/file-1 linked", "quit");
  const script = join(dir, "debugfs.txt");
  writeFileSync(script, `${commands.join("\n")}\n`);
  const { code, stderr } = runTool("debugfs", ["-w", "-f", script, image]);
  if (code !== 0) throw new Error(`debugfs: ${stderr}`);
  // What ln left out, the count of links, is set by hand.
  runTool("debugfs", ["-w", "-R", "set_inode_field added/file-1 links_count 2", image]);
}

/** Half noise in hex digits, half words: halves under lz4. */
function textPart(seed: number): Buffer {
  const line = "the replica is overlaid by the open undo log; ";
  const text = noise(seed, PART)
    .toString("base64")
    .replace(/.{24}/g, (piece) => piece + line);
  return Buffer.from(text.slice(0, PART));
}

function lz4Bytes(dir: string, bytes: Buffer): number {
  const path = join(dir, "parts.bin");
  writeFileSync(path, bytes);
  const { code, stderr } = runTool("lz4", ["-1", "-q", "-f", path, `${path}.lz4`]);
  if (code !== 0) throw new Error(`lz4: ${stderr}`);
  return Number(runTool("stat", ["-c", "%s", `${path}.lz4`]).stdout);
}
