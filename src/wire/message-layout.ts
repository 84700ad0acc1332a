/**
 * One table for each message: its number on the wire, its fields with key, kind and whether they may be left out, and
 * what must hold between fields. It drives encoding, decoding and the tables of docs/protocol.md (a test compares
 * them).
 *
 * A key or number is never given a second meaning. `hello`, `error` and `bye` never change: every version reads them.
 */
import { limits } from "../base/limits.ts";
import { BLOCK_BYTES_MAX, BLOCK_BYTES_MIN, EXTENT_BYTES_MAX, isBlockSize, PART_BYTES } from "../base/units.ts";
import {
  ascending,
  bytes,
  details,
  flag,
  integer,
  joinKind,
  type Kind,
  known,
  list,
  name,
  oneOf,
  text,
} from "./field-kinds.ts";
import type { Data, Message, MessageType } from "./messages.ts";
import { wireLimits } from "./wire-limits.ts";
import { wrong } from "./wrong-value.ts";

export interface Field<T, Optional extends boolean = boolean> {
  readonly key: string;
  readonly kind: Kind<T>;
  readonly optional: Optional;
}

type Fields<M> = {
  readonly [K in Exclude<keyof M, "type">]: undefined extends M[K]
    ? Field<Exclude<M[K], undefined>, true>
    : Field<M[K], false>;
};

export interface Layout<M> {
  /** Type byte of the prelude. */
  readonly number: number;
  /** In the order they are written. */
  readonly fields: Fields<M>;
  /** What must hold between fields. Throws `WrongValue` beginning with the key. */
  readonly check?: (message: M) => void;
  /** Present where a payload of at least one byte follows: whether its length fits the header. Throws `WrongValue`. */
  readonly payload?: (message: M, payloadBytes: number) => void;
}

export type Layouts = { readonly [T in MessageType]: Layout<Extract<Message, { readonly type: T }>> };

const u32Max = 2 ** 32 - 1;
const codecNames = ["stored", "lz4", "deflate", "zstd"] as const;
const digestKinds = ["xxh64", "sha256"] as const;
const rootBytes = 32;
/** A mask has a bit for each part of a block of 16 KiB (one byte) to 1 MiB. */
const maskBytesMax = BLOCK_BYTES_MAX / PART_BYTES / 8;
/** Four bytes for each part of a block. */
const partDigestsMin = (BLOCK_BYTES_MIN / PART_BYTES) * 4;
const partDigestsMax = (BLOCK_BYTES_MAX / PART_BYTES) * 4;

const id = name(wireLimits.nameCharsMax);
const features = list(name(wireLimits.featureCharsMax), 0, wireLimits.featuresMax);
const version = integer(1, 65_535);
const request = integer(0, u32Max);
const safe = integer(0, Number.MAX_SAFE_INTEGER);
const disk = integer(0, limits.diskBytesMax);
const root = bytes(rootBytes, rootBytes);
const block = integer(0, wireLimits.blockNumbersMax - 1);
const blockSize = blockSizeKind();
const label = text(wireLimits.textCharsMax);
const shortText = text(wireLimits.shortTextCharsMax);
const credit = integer(1, limits.creditFramesMax);
const pageCount = integer(1, limits.pagesPerRequestMax);
const blockList = ascending(limits.blocksPerRequestMax, wireLimits.blockNumbersMax);

function required<T>(key: string, kind: Kind<T>): Field<T, false> {
  return { key, kind, optional: false };
}

function optional<T>(key: string, kind: Kind<T>): Field<T, true> {
  return { key, kind, optional: true };
}

