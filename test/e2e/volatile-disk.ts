/**
 * A disk with a volatile write cache, as an NBD server on a Unix socket: what is written stays in memory until a flush. When the power fails, any
 * part of what was not flushed may be on the disk, and the rest is gone; a kill of QEMU alone loses nothing, since the host has everything by then.
 *
 * The protocol is the simple part of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed newstyle, one export, simple replies;
 * read, write, flush. FUA is not offered, so QEMU sends a write and a flush for it; nor are trim and write zeroes.
 */
import { closeSync, fstatSync, openSync, readSync, writeSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import type { Scope } from "./kit.ts";

const handshakeMagic = 0x4e42444d41474943n;
const optionMagic = 0x49484156454f5054n;
const optionReplyMagic = 0x3e889045565a9n;
const requestMagic = 0x25609513;
const replyMagic = 0x67446698;

const fixedNewstyle = 1;
const noZeroes = 2;
const optionExportName = 1;
const optionAbort = 2;
const optionInfo = 6;
const optionGo = 7;
const replyAck = 1;
const replyInfo = 3;
const replyUnsupported = 0x80000001;
const infoExport = 0;
/** Has flags, takes flushes. */
const exportFlags = 0x1 | 0x4;

const commandRead = 0;
const commandWrite = 1;
const commandDisconnect = 2;
const commandFlush = 3;
const errorInvalid = 22;

/** No request of QEMU is longer. */
const requestBytesMax = 32 << 20;

/** What is left of the writes that were not flushed. */
export interface Loss {
  /** Chance of each piece to be on the disk, 0 to 1. */
  readonly kept: number;
  /** Bytes of a piece, a multiple of 512; a write is cut at multiples of it on the disk. Infinity: each write is there or not, as a whole. */
  readonly grainBytes: number;
  /** 32 bits each. */
  readonly random: () => number;
}

export interface VolatileDisk {
  readonly socketPath: string;
  /** Writes and flushes carried out so far. */
  readonly changes: number;
  /** Bytes that were written, not flushed, and gone when the power failed, in all. */
  readonly lostBytes: number;
  /** Bytes written since the last flush. */
  readonly unflushedBytes: number;
  /**
   * Looks before each request that writes or flushes; the power fails at the first one for which `when` holds, before it is carried out. Replaces
   * what was asked for before. Resolves when the power has failed.
   */
  failWhen(when: (request: Change) => boolean, loss: Loss): Promise<void>;
  /** The power fails now. Nothing is answered from now on, until a new connection: the power is back. */
  fail(loss: Loss): void;
}

/** A request that changes something: a write has bytes, a flush has none. */
export interface Change {
  readonly bytes?: Buffer;
}

interface Write {
  readonly offset: number;
  readonly bytes: Buffer;
}

/** Serves the file, whose size is the disk's. Closed with the scope. */
export async function startVolatileDisk(scope: Scope, path: string, socketPath: string): Promise<VolatileDisk> {
  const fd = openSync(path, "r+");
  const sizeBytes = fstatSync(fd).size;
  /** In the order they came. */
  let unflushed: Write[] = [];
  let changes = 0;
  let lostBytes = 0;
  let connection: Socket | undefined;
  let armed: { readonly when: (request: Change) => boolean; readonly fail: () => void } | undefined;

  const fail = (loss: Loss): void => {
    connection?.destroy();
    connection = undefined;
    armed = undefined;
    for (const write of unflushed) lostBytes += write.bytes.length - keepSome(fd, write, loss);
    unflushed = [];
  };

  const carryOut = (request: Request): Buffer | number => {
    const { command, offset, length } = request;
    if (command !== commandFlush && offset + length > sizeBytes) return errorInvalid;
    if (command === commandRead) {
      const bytes = Buffer.alloc(length);
      readSync(fd, bytes, 0, length, offset);
      for (const write of unflushed) overlay(bytes, offset, write);
      return bytes;
    }
    if (command === commandWrite) unflushed.push({ offset, bytes: request.payload });
    else if (command === commandFlush) {
      for (const { offset: at, bytes } of unflushed) writeSync(fd, bytes, 0, bytes.length, at);
      unflushed = [];
    } else return errorInvalid;
    changes++;
    return 0;
  };

  /** Requests are carried out one after the other, each at once: a flush covers every write that was answered before it, and some more. */
  const serve = async (socket: Socket): Promise<void> => {
    const received = new Received(socket);
    await shakeHands(socket, received, sizeBytes);
    for (;;) {
      const request = await takeRequest(received);
      if (request.command === commandDisconnect) return;
      if (request.command === commandWrite && armed?.when({ bytes: request.payload }) === true) armed.fail();
      if (request.command === commandFlush && armed?.when({}) === true) armed.fail();
      // The power failed, just now or while we waited.
      if (socket !== connection) return;
      const answer = carryOut(request);
      const head = Buffer.alloc(16);
      head.writeUInt32BE(replyMagic);
      head.writeUInt32BE(typeof answer === "number" ? answer : 0, 4);
      request.handle.copy(head, 8);
      socket.write(head);
      if (typeof answer !== "number") socket.write(answer);
    }
  };

  const server = createServer((socket) => {
    connection?.destroy();
    connection = socket;
    socket.on("error", () => undefined);
    serve(socket)
      .catch(() => undefined)
      .finally(() => socket.destroy());
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(socketPath, resolve);
  });
  scope.onTestFinished(async () => {
    connection?.destroy();
    await new Promise((resolve) => server.close(resolve));
    closeSync(fd);
  });
  return {
    socketPath,
    get changes() {
      return changes;
    },
    get lostBytes() {
      return lostBytes;
    },
    get unflushedBytes() {
      return unflushed.reduce((sum, { bytes }) => sum + bytes.length, 0);
    },
    failWhen: (when, loss) =>
      new Promise((resolve) => {
        armed = {
          when,
          fail: () => {
            fail(loss);
            resolve();
          },
        };
      }),
    fail,
  };
}

/** Writes the pieces that made it to the disk, and returns their bytes. A later write of the same place comes later, whatever became of this one. */
function keepSome(fd: number, { offset, bytes }: Write, { kept, grainBytes, random }: Loss): number {
  let keptBytes = 0;
  for (let at = 0; at < bytes.length; ) {
    const boundary = (Math.floor((offset + at) / grainBytes) + 1) * grainBytes;
    const end = Number.isFinite(grainBytes) ? Math.min(bytes.length, boundary - offset) : bytes.length;
    if (random() / 2 ** 32 < kept) {
      writeSync(fd, bytes, at, end - at, offset + at);
      keptBytes += end - at;
    }
    at = end;
  }
  return keptBytes;
}

/** Lays what a write has of the range over what was read. */
function overlay(target: Buffer, offset: number, write: Write): void {
  const from = Math.max(offset, write.offset);
  const to = Math.min(offset + target.length, write.offset + write.bytes.length);
  if (from < to) write.bytes.copy(target, from - offset, from - write.offset, to - write.offset);
}

// Protocol ----------------------------------------------------------------------------------------------------------

interface Request {
  readonly command: number;
  readonly handle: Buffer;
  readonly offset: number;
  readonly length: number;
  /** Of a write. */
  readonly payload: Buffer;
}

/** What a connection has received, to be taken in exact lengths. */
class Received {
  #chunks: Buffer[] = [];
  #length = 0;
  #ended = false;
  #wake: () => void = () => undefined;

  constructor(socket: Socket) {
    socket.on("data", (chunk: Buffer) => {
      this.#chunks.push(chunk);
      this.#length += chunk.length;
      this.#wake();
    });
    socket.on("close", () => {
      this.#ended = true;
      this.#wake();
    });
  }

  /** Rejects when the connection ends before. One at a time. */
  async take(length: number): Promise<Buffer> {
    while (this.#length < length) {
      if (this.#ended) throw new Error("the connection has ended");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
    if (all === undefined) return Buffer.alloc(0);
    this.#chunks = [all.subarray(length)];
    this.#length -= length;
    return all.subarray(0, length);
  }
}

async function takeRequest(received: Received): Promise<Request> {
  const head = await received.take(28);
  const command = head.readUInt16BE(6);
  const length = head.readUInt32BE(24);
  if (head.readUInt32BE(0) !== requestMagic || length > requestBytesMax) throw new Error("not a request");
  return {
    command,
    handle: head.subarray(8, 16),
    offset: Number(head.readBigUInt64BE(16)),
    length,
    payload: await received.take(command === commandWrite ? length : 0),
  };
}

/** Resolves when requests may come. */
async function shakeHands(socket: Socket, received: Received, sizeBytes: number): Promise<void> {
  const hello = Buffer.alloc(18);
  hello.writeBigUInt64BE(handshakeMagic);
  hello.writeBigUInt64BE(optionMagic, 8);
  hello.writeUInt16BE(fixedNewstyle | noZeroes, 16);
  socket.write(hello);
  const wantsZeroes = ((await received.take(4)).readUInt32BE(0) & noZeroes) === 0;
  const facts = Buffer.alloc(10);
  facts.writeBigUInt64BE(BigInt(sizeBytes));
  facts.writeUInt16BE(exportFlags, 8);
  for (;;) {
    const head = await received.take(16);
    const option = head.readUInt32BE(8);
    const length = head.readUInt32BE(12);
    if (head.readBigUInt64BE(0) !== optionMagic || length > 65_536) throw new Error("not an option");
    await received.take(length);
    if (option === optionExportName) {
      socket.write(Buffer.concat([facts, Buffer.alloc(wantsZeroes ? 124 : 0)]));
      return;
    }
    if (option === optionGo || option === optionInfo) {
      const info = Buffer.alloc(2);
      info.writeUInt16BE(infoExport);
      socket.write(optionReply(option, replyInfo, Buffer.concat([info, facts])));
      socket.write(optionReply(option, replyAck));
      if (option === optionGo) return;
    } else if (option === optionAbort) {
      socket.end(optionReply(option, replyAck));
      throw new Error("the client went away");
    } else socket.write(optionReply(option, replyUnsupported));
  }
}

function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(20);
  head.writeBigUInt64BE(optionReplyMagic);
  head.writeUInt32BE(option, 8);
  head.writeUInt32BE(type, 12);
  head.writeUInt32BE(data.length, 16);
  return Buffer.concat([head, data]);
}
