/**
 * xxh64 in place over the memory that lanes share: `xxhash-wasm` has a memory of its own, into which each block would be copied, and each
 * part be a call of its own. Twice as fast for it. And copies within that memory, which from JavaScript are made word by word: 4 instead
 * of 60 GB/s.
 */
import type { WasmMemory } from "../base/shared-memory.ts";

/** Addresses are offsets in the memory; beyond its end they trap. */
export interface DigestKernel {
  /** xxh64, seed 0, as a signed number. `length`: a multiple of 32, not 0. */
  xxh64(at: number, length: number): bigint;
  /** Writes the xxh64 of each of `count` (not 0) consecutive parts of 4 KiB to `wide`, the low 32 bits of each to `low`, little endian. */
  parts(at: number, count: number, wide: number, low: number): void;
  /**
   * Of each of `count` (not 0) blocks of `parts` (a multiple of 4) parts: the same of its parts; a bit for each part that is not zeros to `masks`; and the
   * xxh64 over those of the parts to `digests`, big endian: 0 for a block of zeros, 1 for another one that gives 0.
   */
  blocks(at: number, count: number, parts: number, digests: number, masks: number, wide: number, low: number): void;
  /**
   * 1 when the parts in `masks` (of `count` blocks of `parts` parts) of content that lies one behind the other at `content` have the digests that `known`
   * has for them, 8 bytes little endian for each part of each block; else 0.
   */
  verify(count: number, parts: number, masks: number, content: number, known: number): number;
  /**
   * Whether blocks get the digests at `digests` (8 bytes each, big endian) when their parts in `masks` become those one behind the other at `content`, while
   * the others have the digests in `known`. Of a block whose state is 255 the state becomes 0 when so, else 1; of others only the content is passed.
   * `zeroPart`: the digest of a part of zeros. `temp`: room for the digests of the parts of a block.
   */
  change(
    count: number,
    parts: number,
    masks: number,
    content: number,
    known: number,
    digests: number,
    states: number,
    zeroPart: bigint,
    temp: number,
  ): void;
  /** The places may overlap. */
  copy(to: number, from: number, length: number): void;
  zero(at: number, length: number): void;
}

declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Instance: new (
    module: object,
    imports: { readonly env: { readonly memory: WasmMemory } },
  ) => { readonly exports: DigestKernel };
};

/** digest-kernel.wat, assembled. */
export const kernelModule: string =
  "AGFzbQEAAAABVQxgAn5+AX5gAn9/AX5gAX8Bf2AEf39/fwBgB39/f39/f38AYAV/f39/fwF/YAl/f39/f39/fn8AYAJ/fwF/YAN/f38BfmABfwF+YAN/f38AYA" +
  "J/fwACEgEDZW52Bm1lbW9yeQIDAYCABAMPDgAAAQIDBAUGBwIICQoLBzoHBXh4aDY0AAIFcGFydHMABAZibG9ja3MABQZ2ZXJpZnkABgZjaGFuZ2UABwRjb3B5" +
  "AAwEemVybwANCu0IDiEAIAAgAULP1tO+0ser2UJ+fEIfiUKHla+vmLbem55/fgsjACAAQgAgARAAhUKHla+vmLbem55/fkLj3MqV/M7y9YV/fAvHAgIBfwV+IA" +
  "AgAWohAkLW64Lu6v2J9eAAIQNCz9bTvtLHq9lCIQRC+erQ0OfJoeThACEGA0AgAyAAKQMAQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQMgBCAAKQMIQs/W" +
  "077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQQgBSAAKQMQQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQUgBiAAKQMYQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt" +
  "6bnn9+IQYgAEEgaiEAIAAgAkkNAAsgA0IBiSAEQgeJfCAFQgyJIAZCEol8fCEHIAcgAxABIQcgByAEEAEhByAHIAUQASEHIAcgBhABIQcgByABrXwhByAHIAdC" +
  "IYiFQs/W077Sx6vZQn4hByAHIAdCHYiFQvnz3fGZ9pmrFn4hByAHIAdCIIiFCz8BAX8gAEGAIGohAQNAIAApAwAgACkDCIQgACkDECAAKQMYhIRCAFIEQEEADw" +
  "sgAEEgaiEAIAAgAUkNAAtBAQs/AQF+A0AgAEGAIBACIQQgAiAENwMAIAMgBD4CACAAQYAgaiEAIAJBCGohAiADQQRqIQMgAUEBayEBIAENAAsLwQECA38CfgNA" +
  "IAAgAiAFIAYQBEEAIQdBACEJQQAhCANAIAAQA0UEQEEBIQkgCEEBIAdBB3F0ciEICyAAQYAgaiEAIAdBAWohByAHQQdxRSAHIAJGcgRAIAQgCDoAACAEQQFqIQ" +
  "RBACEICyAHIAJJDQALIAUgAiAJEAohCkI4IQsDQCADIAogC4g8AAAgA0EBaiEDIAtCCH0hCyALQgBZDQALIAUgAkEDdGohBSAGIAJBAnRqIQYgAUEBayEBIAEN" +
  "AAsLXQEBfwNAQQAhBQNAIAIgBRAIBEAgBCkDACADQYAgEAJSBEBBAA8LIANBgCBqIQMLIARBCGohBCAFQQFqIQUgBSABSQ0ACyACIAEQCWohAiAAQQFrIQAgAA" +
  "0AC0EBC7ABAgN/AX4DQEEAIQlBACELIAYtAABB/wFGIQoDQCAEKQMAIQwgAiAJEAgEQCAKBEAgA0GAIBACIQwLIANBgCBqIQMLIAggCUEDdGogDDcDACAMIAdS" +
  "BEBBASELCyAEQQhqIQQgCUEBaiEJIAkgAUkNAAsgCgRAIAggASALEAohDCAGIAwgBRALUjoAAAsgAiABEAlqIQIgBUEIaiEFIAZBAWohBiAAQQFrIQAgAA0ACw" +
  "sWACAAIAFBA3ZqLQAAIAFBB3F2QQFxCwoAIABBB2pBA3YLIAEBfiACRQRAQgAPCyAAIAFBA3QQAiEDQgEgAyADUBsLLQIBfgF/IABBCGohAgNAIAFCCIYgADEA" +
  "AIQhASAAQQFqIQAgACACSQ0ACyABCwwAIAAgASAC/AoAAAsLACAAQQAgAfwLAAs=";

/** Compiled once a thread. */
let compiled: object | undefined;

export function createDigestKernel(memory: WasmMemory): DigestKernel {
  compiled ??= new WebAssembly.Module(Buffer.from(kernelModule, "base64"));
  return new WebAssembly.Instance(compiled, { env: { memory } }).exports;
}
