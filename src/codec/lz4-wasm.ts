/**
 * lz4 where the native module is missing: the WebAssembly of `lz4-wasm-nodejs`, driven without the package's own
 * script, which copies each unit twice more and cannot replace an instance after a trap. Its blocks are raw lz4 behind
 * a length (u32 little endian).
 */
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import type { Codec } from "./compression.ts";
import { codecDamaged } from "./damage.ts";

/** The part of the global the types of Node 20 lack. */
declare const WebAssembly: {
  compile(bytes: Uint8Array): Promise<object>;
  readonly Instance: new (module: object, imports: object) => { readonly exports: unknown };
};

/** Exports of the module. Pointers are offsets into `memory`. */
interface Exports {
  readonly memory: { readonly buffer: ArrayBuffer };
  /**
   * Both free the input themselves and write {pointer, length, error, failed} at `result`; `compress` only the first
   * two.
   */
  compress(result: number, input: number, length: number): void;
  decompress(result: number, input: number, length: number): void;
  __wbindgen_add_to_stack_pointer(bytes: number): number;
  __wbindgen_malloc(bytes: number): number;
  __wbindgen_free(pointer: number, bytes: number): void;
}

interface Instance {
  readonly exports: Exports;
  /** What the last failed call said. */
  reason(): string;
}

const lengthBytes = 4;
const resultBytes = 16;
const zeroOffset = new Uint8Array(2);

/** Compiled once in a thread: each point that is opened wants a codec of its own. */
let compiled: object | undefined;

export async function loadWasmLz4(): Promise<Codec> {
  const path = createRequire(import.meta.url).resolve("lz4-wasm-nodejs/lz4_wasm_nodejs_bg.wasm");
  compiled ??= await WebAssembly.compile(await readFile(path));
  return createWasmLz4(compiled);
}

/** `module`: a compiled WebAssembly module with the {@link Exports}. */
export function createWasmLz4(module: object): Codec {
  let instance: Instance | undefined;

  /**
   * Runs one call and takes its output, if any; a trap leaves stack and heap of an instance undefined, so the next call
   * gets a new one.
   */
  const call = <Result>(use: (live: Instance) => Result): Result => {
    const live = instance ?? instantiate(module);
    instance = undefined;
    const result = use(live);
    instance = live;
    return result;
  };

  return {
    name: "lz4",
    compress(source, target) {
      const room = Math.min(target.length, source.length - 1);
      if (room <= 0) return 0;
      return call(({ exports }) => {
        const output = run(exports, "compress", source, undefined);
        const length = output.length - lengthBytes;
        const fits = length > 0 && length <= room;
        if (fits) target.set(memoryBytes(exports, output.pointer + lengthBytes, length));
        exports.__wbindgen_free(output.pointer, output.length);
        return fits ? length : 0;
      });
    },
    decompress(source, target) {
      let failure: string | undefined;
      try {
        failure = call((live) => decompressWith(live, source, target));
      } catch (error) {
        throw codecDamaged("lz4", source, target, { cause: error });
      }
      if (failure !== undefined) throw codecDamaged("lz4", source, target, { reason: failure });
    },
  };
}

/**
 * Returns what is wrong, if anything. Memory is bounded: the decoder allocates exactly the length we put before the
 * block.
 */
function decompressWith(live: Instance, source: Uint8Array, target: Uint8Array): string | undefined {
  if (source.length === 0 || target.length === 0) return "no bytes";
  if (hasZeroOffset(source)) return "a match refers to itself";
  const { exports } = live;
  const output = run(exports, "decompress", source, target.length);
  if (output.failed) return live.reason();
  const fits = output.length === target.length;
  if (fits) target.set(memoryBytes(exports, output.pointer, output.length));
  exports.__wbindgen_free(output.pointer, output.length);
  return fits ? undefined : `decoded to ${output.length} bytes`;
}

/**
 * True when a match of the block has offset 0, which the format forbids. This decoder would let it pass, and fill it
 * with what its memory held before: bytes of another unit. (The native one gives zeros.) What is damaged otherwise is
 * left to the decoder.
 */
export function hasZeroOffset(block: Uint8Array): boolean {
  // Most blocks of text hold no two zero bytes in a row, and a native search is far cheaper than the walk.
  if (Buffer.prototype.indexOf.call(block as Buffer, zeroOffset) < 0) return false;
  const end = block.length;
  let at = 0;
  while (at < end) {
    const token = block[at++] ?? 0;
    let literals = token >> 4;
    for (let more = literals === 15; more && at < end; ) {
      const byte = block[at++] ?? 0;
      literals += byte;
      more = byte === 255;
    }
    at += literals;
    if (at + 2 > end) return false;
    if (block[at] === 0 && block[at + 1] === 0) return true;
    at += 2;
    for (let more = (token & 15) === 15; more && at < end; ) more = block[at++] === 255;
  }
  return false;
}

interface Output {
  readonly pointer: number;
  readonly length: number;
  readonly failed: boolean;
}

/** `expected`: written before the source as the length to decode to. */
function run(
  exports: Exports,
  operation: "compress" | "decompress",
  source: Uint8Array,
  expected: number | undefined,
): Output {
  const prefix = expected === undefined ? 0 : lengthBytes;
  const inputBytes = prefix + source.length;
  const input = exports.__wbindgen_malloc(inputBytes);
  const memory = memoryBytes(exports, input, inputBytes);
  memory.set(source, prefix);
  if (expected !== undefined) new DataView(memory.buffer).setUint32(input, expected, true);
  const result = exports.__wbindgen_add_to_stack_pointer(-resultBytes);
  exports[operation](result, input, inputBytes);
  // Memory may have grown during the call, which detaches earlier views.
  const view = new DataView(exports.memory.buffer);
  const output: Output = {
    pointer: view.getUint32(result, true),
    length: view.getUint32(result + 4, true),
    failed: operation === "decompress" && view.getUint32(result + 12, true) !== 0,
  };
  exports.__wbindgen_add_to_stack_pointer(resultBytes);
  return output;
}

function memoryBytes(exports: Exports, pointer: number, length: number): Uint8Array {
  return new Uint8Array(exports.memory.buffer, pointer, length);
}

function instantiate(module: object): Instance {
  let reason = "";
  const created = new WebAssembly.Instance(module, {
    __wbindgen_placeholder__: {
      // The module makes a string only to throw it. It wants a handle back; one is enough, since we keep the text here.
      __wbindgen_string_new(pointer: number, length: number): number {
        reason = Buffer.from(exports.memory.buffer, pointer, length).toString("latin1");
        return 0;
      },
    },
  });
  const exports = created.exports as Exports;
  return { exports, reason: () => reason };
}