export const layouts: Layouts = {
  hello: {
    number: 1,
    // Whole words: a person reads these in a dump when two versions do not understand each other.
    fields: {
      version: required("version", version),
      versionMin: required("versionMin", version),
      features: required("features", features),
      required: required("required", features),
      instance: required("instance", id),
      software: required("software", shortText),
      token: optional("token", id),
      join: optional("join", joinKind(limits.connectionsMax)),
    },
    check({ version: highest, versionMin }) {
      if (versionMin > highest) wrong(`versionMin: ${versionMin}, above version ${highest}`);
    },
  },
  open: {
    number: 2,
    fields: {
      disk: required("d", name(wireLimits.diskNameCharsMax)),
      sizeBytes: required("s", integer(0, limits.diskBytesMax)),
      blockBytes: optional("b", blockSize),
      digestKind: optional("k", oneOf(digestKinds)),
      explicit: required("x", flag()),
      source: required("i", id),
      sourceName: required("n", label),
      sectorBytes: required("e", integer(512, 4_096)),
      cycle: required("c", id),
      baseCycle: optional("bc", id),
      generation: optional("g", id),
      term: optional("t", safe),
      allowShrink: required("as", flag()),
      adopt: required("ad", flag()),
    },
    check({ sectorBytes }) {
      if (sectorBytes !== 512 && sectorBytes !== 4_096) wrong(`e (sectorBytes): ${sectorBytes}, 512 or 4096 allowed`);
    },
  },
  opened: {
    number: 3,
    fields: {
      fresh: required("f", flag()),
      point: optional("p", safe),
      cycle: optional("c", id),
      root: optional("r", root),
      sizeBytes: required("s", disk),
      blockBytes: required("b", blockSize),
      digestKind: required("k", oneOf(digestKinds)),
      empty: required("z", flag()),
      anotherSource: required("a", flag()),
      interrupted: optional("i", flag()),
      resumeBlock: required("rb", block),
      generation: required("g", id),
      term: required("t", safe),
      credit: required("cr", integer(0, limits.creditFramesMax)),
      codecs: required("co", known(codecNames)),
    },
  },
  "ask-pages": {
    number: 4,
    fields: { request: required("q", request), first: required("f", block), count: required("n", pageCount) },
  },
  pages: {
    number: 5,
    fields: { request: required("q", request), first: required("f", block), count: required("n", pageCount) },
    payload: ({ count }, payloadBytes) => checkAnswer(payloadBytes, count, rootBytes, rootBytes),
  },
  "ask-blocks": {
    number: 6,
    fields: { request: required("q", request), pages: required("p", blockList) },
  },
  blocks: {
    number: 7,
    fields: {
      request: required("q", request),
      page: required("p", block),
      count: required("n", integer(1, wireLimits.pagesPerAnswerMax)),
    },
    payload({ count }, payloadBytes) {
      if (payloadBytes > count * 4_096 || payloadBytes < count * 8 || payloadBytes % 8 !== 0)
        wrong(`payload: ${payloadBytes} bytes do not fit the digests of ${count} pages`);
    },
  },
  "ask-parts": {
    number: 8,
    fields: { request: required("q", request), blocks: required("b", blockList) },
  },
  parts: {
    number: 9,
    fields: { request: required("q", request), count: required("n", integer(1, limits.blocksPerRequestMax)) },
    payload: ({ count }, payloadBytes) => checkAnswer(payloadBytes, count, partDigestsMin, partDigestsMax),
  },
  data: {
    number: 10,
    fields: {
      blocks: required("b", ascending(wireLimits.blocksPerDataMax, wireLimits.blockNumbersMax)),
      masks: required("m", bytes(1, wireLimits.blocksPerDataMax * maskBytesMax)),
      digests: required("d", bytes(8, wireLimits.blocksPerDataMax * 16)),
      codec: required("c", oneOf(codecNames)),
      rawBytes: required("r", integer(PART_BYTES, EXTENT_BYTES_MAX)),
      repeat: required("x", flag()),
    },
    check: checkData,
    payload({ codec, rawBytes }, payloadBytes) {
      if (codec === "stored" && payloadBytes !== rawBytes)
        wrong(`payload: ${payloadBytes} bytes stored, r (rawBytes) ${rawBytes}`);
    },
  },
  zero: {
    number: 11,
    fields: {
      first: required("f", block),
      count: required("n", integer(1, wireLimits.blocksPerZeroMax)),
      repeat: required("x", flag()),
    },
    check({ first, count }) {
      if (first + count > wireLimits.blockNumbersMax)
        wrong(`n (count): ${count} blocks from ${first} reach beyond the largest disk`);
    },
  },
  grant: { number: 12, fields: { frames: required("n", credit) } },
  "ask-repeat": { number: 13, fields: { blocks: required("b", blockList) } },
  commit: {
    number: 14,
    fields: {
      root: required("r", root),
      frames: required("f", list(safe, 1, limits.connectionsMax)),
      cycle: required("c", id),
      sizeBytes: required("s", integer(0, limits.diskBytesMax)),
      time: required("t", integer(0, 8.64e15)),
      label: optional("l", label),
      consistency: required("k", oneOf(["crash", "application", "none"] as const)),
      skipEmpty: required("e", flag()),
      group: optional("g", id),
      members: optional("gm", list(name(wireLimits.diskNameCharsMax), 1, limits.groupDisksMax)),
    },
    check({ group, members }) {
      if ((group === undefined) !== (members === undefined)) wrong("gm (members): goes with g (group)");
    },
  },
  durable: {
    number: 15,
    fields: {
      point: required("p", safe),
      root: required("r", root),
      cycle: required("c", id),
      created: required("n", flag()),
    },
  },
  heartbeat: { number: 16, fields: { bytes: required("b", safe), phase: required("p", shortText) } },
  error: {
    number: 17,
    fields: {
      code: required("code", name(wireLimits.detailKeyCharsMax)),
      message: required("message", text(limits.errorTextCharsMax)),
      details: required("details", details()),
    },
  },
  bye: { number: 18, fields: {} },
  pass: {
    number: 19,
    fields: { root: required("r", root), frames: required("f", list(safe, 1, limits.connectionsMax)) },
  },
  synced: { number: 20, fields: { root: required("r", root) } },
};

