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
  "AGFzbQEAAAABLgdgAn5+AX5gAn9/AX5gAX8Bf2AEf39/fwBgB39/f39/f38AYAN/f38AYAJ/fwACEgEDZW52Bm1lbW9yeQIDAYCABAMJCAAAAQIDBAUGBygFBX" +
  "h4aDY0AAIFcGFydHMABAZibG9ja3MABQRjb3B5AAYEemVybwAHCoAGCCEAIAAgAULP1tO+0ser2UJ+fEIfiUKHla+vmLbem55/fgsjACAAQgAgARAAhUKHla+v" +
  "mLbem55/fkLj3MqV/M7y9YV/fAvHAgIBfwV+IAAgAWohAkLW64Lu6v2J9eAAIQNCz9bTvtLHq9lCIQRC+erQ0OfJoeThACEGA0AgAyAAKQMAQs/W077Sx6vZQn" +
  "58Qh+JQoeVr6+Ytt6bnn9+IQMgBCAAKQMIQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQQgBSAAKQMQQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQUg" +
  "BiAAKQMYQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQYgAEEgaiEAIAAgAkkNAAsgA0IBiSAEQgeJfCAFQgyJIAZCEol8fCEHIAcgAxABIQcgByAEEAEhBy" +
  "AHIAUQASEHIAcgBhABIQcgByABrXwhByAHIAdCIYiFQs/W077Sx6vZQn4hByAHIAdCHYiFQvnz3fGZ9pmrFn4hByAHIAdCIIiFCz8BAX8gAEGAIGohAQNAIAAp" +
  "AwAgACkDCIQgACkDECAAKQMYhIRCAFIEQEEADwsgAEEgaiEAIAAgAUkNAAtBAQs/AQF+A0AgAEGAIBACIQQgAiAENwMAIAMgBD4CACAAQYAgaiEAIAJBCGohAi" +
  "ADQQRqIQMgAUEBayEBIAENAAsL1QECA38CfgNAIAAgAiAFIAYQBEEAIQdBACEJQQAhCANAIAAQA0UEQEEBIQkgCEEBIAdBB3F0ciEICyAAQYAgaiEAIAdBAWoh" +
  "ByAHQQdxRSAHIAJGcgRAIAQgCDoAACAEQQFqIQRBACEICyAHIAJJDQALQgAhCiAJBEAgBSACQQN0EAIhCiAKUARAQgEhCgsLQjghCwNAIAMgCiALiDwAACADQQ" +
  "FqIQMgC0IIfSELIAtCAFkNAAsgBSACQQN0aiEFIAYgAkECdGohBiABQQFrIQEgAQ0ACwsMACAAIAEgAvwKAAALCwAgAEEAIAH8CwAL";

/** Compiled once a thread. */
let compiled: object | undefined;

export function createDigestKernel(memory: WasmMemory): DigestKernel {
  compiled ??= new WebAssembly.Module(Buffer.from(kernelModule, "base64"));
  return new WebAssembly.Instance(compiled, { env: { memory } }).exports;
}
