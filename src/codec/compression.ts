/** Compression of one unit (at most 1 MiB) with exact lengths. */

/** Names on the wire and in options. `stored`: as it is. */
export type CodecName = "stored" | "lz4" | "deflate" | "zstd";

export interface Codec {
  readonly name: CodecName;
  /** Compresses `source` into `target`. Returns the bytes written, or 0 when it does not get smaller than the source or than `target`. */
  compress(source: Uint8Array, target: Uint8Array): number;
  /**
   * Fills exactly all of `target` from exactly all of `source`. Throws `codec-damaged` for anything else: damaged, truncated,
   * trailing bytes, another length. Never reads or writes outside the two arrays.
   */
  decompress(source: Uint8Array, target: Uint8Array): void;
}

/** The codecs this process can use, fastest implementation first. Not shared between threads. */
export interface CodecSet {
  readonly names: readonly CodecName[];
  /** How lz4 is done here: `native`, or the slower fallback where the native module was not built. */
  readonly lz4: "native" | "wasm";
  get(name: CodecName): Codec;
}

// Implemented by the codec helper: replace this declaration.
export declare function loadCodecs(): Promise<CodecSet>;
