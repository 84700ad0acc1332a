/**
 * A receiver that is killed at moments of a delta, of its commit and of the removal of points; the same in both tiers, with other numbers. What was told
 * durable can be read before anybody comes back.
 */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, watch } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { openStore, type Store } from "../../src/replica/store.ts";
import { createEngine, type Engine } from "../../src/replication/engine.ts";
import { makeNoise, MIB, noise, PART, scattered, writeAt } from "./content.ts";
import {
  type CliProcess,
  cmpFiles,
  finish,
  type Pki,
  type Receiver,
  replicate,
  type Scope,
  seededRandom,
  startReceiver,
  startSend,
  tempDir,
} from "./kit.ts";
import { type Proxy, startProxy } from "./proxy.ts";

const disk = "vm";
const imageBytes = 4 * MIB;
/** Names in `points/` that come and go in a round: the log, a record in two steps, and what the oldest point leaves behind. */
const namesMax = 10;
/** Bytes of a delta on the wire, about. */
const deltaBytes = 64 * (PART + 200);

export interface Kills {
  /** Before the point of the round was there, and after. */
  before: number;
  after: number;
  /** Rounds that were over before their moment came. */
  missed: number;
  /** Points read and compared. */
  read: number;
}

export interface KillOptions {
  readonly kills: number;
  readonly seed: number;
  /** Points the receiver keeps. */
  readonly keep: number;
  /** The sender goes down with the receiver, so that none has to wait for its next attempt. Else every second time it stays and finishes by itself. */
  readonly bothEnds?: boolean;
}

/** Sends version after version of an image until the receiver was killed so many times. */
export async function killStore(scope: Scope, pki: Pki, options: KillOptions): Promise<Readonly<Kills>> {
  const life = await KilledStore.start(scope, pki, options);
  const { counts } = life;
  for (let round = 1; counts.before + counts.after < options.kills; round++) {
    await life.round(round, options.bothEnds === true || round % 2 === 0).catch((error: unknown) => {
      throw new Error(`round ${String(round)}`, { cause: error });
    });
  }
  await life.end();
  return counts;
}

class KilledStore {
  readonly counts: Kills = { before: 0, after: 0, missed: 0, read: 0 };
  readonly #scope: Scope;
  readonly #pki: Pki;
  readonly #dir: string;
  readonly #keep: number;
  readonly #random: () => number;
  readonly #engine: Engine;
  readonly #proxy: Proxy;
  #receiver: Receiver;
  #version = 0;
  /** The newest point there was when somebody looked. */
  #newest = 0;
  #newestLabel = "";
  readonly #held: number[] = [];

  private constructor(
    scope: Scope,
    { pki, dir, seed, keep }: { readonly pki: Pki; readonly dir: string; readonly seed: number; readonly keep: number },
    parts: { readonly engine: Engine; readonly receiver: Receiver; readonly proxy: Proxy },
  ) {
    this.#scope = scope;
    this.#pki = pki;
    this.#dir = dir;
    this.#keep = keep;
    this.#random = seededRandom(seed);
    this.#engine = parts.engine;
    this.#receiver = parts.receiver;
    this.#proxy = parts.proxy;
  }

  static async start(scope: Scope, pki: Pki, { seed, keep }: KillOptions): Promise<KilledStore> {
    const dir = tempDir(scope);
    makeNoise(join(dir, "disk.raw"), imageBytes, seed);
    mkdirSync(join(dir, "copies"));
    const engine = await createEngine({ lanes: 0 });
    scope.onTestFinished(() => engine.close());
    const receiver = await startReceiver(scope, {
      storeDir: join(dir, "store"),
      tls: pki.recv,
      args: ["--keep", `last=${String(keep)}`],
    });
    const proxy = await startProxy(scope, receiver.port);
    return new KilledStore(scope, { pki, dir, seed, keep }, { engine, receiver, proxy });
  }

