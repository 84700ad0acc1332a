/** One or more frames of every message type, pinned byte for byte in fixtures/wire. Never change one: add another. */
import type { Message } from "../../src/wire/messages.ts";

export interface Golden {
  readonly message: Message;
  readonly payload?: Uint8Array;
}

const root = Uint8Array.from({ length: 32 }, (_, index) => 0xe0 + (index % 16));

function counting(length: number, first = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (first + index) & 0xff);
}

function joined(...pieces: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(pieces));
}

/** 4096 times 0xab as one LZ4 block: a literal, a match of 4090 bytes at distance 1, five literals. */
export const packedPart: Uint8Array = Uint8Array.from([
  0x1f,
  0xab,
  0x01,
  0x00,
  ...Array.from({ length: 15 }, () => 0xff),
  0xf6,
  0x50,
  0xab,
  0xab,
  0xab,
  0xab,
  0xab,
]);

const instance = "9f2c6a1d40b7e35881c2";
const token = "5b1f8e0c7d2a4936";
const cycle = "0d9a5c1e-6b3f-4e58-9c0a-3f7d2b8e6a14.7";
const generation = "7c41e9b2-05d8-4f6a-8b13-c2a97e50d6f3";
const features = ["parts", "connections"];

export const goldenFrames: Readonly<Record<string, Golden>> = {
  "hello-offer": {
    message: {
      type: "hello",
      version: 1,
      versionMin: 1,
      features,
      required: [],
      instance,
      software: "replicate 0.1.0",
    },
  },
  "hello-answer": {
    message: {
      type: "hello",
      version: 1,
      versionMin: 1,
      features,
      required: [],
      instance: "3e70d15fa9c8b2640d7e",
      software: "replicate 0.1.0",
      token,
    },
  },
  "hello-join": {
    message: {
      type: "hello",
      version: 1,
      versionMin: 1,
      features,
      required: ["connections"],
      instance,
      software: "replicate 0.1.0",
      join: { token, connection: 1 },
    },
  },
  "open-first": {
    message: {
      type: "open",
      disk: "web1-root",
      sizeBytes: 42_949_672_960,
      explicit: false,
      source: "b7d02e8f1c5a",
      sourceName: "/images/web1.vhdx",
      sectorBytes: 512,
      cycle,
      allowShrink: false,
      adopt: false,
    },
  },
  "open-delta": {
    message: {
      type: "open",
      disk: "web1-root",
      sizeBytes: 70_368_744_177_664,
      blockBytes: 65_536,
      digestKind: "sha256",
      explicit: true,
      source: "b7d02e8f1c5a",
      sourceName: "/images/Wörter.vhdx",
      sectorBytes: 4_096,
      cycle,
      baseCycle: "0d9a5c1e-6b3f-4e58-9c0a-3f7d2b8e6a14.6",
      generation,
      term: 2,
      allowShrink: true,
      adopt: true,
    },
  },
  "opened-fresh": {
    message: {
      type: "opened",
      fresh: true,
      sizeBytes: 0,
      blockBytes: 65_536,
      digestKind: "xxh64",
      empty: true,
      anotherSource: false,
      resumeBlock: 0,
      generation,
      term: 0,
      credit: 24,
      codecs: ["stored", "lz4"],
    },
  },
  "opened-delta": {
    message: {
      type: "opened",
      fresh: false,
      point: 41,
      cycle: "0d9a5c1e-6b3f-4e58-9c0a-3f7d2b8e6a14.6",
      root,
      sizeBytes: 42_949_672_960,
      blockBytes: 65_536,
      digestKind: "xxh64",
      empty: false,
      anotherSource: true,
      resumeBlock: 300_000,
      generation,
      term: 1,
      credit: 64,
      codecs: ["stored", "lz4", "deflate", "zstd"],
    },
  },
  "opened-resume": {
    message: {
      type: "opened",
      fresh: false,
      point: 1,
      cycle: "0d9a5c1e-6b3f-4e58-9c0a-3f7d2b8e6a14.1",
      root,
      sizeBytes: 1_048_576,
      blockBytes: 16_384,
      digestKind: "sha256",
      empty: false,
      anotherSource: false,
      interrupted: true,
      resumeBlock: 17,
      generation,
      term: 1,
      credit: 2,
      codecs: ["stored"],
    },
  },
  "ask-pages": { message: { type: "ask-pages", request: 1, first: 0, count: 1_280 } },
  pages: {
    message: { type: "pages", request: 1, first: 0, count: 10 },
    payload: joined(Uint8Array.from([0b0000_0100, 0b0000_0010]), counting(32, 0x10), counting(32, 0x40)),
  },
  "ask-blocks": { message: { type: "ask-blocks", request: 2, pages: [0, 1, 130, 20_000] } },
  blocks: { message: { type: "blocks", request: 2, page: 130, count: 2 }, payload: counting(24, 0x70) },
  "ask-parts": { message: { type: "ask-parts", request: 4_294_967_295, blocks: [5, 6, 134, 16_519] } },
  parts: {
    message: { type: "parts", request: 4_294_967_295, count: 4 },
    payload: joined(Uint8Array.from([0b0000_0010]), counting(64, 0x20)),
  },
  "data-parts": {
    message: {
      type: "data",
      blocks: [1_234],
      masks: Uint8Array.from([0b0000_1000, 0]),
      digests: counting(8, 0xa1),
      codec: "lz4",
      rawBytes: 4_096,
      repeat: false,
    },
    payload: packedPart,
  },
  "data-repeat": {
    message: {
      type: "data",
      blocks: [7, 4_294_967_295],
      masks: Uint8Array.from([0b1111, 0b1111]),
      digests: counting(32, 0x01),
      codec: "zstd",
      rawBytes: 32_768,
      repeat: true,
    },
    payload: counting(16, 0x28),
  },
  zero: { message: { type: "zero", first: 70_000, count: 512, repeat: false } },
  grant: { message: { type: "grant", frames: 8 } },
  "ask-repeat": { message: { type: "ask-repeat", blocks: [1_234] } },
  commit: {
    message: {
      type: "commit",
      root,
      frames: [310, 295],
      cycle,
      sizeBytes: 42_949_672_960,
      time: 1_795_600_000_000,
      label: "before update",
      consistency: "application",
      skipEmpty: false,
    },
  },
  "commit-cut": {
    message: {
      type: "commit",
      root,
      frames: [17],
      cycle,
      sizeBytes: 42_949_672_960,
      time: 1_795_600_000_000,
      consistency: "crash",
      skipEmpty: false,
      group: "75094632-c81c-4537-a695-33d1123d0489",
      members: ["web1.root", "web1.data"],
    },
  },
  durable: { message: { type: "durable", point: 42, root, cycle, created: true } },
  heartbeat: { message: { type: "heartbeat", bytes: 9_007_199_254_740_991, phase: "apply" } },
  error: {
    message: {
      type: "error",
      code: "no-space",
      message: "disk web1-root: no space left for the replica at offset 1048576",
      details: { offset: 1_048_576, disk: "web1-root", retry: false, path: null },
    },
  },
  bye: { message: { type: "bye" } },
  pass: { message: { type: "pass", root, frames: [17, 0, 3] } },
  synced: { message: { type: "synced", root } },
};
