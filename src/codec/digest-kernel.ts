/**
 * xxh64 in place over the memory that lanes share: `xxhash-wasm` has a memory of its own, into which each block would be copied, and each
 * part be a call of its own. Twice as fast for it.
 */
import type { WasmMemory } from "../base/shared-memory.ts";

/** Addresses are offsets in the memory; beyond its end they trap. */
export interface DigestKernel {
  /** xxh64, seed 0, as a signed number. `length`: a multiple of 32, not 0. */
  xxh64(at: number, length: number): bigint;
  /** Writes the low 32 bits of the xxh64 of each of `count` (not 0) consecutive parts of 4 KiB to `target`, little endian. */
  parts(at: number, count: number, target: number): void;
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
  "AGFzbQEAAAABEwNgAn5+AX5gAn9/AX5gA39/fwACEgEDZW52Bm1lbW9yeQIDAYCABAMFBAAAAQIHEQIFeHhoNjQAAgVwYXJ0cwADCr0DBCEAIAAgAULP1t" +
  "O+0ser2UJ+fEIfiUKHla+vmLbem55/fgsjACAAQgAgARAAhUKHla+vmLbem55/fkLj3MqV/M7y9YV/fAvHAgIBfwV+IAAgAWohAkLW64Lu6v2J9eAAIQNC" +
  "z9bTvtLHq9lCIQRC+erQ0OfJoeThACEGA0AgAyAAKQMAQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQMgBCAAKQMIQs/W077Sx6vZQn58Qh+JQoeVr6" +
  "+Ytt6bnn9+IQQgBSAAKQMQQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQUgBiAAKQMYQs/W077Sx6vZQn58Qh+JQoeVr6+Ytt6bnn9+IQYgAEEgaiEA" +
  "IAAgAkkNAAsgA0IBiSAEQgeJfCAFQgyJIAZCEol8fCEHIAcgAxABIQcgByAEEAEhByAHIAUQASEHIAcgBhABIQcgByABrXwhByAHIAdCIYiFQs/W077Sx6" +
  "vZQn4hByAHIAdCHYiFQvnz3fGZ9pmrFn4hByAHIAdCIIiFCywAA0AgAiAAQYAgEAKnNgIAIABBgCBqIQAgAkEEaiECIAFBAWshASABDQALCw==";

/** Compiled once a thread. */
let compiled: object | undefined;

export function createDigestKernel(memory: WasmMemory): DigestKernel {
  compiled ??= new WebAssembly.Module(Buffer.from(kernelModule, "base64"));
  return new WebAssembly.Instance(compiled, { env: { memory } }).exports;
}
