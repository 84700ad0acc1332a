/** Compression of one unit (at most 1 MiB) with exact lengths. */
import { ReplicationError } from "../base/errors.ts";
import { availableCodecs } from "./available-codecs.ts";
import { codecDamaged } from "./damage.ts";
import { loadLz4 } from "./lz4.ts";
import { createDeflate, createZstd } from "./zlib-codecs.ts";

/** Names on the wire and in options. `stored`: as it is. */
export type CodecName = "stored" | "lz4" | "deflate" | "zstd";

export interface Codec {
  readonly name: CodecName;
  /**
   * Compresses `source` into `target`, which must not overlap it. Returns the bytes written, or 0 when the result is
   * not smaller than the source or does not fit the target; bytes of the target behind the result are then undefined.
   */
  compress(source: Uint8Array, target: Uint8Array): number;
  /**
   * Fills exactly all of `target` from exactly all of `source`. Throws `codec-damaged` for anything else: damaged,
   * truncated, trailing bytes, another length; what the target holds is then undefined. Never reads or writes outside
   * the two arrays.
   */
  decompress(source: Uint8Array, target: Uint8Array): void;
}

/** The codecs this process can use, fastest implementation first. Not shared between threads. */
export interface CodecSet {
  readonly names: readonly CodecName[];
  /** How lz4 is done here: `native`, or the slower fallback where the native module was not built. */
  readonly lz4: "native" | "wasm";
  /** Throws `feature-unsupported` for a codec this process lacks. */
  get(name: CodecName): Codec;
}

export interface CodecOptions {
  /** `auto` (default): native where it can be loaded. `wasm`: the fallback, whatever else is there. */
  readonly lz4?: "auto" | "wasm";
}

/** A set of its own for each thread: the fallback of lz4 keeps scratch memory. */
export async function loadCodecs(options: CodecOptions = {}): Promise<CodecSet> {
  const lz4 = await loadLz4(options.lz4 ?? "auto");
  const zstd = createZstd();
  const codecs = new Map<CodecName, Codec>();
  for (const codec of [stored, lz4.codec, ...(zstd === undefined ? [] : [zstd]), createDeflate()]) {
    codecs.set(codec.name, codec);
  }
  return {
    names: availableCodecs(),
    lz4: lz4.implementation,
    get(name) {
      const codec = codecs.get(name);
      if (codec !== undefined) return codec;
      const advice = name === "zstd" ? "zstd needs Node 22.15 or later at both ends; " : "";
      throw new ReplicationError(
        "feature-unsupported",
        `codec ${name} is not available here: ${advice}use one of ${[...codecs.keys()].join(", ")}`,
      );
    },
  };
}

const stored: Codec = {
  name: "stored",
  compress: () => 0,
  decompress(source, target) {
    if (source.length !== target.length) throw codecDamaged("stored", source, target);
    target.set(source);
  },
};
