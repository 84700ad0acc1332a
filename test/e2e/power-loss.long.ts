/**
 * Loss of power for real: the receiver runs in a guest of its own, on ext4 on a disk with a volatile write cache. The power fails at moments of a delta,
 * of its commit and of what follows (points removed, logs joined); of what the guest had not flushed some pieces are on the disk and others are not. After each boot all points
 * that were told durable are there and read as they were sent, before the sender comes back.
 */
import { createHash } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { KIB, makeNoise, MIB, noise, PART, scattered, writeAt } from "./content.ts";
import { buildGuest, freePort, Guest, guestObstacle, guestPort, type GuestSystem, kvmWorks } from "./guest.ts";
import {
  type CliProcess,
  finish,
  fsck,
  type JsonLine,
  makeExt4,
  makePki,
  type Pki,
  type Scope,
  type SendResult,
  seededRandom,
  startSend,
  tempDir,
} from "./kit.ts";
import { type Proxy, startProxy } from "./proxy.ts";
import { type Loss, startVolatileDisk, type VolatileDisk } from "./volatile-disk.ts";

const disk = "vm";
const volumeMiB = 768;
/** Points the receiver keeps. */
const keep = 4;
/** What a version has that is new and in one piece. */
const runBytes = 256 * KIB;
/** What an undo log and each of its batches begin with, and what is in the record of a point that took over logs. */
const logMagic = Buffer.from("rplundo\n");
const batchMagic = Buffer.from("rplubtch");
const inheritedLogs = Buffer.from('"logs": [');

/** In the name of the test, so that a failure tells it; `REPLICATE_TEST_SEED` repeats it. */
const seed = Number(process.env["REPLICATE_TEST_SEED"]) || Date.now() & 0xffff;

const init = (format: string): string => `
mkdir /disk
mount -t ext4 /dev/vda /disk || echo '{"event":"trouble","what":"no mount"}'
mkdir -p /disk/store
if grep -q " last" /proc/cmdline; then
  node /replicate/dist/cli/main.js verify --store /disk/store --all --json
  echo "{\\"event\\":\\"verify-ended\\",\\"code\\":$?}"
  umount /disk && echo '{"event":"unmounted"}'
else
  node /test/power-loss-guest.mjs /replicate/dist /disk/store \\
    --listen 0.0.0.0:${String(guestPort)} --tls /tls --keep last=${String(keep)} --format ${format} --json
fi
`;

for (const [format, kills] of [
  ["raw", 30],
  ["vhdx", 10],
] as const) {
  const name = `${format}: the power of the receiver's machine fails ${String(kills)} times, seed ${String(seed)}`;
  test(name, { timeout: 4 * 3_600_000 }, async (t) => {
    const obstacle = guestObstacle();
    if (obstacle !== undefined) t.skip(obstacle);
    const started = Date.now();
    const machine = await Machine.make(t, format);
    await machine.boot();
    await machine.fill();
    for (let round = 1; round <= kills; round++) {
      await machine.round(round).catch((error: unknown) => {
        throw new Error(`seed ${String(seed)} round ${String(round)}: ${machine.story}`, { cause: error });
      });
    }
    await machine.end();
    const seconds = Math.round((Date.now() - started) / 1000);
    process.stdout.write(`${JSON.stringify({ ...machine.counts, lostBytes: machine.lostBytes, seconds })}\n`);
    // Or the moments were all of one kind: before the point was made, or behind it, whether its sender heard of it or not.
    const { before, unheard, after, removals, joinings } = machine.counts;
    for (const count of [before, unheard + after, removals, joinings])
      expect(count).toBeGreaterThanOrEqual(Math.max(1, kills / 15));
  });
}

/** A point the sender was told of. */
interface Told {
  readonly label: string;
  readonly root: string;
}

/** What the power fails in: a delta, its commit, what follows (points removed, logs joined), or the opening of a store that it failed before. */
type Kind = "delta" | "commit" | "removal" | "joining" | "resume";
/** By round. */
const kinds: readonly Kind[] = ["joining", "delta", "commit", "removal"];
/** Flushes of the disk from where a moment is counted, from and to. A commit is over after about seven from the end of the delta's log. */
const flushesAt: Readonly<Record<Kind, readonly [number, number]>> = {
  delta: [0, 8],
  commit: [0, 7],
  removal: [0, 4],
  joining: [0, 5],
  resume: [0, 32],
};
/** Where it is counted from, but of a delta. */
const startOf: Readonly<Record<Exclude<Kind, "delta">, string>> = {
  commit: "the end of the log",
  removal: "the first record that takes over logs",
  joining: "the beginning of the joined log",
  resume: "the start",
};

