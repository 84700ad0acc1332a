/** Requests as bytes and back. Pure; nothing is allocated for a request that is read. */
import { magics } from "./protocol.ts";
import { violation } from "./violation.ts";

export const requestHeadBytes = 28;

/** Names a request until its last reply: two halves of 64 bits, which are the client's own business. */
export interface Cookie {
  readonly high: number;
  readonly low: number;
}

export interface Request extends Cookie {
  readonly command: number;
  /** Of `commandFlags`. */
  readonly flags: number;
  /** Bytes, below 2^53. */
  readonly offset: number;
  readonly length: number;
}

/** Writes the head of a request at `at`; the content of a write follows it. */
export function encodeRequest(request: Request, target: Buffer, at: number): void {
  target.writeUInt32BE(magics.request, at);
  target.writeUInt16BE(request.flags, at + 4);
  target.writeUInt16BE(request.command, at + 6);
  target.writeUInt32BE(request.high, at + 8);
  target.writeUInt32BE(request.low, at + 12);
  target.writeUInt32BE(Math.floor(request.offset / 2 ** 32), at + 16);
  target.writeUInt32BE(request.offset % 2 ** 32, at + 20);
  target.writeUInt32BE(request.length, at + 24);
}

/** A request that was read, filled again for each one. */
export interface ReadRequest {
  command: number;
  flags: number;
  high: number;
  low: number;
  /** Bytes; `Infinity` for what no disk has. */
  offset: number;
  length: number;
}

/** Reads the head of a request at `at` into `into`. Throws `protocol-violation` when it does not begin as one; whether it can be done is not looked at. */
export function decodeRequest(bytes: Buffer, at: number, into: ReadRequest): void {
  if (bytes.readUInt32BE(at) !== magics.request) throw violation("a request does not begin as one");
  into.flags = bytes.readUInt16BE(at + 4);
  into.command = bytes.readUInt16BE(at + 6);
  into.high = bytes.readUInt32BE(at + 8);
  into.low = bytes.readUInt32BE(at + 12);
  const high = bytes.readUInt32BE(at + 16);
  into.offset = high < 2 ** 21 ? high * 2 ** 32 + bytes.readUInt32BE(at + 20) : Number.POSITIVE_INFINITY;
  into.length = bytes.readUInt32BE(at + 24);
}
