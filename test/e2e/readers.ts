/** Points read by another process while a receiver makes and removes them; the same in both tiers, with other numbers. */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect } from "vitest";
import type { BlockReader } from "../../src/image/block-device.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import type { NewDisks } from "../../src/replica/store.ts";
import { PairKit } from "../replication/pair-kit.ts";
import { randomBytes } from "../random.ts";
import { KIB, MIB, PART } from "./content.ts";
import { root, type Scope } from "./kit.ts";

interface Counts {
  readonly passes: number;
  readonly points: number;
  readonly held: number;
  readonly gone: number;
}

/** The other process. */
class Reading {
  counts: Counts = { passes: 0, points: 0, held: 0, gone: 0 };
  #ended: string | undefined;
  #stderr = "";
  readonly #watchers = new Set<() => void>();
  readonly #child;

  constructor(scope: Scope, args: readonly string[]) {
    const script = join(import.meta.dirname, "read-points.mjs");
    const child = spawn(process.execPath, [script, ...args], { stdio: ["pipe", "pipe", "pipe"] });
    this.#child = child;
    createInterface(child.stdout).on("line", (line) => {
      this.counts = JSON.parse(line) as Counts;
      for (const watcher of this.#watchers) watcher();
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    child.on("close", (code, signal) => {
      this.#ended = String(code ?? signal);
      for (const watcher of this.#watchers) watcher();
    });
    scope.onTestFinished(() => {
      child.kill("SIGKILL");
    });
  }

  /** Resolves when so many passes have been made in all. */
  async passed(passes: number): Promise<void> {
    await this.#until(() => this.counts.passes >= passes || this.#ended !== undefined);
    expect(this.#ended, this.#stderr).toBeUndefined();
  }

  /** Lets it end; what it had to say at last. */
  async finish(): Promise<Counts> {
    this.#child.stdin.end();
    await this.#until(() => this.#ended !== undefined);
    expect(this.#ended, this.#stderr).toBe("0");
    return this.counts;
  }

  #until(condition: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (!condition()) return;
        this.#watchers.delete(look);
        resolve();
      };
      this.#watchers.add(look);
      look();
    });
  }
}

const blockBytes = 16 * KIB;

/** A disk that is written to as guests do it: some parts, now and then a file, now and then zeros, now and then it grows. */
class Guest {
  content = Buffer.alloc(MIB + 512);

  change(turn: number): void {
    const draw = randomBytes(16);
    for (let index = 0; index < 1 + (turn % 3); index++) {
      const at = draw.readUInt32LE(index * 4) % this.content.length;
      this.content.subarray(at).set(randomBytes(Math.min(700, this.content.length - at)));
    }
    const rest = this.content.subarray((draw.readUInt32LE(12) % 250) * PART);
    if (turn % 7 === 0) rest.subarray(0, 5 * PART).fill(`turn ${String(turn)} `);
    if (turn % 11 === 0) rest.subarray(0, 3 * blockBytes).fill(0);
    if (turn % 40 === 20 && turn < 400) this.content = Buffer.concat([this.content, Buffer.alloc(9_216)]);
  }

  async image(): Promise<BlockReader> {
    const image = createMemoryImage(this.content.length);
    await image.write(this.content, 0);
    return image;
  }
}

/**
 * `deltas` points are sent to a receiver in this process; after every third all but four are removed. `dist`: the library the reader uses. `newDisks`: what the replica is. Passes of the
 * reader and deltas keep each other company: none is far ahead of the other.
 */
export async function readBesideDeltas(
  scope: Scope,
  deltas: number,
  { dist = join(root, "dist"), newDisks }: { readonly dist?: string; readonly newDisks?: NewDisks } = {},
): Promise<Counts> {
  const kit = await PairKit.create(newDisks === undefined ? {} : { newDisks });
  try {
    const hashes = join(kit.folder, "hashes");
    mkdirSync(hashes);
    const guest = new Guest();
    let reading: Reading | undefined;
    for (let point = 1; point <= deltas; point++) {
      guest.change(point);
      // Before it is a point: it may be found the moment it is one.
      writeFileSync(join(hashes, String(point)), createHash("sha256").update(guest.content).digest("hex"));
      const report = await kit.send(await guest.image(), { blockBytes });
      expect(report.point).toBe(point);
      if (point % 3 === 0) await kit.store.prune("disk", { keep: "last=4" });
      reading ??= new Reading(scope, [dist, join(kit.folder, "store"), "disk", hashes]);
      await kit.idle();
      if (point % 5 === 1) await reading.passed(Math.ceil(point / 5));
    }
    return (await reading?.finish()) ?? expect.fail("nothing was sent");
  } finally {
    expect(await kit.close(), "every slot is back").toBe(true);
  }
}
