/** The codecs of node:zlib. Slower than lz4 and smaller: for links slower than the processor. */
import * as zlib from "node:zlib";
import type { Codec, CodecName } from "./compression.ts";
import { codecDamaged } from "./damage.ts";

/** What the synchronous calls return with `info`; `bytesWritten` of the engine is how much input it used. */
interface Decoded {
  readonly buffer: Uint8Array;
  readonly engine: { readonly bytesWritten: number };
}

/** What we use of zstd, which the types of Node 20 do not know. */
interface ZstdOptions {
  readonly chunkSize?: number;
  readonly maxOutputLength?: number;
  readonly info?: boolean;
  readonly params: Readonly<Record<number, number>>;
}
interface Zstd {
  zstdCompressSync(source: Uint8Array, options: ZstdOptions): Uint8Array;
  zstdDecompressSync(source: Uint8Array, options: ZstdOptions): unknown;
  readonly constants: { readonly ZSTD_c_compressionLevel: number; readonly ZSTD_d_windowLogMax: number };
}

/** Speed decides: a higher level costs several times the time for a few percent. */
const level = 1;
/** 1 MiB, the longest unit: a frame that asks for a larger window, and with it more memory, is refused. */
const windowLogMax = 20;
/** Room for all output in one piece, so that nothing is joined afterwards. */
const slackBytes = 64;

export function createDeflate(): Codec {
  return createZlibCodec("deflate", {
    encode: (source) => zlib.deflateRawSync(source, { level, chunkSize: source.length + slackBytes }),
    decode: (source, expected) =>
      zlib.inflateRawSync(source, { info: true, maxOutputLength: expected, chunkSize: expected + slackBytes }),
  });
}

/** Undefined where node:zlib has no zstd: before Node 22.15. */
export function createZstd(): Codec | undefined {
  if (!hasZstd(zlib)) return undefined;
  const zstd: Zstd = zlib;
  const { ZSTD_c_compressionLevel, ZSTD_d_windowLogMax } = zstd.constants;
  return createZlibCodec("zstd", {
    encode: (source) =>
      zstd.zstdCompressSync(source, {
        chunkSize: source.length + slackBytes,
        params: { [ZSTD_c_compressionLevel]: level },
      }),
    decode: (source, expected) =>
      zstd.zstdDecompressSync(source, {
        info: true,
        maxOutputLength: expected,
        chunkSize: expected + slackBytes,
        params: { [ZSTD_d_windowLogMax]: windowLogMax },
      }),
  });
}

export function hasZstd(module: object): module is Zstd {
  return "zstdCompressSync" in module && "zstdDecompressSync" in module;
}

function createZlibCodec(
  name: CodecName,
  engine: {
    readonly encode: (source: Uint8Array) => Uint8Array;
    readonly decode: (source: Uint8Array, expected: number) => unknown;
  },
): Codec {
  return {
    name,
    compress(source, target) {
      if (source.length === 0 || target.length === 0) return 0;
      const result = engine.encode(source);
      if (result.length >= source.length || result.length > target.length) return 0;
      target.set(result);
      return result.length;
    },
    decompress(source, target) {
      if (source.length === 0 || target.length === 0) throw codecDamaged(name, source, target);
      let decoded: Decoded;
      try {
        decoded = engine.decode(source, target.length) as Decoded;
      } catch (error) {
        throw codecDamaged(name, source, target, { cause: error });
      }
      // zlib ends quietly at the end of its stream; what follows it in the source would be lost.
      if (decoded.engine.bytesWritten !== source.length || decoded.buffer.length !== target.length) {
        throw codecDamaged(name, source, target);
      }
      target.set(decoded.buffer);
    },
  };
}
