/**
 * Trackers and receivers that are killed while a machine writes; the same in both tiers, with other numbers. `replicate track --send` is tracker and sender in
 * one process, so that its kill is one of the sender too.
 */
import { join } from "node:path";
import { expect } from "vitest";
import { makeSparse, MIB, noise, writeAt } from "../content.ts";
import {
  cmpFiles,
  type JsonLine,
  type Pki,
  type Receiver,
  replicaPath,
  type Scope,
  seededRandom,
  startReceiver,
  tempDir,
} from "../kit.ts";
import { Load, startAgain, type TrackOptions, Tracker } from "./kit.ts";

/**
 * The machine writes to the first page of the table and no other: of four, with as much data each. A page in which a cycle was interrupted is looked at as a whole, and read
 * up to three times: to see that it differs, to compare its blocks, and to send parts of them. A cycle that reads more than that did not know what had changed.
 */
const busyBytes = 16 * MIB;
const pageBytes = 32 * MIB;
const imageBytes = 4 * pageBytes;
/** Requests before a kill, at most: of about five cycles. */
const requestsMax = 400;

export type Killed = "tracker" | "receiver" | "both";

export interface KillCounts {
  kills: number;
  /** Rounds in which the receiver had a point that the tracker had not heard of when it was killed. */
  unheard: number;
  /** Most that the first cycle after a kill of the tracker read. */
  readBytesMax: number;
  requests: number;
}

/** Kills, starts again and compares, `kills` times. */
export async function killTracked(
  scope: Scope,
  pki: Pki,
  options: { readonly killed: Killed; readonly kills: number; readonly seed: number },
): Promise<Readonly<KillCounts>> {
  const life = await KilledMachine.start(scope, pki, options.seed);
  for (let round = 1; round <= options.kills; round++) {
    await life.round(options.killed).catch((error: unknown) => {
      throw new Error(`seed ${String(options.seed)} round ${String(round)}`, { cause: error });
    });
  }
  await life.end();
  return life.counts;
}

class KilledMachine {
  readonly counts: KillCounts = { kills: 0, unheard: 0, readBytesMax: 0, requests: 0 };
  readonly #scope: Scope;
  readonly #pki: Pki;
  readonly #track: TrackOptions;
  readonly #random: () => number;
  #receiver: Receiver;
  #tracker: Tracker;

  private constructor(
    scope: Scope,
    parts: {
      readonly pki: Pki;
      readonly track: TrackOptions;
      readonly random: () => number;
      readonly receiver: Receiver;
      readonly tracker: Tracker;
    },
  ) {
    this.#scope = scope;
    this.#pki = parts.pki;
    this.#track = parts.track;
    this.#random = parts.random;
    this.#receiver = parts.receiver;
    this.#tracker = parts.tracker;
  }

  static async start(scope: Scope, pki: Pki, seed: number): Promise<KilledMachine> {
    const dir = tempDir(scope);
    const image = join(dir, "vm.raw");
    makeSparse(image, imageBytes);
    writeAt(
      image,
      [0, 1, 2, 3].map((page) => [page * pageBytes, noise(seed * 31 + page, busyBytes)] as const),
    );
    const receiver = await startReceiver(scope, {
      storeDir: join(dir, "store"),
      tls: pki.recv,
      args: ["--keep", "last=3"],
    });
    const track: TrackOptions = {
      ...{ image, socket: join(dir, "vm.sock"), to: `127.0.0.1:${String(receiver.port)}/vm`, tls: pki.send },
      args: ["--every", "0", "--codec", "none"],
    };
    const tracker = await Tracker.start(scope, track);
    expect(tracker.begun[0]).toMatchObject({ changes: "scan", reason: "journal-new" });
    await tracker.firstDone();
    return new KilledMachine(scope, { pki, track, random: seededRandom(seed), receiver, tracker });
  }

  async round(killed: Killed): Promise<void> {
    const load = await this.#load();
    await load.more(1 + (this.#random() % requestsMax));
    const told = Number(this.#tracker.done.at(-1)?.["point"]);
    if (killed !== "tracker") await this.#receiver.kill();
    if (killed !== "receiver") {
      await this.#tracker.child.kill();
      await load.lost();
      this.counts.requests += load.written;
    }
    this.counts.kills++;
    if (killed !== "tracker") this.#receiver = await startAgain(this.#scope, this.#receiver, this.#pki);
    if (killed === "receiver") await this.#receiverCameBack(load);
    else await this.#trackerCameBack(told);
  }

  /** The machine has noticed nothing, and the cycle that was under way, or another, ends well. */
  async #receiverCameBack(load: Load): Promise<void> {
    await load.more(1 + (this.#random() % requestsMax));
    await this.#tracker.nextDone(1);
    await this.#settle(load);
  }

  /** The journal is believed, and the first cycle, in which the machine already writes again, reads what changed. */
  async #trackerCameBack(told: number): Promise<void> {
    this.#tracker = await Tracker.start(this.#scope, this.#track);
    expect(this.#tracker.begun[0]).toMatchObject({ changes: "exact" });
    const load = await this.#load();
    const first = await this.#tracker.firstDone();
    this.#expectIncremental(first);
    // The point of the cycle that was under way may be there: it is found, and not made twice.
    expect([told + 1, told + 2]).toContain(first["point"]);
    if (first["point"] === told + 2) this.counts.unheard++;
    this.counts.readBytesMax = Math.max(this.counts.readBytesMax, Number(first["bytesRead"]));
    await this.#settle(load);
  }

  /** Nobody writes any more: a cycle that begins then gives the replica what the image has. */
  async #settle(load: Load): Promise<void> {
    await load.stop();
    this.counts.requests += load.written;
    this.#expectIncremental(await this.#tracker.nextDone(2));
    const { image } = this.#track;
    expect(cmpFiles(image, replicaPath(this.#receiver.storeDir, "vm"))).toBeUndefined();
    for (const line of this.#tracker.done) expect(line).toMatchObject({ reason: this.#firstReason(line) });
  }

  /** Only the very first cycle of the image had to look at all of it. */
  #firstReason({ point }: JsonLine): string {
    return point === 1 ? "initial" : "bitmap";
  }

  #expectIncremental(line: JsonLine): void {
    expect(line).toMatchObject({ reason: "bitmap" });
    expect(line["bytesRead"]).toBeLessThanOrEqual(3 * busyBytes);
  }

  #load(): Promise<Load> {
    return Load.start(this.#scope, { uri: this.#tracker.uri, random: this.#random, bytes: busyBytes });
  }

  async end(): Promise<void> {
    expect(await this.#tracker.child.stop()).toBe(0);
    expect(await this.#receiver.stop()).toBe(0);
  }
}