function blockSizeKind(): Kind<number> {
  const range = integer(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
  return {
    describe: `power of two, ${BLOCK_BYTES_MIN} to 2^20`,
    pack: (value) => value,
    unpack(raw) {
      const value = range.unpack(raw);
      return isBlockSize(value) ? value : wrong(`${value}, not a power of two`);
    },
  };
}

/**
 * An answer is a bit for each thing asked, then `unitMin` to `unitMax` bytes (a multiple of `unitMin`) for each bit
 * set.
 */
function checkAnswer(payloadBytes: number, count: number, unitMin: number, unitMax: number): void {
  const rest = payloadBytes - Math.ceil(count / 8);
  if (rest < 0 || rest > count * unitMax || rest % unitMin !== 0) {
    wrong(`payload: ${payloadBytes} bytes do not fit n (count) ${count}`);
  }
}

function checkData({ blocks, masks, digests, rawBytes }: Data): void {
  const count = blocks.length;
  const maskBytes = masks.length / count;
  if (!Number.isInteger(Math.log2(maskBytes)) || maskBytes < 1 || maskBytes > maskBytesMax) {
    wrong(`m (masks): ${masks.length} bytes do not fit ${count} blocks`);
  }
  if (digests.length !== count * 8 && digests.length !== count * 16) {
    wrong(`d (digests): ${digests.length} bytes do not fit ${count} blocks`);
  }
  let parts = 0;
  for (let index = 0; index < count; index++) {
    const before = parts;
    for (let at = index * maskBytes; at < (index + 1) * maskBytes; at++) parts += bitCount(masks[at] ?? 0);
    if (parts === before) wrong(`m (masks): block ${blocks[index]} without a part`);
  }
  if (parts * PART_BYTES !== rawBytes) wrong(`r (rawBytes): ${rawBytes} bytes do not fit ${parts} parts`);
}

/** Bits set in one byte. */
function bitCount(byte: number): number {
  const pairs = byte - ((byte >> 1) & 0x55);
  const nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33);
  return (nibbles + (nibbles >> 4)) & 0x0f;
}
