/** Digests, the zero test and compression. */
import { KIB, MIB, PART_BYTES } from "../src/base/units.ts";
import { type Codec, loadCodecs } from "../src/codec/compression.ts";
import { isZero } from "../src/base/zero.ts";
import { createDigester } from "../src/codec/digest.ts";
import { noise, ring, textLike, zeros } from "./contents.ts";
import type { Case, Stage } from "./measuring.ts";

export async function digestStages(): Promise<readonly Stage[]> {
  const digesters = [await createDigester("xxh64"), await createDigester("sha256")];
  const target = new Uint8Array(16);
  const blocks = [64 * KIB, MIB].map((bytes): Stage => {
    const block = ring(bytes, noise);
    return {
      name: `digest of a block of ${bytes / KIB} KiB`,
      bytes,
      cases: digesters.map((digester) => ({
        name: digester.kind,
        run: () => digester.digest(block(), target, 0),
      })),
    };
  });
  const part = ring(PART_BYTES, noise);
  const digester = await createDigester("xxh64");
  return [
    ...blocks,
    {
      name: "digest of a part",
      bytes: PART_BYTES,
      cases: [{ name: "xxh64", run: () => digester.parts(part(), Buffer.from(target.buffer), 0) }],
    },
  ];
}

export function zeroStages(): readonly Stage[] {
  return [PART_BYTES, 64 * KIB, MIB].map((bytes) => {
    const zero = ring(bytes, zeros);
    const data = ring(bytes, noise);
    return {
      name: `zero test of ${bytes / KIB} KiB`,
      bytes,
      cases: [
        { name: "all zero", run: () => isZero(zero()) },
        { name: "data", run: () => isZero(data()) },
      ],
    };
  });
}

export async function compressionStages(): Promise<readonly Stage[]> {
  const set = await loadCodecs();
  const wasm = (await loadCodecs({ lz4: "wasm" })).get("lz4");
  const codecs = set.names
    .filter((name) => name !== "stored")
    .map((name) => [name === "lz4" ? `lz4 ${set.lz4}` : name, set.get(name)] as const);
  if (set.lz4 === "native") codecs.push(["lz4 wasm", wasm]);
  return [
    {
      name: "text-like 1 MiB",
      bytes: MIB,
      cases: codecs.flatMap(([name, codec]) => [compress(name, codec, textLike), decompress(name, codec)]),
    },
    { name: "noise 1 MiB", bytes: MIB, cases: codecs.map(([name, codec]) => compress(name, codec, noise)) },
  ];
}

function compress(name: string, codec: Codec, fill: (bytes: Uint8Array) => void): Case {
  const source = ring(MIB, fill);
  const target = new Uint8Array(new SharedArrayBuffer(MIB));
  return { name: `${name} compress`, run: () => codec.compress(source(), target) };
}

function decompress(name: string, codec: Codec): Case {
  const source = ring(MIB, textLike);
  const packed = Array.from({ length: 8 }, () => {
    const target = new Uint8Array(MIB);
    return target.slice(0, codec.compress(source(), target));
  });
  const target = new Uint8Array(new SharedArrayBuffer(MIB));
  let next = 0;
  return {
    name: `${name} decompress`,
    run() {
      const unit = packed[next];
      next = (next + 1) % packed.length;
      if (unit !== undefined) codec.decompress(unit, target);
    },
  };
}
