/** What the NBD tests share: short paths, servers of other makes in processes of their own, and a server that says what a test wants. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { systemClock } from "../../src/base/clock.ts";
import { ByteReader } from "../../src/nbd/byte-reader.ts";
import { connectNbd } from "../../src/nbd/client-connect.ts";
import type { ClientConnection } from "../../src/nbd/client-connection.ts";
import { type NbdReader, openNbdReader } from "../../src/nbd/client.ts";
import { parseNbdUri } from "../../src/nbd/nbd-uri.ts";
import * as option from "../../src/nbd/option-codec.ts";
import { exportFlags, optionReplies, options } from "../../src/nbd/protocol.ts";
import { decodeRequest, type ReadRequest, requestHeadBytes } from "../../src/nbd/request-codec.ts";
import { createLinkedStreams } from "../../src/testing/linked-streams.ts";
import type { ByteStream } from "../../src/transport/byte-stream.ts";
import type { Scope } from "../e2e/kit.ts";

/** A folder whose path leaves room for a socket's name in the 107 bytes a unix socket has. */
export function socketDir(scope: Scope): string {
  const path = mkdtempSync("/tmp/nbd-");
  scope.onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** Runs a server that goes into the background once it is ready, and ends it with the scope. `pidFile`: where it writes its process id. */
export function startServer(scope: Scope, command: readonly string[], pidFile: string): void {
  const [name = "", ...args] = command;
  execFileSync(name, args, { stdio: ["ignore", "ignore", "inherit"] });
  let running = true;
  const stop = (): void => {
    if (running) kill(Number(readFileSync(pidFile, "utf8")), "SIGTERM");
    running = false;
  };
  scope.onTestFinished(stop);
}

/** Ends a server started by {@link startServer} at once. */
export function killServer(pidFile: string): void {
  kill(Number(readFileSync(pidFile, "utf8")), "SIGKILL");
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    // It ended by itself.
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

export interface Served {
  readonly uri: string;
  readonly pidFile: string;
}

/** `nbdkit` on a unix socket. `args`: from the options on, plugin and its parameters included. */
export function startNbdkit(scope: Scope, ...args: readonly string[]): Served {
  const dir = socketDir(scope);
  const pidFile = join(dir, "pid");
  startServer(scope, ["nbdkit", "-U", join(dir, "s"), "-P", pidFile, ...args], pidFile);
  return { uri: `nbd+unix:///?socket=${dir}/s`, pidFile };
}

/** `qemu-nbd` on a unix socket. */
export function startQemuNbd(scope: Scope, ...args: readonly string[]): Served {
  const dir = socketDir(scope);
  const pidFile = join(dir, "pid");
  startServer(scope, ["qemu-nbd", "--fork", "-t", `--pid-file=${pidFile}`, "-k", join(dir, "s"), ...args], pidFile);
  return { uri: `nbd+unix:///?socket=${dir}/s`, pidFile };
}

export function openUri(uri: string, contexts: readonly string[] = []): Promise<NbdReader> {
  return openNbdReader({ address: parseNbdUri(uri), contexts });
}

// A server that says what a test wants ------------------------------------------------------------------------------

/** The server's end of linked streams. */
export class ScriptedServer {
  readonly stream: ByteStream;
  readonly #reader: ByteReader;

  constructor(stream: ByteStream) {
    this.stream = stream;
    this.#reader = new ByteReader(stream);
  }

  read(count: number): Promise<Buffer> {
    return this.#reader.read(count);
  }

  /** Bytes, or hexadecimal text. */
  say(...parts: readonly (Uint8Array | string)[]): void {
    this.stream.write(
      parts.map((part) => (typeof part === "string" ? Buffer.from(part.replaceAll(" ", ""), "hex") : part)),
    );
  }

  async greet(flags = 3): Promise<void> {
    this.say(option.encodeGreeting(flags));
    await this.read(option.clientFlagsBytes);
  }

  async option(): Promise<{ readonly option: number; readonly data: Buffer }> {
    const { option: number, length } = option.decodeOptionHead(await this.read(option.optionHeadBytes));
    return { option: number, data: await this.read(length) };
  }

  reply(about: number, type: number, data?: Uint8Array): void {
    this.say(option.encodeOptionReply(about, type, data));
  }

  /** Up to transmission, as an ordinary server. */
  async negotiate(
    facts: { readonly sizeBytes?: number; readonly flags?: number; readonly structured?: boolean } = {},
  ): Promise<void> {
    const {
      sizeBytes = 65_536,
      flags = exportFlags.hasFlags | exportFlags.flush | exportFlags.writeZeroes,
      structured = true,
    } = facts;
    await this.greet();
    for (;;) {
      const { option: asked, data } = await this.option();
      if (asked === options.structuredReply && structured) this.reply(asked, optionReplies.ack);
      else if (asked === options.setMetaContext) {
        const { queries } = option.decodeContextQueries(data);
        for (const [index, name] of queries.entries()) {
          this.reply(asked, optionReplies.metaContext, option.encodeContext(index + 1, name));
        }
        this.reply(asked, optionReplies.ack);
      } else if (asked === options.go) {
        this.reply(asked, optionReplies.info, option.encodeExportInfo({ sizeBytes, flags }));
        this.reply(asked, optionReplies.ack);
        return;
      } else this.reply(asked, optionReplies.unsupported);
    }
  }

  async request(): Promise<ReadRequest> {
    const request: ReadRequest = { command: 0, flags: 0, high: 0, low: 0, offset: 0, length: 0 };
    decodeRequest(await this.read(requestHeadBytes), 0, request);
    return request;
  }
}

export interface Scripted {
  readonly opening: Promise<NbdReader>;
  readonly server: ScriptedServer;
}

const address = parseNbdUri("nbd://scripted/disk");

/** A client that talks to a scripted server. Each connection it makes gets `script`. */
export function openScripted(
  script: (server: ScriptedServer) => Promise<void>,
  options: {
    readonly clock?: typeof systemClock;
    readonly contexts?: readonly string[];
    readonly chunkBytes?: number;
  } = {},
): Promise<NbdReader> {
  return openNbdReader({ address, ...options, connect: async () => scriptedStream(script, options.chunkBytes) });
}

export function connectScripted(script: (server: ScriptedServer) => Promise<void>): Promise<ClientConnection> {
  return connectNbd({ address, clock: systemClock, connect: async () => scriptedStream(script) }, []);
}

function scriptedStream(script: (server: ScriptedServer) => Promise<void>, chunkBytes = 7): ByteStream {
  const { client, server } = createLinkedStreams({ chunkBytes });
  script(new ScriptedServer(server)).catch(() => {
    // The client went away in the middle of the script: what it said is what the test looks at.
  });
  return client;
}
