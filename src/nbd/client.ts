/** An export of an NBD server as a disk image: {@link BlockReader}, and {@link BlockWriter} where it may be written. */
import { type Clock, systemClock } from "../base/clock.ts";
import { invariant, ReplicationError } from "../base/errors.ts";
import { Gate } from "../base/gate.ts";
import { limits } from "../base/limits.ts";
import { type Logger, silentLogger } from "../base/logger.ts";
import { KIB } from "../base/units.ts";
import type { BlockReader, BlockWriter, Extent } from "../image/block-device.ts";
import { checkRange } from "../image/range.ts";
import { requestError } from "./client-errors.ts";
import { ClientPool } from "./client-pool.ts";
import type { NbdTarget } from "./client-connect.ts";
import { formatNbdUri } from "./nbd-uri.ts";
import { nbdLimits } from "./nbd-limits.ts";
import type { Answer, Asked } from "./pending-requests.ts";
import {
  allocationBits,
  allocationContext,
  commandFlags,
  commands,
  dirtyBit,
  errors,
  exportFlags,
} from "./protocol.ts";
import { statusRanges } from "./status-ranges.ts";

export interface OpenNbdOptions extends Omit<NbdTarget, "clock"> {
  /** Default: the system's. */
  readonly clock?: Clock;
  readonly log?: Logger;
  /** Ends the opening, not what is open. */
  readonly signal?: AbortSignal;
}

/** A stretch of a disk, in bytes. */
export interface DirtyRange {
  readonly offset: number;
  readonly length: number;
}

export interface NbdReader extends BlockReader {
  /** The canonical address: the same for the same export. */
  readonly name: string;
  /** The server lets nobody write to this export through this connection. */
  readonly isReadOnly: boolean;
  /** Contexts the server has of those asked for, `base:allocation` included. */
  readonly contexts: readonly string[];
  /**
   * Stretches of the range that a `qemu:dirty-bitmap:NAME` context calls dirty: ascending, apart from each other, cut to the range. Asked as they are
   * consumed. The context is one of {@link contexts}, else an InvariantError.
   */
  dirtyExtents(context: string, offset: number, length: number): AsyncIterable<DirtyRange>;
}

export interface NbdWriter extends NbdReader, BlockWriter {
  /** Like `write`, and durable when it resolves. */
  writeDurably(source: Uint8Array, offset: number): Promise<void>;
  /** The content of the range is of no use any more: what it reads as afterwards is not known. Does nothing where the server has no such thing. */
  trim(offset: number, length: number): Promise<void>;
}

/**
 * Opens an export for reading. Connections that are lost are made again by the next call, while the export stays the same. Errors: of `connectNbd`, and `limit-exceeded` for a
 * disk of more than 64 TiB. Those of reads: `connection-lost`, `connect-failed`, `peer-silent` (to be tried again), `image-unreadable` when the server says so,
 * `image-changed` when the export is another one after a new connection, `protocol-violation`.
 */
export async function openNbdReader(options: OpenNbdOptions): Promise<NbdReader> {
  return new NbdImage(options.address, await openPool(options, true));
}

/**
 * Opens an export for writing, else as {@link openNbdReader}. `not-allowed` for a read-only one. A connection that is lost may take with it what was not flushed: every
 * call after that fails.
 */
export async function openNbdWriter(options: OpenNbdOptions): Promise<NbdWriter> {
  const pool = await openPool(options, false);
  const image = new NbdImage(options.address, pool);
  if (!image.isReadOnly) return image;
  await image.close();
  throw new ReplicationError("not-allowed", `${image.name}: the server exports it read-only`);
}

async function openPool(options: OpenNbdOptions, reconnects: boolean): Promise<ClientPool> {
  const { clock = systemClock, log = silentLogger, contexts = [], signal } = options;
  invariant(contexts.length < nbdLimits.contextsMax, "a few contexts are asked for");
  const pool = await ClientPool.open({ ...options, clock, log, reconnects }, [allocationContext, ...contexts], signal);
  const { sizeBytes } = pool.facts.info;
  if (sizeBytes <= limits.diskBytesMax) return pool;
  await pool.close();
  throw new ReplicationError(
    "limit-exceeded",
    `${formatNbdUri(options.address)}: it has ${sizeBytes} bytes; disks have at most ${limits.diskBytesMax} (64 TiB)`,
  );
}

/** Of a request without content: a length has 32 bits. */
const longRequestBytes = 2 ** 32 - 64 * KIB;

