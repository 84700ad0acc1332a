/** Says what a file of a seed is and whether it is whole at its ends: for `replicate inspect`. */
import { basename, dirname } from "node:path";
import { ReplicationError } from "../../base/errors.ts";
import type { Storage } from "../../storage/seam.ts";
import { parseSeedFile } from "./format.ts";
import { lookAtPart, readSeedFacts } from "./reader.ts";

export interface SeedFileDescription {
  readonly kind: "seed" | "seed part";
  readonly facts: Readonly<Record<string, string | number | undefined>>;
  /** What is wrong with it, in words. The content of a part is not read: that is what applying it does. */
  readonly trouble: string | undefined;
}

/** Undefined: not named like a file of a seed. */
export async function inspectSeedFile(storage: Storage, path: string): Promise<SeedFileDescription | undefined> {
  const named = parseSeedFile(basename(path));
  if (named === undefined || named.kind === "leftover") return undefined;
  const kind = named.kind === "manifest" ? "seed" : "seed part";
  try {
    if (named.part === undefined) {
      const { codecs, ...facts } = await readSeedFacts(storage, path);
      return { kind, facts: { ...facts, codecs: codecs.join(" ") }, trouble: undefined };
    }
    const { disk, run } = named;
    const { header, trailer } = await lookAtPart(storage, { disk, run, directory: dirname(path) }, named.part);
    const { protocol, part } = header;
    const { bodyBytes, frames, sha256 } = trailer;
    const facts = { disk, run, part, protocol, bodyBytes, frames, sha256: Buffer.from(sha256).toString("hex") };
    return { kind, facts, trouble: undefined };
  } catch (error) {
    if (error instanceof ReplicationError) return { kind, facts: {}, trouble: error.message };
    throw error;
  }
}
