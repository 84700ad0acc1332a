/** Two byte streams that are each other's peer, in memory: what one writes the other receives, in promise jobs. */
import { invariant, ReplicationError, toReplicationError } from "../base/errors.ts";
import { KIB } from "../base/units.ts";
import type { ByteSink, ByteStream } from "../transport/byte-stream.ts";

export interface LinkedStreams {
  readonly client: ByteStream;
  readonly server: ByteStream;
}

export interface LinkedStreamsOptions {
  /** Bytes delivered at a time at most; default 64 KiB. */
  readonly chunkBytes?: number;
}

export function createLinkedStreams(options: LinkedStreamsOptions = {}): LinkedStreams {
  const chunkBytes = options.chunkBytes ?? 64 * KIB;
  invariant(chunkBytes > 0, "bytes are delivered in chunks of some size");
  const client = new LinkedStream("linked:server", chunkBytes);
  const server = new LinkedStream("linked:client", chunkBytes);
  client.join(server);
  server.join(client);
  return { client, server };
}

interface Piece {
  readonly bytes: Uint8Array;
  at: number;
  readonly taken: (() => void) | undefined;
}

class LinkedStream implements ByteStream {
  readonly peer: string;
  readonly identity = undefined;
  readonly #chunkBytes: number;
  #other: LinkedStream | undefined;
  #sink: ByteSink | undefined;
  /** What is on its way to the other end. */
  #queue: Piece[] = [];
  #queued = 0;
  #paused = false;
  #closing = false;
  #ending: { readonly error: ReplicationError | undefined } | undefined;
  #running = false;

  constructor(peer: string, chunkBytes: number) {
    this.peer = peer;
    this.#chunkBytes = chunkBytes;
  }

  join(other: LinkedStream): void {
    this.#other = other;
  }

  get bytesQueued(): number {
    return this.#queued;
  }

  receive(sink: ByteSink): void {
    this.#sink = sink;
    const ending = this.#ending;
    if (ending !== undefined) queueMicrotask(() => sink.ended(ending.error));
    this.#other?.wake();
  }

  write(parts: readonly Uint8Array[], taken?: () => void): void {
    if (this.#ending !== undefined || this.#closing) return;
    for (const [index, bytes] of parts.entries()) {
      this.#queue.push({ bytes, at: 0, taken: index === parts.length - 1 ? taken : undefined });
      this.#queued += bytes.length;
    }
    this.wake();
  }

  pause(): void {
    this.#paused = true;
  }

  resume(): void {
    this.#paused = false;
    this.#other?.wake();
  }

  close(): void {
    this.#closing = true;
    this.wake();
  }

  destroy(error?: ReplicationError): void {
    if (this.#ending !== undefined) return;
    this.#end(error);
    this.#queue = [];
    const lost = new ReplicationError("connection-lost", `${this.peer}, session: the other side reset the connection`);
    queueMicrotask(() => this.#other?.destroy(lost));
  }

  wake(): void {
    if (this.#running) return;
    this.#running = true;
    void this.#run();
  }

  get #reading(): boolean {
    return this.#sink !== undefined && !this.#paused && this.#ending === undefined;
  }

  async #run(): Promise<void> {
    do await Promise.resolve();
    while (this.#step());
    this.#running = false;
  }

  /** Delivers one chunk; false when there is nothing to do until the next `wake`. */
  #step(): boolean {
    const other = this.#other;
    if (this.#ending !== undefined || other === undefined) return false;
    const piece = this.#queue[0];
    if (piece === undefined) {
      if (this.#closing) {
        this.#end(undefined);
        other.#peerEnded();
      }
      return false;
    }
    if (!other.#reading) return false;
    const count = other.#take(piece.bytes.subarray(piece.at, piece.at + this.#chunkBytes));
    piece.at += count;
    this.#queued -= count;
    if (piece.at === piece.bytes.length) {
      this.#queue.shift();
      piece.taken?.();
    }
    return true;
  }

  #take(bytes: Uint8Array): number {
    if (bytes.length === 0) return 0;
    const room = this.#sink?.room() ?? bytes;
    const count = Math.min(room.length, bytes.length);
    room.set(bytes.subarray(0, count));
    try {
      this.#sink?.filled(count);
    } catch (thrown) {
      this.destroy(toReplicationError(thrown));
    }
    return count;
  }

  #peerEnded(): void {
    this.#end(undefined);
  }

  #end(error: ReplicationError | undefined): void {
    if (this.#ending !== undefined) return;
    this.#ending = { error };
    const sink = this.#sink;
    if (sink !== undefined) queueMicrotask(() => sink.ended(error));
  }
}
