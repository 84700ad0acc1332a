/**
 * The numbers of the NBD protocol that this product speaks: fixed newstyle negotiation and the transmission phase. Source: the document `doc/proto.md`
 * of the reference implementation; what is spoken and what is refused is in docs/nbd.md. All integers on the wire are big endian.
 */

/** What messages begin with. */
export const magics = {
  /** `NBDMAGIC`: the first 8 bytes a server says. */
  greeting: 0x4e42444d41474943n,
  /** `IHAVEOPT`: newstyle negotiation follows; begins each option as well. */
  option: 0x49484156454f5054n,
  /** In its place in oldstyle negotiation, which is refused. */
  oldstyle: 0x00420281861253n,
  optionReply: 0x0003e889045565a9n,
  request: 0x25609513,
  simpleReply: 0x67446698,
  chunk: 0x668e33ef,
} as const;

/** Flags of the greeting; the client answers with the same bits. */
export const handshakeFlags = { fixedNewstyle: 1, noZeroes: 2 } as const;

export const options = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

const errorBit = 0x8000_0000;

/** Types of replies to options. */
export const optionReplies = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: errorBit + 1,
  policy: errorBit + 2,
  invalid: errorBit + 3,
  platform: errorBit + 4,
  tlsRequired: errorBit + 5,
  unknown: errorBit + 6,
  shutdown: errorBit + 7,
  blockSizeRequired: errorBit + 8,
  tooBig: errorBit + 9,
} as const;

/** True for a reply that refuses an option; its data is a text for people. */
export function isOptionError(type: number): boolean {
  return type >= errorBit;
}

/** Kinds of facts in `info` replies. */
export const infos = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

/** What an export can do. */
export const exportFlags = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  flush: 1 << 2,
  fua: 1 << 3,
  rotational: 1 << 4,
  trim: 1 << 5,
  writeZeroes: 1 << 6,
  dontFragment: 1 << 7,
  multiConnection: 1 << 8,
  resize: 1 << 9,
  cache: 1 << 10,
  fastZero: 1 << 11,
} as const;

export const commands = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

export const commandFlags = {
  /** The reply waits until what is written is durable. */
  fua: 1 << 0,
  /** Zeros are to be allocated. */
  noHole: 1 << 1,
  /** One chunk of content at most. */
  dontFragment: 1 << 2,
  /** One descriptor a context. */
  requestOne: 1 << 3,
  /** Zeros only when it is faster than writing them, else `notSupported`. */
  fastZero: 1 << 4,
} as const;

/** Bit of a chunk: the last one of its reply. */
export const chunkDone = 1;

export const chunks = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

/** True for a chunk that makes its reply a failure, known or not. */
export function isErrorChunk(type: number): boolean {
  return type >= 0x8000;
}

/** Error numbers of replies. */
export const errors = {
  permission: 1,
  io: 5,
  noMemory: 12,
  invalid: 22,
  noSpace: 28,
  overflow: 75,
  notSupported: 95,
  shutdown: 108,
} as const;

/** The name of an error number, for people. */
export function errorName(error: number): string {
  const names: Readonly<Record<number, string>> = {
    1: "EPERM",
    5: "EIO",
    12: "ENOMEM",
    22: "EINVAL",
    28: "ENOSPC",
    75: "EOVERFLOW",
    95: "ENOTSUP",
    108: "ESHUTDOWN",
  };
  return names[error] ?? `error ${error}`;
}

/** The context that tells what is allocated, and its bits. */
export const allocationContext = "base:allocation";
export const allocationBits = { hole: 1, zero: 2 } as const;

/** The bit of a `qemu:dirty-bitmap:NAME` context. */
export const dirtyBit = 1;

export const defaultPort = 10_809;

/** What sizes requests must have. `maximum`: of the content of one request; 2^32-1: whatever a length can say. */
export interface BlockSizes {
  /** Power of two, 1 to 64 KiB: offsets and lengths are multiples of it. */
  readonly minimum: number;
  readonly preferred: number;
  readonly maximum: number;
}

/** What an export is, as its server tells when it is chosen. */
export interface ExportInfo {
  readonly sizeBytes: number;
  /** Of {@link exportFlags}. */
  readonly flags: number;
}
