/**
 * One client of a server, past its negotiation. Requests of an export that is a plain file are served at once, many for each piece that is received, and their replies leave
 * together; all else is under way side by side. What a client can make this process hold is bounded: see the `server` limits.
 */
import { ReplicationError, toReplicationError } from "../base/errors.ts";
import { settleAll } from "../base/gate.ts";
import type { ByteSink, ByteStream } from "../transport/byte-stream.ts";
import type { ExportedDisk } from "./exported-disk.ts";
import type { MemoryBudget } from "./memory-budget.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { commandFlags, commands } from "./protocol.ts";
import { contentHeadBytes, encodeContentHead, ReplyWriter } from "./reply-writer.ts";
import { refuseRequest } from "./request-check.ts";
import { type Cookie, decodeRequest, type ReadRequest, requestHeadBytes } from "./request-codec.ts";
import { answerStatus } from "./served-status.ts";
import { failureOf } from "./served-errors.ts";
import type { Admitted } from "./server-negotiation.ts";
import type { Incoming, Outgoing } from "./transfers.ts";
import { violation } from "./violation.ts";

export interface ServerConnectionOptions {
  readonly admitted: Admitted;
  readonly budget: MemoryBudget;
  /** Something of the disk failed: for the log. The client has been told. */
  readonly onTrouble: (error: unknown) => void;
  /** Once, when nothing of the connection is under way any more. Undefined: the client left. */
  readonly onEnd: (error: ReplicationError | undefined) => void;
}

/** Kept free in the landing while it is full and reading is paused: what the system had read already comes all the same. */
const reserveBytes = 64 * 1024;
const pageBytes = 4_096;

export class ServerConnection implements ByteSink {
  readonly #o: ServerConnectionOptions;
  readonly #disk: ExportedDisk;
  readonly #stream: ByteStream;
  readonly #replies: ReplyWriter;
  readonly #facts;
  readonly #request: ReadRequest = { command: 0, flags: 0, high: 0, low: 0, offset: 0, length: 0 };
  readonly #landing = Buffer.allocUnsafeSlow(nbdLimits.serverLandingBytes);
  #start = 0;
  #end = 0;
  #incoming: Incoming | undefined;
  #outgoing: Outgoing | undefined;
  #underWay = 0;
  #held = 0;
  #paused = false;
  /** Of the last look: the disk or the client must give something back first. */
  #blocked = false;
  #working = false;
  /** No more requests are taken. */
  #leaving = false;
  #ending: { readonly error: ReplicationError | undefined } | undefined;
  #reported = false;

  /** Takes the stream over. */
  constructor(options: ServerConnectionOptions) {
    const { stream, disk, structured, contexts } = options.admitted;
    this.#o = options;
    this.#disk = disk;
    this.#stream = stream;
    this.#replies = new ReplyWriter(stream, structured, () => this.#goOn());
    const { sizeBytes, writer, file } = disk;
    const cacheable = file !== undefined;
    this.#facts = { sizeBytes, writable: writer !== undefined, cacheable, structured, contexts: contexts.size };
    const ahead = options.admitted.ahead();
    this.#landing.set(ahead);
    this.#end = ahead.length;
    stream.receive(this);
    this.#goOn();
  }

