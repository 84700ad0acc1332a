/**
 * A receiver that keeps a disk as VHDX and is killed while it is given content, new payload blocks among it; the same in both tiers, with other numbers. Before
 * anybody comes back every point can be read, and what is left of the file is sound to QEMU.
 */
import { mkdirSync, rmSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { makeSparse, MIB, noise, PART, punch, scattered, writeAt } from "./content.ts";
import {
  cmpFiles,
  finish,
  hasTool,
  type Pki,
  type Receiver,
  replicaPath,
  replicate,
  runTool,
  type Scope,
  seededRandom,
  send,
  startReceiver,
  startSend,
  tempDir,
} from "./kit.ts";
import { startProxy } from "./proxy.ts";

const payloadBlock = 32 * MIB;
const payloadBlocks = 12;
/** Of new content in a round, about. */
const roundBytes = 2 * MIB;
/** Rounds of a disk, behind which there is hardly a payload block left without a place. */
const roundsOfDisk = 4;

export interface VhdxKills {
  kills: number;
  /** Rounds that were over before their moment came. */
  missed: number;
  /** Points that were restored and compared. */
  restored: number;
  /** Files with a log that was not written out. */
  withLog: number;
}

export async function killVhdxReplica(
  scope: Scope,
  pki: Pki,
  { kills, seed }: { readonly kills: number; readonly seed: number },
): Promise<Readonly<VhdxKills>> {
  const life = await KilledReplica.start(scope, pki, seed);
  for (let round = 0; life.counts.kills < kills; round++) {
    await life.round(round).catch((error: unknown) => {
      throw new Error(`round ${String(round)}`, { cause: error });
    });
  }
  return life.counts;
}

class KilledReplica {
  readonly counts: VhdxKills = { kills: 0, missed: 0, restored: 0, withLog: 0 };
  readonly #scope: Scope;
  readonly #pki: Pki;
  readonly #dir: string;
  readonly #random: () => number;
  #receiver: Receiver;
  #disk = "";
  /** Points of the disk there are, each with its copy. */
  #points = 0;

  private constructor(scope: Scope, pki: Pki, dir: string, seed: number, receiver: Receiver) {
    this.#scope = scope;
    this.#pki = pki;
    this.#dir = dir;
    this.#random = seededRandom(seed);
    this.#receiver = receiver;
  }

  static async start(scope: Scope, pki: Pki, seed: number): Promise<KilledReplica> {
    const dir = tempDir(scope);
    return new KilledReplica(scope, pki, dir, seed, await startVhdxReceiver(scope, pki, join(dir, "store")));
  }

  async round(round: number): Promise<void> {
    if (round % roundsOfDisk === 0) this.#newDisk(round);
    this.#change(round);
    const wanted = this.#copyOf(this.#points + 1);
    runTool("cp", ["--sparse=always", this.#image, wanted]);
    const { port } = this.#receiver;
    const proxy = await startProxy(this.#scope, port);
    const sender = startSend(this.#scope, { ...this.#target, port: proxy.port, args: ["--codec", "none"] });
    // Some behind the last byte: in the commit.
    const moment = proxy.passedUp(this.#random() % Math.floor(roundBytes * 1.15));
    const first = await Promise.race([moment.then(() => "now"), sender.exited.then(() => "over")]);
    if (first === "over") {
      this.counts.missed++;
      expect((await finish(sender)).code).toBe(0);
      this.#points++;
    } else {
      this.counts.kills++;
      await Promise.all([this.#receiver.kill(), sender.kill()]);
      await this.#checkFile();
      await this.#checkNewest();
      this.#receiver = await startVhdxReceiver(this.#scope, this.#pki, this.#receiver.storeDir);
      const again = await send(this.#scope, { ...this.#target, port: this.#receiver.port });
      expect(again.code, again.stderr).toBe(0);
      expect(again.done?.point).toBe(this.#points + 1);
      this.#points++;
    }
    await proxy.close();
    if (this.#points > 1) rmSync(this.#copyOf(this.#points - 1));
    expectSound(this.#replica);
    if (hasTool("qemu-img")) expectTool("qemu-img", "compare", "-f", "vhdx", "-F", "raw", this.#replica, this.#image);
  }

  #newDisk(round: number): void {
    rmSync(join(this.#dir, "copies"), { recursive: true, force: true });
    mkdirSync(join(this.#dir, "copies"));
    this.#disk = `vm${String(round)}`;
    this.#points = 0;
    rmSync(this.#image, { force: true });
    makeSparse(this.#image, payloadBlocks * payloadBlock + 512);
  }

  /** Content in a few payload blocks, of which most are new, and changes, zeros and another size. */
  #change(round: number): void {
    const { size } = statSync(this.#image);
    for (let nth = 0; nth < 4; nth++) {
      const at = this.#random() % (size - MIB);
      writeAt(this.#image, [[at - (at % PART), noise(round * 10 + nth, roundBytes / 4)]]);
    }
    punch(this.#image, (this.#random() % Math.floor(size / PART - 200)) * PART, 100 * PART);
    writeAt(
      this.#image,
      scattered(size - MIB, 20, round).map((at) => [at, noise(at + round, PART)] as const),
    );
    if (round % 3 === 2) truncateSync(this.#image, size + payloadBlock);
  }

  /** What QEMU makes of a copy of the file, as it was left. */
  async #checkFile(): Promise<void> {
    const found = await replicate(this.#scope, ["inspect", this.#replica, "--json"]);
    // Killed before the disk was there.
    if (found.code !== 0) {
      expect(this.#points).toBe(0);
      return;
    }
    const log = found.lines[0]?.["log"];
    if (typeof log === "string" && !log.startsWith("empty")) this.counts.withLog++;
    if (!hasTool("qemu-img")) return;
    const copy = join(this.#dir, "copy.vhdx");
    runTool("cp", ["--sparse=always", this.#replica, copy]);
    runTool("chmod", ["600", copy]);
    runTool("qemu-img", ["check", "-q", "-f", "vhdx", "-r", "all", copy]);
    expectSound(copy);
    rmSync(copy);
  }

  /** The newest point that was told is there before anybody comes back; one that was not told may be. */
  async #checkNewest(): Promise<void> {
    if (this.#points === 0) return;
    const { storeDir } = this.#receiver;
    const out = join(this.#dir, "restored.raw");
    const restored = await replicate(this.#scope, ["restore", "--store", storeDir, this.#disk, out, "--json"]);
    expect(restored.code, restored.stderr).toBe(0);
    const point = restored.lines.at(-1)?.["point"];
    expect([this.#points, this.#points + 1]).toContain(point);
    expect(cmpFiles(this.#copyOf(Number(point)), out)).toBeUndefined();
    rmSync(out);
    this.counts.restored++;
  }

  get #target(): { readonly image: string; readonly disk: string; readonly tls: string } {
    return { image: this.#image, disk: this.#disk, tls: this.#pki.send };
  }

  get #image(): string {
    return join(this.#dir, "disk.raw");
  }

  get #replica(): string {
    return replicaPath(this.#receiver.storeDir, this.#disk, "vhdx");
  }

  #copyOf(point: number): string {
    return join(this.#dir, "copies", String(point));
  }
}

export function startVhdxReceiver(scope: Scope, pki: Pki, storeDir: string): Promise<Receiver> {
  return startReceiver(scope, { storeDir, tls: pki.recv, args: ["--format", "vhdx"] });
}

export function expectSound(path: string): void {
  if (hasTool("qemu-img")) expectTool("qemu-img", "check", "-q", "-f", "vhdx", path);
}

export function expectTool(name: string, ...args: readonly string[]): void {
  const { code, stdout, stderr } = runTool(name, args);
  expect(code, `${name} ${args.join(" ")}: ${stdout}${stderr}`).toBe(0);
}
