/** lz4, raw block format: the native module where it was built, else the same format in WebAssembly. */
import { createRequire } from "node:module";
import type { Codec } from "./compression.ts";
import { codecDamaged } from "./damage.ts";
import { loadWasmLz4 } from "./lz4-wasm.ts";

/** What we use of the module of the `lz4` package, which has no types. It checks neither indexes nor lengths. */
interface NativeLz4 {
  /** Writes to `target[start, end)`; 0: does not fit. */
  compress(source: Uint8Array, target: Uint8Array, start: number, end: number): number;
  /** Bytes written to `target`, all of `source` used; negative: damaged, or the target is too short. */
  uncompress(source: Uint8Array, target: Uint8Array): number;
}

/** The module itself: the package's own entry loads streams and a polyfill besides, which each thread would do again. */
const nativeModule = "lz4/build/Release/lz4.node";

export interface LoadedLz4 {
  readonly codec: Codec;
  readonly implementation: "native" | "wasm";
}

export async function loadLz4(choice: "auto" | "wasm"): Promise<LoadedLz4> {
  const native = choice === "auto" ? requireNative() : undefined;
  if (native !== undefined) return { codec: nativeCodec(native), implementation: "native" };
  return { codec: await loadWasmLz4(), implementation: "wasm" };
}

/** `missing`: looked for before. To look costs as much as opening a point, and what is not there does not come. */
let found: NativeLz4 | "missing" | undefined;

function requireNative(): NativeLz4 | undefined {
  found ??= lookForNative();
  return found === "missing" ? undefined : found;
}

function lookForNative(): NativeLz4 | "missing" {
  try {
    const loaded: unknown = createRequire(import.meta.url)(nativeModule);
    return isNativeLz4(loaded) ? loaded : "missing";
  } catch {
    // Not built, or built for another Node: the fallback does the same, and the caller reports which one is in use.
    return "missing";
  }
}

function isNativeLz4(loaded: unknown): loaded is NativeLz4 {
  return (
    typeof loaded === "object" &&
    loaded !== null &&
    "compress" in loaded &&
    typeof loaded.compress === "function" &&
    "uncompress" in loaded &&
    typeof loaded.uncompress === "function"
  );
}

function nativeCodec(native: NativeLz4): Codec {
  return {
    name: "lz4",
    compress(source, target) {
      const room = Math.min(target.length, source.length - 1);
      return room <= 0 ? 0 : native.compress(source, target, 0, room);
    },
    decompress(source, target) {
      // A negative or zero length must not reach LZ4 1.9.2; array lengths are never negative.
      const written = source.length === 0 || target.length === 0 ? -1 : native.uncompress(source, target);
      if (written !== target.length) throw codecDamaged("lz4", source, target);
    },
  };
}