  room(): Uint8Array {
    const piece = this.#incoming?.piece;
    if (piece !== undefined && this.#start === this.#end) return piece.subarray(this.#incoming?.pieceFilled);
    const usable = this.#landing.length - reserveBytes;
    return this.#landing.subarray(this.#end, this.#end < usable ? usable : undefined);
  }

  filled(count: number): void {
    const incoming = this.#incoming;
    if (incoming?.piece !== undefined && this.#start === this.#end) incoming.pieceFilled += count;
    else this.#end += count;
    this.#work();
  }

  ended(error: ReplicationError | undefined): void {
    this.#ending ??= { error };
    this.#leaving = true;
    this.#report();
  }

  /** Finishes what is under way, then ends the connection. */
  leave(): void {
    this.#leaving = true;
    this.#report();
  }

  #report(): void {
    if (!this.#leaving || this.#underWay > 0 || this.#reported) return;
    this.#reported = true;
    this.#replies.flush();
    this.#stream.close();
    // Of replies that were queued when the stream died, and of a write that broke off, nothing more is heard.
    this.#o.budget.give(this.#held);
    this.#o.onEnd(this.#ending?.error);
  }

  /** Goes on after something was given back. */
  #goOn(): void {
    if (this.#working) return;
    try {
      this.#work();
    } catch (thrown) {
      this.#stream.destroy(toReplicationError(thrown));
    }
  }

  #work(): void {
    this.#working = true;
    this.#blocked = false;
    try {
      while (!this.#leaving && this.#step());
    } finally {
      this.#working = false;
      this.#landing.copyWithin(0, this.#start, this.#end);
      this.#end -= this.#start;
      this.#start = 0;
      this.#replies.flush();
    }
    if (this.#paused && !this.#blocked && !this.#leaving) {
      this.#paused = false;
      this.#stream.resume();
    }
    this.#report();
  }

  /** False: something must come first, from the client or from the disk. */
  #step(): boolean {
    const { backlog } = this.#replies;
    if (backlog > nbdLimits.serverBacklogBytesMax || this.#underWay >= nbdLimits.serverRequestsMax)
      return this.#block();
    if (this.#outgoing !== undefined) return this.#readOn(this.#outgoing);
    if (this.#incoming !== undefined) return this.#writeOn(this.#incoming);
    if (this.#end - this.#start < requestHeadBytes) return false;
    const request = this.#request;
    decodeRequest(this.#landing, this.#start, request);
    this.#start += requestHeadBytes;
    this.#begin(request);
    return true;
  }

  /** Reads nothing more until something was given back. */
  #block(): false {
    this.#blocked = true;
    if (!this.#paused) {
      this.#paused = true;
      this.#stream.pause();
    }
    return false;
  }

  #begin(request: ReadRequest): void {
    const { command, flags, high, low, offset, length } = request;
    if (command === commands.disconnect) {
      this.#leaving = true;
      return;
    }
    const refusal = refuseRequest(request, this.#facts);
    if (command === commands.write) {
      if (length > nbdLimits.requestBytesDefault) throw violation(`a write of ${length} bytes`);
      this.#incoming = {
        high,
        low,
        flags,
        offset,
        left: length,
        refusal,
        piece: undefined,
        pieceFilled: 0,
        writes: [],
      };
    } else if (refusal !== undefined) this.#replies.error({ high, low }, refusal.error, refusal.text);
    else if (command === commands.read) {
      if (length === 0) this.#replies.end({ high, low });
      else this.#outgoing = { high, low, offset, left: length, first: true, reads: [] };
    } else if (command === commands.flush) this.#run({ high, low }, () => this.#disk.flush());
    else if (command === commands.blockStatus) this.#status({ high, low }, offset, length, flags);
    else if (command === commands.cache) {
      const { file } = this.#disk;
      file?.lanes.readAhead(file.fd, offset, length);
      this.#replies.end({ high, low });
    } else {
      this.#run({ high, low }, async () => {
        await this.#disk.zero(offset, length, (flags & commandFlags.noHole) !== 0);
        if ((flags & commandFlags.fua) !== 0) await this.#disk.flush();
      });
    }
  }

  // Reads -----------------------------------------------------------------------------------------------------------

  #readOn(outgoing: Outgoing): boolean {
    const { structured } = this.#replies;
    const { file } = this.#disk;
    // Without chunks the whole content follows one head; read piece by piece it could come out of order.
    const whole = file === undefined && !structured;
    const length = whole ? outgoing.left : Math.min(outgoing.left, nbdLimits.serverPieceBytes);
    if (file === undefined) return this.#readBeside(outgoing, length);
    const head = structured || outgoing.first ? contentHeadBytes(structured) : 0;
    const room = this.#replies.room(head + length);
    const last = length === outgoing.left;
    try {
      const count = file.lanes.read(file.fd, room.subarray(head), outgoing.offset);
      if (count < length)
        throw new ReplicationError("image-truncated", `the file of ${this.#disk.name} became shorter`);
    } catch (error) {
      this.#outgoing = undefined;
      this.#fail(outgoing, error, structured || outgoing.first);
      return true;
    }
    if (head > 0) encodeContentHead(outgoing, { offset: outgoing.offset, length, done: last }, structured, room);
    this.#replies.commit(room.length);
    outgoing.first = false;
    outgoing.offset += length;
    outgoing.left -= length;
    if (last) this.#outgoing = undefined;
    return true;
  }

  /** A piece through the image, beside other requests. */
  #readBeside(outgoing: Outgoing, length: number): boolean {
    if (!this.#hold(length)) return false;
    const { structured } = this.#replies;
    const { offset, reads } = outgoing;
    const cookie = { high: outgoing.high, low: outgoing.low };
    const alone = outgoing.first && length === outgoing.left;
    outgoing.first = false;
    outgoing.offset += length;
    outgoing.left -= length;
    const head = contentHeadBytes(structured);
    const bytes = Buffer.allocUnsafe(head + length);
    const read = async (): Promise<void> => {
      this.#underWay++;
      try {
        await this.#disk.image.read(bytes.subarray(head), offset);
        this.#underWay--;
      } catch (error) {
        // Before the memory: giving it back looks whether anything is under way.
        this.#underWay--;
        this.#release(length);
        throw error;
      }
      encodeContentHead(cookie, { offset, length, done: alone }, structured, bytes);
      if (this.#ending !== undefined) this.#release(length);
      else this.#replies.send(bytes, () => this.#release(length));
    };
    const reading = read();
    // Looked at below, when all are there.
    reading.catch(() => undefined);
    reads.push(reading);
    if (outgoing.left > 0) return true;
    this.#outgoing = undefined;
    this.#run(cookie, () => settleAll(reads), alone ? () => undefined : () => this.#replies.end(cookie));
    return true;
  }

  // Writes ----------------------------------------------------------------------------------------------------------

  #writeOn(incoming: Incoming): boolean {
    if (incoming.left === 0) {
      this.#incoming = undefined;
      this.#written(incoming);
      return true;
    }
    const { file } = this.#disk;
    if (incoming.refusal === undefined && (file === undefined || incoming.piece !== undefined)) {
      return this.#writeBeside(incoming);
    }
    const had = Math.min(this.#end - this.#start, incoming.left);
    const { refusal } = incoming;
    let count = had;
    if (refusal === undefined && had < incoming.left) {
      // Whole pages, and not too few of them: a part of one would have to be read before it is written.
      if (had < nbdLimits.serverLandingBytes / 4) return false;
      count -= (incoming.offset + had) % pageBytes;
    }
    if (count <= 0) return false;
    if (refusal === undefined) {
      if (file?.mayWriteNow?.(incoming.offset, count) === false) return this.#writeBeside(incoming);
      this.#writeNow(incoming, count);
    }
    this.#start += count;
    incoming.offset += count;
    incoming.left -= count;
    return true;
  }

  #writeNow(incoming: Incoming, count: number): void {
    const { file } = this.#disk;
    try {
      this.#disk.checkSound();
      file?.lanes.write(file.fd, this.#landing.subarray(this.#start, this.#start + count), incoming.offset);
    } catch (error) {
      this.#o.onTrouble(error);
      incoming.refusal = failureOf(error);
    }
  }

  /** Gathers a piece in memory of its own, and writes it through the image beside other requests. */
  #writeBeside(incoming: Incoming): boolean {
    const length = Math.min(incoming.left, nbdLimits.serverPieceBytes);
    if (incoming.piece === undefined) {
      if (!this.#hold(length)) return false;
      incoming.piece = Buffer.allocUnsafe(length);
      incoming.pieceFilled = 0;
    }
    const { piece, offset } = incoming;
    const count = Math.min(this.#end - this.#start, piece.length - incoming.pieceFilled);
    this.#landing.copy(piece, incoming.pieceFilled, this.#start, this.#start + count);
    this.#start += count;
    incoming.pieceFilled += count;
    if (incoming.pieceFilled < piece.length) return false;
    incoming.piece = undefined;
    incoming.offset += length;
    incoming.left -= length;
    const writing = this.#writePiece(piece, offset);
    // Looked at when all are there.
    writing.catch(() => undefined);
    incoming.writes.push(writing);
    return true;
  }

  async #writePiece(piece: Buffer, offset: number): Promise<void> {
    this.#underWay++;
    try {
      await this.#disk.write(piece, offset);
    } finally {
      this.#underWay--;
      this.#release(piece.length);
    }
  }

  /** All content of a write is there. */
  #written({ high, low, flags, refusal, writes }: Incoming): void {
    const cookie = { high, low };
    const durable = (flags & commandFlags.fua) !== 0;
    if (refusal !== undefined) this.#replies.error(cookie, refusal.error, refusal.text);
    else if (writes.length === 0 && !durable) this.#replies.done(cookie);
    else {
      this.#run(cookie, async () => {
        await settleAll(writes);
        if (durable) await this.#disk.flush();
      });
    }
  }

  // Beside ----------------------------------------------------------------------------------------------------------

  #status(cookie: Cookie, offset: number, length: number, flags: number): void {
    const { contexts } = this.#o.admitted;
    const one = (flags & commandFlags.requestOne) !== 0;
    const answer = (): Promise<void> => answerStatus({ replies: this.#replies, cookie, contexts, offset, length, one });
    this.#run(cookie, answer, () => undefined);
  }

  /** Work of one request beside others; `onDone` replies. */
  #run(cookie: Cookie, work: () => Promise<void>, onDone = (): void => this.#replies.done(cookie)): void {
    this.#underWay++;
    work()
      .then(onDone, (error: unknown) => this.#fail(cookie, error, true))
      .catch((thrown: unknown) => this.#stream.destroy(toReplicationError(thrown)))
      .finally(() => {
        this.#underWay--;
        this.#replies.flush();
        this.#goOn();
      });
  }

  /** `tellable`: false where a reply has begun that cannot be taken back. */
  #fail(cookie: Cookie, error: unknown, tellable: boolean): void {
    this.#o.onTrouble(error);
    const { error: number, text } = failureOf(error);
    if (tellable) this.#replies.error(cookie, number, text);
    else throw toReplicationError(error);
  }

  /** False: no memory for so much content now; goes on when there is. */
  #hold(bytes: number): boolean {
    const none = this.#held === 0;
    const { budget } = this.#o;
    if (!none && this.#held + bytes > nbdLimits.serverHeldBytesMax) return this.#block();
    if (!budget.take(bytes, none)) {
      budget.whenFreed(() => this.#goOn());
      return this.#block();
    }
    this.#held += bytes;
    return true;
  }

  #release(bytes: number): void {
    // All was given back.
    if (this.#reported) return;
    this.#held -= bytes;
    this.#o.budget.give(bytes);
    this.#goOn();
  }
}
