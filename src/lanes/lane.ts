/** What a job has to work with: memory, files, digests and codecs of its own thread. */
import { invariant } from "../base/errors.ts";
import { BLOCK_BYTES_MAX, type DigestKind } from "../base/units.ts";
import { type CodecSet, loadCodecs } from "../codec/compression.ts";
import { createDigester, type Digester } from "../codec/digest.ts";
import type { LaneStorage } from "../storage/seam.ts";
import { slotBytes } from "./slot-layout.ts";

export interface Lane {
  readonly storage: LaneStorage;
  readonly codecs: CodecSet;
  digester(kind: DigestKind): Digester;
  /** All of a slot. */
  slot(index: number): Uint8Array;
  /** One block of private memory; content is anybody's between jobs. */
  readonly scratch: Uint8Array;
  /** Another one. */
  readonly secondScratch: Uint8Array;
}

export async function createLane(options: {
  readonly memory: SharedArrayBuffer;
  readonly storage: LaneStorage;
  readonly lz4?: "native" | "wasm" | undefined;
}): Promise<Lane> {
  const { memory, storage } = options;
  const codecs = await loadCodecs(options.lz4 === "wasm" ? { lz4: "wasm" } : {});
  const digesters: Record<DigestKind, Digester> = {
    xxh64: await createDigester("xxh64"),
    sha256: await createDigester("sha256"),
  };
  const views = new Map<number, Uint8Array>();
  return {
    storage,
    codecs,
    digester: (kind) => digesters[kind],
    slot(index) {
      let view = views.get(index);
      if (view === undefined) {
        invariant((index + 1) * slotBytes <= memory.byteLength, "a slot lies in the pool");
        view = Buffer.from(memory, index * slotBytes, slotBytes);
        views.set(index, view);
      }
      return view;
    },
    scratch: Buffer.allocUnsafeSlow(BLOCK_BYTES_MAX),
    secondScratch: Buffer.allocUnsafeSlow(BLOCK_BYTES_MAX),
  };
}