interface Parts {
  readonly scope: Scope;
  readonly dir: string;
  readonly pki: Pki;
  readonly system: GuestSystem;
  readonly kvm: boolean;
  /** Of the guest's receiver, on this machine. */
  readonly port: number;
  readonly proxy: Proxy;
  /** Has the store. */
  readonly volume: VolatileDisk;
}

class Machine {
  /**
   * Rounds by what the newest point was afterwards: the one before, one the sender had not heard of, one it had. Those of them where a removal had begun and
   * its points were there again, and where a joining had begun and not ended; and joinings that ended.
   */
  readonly counts = { before: 0, unheard: 0, after: 0, removals: 0, joinings: 0, joined: 0, pointsRead: 0 };
  readonly #p: Parts;
  readonly #random = seededRandom(seed);
  readonly #told = new Map<number, Told>();
  /** By label. */
  readonly #sha256 = new Map<string, string>();
  #newest = 0;
  #version = 0;
  /** Bytes of changed parts in the version, which travel as they are. */
  #payloadBytes = 0;
  /** The point that was held when the last boot was over, or 0. */
  #held = 0;
  /** Points found at the last boot, and those of them that retention does not want. */
  #found: readonly number[] = [];
  #unwanted: readonly number[] = [];
  /** What the disk was told in the round, behind the end of the delta's log. */
  #seen = { removal: false, joining: false };
  #story = "";
  #guest: Guest | undefined;

  private constructor(parts: Parts) {
    this.#p = parts;
  }

  static async make(t: Scope, format: string): Promise<Machine> {
    const dir = tempDir(t);
    const pki = await makePki(t, join(dir, "pki"));
    const program = join(import.meta.dirname, "power-loss-guest.mjs");
    const system = buildGuest(dir, {
      init: init(format),
      copies: { "/tls": pki.recv, "/test/power-loss-guest.mjs": program },
    });
    const kvm = kvmWorks(system);
    process.stdout.write(kvm ? "with KVM\n" : "KVM does not run the guest here: it is emulated, which is slow\n");
    makeExt4(join(dir, "volume"), volumeMiB);
    const port = await freePort();
    return new Machine({
      ...{ scope: t, dir, pki, system, kvm, port },
      volume: await startVolatileDisk(t, join(dir, "volume"), join(dir, "nbd")),
      proxy: await startProxy(t, port),
    });
  }

  /** Boots; checks all points; resolves when the receiver listens. Returns the newest point. */
  async boot(): Promise<number> {
    const guest = this.#start();
    await guest.waitForEvent("listening");
    expect(guest.text).not.toMatch(/EXT4-fs error|"event":"trouble"/);
    const trouble = guest.lines.find(({ event }) => event === "checked")?.["trouble"];
    // Before the first point there may not even be a store.
    if (this.#newest > 0) expect(trouble).toBeUndefined();
    const found = guest.lines.filter(({ event }) => event === "point-read");
    const newest = this.#judge(found);
    this.#held = Number(guest.lines.find(({ event }) => event === "held")?.["point"] ?? 0);
    return newest;
  }

  #start(...words: readonly string[]): Guest {
    const { scope, dir, system, kvm, port, volume } = this.#p;
    const kernelLog = join(dir, "kernel.log");
    this.#guest = new Guest(scope, { system, kvm, port, diskSocket: volume.socketPath, kernelLog, words });
    return this.#guest;
  }

