/**
 * The fixed start of a frame, little endian (docs/protocol.md, "Frame"):
 *
 *    0  2  magic "RP"
 *    2  1  message type
 *    3  1  flags, 0
 *    4  4  reserved, 0
 *    8  4  header bytes
 *   12  4  payload bytes
 *   16  4  crc32 over bytes 0 to 15 and the header
 */
import { crc32 } from "node:zlib";
import { ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { formOfNumber, type MessageForm } from "./message-codec.ts";

export const preludeBytes = 20;
const checkedBytes = 16;
const magic = 0x5052;

const at = { magic: 0, type: 2, flags: 3, reserved: 4, headerBytes: 8, payloadBytes: 12, checksum: 16 } as const;

/** Writes the prelude before `header`, both into `target` from `start` on. */
export function writeHead(
  form: MessageForm,
  header: Uint8Array,
  payloadBytes: number,
  target: Uint8Array,
  start: number,
): void {
  const view = new DataView(target.buffer, target.byteOffset + start, preludeBytes);
  view.setUint16(at.magic, magic, true);
  view.setUint8(at.type, form.number);
  view.setUint8(at.flags, 0);
  view.setUint32(at.reserved, 0, true);
  view.setUint32(at.headerBytes, header.length, true);
  view.setUint32(at.payloadBytes, payloadBytes, true);
  view.setUint32(at.checksum, crc32(header, crc32(target.subarray(start, start + checkedBytes))), true);
  target.set(header, start + preludeBytes);
}

export function headerBytesOf(prelude: DataView): number {
  return prelude.getUint32(at.headerBytes, true);
}

export function payloadBytesOf(prelude: DataView): number {
  return prelude.getUint32(at.payloadBytes, true);
}

/** Everything that can be known before the header is here; in particular that both lengths are within their limits. */
export function checkPrelude(prelude: DataView): MessageForm {
  const found = prelude.getUint16(at.magic, true);
  if (found !== magic) malformed(`it begins with 0x${hex(found)}, not "RP": the peer speaks another protocol`);
  const number = prelude.getUint8(at.type);
  const form = formOfNumber(number);
  if (form === undefined) malformed(`message type ${number} is unknown`);
  const flags = prelude.getUint8(at.flags);
  const reserved = prelude.getUint32(at.reserved, true);
  if (flags !== 0 || reserved !== 0)
    malformed(`message ${form.type}: flags 0x${hex(flags)}, reserved 0x${hex(reserved)}, not 0`);
  const headerBytes = headerBytesOf(prelude);
  if (headerBytes < 1 || headerBytes > limits.frameHeaderBytesMax) {
    malformed(`message ${form.type}: header of ${headerBytes} bytes, 1 to ${limits.frameHeaderBytesMax} allowed`);
  }
  const payloadBytes = payloadBytesOf(prelude);
  const least = form.payload === undefined ? 0 : 1;
  const most = form.payload === undefined ? 0 : limits.framePayloadBytesMax;
  if (payloadBytes < least || payloadBytes > most) {
    malformed(`message ${form.type}: payload of ${payloadBytes} bytes, ${least} to ${most} allowed`);
  }
  return form;
}

/** `head`: prelude and header. */
export function checkChecksum(form: MessageForm, prelude: DataView, head: Uint8Array): void {
  const found = crc32(head.subarray(preludeBytes), crc32(head.subarray(0, checkedBytes)));
  const stated = prelude.getUint32(at.checksum, true);
  if (found !== stated) malformed(`message ${form.type}: checksum 0x${hex(found)}, 0x${hex(stated)} stated`);
}

function hex(value: number): string {
  return value.toString(16).padStart(2, "0");
}

function malformed(problem: string): never {
  throw new ReplicationError("frame-malformed", `the peer sent a malformed frame: ${problem}`);
}