class NbdImage implements NbdWriter {
  readonly name: string;
  readonly sizeBytes: number;
  readonly sectorBytes: 512 | 4096;
  readonly isReadOnly: boolean;
  readonly contexts: readonly string[];
  readonly #pool: ClientPool;
  /** Bytes of content in one request, a multiple of the block. */
  readonly #pieceBytes: number;
  /** Offsets and lengths of requests are multiples of it. */
  readonly #blockBytes: number;
  /** One change of a part of a block at a time: each is a read and a write. */
  readonly #patching = new Gate(1);
  #zeroesByWriting: boolean;

  constructor(address: NbdTarget["address"], pool: ClientPool) {
    const { info, blocks, contexts } = pool.facts;
    this.name = formatNbdUri(address);
    this.#pool = pool;
    this.#blockBytes = blocks.minimum;
    // By the protocol a size that is no multiple of the block ends where its last whole block does.
    this.sizeBytes = info.sizeBytes - (info.sizeBytes % blocks.minimum);
    this.sectorBytes = blocks.minimum === 4096 ? 4096 : 512;
    this.isReadOnly = this.#can(exportFlags.readOnly);
    this.contexts = [...contexts.keys()];
    const piece = Math.min(blocks.maximum, nbdLimits.clientRequestBytesMax);
    this.#pieceBytes = piece - (piece % blocks.minimum);
    this.#zeroesByWriting = !this.#can(exportFlags.writeZeroes);
  }

  async read(target: Uint8Array, offset: number): Promise<void> {
    checkRange(this.sizeBytes, offset, target.length);
    const head = offset % this.#blockBytes;
    const tail = -(offset + target.length) & (this.#blockBytes - 1);
    if (head === 0 && tail === 0) {
      await this.#inPieces(offset, target.length, (at, length) =>
        this.#ask({ command: commands.read, flags: 0, offset: at, length, target: part(target, at - offset, length) }),
      );
      return;
    }
    const whole = new Uint8Array(head + target.length + tail);
    await this.read(whole, offset - head);
    target.set(whole.subarray(head, head + target.length));
  }

  async *extents(offset: number, length: number): AsyncGenerator<Extent, void, undefined> {
    checkRange(this.sizeBytes, offset, length);
    if (!this.contexts.includes(allocationContext)) {
      if (length > 0) yield { kind: "data", offset, length };
      return;
    }
    for await (const range of this.#statuses(allocationContext, offset, length)) {
      yield { kind: kindOf(range.flags), offset: range.offset, length: range.length };
    }
  }

  async *dirtyExtents(context: string, offset: number, length: number): AsyncGenerator<DirtyRange, void, undefined> {
    invariant(this.contexts.includes(context), "a context that was asked for, and that the server has");
    checkRange(this.sizeBytes, offset, length);
    let last: { offset: number; length: number } | undefined;
    for await (const range of this.#statuses(context, offset, length)) {
      if ((range.flags & dirtyBit) === 0) continue;
      if (last !== undefined && last.offset + last.length === range.offset) last.length += range.length;
      else {
        if (last !== undefined) yield last;
        last = { offset: range.offset, length: range.length };
      }
    }
    if (last !== undefined) yield last;
  }

  async write(source: Uint8Array, offset: number): Promise<void> {
    await this.#write(source, offset, 0);
  }

