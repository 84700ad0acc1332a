/** Images in use for end-to-end tests: `replicate track` as a process, and a machine that writes through its NBD export. */
import { once } from "node:events";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { expect } from "vitest";
import { type NbdWriter, openNbdWriter } from "../../../src/nbd/client.ts";
import { parseNbdUri } from "../../../src/nbd/nbd-uri.ts";
import { KIB, noise, PART } from "../content.ts";
import { CliProcess, type JsonLine, type Pki, type Receiver, type Scope, startReceiver } from "../kit.ts";

// The tracker -------------------------------------------------------------------------------------------------------

export interface TrackOptions {
  /** The image, or with `disks` the name of the machine. */
  readonly image: string;
  readonly disks?: readonly { readonly name: string; readonly image: string }[];
  readonly socket: string;
  /** `HOST:PORT/DISK`, for a machine `HOST:PORT`. */
  readonly to: string;
  /** `pki.send`. */
  readonly tls: string;
  readonly args?: readonly string[];
  /** Words in front of the command: a program that runs it. */
  readonly under?: readonly string[] | undefined;
}

/** A running `replicate track --send` that makes cycle after cycle. */
export class Tracker {
  readonly child: CliProcess;
  /** Of its exports, in the order of the disks; each with what it said of the image when it began. */
  readonly begun: readonly JsonLine[];

  private constructor(child: CliProcess, begun: readonly JsonLine[]) {
    this.child = child;
    this.begun = begun;
  }

  /** Resolves when it serves. */
  static async start(scope: Scope, options: TrackOptions): Promise<Tracker> {
    const { image, disks = [], socket, to, tls, args = [], under } = options;
    const named = disks.flatMap((disk) => ["--disk", `${disk.name}=${disk.image}`]);
    const where = ["--nbd", `unix:${socket}`, "--send", to, "--tls", tls];
    const child = new CliProcess(scope, ["track", image, ...named, ...where, "--json", ...args], { under });
    const count = Math.max(1, disks.length);
    const begun = (): readonly JsonLine[] => child.lines.filter(({ event }) => event === "listening");
    await child.waitFor(() => begun().length === count);
    return new Tracker(child, begun());
  }

  get uris(): readonly string[] {
    return this.begun.map(({ uri }) => String(uri));
  }

  get uri(): string {
    return this.uris[0] ?? "";
  }

  /** Of cycles that ended well, a line for each disk, as far as they were heard. */
  get done(): readonly JsonLine[] {
    return this.child.lines.filter(({ event }) => event === "done");
  }

  /** Resolves when all was heard that it had said when this was called: once the sockets have had their turn. */
  async heard(): Promise<void> {
    for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
  }

  /** The line `count` ahead of now. One disk: at 2 it is of a cycle that has not begun yet. */
  async nextDone(count: number): Promise<JsonLine> {
    await this.heard();
    const wanted = this.done.length + count;
    await this.child.waitFor(() => this.done.length >= wanted);
    return this.done[wanted - 1] ?? {};
  }

  async firstDone(): Promise<JsonLine> {
    return await this.child.waitForEvent("done");
  }
}

/** Starts the receiver anew on its port and store. */
export function startAgain(scope: Scope, { port, storeDir }: Receiver, pki: Pki): Promise<Receiver> {
  return startReceiver(scope, { storeDir, tls: pki.recv, port });
}

// The machine -------------------------------------------------------------------------------------------------------

export interface LoadOptions {
  readonly uri: string;
  readonly random: () => number;
  /** Written to from its start on, so far; most often to the first eighth, so that blocks behind it are written once in a while. */
  readonly bytes: number;
  /** Requests under way at a time. */
  readonly depth?: number;
}

/** Writes 4 KiB to 64 KiB here and there as fast as it can, some of it zeros, with a flush now and then. */
export class Load {
  readonly #o: LoadOptions;
  readonly #disk: NbdWriter;
  readonly #workers: readonly Promise<void>[];
  #written = 0;
  #stopping = false;
  #wanted: { readonly count: number; readonly resolve: () => void } | undefined;

  private constructor(options: LoadOptions, disk: NbdWriter) {
    this.#o = options;
    this.#disk = disk;
    this.#workers = Array.from({ length: options.depth ?? 8 }, () => this.#work());
    // Looked at by `stop` and `lost`.
    for (const worker of this.#workers) worker.catch(() => undefined);
  }

  static async start(scope: Scope, options: LoadOptions): Promise<Load> {
    const disk = await openNbdWriter({ address: parseNbdUri(options.uri) });
    scope.onTestFinished(() => disk.close());
    return new Load(options, disk);
  }

  /** Requests acknowledged so far. */
  get written(): number {
    return this.#written;
  }

  async #work(): Promise<void> {
    const { random, bytes } = this.#o;
    while (!this.#stopping) {
      const kind = random() % 32;
      const length = PART * (1 + (random() % 16));
      const range = random() % 4 === 0 ? bytes : bytes / 8;
      const offset = PART * (random() % ((range - 64 * KIB) / PART));
      if (kind === 0) await this.#disk.flush();
      else if (kind < 4) await this.#disk.zero(offset, length);
      else if (kind === 4) await this.#disk.writeDurably(noise(random(), length), offset);
      else await this.#disk.write(noise(random(), length), offset);
      this.#written++;
      if (this.#written >= (this.#wanted?.count ?? Number.POSITIVE_INFINITY)) this.#wanted?.resolve();
    }
  }

  /** Resolves when `count` more requests are acknowledged; rejects when one fails before. */
  async more(count: number): Promise<void> {
    const enough = new Promise<void>((resolve) => {
      this.#wanted = { count: this.#written + count, resolve };
    });
    await Promise.race([enough, Promise.all(this.#workers)]);
  }

  /** Writes no more; resolves when all is acknowledged, rejects when something failed. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#workers);
    await this.#disk.close();
  }

  /** Resolves when the server is gone, as it must be by now. */
  async lost(): Promise<void> {
    const results = await Promise.allSettled(this.#workers);
    for (const result of results) {
      expect(result).toMatchObject({ status: "rejected", reason: { code: "connection-lost" } });
    }
    await this.#disk.close();
  }
}

// Commands around the cut -------------------------------------------------------------------------------------------

/**
 * Arguments for `--freeze` and `--thaw` commands that ask this process, and end when it has answered: what it saw before it answers was before the cut, what it does
 * after it was asked to thaw comes after it.
 */
export async function watchCuts(
  scope: Scope,
  dir: string,
  on: { freeze(): Promise<void> | void; thaw(): Promise<void> | void },
): Promise<readonly string[]> {
  const path = join(dir, "cuts.sock");
  const server: Server = createServer((socket: Socket) => {
    socket.on("error", () => socket.destroy());
    socket.once("data", (word) => {
      const name = word.toString("latin1").trim();
      const work = async (): Promise<void> => {
        await (name === "freeze" ? on.freeze() : on.thaw());
        socket.end("done\n");
      };
      work().catch((error: unknown) => {
        socket.destroy();
        throw error;
      });
    });
  });
  server.listen(path);
  await once(server, "listening");
  scope.onTestFinished(() => void server.close());
  const program = `const s=require("net").connect(process.argv[1],()=>s.write(process.argv[2]));let r="";s.on("data",(d)=>r+=d).on("close",()=>process.exit(r==="done\\n"?0:1))`;
  const command = (word: string): string => `${process.execPath} -e '${program}' ${path} ${word}`;
  return ["--freeze", command("freeze"), "--thaw", command("thaw")];
}
