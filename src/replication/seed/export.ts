/**
 * A receiver of paper: a link whose other end is a folder. It answers a sender as the receiver of a new, empty disk would, and writes the frames that make
 * the disk what it is (open, data, zero, commit) to a seed. The sender needs to know nothing of it.
 */
import type { Clock } from "../../base/clock.ts";
import { ReplicationError, toReplicationError } from "../../base/errors.ts";
import { limits } from "../../base/limits.ts";
import type { Logger } from "../../base/logger.ts";
import { BLOCK_BYTES_DEFAULT } from "../../base/units.ts";
import type { CodecName } from "../../codec/compression.ts";
import type { Storage } from "../../storage/seam.ts";
import type { Link, LinkHandlers, PeerIdentity } from "../../transport/link.ts";
import { encodeFrame } from "../../wire/frame.ts";
import { answer } from "../../wire/handshake.ts";
import type { Commit, Message, Open } from "../../wire/messages.ts";
import { SeedWriter } from "./writer.ts";

export interface SeedTargetOptions {
  readonly storage: Storage;
  readonly clock: Clock;
  readonly log: Logger;
  /** Absolute path of the folder; made when it is missing. */
  readonly directory: string;
  /** Remove a copy that is there, and work beside other files. */
  readonly overwrite?: boolean | undefined;
  /** Those the payloads may be compressed with: what whoever will read the seed can decode. */
  readonly codecs: readonly CodecName[];
  readonly software: string;
  /** Longest part, in bytes; default 1 GiB. */
  readonly partBytes?: number | undefined;
}

/** Where a sender sends a seed to. For one run with one attempt (`attemptsMax: 1`) and one connection. */
export interface SeedTarget {
  readonly connect: () => Promise<Link>;
  /** Resolves when the folder is left alone: a failed run leaves no files, if they can be removed. */
  settled(): Promise<void>;
}

export function createSeedTarget(options: SeedTargetOptions): SeedTarget {
  let link: PaperLink | undefined;
  return {
    connect() {
      link = new PaperLink(options);
      return Promise.resolve(link);
    },
    settled: () => link?.settled() ?? Promise.resolve(),
  };
}

class PaperLink implements Link {
  readonly peer: PeerIdentity;
  readonly #o: SeedTargetOptions;
  #handlers: LinkHandlers | undefined;
  /** What is to be done, one after the other. Never rejects. */
  #chain: Promise<void> = Promise.resolve();
  #open: Open | undefined;
  #writer: SeedWriter | undefined;
  #complete = false;
  #end: { readonly error: ReplicationError | undefined } | undefined;
  #waitingBytes = 0;

  constructor(options: SeedTargetOptions) {
    this.#o = options;
    this.peer = { name: "the folder", address: options.directory, fingerprint: "", ownAuthority: true };
  }

  get bytesQueued(): number {
    return this.#waitingBytes;
  }

  get bytesSent(): number {
    return this.#writer?.bytes ?? 0;
  }

  get bytesReceived(): number {
    return 0;
  }

  /** A folder does not fall silent: its calls return or fail. */
  get lastReceived(): number {
    return this.#o.clock.monotonic();
  }

  start(handlers: LinkHandlers): void {
    this.#handlers = handlers;
  }