  /** Sends version `round` of the image, with a kill on the way; the first one without. */
  async round(round: number, bothEnds: boolean): Promise<void> {
    this.#version = round;
    if (round > 1) this.#change();
    copyFileSync(this.#image, this.#copy(round));
    const names = watchNames(this.#points);
    const from = this.#proxy.bytesUp;
    const sender = this.#startSend();
    const killed = round > 1 && (await this.#kill(sender, { names, from, bothEnds }));
    names.close();
    if (!killed || !bothEnds) await this.#finish(sender);
  }

  async #finish(sender: CliProcess): Promise<void> {
    const { code, done, stderr } = await finish(sender);
    expect(code, stderr).toBe(0);
    // A commit that was made and not heard of is found again, and not made twice.
    expect([this.#newest, this.#newest + 1]).toContain(done?.point);
    this.#newest = done?.point ?? 0;
  }

  /** The version is the label: it says what a point must read as. */
  #startSend(): CliProcess {
    return startSend(this.#scope, {
      ...{ image: this.#image, port: this.#proxy.port, disk, tls: this.#pki.send },
      args: ["--codec", "none", "--label", `version-${String(this.#version)}`],
    });
  }

  /** False: everything was over before. */
  async #kill(
    sender: CliProcess,
    { names, from, bothEnds }: { readonly names: Names; readonly from: number; readonly bothEnds: boolean },
  ): Promise<boolean> {
    const moment =
      this.#random() % 3 === 0
        ? this.#proxy.passedUp(from + (this.#random() % deltaBytes))
        : names.changed(1 + (this.#random() % namesMax));
    if ((await Promise.race([moment.then(() => "now" as const), sender.exited])) !== "now") {
      this.counts.missed++;
      return false;
    }
    await this.#receiver.kill();
    if (bothEnds) await sender.kill();
    this.#proxy.cut();
    const newest = await this.#checkPoints();
    if (this.#random() % 3 === 0) await this.#hold(newest);
    expect([this.#newest, this.#newest + 1]).toContain(newest);
    this.counts[newest === this.#newest ? "before" : "after"]++;
    this.#newest = newest;
    const { port, storeDir } = this.#receiver;
    // The receiver touches a disk only when its sender comes, and that one finds nobody yet, or is gone.
    const [receiver] = await Promise.all([
      // It follows the policy that is stored.
      startReceiver(this.#scope, { storeDir, tls: this.#pki.recv, port }),
      bothEnds && this.#random() % 2 === 0 ? this.#checkByCommands() : undefined,
    ]);
    this.#receiver = receiver;
    return true;
  }

  /** Scattered parts, some of them zeros. */
  #change(): void {
    const pieces = scattered(imageBytes, 60, this.#version);
    writeAt(
      this.#image,
      pieces.map((at, index) => [at, index % 5 === 0 ? Buffer.alloc(PART) : noise(at + this.#version, PART)] as const),
    );
  }

  /** Every point there is reads as the version it was made of, and none that must be there is missing. Returns the newest. */
  async #checkPoints(): Promise<number> {
    const store = await this.#openStore();
    const { points, unreadable } = await store.points(disk);
    expect(unreadable).toEqual([]);
    const found = points.map(({ point }) => point);
    const newest = found.at(-1) ?? 0;
    const due = Array.from({ length: Math.min(this.#keep, newest) }, (_unused, index) => newest - index);
    expect(found).toEqual(expect.arrayContaining([...due, ...this.#held]));
    for (const { point, label = "" } of points) {
      const reader = await store.openPoint(disk, point);
      const bytes = Buffer.alloc(reader.sizeBytes);
      await reader.read(bytes, 0);
      await reader.close();
      if (!bytes.equals(readFileSync(this.#copyOf(label)))) throw new Error(`point ${String(point)} is wrong`);
      this.#newestLabel = label;
      this.counts.read++;
    }
    await store.close();
    return newest;
  }

  /** A held point stays while those behind it go, so that it inherits their logs. Two are held at most. */
  async #hold(point: number): Promise<void> {
    const store = await this.#openStore();
    if (!this.#held.includes(point)) {
      await store.hold(disk, point, { owner: "test", until: undefined });
      this.#held.push(point);
    }
    if (this.#held.length > 2) await store.release(disk, this.#held.shift() ?? 0, "test");
    await store.close();
  }

  #openStore(): Promise<Store> {
    const { storage, clock, random, host } = this.#engine;
    return openStore({ path: this.#store, storage, clock, random, log: silentLogger, host });
  }

  async #checkByCommands(): Promise<void> {
    const out = join(this.#dir, "restored.raw");
    const restored = await replicate(this.#scope, ["restore", "--store", this.#store, disk, out]);
    expect(restored.code, restored.stderr).toBe(0);
    expect(cmpFiles(this.#copyOf(this.#newestLabel), out)).toBeUndefined();
    rmSync(out);
    if (this.#newest % 4 !== 0) return;
    const verified = await replicate(this.#scope, ["verify", "--store", this.#store, "--all"]);
    expect(verified.code, verified.stdout + verified.stderr).toBe(0);
  }

  /** A round without a kill leaves exactly what the policy wants. */
  async end(): Promise<void> {
    const store = await this.#openStore();
    for (const point of this.#held.splice(0)) await store.release(disk, point, "test");
    await store.close();
    this.#version++;
    this.#change();
    copyFileSync(this.#image, this.#copy(this.#version));
    await this.#finish(this.#startSend());
    expect(await this.#receiver.stop()).toBe(0);
    const last = this.#newest;
    const wanted: string[] = [];
    for (let point = Math.max(1, last - this.#keep + 1); point <= last; point++) {
      const name = String(point).padStart(10, "0");
      wanted.push(`${name}.json`, ...(point < last ? [`${name}.undo`] : []));
    }
    expect(
      readdirSync(this.#points)
        .filter((name) => !name.endsWith(".lock"))
        .sort(),
    ).toEqual(wanted.sort());
    expect(await this.#checkPoints()).toBe(last);
    expect(this.#newestLabel).toBe(`version-${String(this.#version)}`);
  }

  get #store(): string {
    return this.#receiver.storeDir;
  }

  get #points(): string {
    return join(this.#store, "disks", disk, "points");
  }

  get #image(): string {
    return join(this.#dir, "disk.raw");
  }

  #copy(version: number): string {
    return this.#copyOf(`version-${String(version)}`);
  }

  #copyOf(label: string): string {
    return join(this.#dir, "copies", label);
  }
}

/** Names of a folder that come and go. */
interface Names {
  /** Resolves at the `count`-th from now on. */
  changed(count: number): Promise<void>;
  close(): void;
}

/** Of a folder that is not there: none ever. */
function watchNames(folder: string): Names {
  let seen = 0;
  let wanted = Number.POSITIVE_INFINITY;
  let resolve: () => void = () => undefined;
  const watcher = (() => {
    try {
      return watch(folder, (event) => {
        if (event === "rename" && ++seen >= wanted) resolve();
      });
    } catch {
      // Before the first copy; that round needs no moment.
      return undefined;
    }
  })();
  return {
    changed: (count) =>
      new Promise((found) => {
        resolve = found;
        wanted = seen + count;
      }),
    close: () => watcher?.close(),
  };
}
