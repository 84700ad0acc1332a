/** A process that writes a VHDX is killed at random moments; QEMU repairs what it left, and every flush that was told of is in it. */
import { spawn } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { MIB } from "../../src/base/units.ts";
import { openVhdx } from "../../src/image/vhdx/open.ts";
import { createNodeStorage } from "../../src/storage/node-storage.ts";
import { root, runTool, type Scope, seededRandom, tempDir } from "./kit.ts";

const storage = createNodeStorage();
const unit = 4096;
const sizeBytes = 2048 * MIB;
/** A file in which every payload block has its place needs no log any more: a new one after so many rounds. */
const roundsOfFile = 5;

/** Says what it is about to write, writes it, and says when it is flushed. Goes on until it is killed. */
const program = `
const [, path, seed, first, last] = process.argv;
const { openVhdxWriter } = await import(${JSON.stringify(join(root, "dist/image/vhdx/writer.js"))});
const { createVhdx } = await import(${JSON.stringify(join(root, "dist/image/vhdx/create.js"))});
const { systemRandom: random } = await import(${JSON.stringify(join(root, "dist/base/random.js"))});
const { createNodeStorage } = await import(${JSON.stringify(join(root, "dist/storage/node-storage.js"))});
const { writeSync } = await import("node:fs");
const storage = createNodeStorage();
const opened = await storage.open(path, { write: true, create: true });
let left = Number(last);
// The process ends before its operation with this number, if it has one.
const step = () => { if (--left === 0) process.kill(process.pid, "SIGKILL"); };
const file = {
  path: opened.path,
  fd: opened.fd,
  read: (target, offset) => opened.read(target, offset),
  write: (source, offset) => (step(), opened.write(source, offset)),
  truncate: (bytes) => (step(), opened.truncate(bytes)),
  datasync: () => (step(), opened.datasync()),
  nextData: (offset) => opened.nextData(offset),
  stat: () => opened.stat(),
  close: () => opened.close(),
};
// A file of which nobody was told that it is there may be anything: operations count from when it is.
if ((await file.stat()).sizeBytes === 0) {
  await createVhdx(opened, { sizeBytes: ${sizeBytes}, payloadBlockBytes: ${32 * MIB} }, random);
  await opened.datasync();
}
const disk = await openVhdxWriter(file, { storage, random });
let state = Number(seed);
const next = (below) => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) % below;
for (let value = Number(first); ; value++) {
  const at = next(${sizeBytes / unit});
  if (next(8) === 0) {
    writeSync(1, "w " + at + " 0\\n");
    await disk.zero(at * ${unit}, ${unit});
  } else {
    writeSync(1, "w " + at + " " + (1 + (value % 255)) + "\\n");
    await disk.write(new Uint8Array(${unit}).fill(1 + (value % 255)), at * ${unit});
  }
  if (next(6) === 0) {
    await disk.flush();
    writeSync(1, "flushed\\n");
  }
}
`;

/** Units that were ever written, and what each may hold. */
class Known {
  readonly #values = new Map<number, Set<number>>();
  readonly #last = new Map<number, number>();

  hear(line: string): void {
    if (line === "flushed") {
      for (const [at, value] of this.#last) this.#values.set(at, new Set([value]));
      this.#last.clear();
      return;
    }
    const [, at = 0, value = 0] = line.split(" ").map(Number);
    const values = this.#values.get(at) ?? new Set([0]);
    this.#values.set(at, values.add(value));
    this.#last.set(at, value);
  }

  async check(path: string): Promise<number> {
    const { reader, files } = await openVhdx(await storage.open(path), storage);
    const bytes = new Uint8Array(unit);
    for (const [at, values] of this.#values) {
      await reader.read(bytes, at * unit);
      const found = bytes[0] ?? 0;
      expect([...values], `unit ${String(at)}`).toContain(found);
      expect(bytes.every((byte) => byte === found)).toBe(true);
      this.#values.set(at, new Set([found]));
    }
    this.#last.clear();
    await reader.close();
    return files[0]?.facts.overlay === undefined ? 0 : 1;
  }
}

/** Returns how often a log had to be replayed. */
export async function killWriter(t: Scope, kills: number, seed: number): Promise<number> {
  const dir = tempDir(t);
  const random = seededRandom(seed);
  const path = join(dir, "disk.vhdx");
  let known = new Known();
  let replays = 0;
  for (let round = 0; round < kills; round++) {
    if (round % roundsOfFile === 0) {
      rmSync(path, { force: true });
      known = new Known();
    }
    // Half of them at an operation of theirs, half at a moment of ours.
    const own = round % 2 === 0 ? 1 + (random() % 100) : 0;
    const numbers = [seed + round, round * 1_000, own].map(String);
    const args = ["--input-type=module", "--eval", program, path, ...numbers];
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
    t.onTestFinished(() => void child.kill("SIGKILL"));
    const ended = new Promise((resolve) => child.once("close", resolve));
    let left = own === 0 ? 1 + (random() % 120) : 0;
    let rest = "";
    child.stdout.setEncoding("utf8");
    child.stdout.on("data", (text: string) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        known.hear(line);
        if (--left === 0) child.kill("SIGKILL");
      }
    });
    await ended;
    expect(child.signalCode).toBe("SIGKILL");
    const repaired = join(dir, "repaired.vhdx");
    copyFileSync(path, repaired);
    replays += await known.check(path);
    const { code, stdout, stderr } = runTool("qemu-img", ["check", "-r", "all", "-f", "vhdx", repaired]);
    expect(code, `round ${String(round)}: ${stdout}${stderr}`).toBe(0);
    await known.check(repaired);
    const raw = join(dir, "repaired.raw");
    expect(runTool("qemu-img", ["convert", "-f", "vhdx", "-O", "raw", repaired, raw]).code).toBe(0);
    const { reader } = await openVhdx(await storage.open(path), storage);
    const image = await storage.open(raw);
    const [ours, theirs] = [new Uint8Array(MIB), new Uint8Array(MIB)];
    for await (const extent of reader.extents(0, sizeBytes)) {
      if (extent.kind !== "data") continue;
      for (let at = extent.offset; at < extent.offset + extent.length; at += MIB) {
        const length = Math.min(MIB, extent.offset + extent.length - at);
        await reader.read(ours.subarray(0, length), at);
        await image.read(theirs.subarray(0, length), at);
        expect(Buffer.compare(ours.subarray(0, length), theirs.subarray(0, length)), `at ${String(at)}`).toBe(0);
      }
    }
    await image.close();
    await reader.close();
  }
  return replays;
}