  async writeDurably(source: Uint8Array, offset: number): Promise<void> {
    if (this.#can(exportFlags.fua)) return await this.#write(source, offset, commandFlags.fua);
    await this.#write(source, offset, 0);
    await this.flush();
  }

  async zero(offset: number, length: number): Promise<void> {
    checkRange(this.sizeBytes, offset, length);
    const block = this.#blockBytes;
    const start = Math.min(Math.ceil(offset / block) * block, offset + length);
    const end = Math.max(Math.floor((offset + length) / block) * block, start);
    await this.#writeZeros(offset, start - offset);
    await this.#zeroBlocks(start, end - start);
    await this.#writeZeros(end, offset + length - end);
  }

  async trim(offset: number, length: number): Promise<void> {
    checkRange(this.sizeBytes, offset, length);
    if (!this.#can(exportFlags.trim)) return;
    const block = this.#blockBytes;
    const start = Math.ceil(offset / block) * block;
    const end = Math.floor((offset + length) / block) * block;
    for (let at = start; at < end; at += longRequestBytes) {
      await this.#ask({ command: commands.trim, flags: 0, offset: at, length: Math.min(longRequestBytes, end - at) });
    }
  }

  async flush(): Promise<void> {
    if (this.#can(exportFlags.flush)) await this.#ask({ command: commands.flush, flags: 0, offset: 0, length: 0 });
    // Without it nothing can be flushed, but that the server is there can be told.
    else await this.#pool.take();
  }

  close(): Promise<void> {
    return this.#pool.close();
  }

  #can(flag: number): boolean {
    return (this.#pool.facts.info.flags & flag) !== 0;
  }

  async #write(source: Uint8Array, offset: number, flags: number): Promise<void> {
    checkRange(this.sizeBytes, offset, source.length);
    const head = offset % this.#blockBytes;
    const tail = -(offset + source.length) & (this.#blockBytes - 1);
    if (head === 0 && tail === 0) {
      await this.#inPieces(offset, source.length, (at, length) =>
        this.#ask({ command: commands.write, flags, offset: at, length, source: part(source, at - offset, length) }),
      );
      return;
    }
    const whole = new Uint8Array(head + source.length + tail);
    await this.#patching.enter();
    try {
      await this.read(whole, offset - head);
      whole.set(source, head);
      await this.#write(whole, offset - head, flags);
    } finally {
      this.#patching.leave();
    }
  }

  /** Whole blocks. Falls back to writing when the server does not do it after all. */
  async #zeroBlocks(offset: number, length: number): Promise<void> {
    const end = offset + length;
    for (let at = offset; at < end; at += longRequestBytes) {
      const count = Math.min(longRequestBytes, end - at);
      if (this.#zeroesByWriting) {
        await this.#writeZeros(at, count);
        continue;
      }
      const asked = { command: commands.writeZeroes, flags: 0, offset: at, length: count };
      const { failure } = await this.#request(asked);
      if (failure === undefined) continue;
      if (failure.error !== errors.notSupported && failure.error !== errors.invalid) {
        throw requestError({ name: this.name, ...asked }, failure);
      }
      await this.#writeZeros(at, count);
      this.#zeroesByWriting = true;
    }
  }

  async #writeZeros(offset: number, length: number): Promise<void> {
    if (length === 0) return;
    const zeros = new Uint8Array(Math.min(length, this.#pieceBytes));
    for (let at = 0; at < length; at += zeros.length) {
      await this.#write(zeros.subarray(0, length - at), offset + at, 0);
    }
  }

  /** All pieces of a range at once; waits for all, then throws the first failure: nothing uses the memory afterwards. */
  async #inPieces(
    offset: number,
    length: number,
    work: (offset: number, length: number) => Promise<unknown>,
  ): Promise<void> {
    if (length === 0) return;
    if (length <= this.#pieceBytes) {
      await work(offset, length);
      return;
    }
    const pieces: Promise<unknown>[] = [];
    for (let at = 0; at < length; at += this.#pieceBytes) {
      pieces.push(work(offset + at, Math.min(this.#pieceBytes, length - at)));
    }
    for (const result of await Promise.allSettled(pieces)) {
      if (result.status === "rejected") throw result.reason;
    }
  }

  async *#statuses(context: string, offset: number, length: number) {
    const id = this.#pool.facts.contexts.get(context);
    const block = this.#blockBytes;
    const end = offset + length;
    const asksTo = Math.ceil(end / block) * block;
    let position = offset;
    while (position < end) {
      const at = position - (position % block);
      const asked = {
        command: commands.blockStatus,
        flags: 0,
        offset: at,
        length: Math.min(longRequestBytes, asksTo - at),
      };
      const { statuses } = await this.#ask(asked);
      const status = statuses.find((each) => each.id === id);
      if (status === undefined) {
        throw new ReplicationError("protocol-violation", `${this.name}: a block status without ${context}`);
      }
      for (const range of statusRanges(status.descriptors, at)) {
        const from = Math.max(range.offset, position);
        const to = Math.min(range.offset + range.length, end);
        if (to <= from) continue;
        position = to;
        yield { offset: from, length: to - from, flags: range.flags };
      }
    }
  }

  async #ask(asked: Asked): Promise<Answer> {
    const answer = await this.#request(asked);
    if (answer.failure === undefined) return answer;
    throw requestError({ name: this.name, ...asked }, answer.failure);
  }

  async #request(asked: Asked): Promise<Answer> {
    return await (await this.#pool.take()).request(asked);
  }
}

function kindOf(flags: number): Extent["kind"] {
  if ((flags & allocationBits.zero) === 0) return "data";
  return (flags & allocationBits.hole) === 0 ? "zero" : "hole";
}

function part(bytes: Uint8Array, at: number, length: number): Uint8Array {
  return at === 0 && length === bytes.length ? bytes : bytes.subarray(at, at + length);
}
