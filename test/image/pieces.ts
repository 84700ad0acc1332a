/** Image files written down as pieces: what is in none of them is zero. */
import { open } from "node:fs/promises";
import type { Piece } from "./conformance.ts";

export interface BuiltFile {
  readonly pieces: readonly Piece[];
  readonly sizeBytes: number;
}

/** As a file, sparse. */
export async function writePieces(path: string, { pieces, sizeBytes }: BuiltFile): Promise<void> {
  const file = await open(path, "w");
  await file.truncate(sizeBytes);
  for (const { offset, bytes } of pieces) await file.write(bytes, 0, bytes.length, offset);
  await file.close();
}

/** All of it in one array. */
export function bytesOf({ pieces, sizeBytes }: BuiltFile): Buffer {
  const all = Buffer.alloc(sizeBytes);
  for (const { offset, bytes } of pieces) all.set(bytes, offset);
  return all;
}