  /** As many points as are kept, and the oldest one held, so that the next ones are removed, and their logs joined. */
  async fill(): Promise<void> {
    for (let made = 0; made < keep; made++) {
      this.#change(1);
      await this.#finishSend(this.#startSend());
    }
    this.#p.volume.fail({ kept: 0, grainBytes: PART, random: this.#random });
    await this.#guest?.kill();
    expect(await this.boot()).toBe(keep);
    expect(this.#held).toBe(1);
  }

  /** What was done in the round under way. */
  get story(): string {
    return this.#story;
  }

  get lostBytes(): number {
    return this.#p.volume.lostBytes;
  }

  async round(round: number): Promise<void> {
    const planned = kindOf(round);
    // Every third time what an interrupted delta left is interrupted once more; else a newer version overtakes it.
    const resumes = planned !== "joining" && !this.#complete && this.#random() % 3 === 0;
    if (!resumes) this.#change(round);
    const loss: Loss = {
      kept: [0, 0.1, 0.5, 0.9][this.#random() % 4] ?? 0,
      // Not less: a journal of ext4 with checksums is refused when the sectors of a commit block are of two times.
      grainBytes: [PART, Number.POSITIVE_INFINITY][this.#random() % 2] ?? PART,
      random: this.#random,
    };
    const lostBefore = this.#p.volume.lostBytes;
    const sender = this.#startSend();
    const moment = await this.#failAt(resumes ? "resume" : planned, sender, loss);
    await this.#guest?.kill();
    const joined = this.#guest?.text.includes("undo logs joined") === true;
    if (joined) this.counts.joined++;
    else if (this.#seen.joining) this.counts.joinings++;
    await sender.kill();
    this.#p.proxy.cut();
    this.#hear(await finish(sender));
    const lostKib = Math.round((this.#p.volume.lostBytes - lostBefore) / KIB);
    const grain = loss.grainBytes === PART ? "pages" : "writes";
    this.#story = `${moment}; ${String(loss.kept * 100)} % of ${grain} kept, ${String(lostKib)} KiB lost`;
    const told = this.#newest;
    const newest = await this.boot();
    if (this.#seen.removal && this.#unwanted.length > 0) this.counts.removals++;
    const unheard = newest > told;
    const outcome = unheard ? "unheard" : this.#complete ? "after" : "before";
    this.counts[outcome]++;
    this.#newest = newest;
    const points = `points ${this.#found.join(" ")} are good, ${String(told)} was told (${outcome})`;
    process.stdout.write(`seed ${String(seed)} round ${String(round)}: ${this.#story}; ${points}\n`);
    // Not where the next session is to be the first one of its boot.
    if (!this.#complete && kindOf(round + 1) !== "joining" && this.#random() % 2 === 0)
      await this.#finishSend(this.#startSend());
  }

  /** True: the newest version has its point, and the sender knows. */
  get #complete(): boolean {
    return this.#version === 0 || this.#told.get(this.#newest)?.label === this.#label;
  }

  get #label(): string {
    return `version-${String(this.#version)}`;
  }

  get #image(): string {
    return join(this.#p.dir, "image.raw");
  }

  /** The next version of the image: scattered parts, some of them zeros, and a long run; now and then a longer disk. */
  #change(round: number): void {
    this.#version++;
    if (this.#version === 1) {
      // Reading points takes longest where the guest is emulated.
      this.#payloadBytes = (this.#p.kvm ? 96 : 24) * MIB;
      makeNoise(this.#image, this.#payloadBytes, seed);
    } else {
      const sizeBytes = statSync(this.#image).size;
      // Most of them are of the same thousand, so that joining any two logs gives more than a third back.
      const [hot, any] = [scattered(1_000 * PART, 950, seed + this.#version), scattered(sizeBytes, 50, this.#version)];
      const pieces = [...hot, ...any].map(
        (at, index) => [at, index % 5 === 0 ? Buffer.alloc(PART) : noise(at + this.#version, PART)] as const,
      );
      const run = (this.#random() % (sizeBytes / MIB - 2)) * MIB;
      pieces.push([run, noise(this.#version, runBytes)], [run + runBytes, Buffer.alloc(runBytes / 2)]);
      if (round % 5 === 0) pieces.push([sizeBytes, noise(-this.#version, 256 * KIB)]);
      writeAt(this.#image, pieces);
      this.#payloadBytes = 800 * PART + runBytes;
    }
    this.#sha256.set(this.#label, createHash("sha256").update(readFileSync(this.#image)).digest("hex"));
  }

  #startSend(): CliProcess {
    return startSend(this.#p.scope, {
      ...{ image: this.#image, port: this.#p.proxy.port, disk, tls: this.#p.pki.send },
      args: ["--codec", "none", "--label", this.#label],
    });
  }

  async #finishSend(sender: CliProcess): Promise<void> {
    const result = await finish(sender);
    expect(result.code, `${result.stderr}\n${this.#guest?.text ?? ""}`).toBe(0);
    this.#hear(result);
  }

  #hear({ done }: SendResult): void {
    if (done === undefined) return;
    expect(done.point).toBe(this.#newest + 1);
    this.#newest = done.point;
    this.#told.set(done.point, { label: this.#label, root: done.root });
  }

  /** The power fails at a moment of this kind, or when everything is over. Resolves with what is to be said about it. */
  async #failAt(kind: Kind, sender: CliProcess, loss: Loss): Promise<string> {
    const share = (this.#random() % 900) / 1_000;
    const [least, most] = flushesAt[kind];
    const flush = least + (this.#random() % (most - least));
    const request = [0, 1, 2, 4, 16][this.#random() % 5] ?? 0;
    let begun = kind === "resume";
    let flushes = 0;
    let requests = 0;
    if (kind === "delta") {
      const wanted = this.#p.proxy.bytesUp + share * this.#payloadBytes;
      void this.#p.proxy.passedUp(wanted).then(() => {
        begun = true;
      });
    }
    let committing = false;
    const seen = { removal: false, joining: false };
    this.#seen = seen;
    const failed = this.#p.volume.failWhen(({ bytes }) => {
      // The record and the log that a request brings are begun with it, whether or not it is still carried out.
      if (committing && bytes?.includes(inheritedLogs) === true) seen.removal = true;
      if (committing && hasPage(bytes, logMagic)) seen.joining = true;
      committing ||= hasFooter(bytes);
      if (kind === "commit") begun = committing;
      if (kind === "removal" || kind === "joining") begun = seen[kind];
      if (!begun || flushes < flush) {
        if (begun && bytes === undefined) flushes++;
        return false;
      }
      return requests++ >= request;
    }, loss);
    // Before logs are joined they are read, which an emulated machine is long at.
    const over = this.#quietAfter(sender, kind === "joining" ? 15 : 1).then(() => "over");
    const early = (await Promise.race([failed, over])) === "over";
    if (early) this.#p.volume.fail(loss);
    const from = kind === "delta" ? `${String(Math.round(share * 100))} % of the changes` : startOf[kind];
    const what = `${String(request)} requests after flush ${String(flush)} from ${from}`;
    return `${kind}, ${what}${early ? `, which did not come: ${String(flushes)} did` : ""}`;
  }

  /** Resolves when the sender has ended well and the disk has been left alone since for so many times three seconds, for what follows a commit takes its time. */
  async #quietAfter(sender: CliProcess, times: number): Promise<void> {
    if ((await sender.exited) === "SIGKILL") return;
    expect(await sender.exited, sender.stderr).toBe(0);
    for (let quiet = 0; quiet < times; ) {
      const before = this.#p.volume.changes;
      await new Promise((resolve) => setTimeout(resolve, 3_000));
      quiet = this.#p.volume.changes === before ? quiet + 1 : 0;
    }
  }

  /** Everything that was told is there and reads as it was sent. Returns the newest point. */
  #judge(found: readonly JsonLine[]): number {
    const numbers = found.map(({ point }) => Number(point));
    this.#found = numbers;
    const newest = numbers.at(-1) ?? 0;
    const details = JSON.stringify(found, undefined, 1);
    expect([this.#newest, this.#newest + 1], details).toContain(newest);
    const due = Array.from({ length: Math.min(keep, newest) }, (_unused, index) => newest - index);
    if (this.#held > 0) due.push(this.#held);
    expect(numbers, details).toEqual(expect.arrayContaining(due));
    this.#unwanted = numbers.filter((point) => !due.includes(point));
    for (const { point, label, root, good, sha256 } of found) {
      expect(good, details).toBe(true);
      expect(sha256, details).toBe(this.#sha256.get(String(label)));
      const told = this.#told.get(Number(point));
      if (told === undefined) expect(label, details).toBe(this.#label);
      else expect({ label, root }, details).toEqual(told);
      this.#told.set(Number(point), { label: String(label), root: String(root) });
      this.counts.pointsRead++;
    }
    return newest;
  }

  /** What the command says of all points, and `e2fsck` of the volume after a clean end. */
  async end(): Promise<void> {
    await this.#finishSend(this.#startSend());
    this.#p.volume.fail({ kept: 0, grainBytes: PART, random: this.#random });
    await this.#guest?.kill();
    const last = this.#start("last");
    await last.exited;
    expect(
      last.lines.find(({ event }) => event === "verify-ended"),
      last.text,
    ).toMatchObject({ code: 0 });
    const verified = last.lines.filter(({ event }) => event === "verified");
    for (const { good, point } of verified) expect(good, `point ${String(point)}`).toBe(true);
    const due = Array.from({ length: Math.min(keep, this.#newest) }, (_unused, index) => this.#newest - index);
    expect(verified.map(({ point }) => point)).toEqual(expect.arrayContaining([...due, this.#held]));
    expect(
      last.lines.some(({ event }) => event === "unmounted"),
      last.text,
    ).toBe(true);
    const { clean, output } = fsck(join(this.#p.dir, "volume"));
    expect(clean, output).toBe(true);
  }
}

function kindOf(round: number): Kind {
  return kinds[round % kinds.length] ?? "delta";
}

/** True when a page of a write to the volume begins with these bytes, and `also` says yes to it. */
function hasPage(bytes: Buffer | undefined, magic: Buffer, also: (page: Buffer) => boolean = () => true): boolean {
  if (bytes === undefined) return false;
  for (let at = 0; at + PART <= bytes.length; at += PART) {
    const page = bytes.subarray(at, at + PART);
    if (page.compare(magic, 0, magic.length, 0, magic.length) === 0 && also(page)) return true;
  }
  return false;
}

/** The end of an undo log: a batch of kind 4 (docs/formats.md). */
function hasFooter(bytes: Buffer | undefined): boolean {
  return hasPage(bytes, batchMagic, (page) => page[32] === 4);
}
