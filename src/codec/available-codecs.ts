/** Which codecs this process can use, known without loading them. */
import * as zlib from "node:zlib";
import type { CodecName } from "./compression.ts";
import { hasZstd } from "./zlib-codecs.ts";

export function availableCodecs(): readonly CodecName[] {
  return ["stored", "lz4", ...(hasZstd(zlib) ? (["zstd"] as const) : []), "deflate"];
}
