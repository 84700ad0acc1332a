/** Memory that the threads of a process share, and what of WebAssembly is used to have it. */

/** A memory of WebAssembly: the types of Node.js do not have it. */
export interface WasmMemory {
  readonly buffer: ArrayBufferLike;
}

/** What threads share. Both fields can be handed to another thread: it then has the same bytes. */
export interface SharedMemory {
  readonly buffer: SharedArrayBuffer;
  /** The same bytes as WebAssembly code can use them; undefined where they could not be had that way. */
  readonly wasm: WasmMemory | undefined;
}

declare const WebAssembly: {
  readonly Memory: new (shape: {
    readonly initial: number;
    readonly maximum: number;
    readonly shared: true;
  }) => WasmMemory;
};

const wasmPageBytes = 65_536;

/**
 * At least `bytes` zero bytes, beginning on a page, as direct writes to a device need it: only memory of WebAssembly does so for sure. It takes
 * address space of several GiB, so under a limit on that it is ordinary memory, and direct writes are refused by the system. Pages are touched
 * by the system only as they are used.
 */
export function allocateShared(bytes: number): SharedMemory {
  const pages = Math.ceil(bytes / wasmPageBytes);
  try {
    const wasm = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
    if (wasm.buffer instanceof SharedArrayBuffer) return { buffer: wasm.buffer, wasm };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return { buffer: new SharedArrayBuffer(bytes), wasm: undefined };
}
