/**
 * A receiver that is killed at moments of a delta, of its commit, of the removal of points and of the joining of their logs, the last also as `replicate
 * compact`; the same in both tiers, with other numbers. What was told durable can be read before anybody comes back. Kills wait for the files by which a phase begins; what
 * they leave says which phase they fell into.
 */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, rmSync, watch } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { silentLogger } from "../../src/base/logger.ts";
import { neededLogs, ownLogs } from "../../src/replica/chain.ts";
import { openStore, type Point, type Store } from "../../src/replica/store.ts";
import { createEngine, type Engine } from "../../src/replication/engine.ts";
import { KIB, makeNoise, MIB, noise, PART, scattered, writeAt } from "./content.ts";
import {
  CliProcess,
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
/** Parts that a delta changes, and all those that deltas change: so many that any two logs have more than a third of their content in common. */
const changedParts = 60;
const hotBytes = 64 * PART;
/** Names in `points/` that come and go in a round: the log, a record in two steps, and what the oldest point leaves behind. */
const namesMax = 10;
/** Bytes of a delta on the wire, about. */
const deltaBytes = 64 * (PART + 200);

/** More than passes before a sender has reached its receiver: before that it does not wait long for one. */
const greetingBytes = 16 * KIB;

/** What a round waits for with its kill; `any`: so many changes of names, whatever they are of. */
const aims = ["delta", "commit", "removal", "joining", "any"] as const;
type Aim = (typeof aims)[number];
/** What a kill fell into, by what it left; `between`: nothing that tells. */
type Phase = Exclude<Aim, "any"> | "between";

export interface Kills {
  /** By what they left behind. */
  readonly phases: Record<Phase, number>;
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
  /** Goes on until so many kills fell into a joining; default 0. */
  readonly joining?: number;
}

/** Sends version after version of an image until the receiver was killed so many times. */
export async function killStore(scope: Scope, pki: Pki, options: KillOptions): Promise<Readonly<Kills>> {
  const life = await KilledStore.start(scope, pki, options);
  const { counts } = life;
  const enough = (): boolean =>
    counts.before + counts.after >= options.kills && counts.phases.joining >= (options.joining ?? 0);
  for (let round = 1; !enough(); round++) {
    await life.round(round, options.bothEnds === true || round % 2 === 0).catch((error: unknown) => {
      throw new Error(`round ${String(round)}`, { cause: error });
    });
  }
  await life.end();
  return counts;
}

class KilledStore {
  readonly counts: Kills = {
    ...{ before: 0, after: 0, missed: 0, read: 0 },
    phases: { delta: 0, commit: 0, removal: 0, joining: 0, between: 0 },
  };
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
  /** Of the disk no session has ended in the receiver's process: after the first one it joins logs, and then not for ten minutes. */
  #fresh = true;
  readonly #held: number[] = [];
  /** What the last kill left. */
  #left: ReturnType<typeof leftovers> = new Map();

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

  /** Sends version `round` of the image, with a kill on the way or behind it; the first ones without: there is nothing to remove and to join yet. */
  async round(round: number, bothEnds: boolean): Promise<void> {
    this.#version = round;
    if (round > 1) this.#change();
    copyFileSync(this.#image, this.#copy(round));
    const names = watchNames(this.#points);
    const from = this.#proxy.bytesUp;
    const sender = this.#startSend();
    const aim = aims[round % aims.length] ?? "any";
    if (round <= this.#keep + 1) await this.#finish(sender);
    else if (aim === "joining") await this.#killJoining(sender, names);
    else {
      const moment = this.#momentOf(aim, names, from);
      const killed = await this.#kill(sender, { moment, bothEnds });
      if (!killed) await this.#finish(sender);
      else if (!bothEnds) await this.#finish(await this.#patient(sender));
    }
    names.close();
    // It inherits what is removed behind it, so there is always something to join.
    if (round === 1) await this.#hold(1);
  }

  #momentOf(aim: Exclude<Aim, "joining">, names: Names, from: number): Promise<void> {
    switch (aim) {
      case "delta":
        // Now and then before the log is there.
        return this.#random() % 4 === 0
          ? this.#proxy.passedUp(from + greetingBytes + (this.#random() % deltaBytes))
          : names.written(`${numberOf(this.#newest)}.undo`, 1 + (this.#random() % 3));
      case "commit":
        return names.seen((name) => name === `${numberOf(this.#newest + 1)}.json.new`);
      case "removal":
        // A record that takes over logs, or one that goes.
        return names.seen((name) => /^\d+\.json(\.new)?$/.test(name) && Number(name.slice(0, 10)) <= this.#newest);
      case "any":
        return names.changed(1 + (this.#random() % namesMax));
    }
  }

  /**
   * The same sender, or another one: one that got no answer before the kill gives up after three attempts, three seconds, and a busy machine may need longer to
   * start a receiver.
   */
  async #patient(sender: CliProcess): Promise<CliProcess> {
    const { error } = await finish(sender);
    const attempts = Math.max(...sender.lines.map(({ attempt }) => (typeof attempt === "number" ? attempt : 1)));
    const unreached = attempts <= 3 && ["connection-lost", "connect-failed"].includes(error?.code ?? "");
    return unreached ? this.#startSend() : sender;
  }

  async #finish(sender: CliProcess): Promise<void> {
    const { code, done, stdout, stderr } = await finish(sender);
    expect(code, stdout + stderr).toBe(0);
    // A commit that was made and not heard of is found again, and not made twice.
    expect([this.#newest, this.#newest + 1]).toContain(done?.point);
    this.#newest = done?.point ?? 0;
    this.#fresh = false;
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
    { moment, bothEnds }: { readonly moment: Promise<void>; readonly bothEnds: boolean },
  ): Promise<boolean> {
    if ((await Promise.race([moment.then(() => "now" as const), sender.exited])) !== "now") {
      this.counts.missed++;
      return false;
    }
    await this.#receiver.kill();
    const told = sender.lines.some(({ event }) => event === "done");
    if (bothEnds) await sender.kill();
    this.#proxy.cut();
    const before = this.#newest;
    const newest = await this.#checkKilled(told);
    expect([before, before + 1]).toContain(newest);
    await this.#restart(bothEnds);
    return true;
  }

  /** Lets the sender end, and kills who then joins logs: a receiver that has not done so yet, else the command. */
  async #killJoining(sender: CliProcess, names: Names): Promise<void> {
    const moment = names.seen((name) => /^\d+\.\d+\.undo$/.test(name));
    const fresh = this.#fresh;
    await this.#finish(sender);
    const command = fresh
      ? undefined
      : new CliProcess(this.#scope, ["compact", "--store", this.#store, disk, "--json"]);
    const over = command === undefined ? this.#nothingToJoin() : command.exited;
    if ((await Promise.race([moment.then(() => "now" as const), over])) !== "now") {
      this.counts.missed++;
      return;
    }
    if (command === undefined) await this.#receiver.kill();
    else await command.kill();
    expect(await this.#checkKilled(true)).toBe(this.#newest);
    if (command === undefined) await this.#restart(true);
  }

  /** Never, when there is a list of logs to be joined: then the receiver comes to it. */
  async #nothingToJoin(): Promise<void> {
    const store = await this.#openStore();
    const { points } = await store.points(disk);
    await store.close();
    if (ownLogs(points).some((list) => (list?.length ?? 0) > 1)) await new Promise(() => undefined);
  }

  /** All that must be there is, for who looks before anybody has tidied up. Returns the newest point. `told`: the sender knows of its point. */
  async #checkKilled(told: boolean): Promise<number> {
    const names = readdirSync(this.#points);
    const points = await this.#checkPoints();
    const newest = points.at(-1)?.point ?? 0;
    this.counts.phases[this.#phase(names, points, told)]++;
    if (this.#random() % 3 === 0) await this.#hold(newest);
    this.counts[newest === this.#newest ? "before" : "after"]++;
    this.#newest = newest;
    return newest;
  }

  /** What the kill fell into. `told`: the sender knows of its point. */
  #phase(names: readonly string[], points: readonly Point[], told: boolean): Phase {
    const newest = points.at(-1)?.point ?? 0;
    const left = leftovers(names, points);
    // What earlier kills left is there until somebody has the disk open.
    const fresh = [...left].flatMap(([name, phase]) => (this.#left.has(name) ? [] : [phase]));
    this.#left = left;
    // A joining puts its log into a record as well.
    if (fresh.includes("joining")) return "joining";
    if (fresh.includes("removal")) return "removal";
    if (names.includes(`${numberOf(newest + 1)}.json.new`) || (newest > this.#newest && !told)) return "commit";
    return newest === this.#newest && names.includes(`${numberOf(newest)}.undo`) ? "delta" : "between";
  }

  async #restart(alone: boolean): Promise<void> {
    const { port, storeDir } = this.#receiver;
    // The receiver touches a disk only when its sender comes, and that one finds nobody yet, or is gone.
    const [receiver] = await Promise.all([
      // It follows the policy that is stored.
      startReceiver(this.#scope, { storeDir, tls: this.#pki.recv, port }),
      alone && this.#random() % 2 === 0 ? this.#checkByCommands() : undefined,
    ]);
    this.#receiver = receiver;
    this.#fresh = true;
  }

  /** Scattered parts, some of them zeros. */
  #change(): void {
    const pieces = scattered(hotBytes, changedParts, this.#version);
    writeAt(
      this.#image,
      pieces.map((at, index) => [at, index % 5 === 0 ? Buffer.alloc(PART) : noise(at + this.#version, PART)] as const),
    );
  }

  /** Every point there is reads as the version it was made of, and none that must be there is missing. */
  async #checkPoints(): Promise<readonly Point[]> {
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
    return points;
  }

  /** A held point stays while those behind it go, so that it inherits their logs. The first is always held, and two more at most. */
  async #hold(point: number): Promise<void> {
    const store = await this.#openStore();
    if (!this.#held.includes(point)) {
      await store.hold(disk, point, { owner: "test", until: undefined });
      this.#held.push(point);
    }
    const [ended] = this.#held.length > 3 ? this.#held.splice(1, 1) : [];
    if (ended !== undefined) await store.release(disk, ended, "test");
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
      const name = numberOf(point);
      wanted.push(`${name}.json`, ...(point < last ? [`${name}.undo`] : []));
    }
    expect(
      readdirSync(this.#points)
        .filter((name) => !name.endsWith(".lock"))
        .sort(),
    ).toEqual(wanted.sort());
    expect((await this.#checkPoints()).at(-1)?.point).toBe(last);
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

function numberOf(point: number): string {
  return String(point).padStart(10, "0");
}

/** What removals and joinings leave in `points/` when they are stopped, by name. */
function leftovers(names: readonly string[], points: readonly Point[]): ReadonlyMap<string, "removal" | "joining"> {
  const found = new Map<string, "removal" | "joining">();
  const newest = points.at(-1)?.point ?? 0;
  const there = new Set(points.map(({ point }) => point));
  // A list that has taken over logs of a point that is not gone yet.
  const lists = ownLogs(points).flatMap((list) => list?.map(({ name }) => name) ?? []);
  for (const name of lists.filter((each, index) => lists.indexOf(each) !== index)) found.set(name, "removal");
  const needed = neededLogs(points);
  for (const name of names) {
    const point = Number(name.slice(0, 10));
    if (name.endsWith(".json.new") && point <= newest) found.set(name, "removal");
    if (name.endsWith(".lock") && point > 0 && !there.has(point)) found.set(name, "removal");
    // The first point inherits all logs: a removal leaves none that nobody names.
    if (name.endsWith(".undo") && !needed.has(name)) found.set(name, "joining");
  }
  return found;
}

/** Names of a folder that come and go. */
interface Names {
  /** Resolves at the `count`-th from now on. */
  changed(count: number): Promise<void>;
  /** Resolves at the first that is wanted, from now on. */
  seen(wanted: (name: string) => boolean): Promise<void>;
  /** Resolves when the file has been made or written to so often, from now on. */
  written(name: string, times: number): Promise<void>;
  close(): void;
}

/** Of a folder that is not there: none ever. */
function watchNames(folder: string): Names {
  let look: (name: string, came: boolean) => void = () => undefined;
  const watcher = (() => {
    try {
      return watch(folder, (event, name) => look(name ?? "", event === "rename"));
    } catch {
      // Before the first copy; that round needs no moment.
      return undefined;
    }
  })();
  const first = (wanted: (name: string, came: boolean) => boolean): Promise<void> =>
    new Promise((found) => {
      look = (name, came) => {
        if (wanted(name, came)) found();
      };
    });
  const times = (count: number, wanted: (name: string, came: boolean) => boolean): Promise<void> => {
    let left = count;
    return first((name, came) => wanted(name, came) && --left === 0);
  };
  return {
    changed: (count) => times(count, (_name, came) => came),
    seen: (wanted) => first((name, came) => came && wanted(name)),
    written: (wanted, count) => times(count, (name) => name === wanted),
    close: () => watcher?.close(),
  };
}