  send(message: Message): boolean {
    // The sender's last word comes to a link that has ended, too.
    if (this.#end !== undefined) return false;
    this.#queue(() => this.#take(message)).catch(() => {
      // The end of the link tells it.
    });
    return true;
  }

  sendFrame(frame: Uint8Array): Promise<void> {
    if (this.#end !== undefined) return Promise.reject(this.#overError());
    this.#waitingBytes += frame.length;
    return this.#queue(() => this.#write(frame)).finally(() => {
      this.#waitingBytes -= frame.length;
    });
  }

  close(): Promise<void> {
    return this.#queue(() => {
      this.#finish(undefined);
      return Promise.resolve();
    }).catch(() => {
      // It has ended already, with an error the session knows.
    });
  }

  destroy(error: ReplicationError): void {
    this.#finish(error);
  }

  settled(): Promise<void> {
    return this.#chain;
  }

  /** The promise is the work's own; the chain goes on whatever becomes of it. */
  #queue(work: () => Promise<void>): Promise<void> {
    const task = this.#chain.then(async () => {
      if (this.#end !== undefined) throw this.#overError();
      try {
        await work();
      } catch (thrown) {
        const error = toReplicationError(thrown);
        this.#finish(error);
        throw error;
      }
    });
    this.#chain = task.catch(() => {
      // Told to who asked for it, and by the end of the link.
    });
    return task;
  }

  async #take(message: Message): Promise<void> {
    switch (message.type) {
      case "hello": {
        if (message.join !== undefined)
          throw new ReplicationError("protocol-violation", "a folder takes one connection");
        this.#deliver(answer(message, { software: this.#o.software, instance: "folder" }).hello);
        return;
      }
      case "open":
        await this.#begin(message);
        return;
      case "zero":
        await this.#write(encodeFrame(message));
        return;
      case "commit":
        await this.#commit(message);
        return;
      case "error":
        this.#finish(undefined);
        return;
      case "heartbeat":
      case "bye":
        return;
      default:
        throw new ReplicationError(
          "protocol-violation",
          `a folder that holds an empty disk is not asked (${message.type})`,
        );
    }
  }

  async #begin(asked: Open): Promise<void> {
    const { storage, log, directory, overwrite = false, partBytes, codecs } = this.#o;
    // Written out: what a receiver takes for the default may be another one by then.
    const open: Open = {
      ...asked,
      blockBytes: asked.blockBytes ?? BLOCK_BYTES_DEFAULT,
      digestKind: asked.digestKind ?? "xxh64",
      explicit: true,
    };
    const { disk, cycle: run, sizeBytes, blockBytes = BLOCK_BYTES_DEFAULT, digestKind = "xxh64" } = open;
    this.#writer = await SeedWriter.create({ storage, log, directory, overwrite, partBytes, disk, run });
    this.#open = open;
    await this.#writer.append(encodeFrame(open));
    this.#deliver({
      type: "opened",
      fresh: true,
      sizeBytes,
      blockBytes,
      digestKind,
      empty: true,
      anotherSource: false,
      resumeBlock: 0,
      generation: run,
      term: 1,
      credit: limits.creditFramesDefault,
      codecs,
    });
  }

  /** A data or zero frame. */
  async #write(frame: Uint8Array): Promise<void> {
    if (this.#writer === undefined) throw new ReplicationError("protocol-violation", "content comes after open");
    await this.#writer.append(frame);
    this.#deliver({ type: "grant", frames: 1 });
  }

  async #commit(commit: Commit): Promise<void> {
    const { codecs } = this.#o;
    const writer = this.#writer;
    const open = this.#open;
    if (writer === undefined || open === undefined)
      throw new ReplicationError("protocol-violation", "a commit comes after open");
    this.#deliver({ type: "heartbeat", bytes: 0, phase: "sync" });
    await writer.append(encodeFrame(commit));
    const { time, label, consistency, sizeBytes, root, cycle } = commit;
    await writer.finish({
      sizeBytes,
      blockBytes: open.blockBytes ?? BLOCK_BYTES_DEFAULT,
      digestKind: open.digestKind ?? "xxh64",
      root: Buffer.from(root).toString("hex"),
      time,
      label,
      consistency,
      sourceName: open.sourceName,
      codecs,
    });
    this.#complete = true;
    this.#deliver({ type: "durable", point: 0, root, cycle, created: false });
  }

  #deliver(message: Message): void {
    if (this.#end !== undefined) return;
    // A throw is the work's failure, and so ends the link.
    this.#handlers?.onFrame({ message, payload: new Uint8Array(0), frameBytes: 0 });
  }

  #finish(error: ReplicationError | undefined): void {
    if (this.#end !== undefined) return;
    this.#end = { error };
    // Behind what is being written, and before anybody is told that the folder is left alone.
    this.#chain = this.#chain.then(() => (this.#complete ? undefined : this.#writer?.discard()));
    const handlers = this.#handlers;
    void Promise.resolve().then(() => {
      handlers?.onEnd(error);
    });
  }

  #overError(): ReplicationError {
    return this.#end?.error ?? new ReplicationError("connection-lost", `the copy to ${this.#o.directory} has ended`);
  }
}
