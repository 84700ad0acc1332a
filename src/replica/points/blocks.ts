/** Puts blocks of a point together from what logs, replica and table have, and says whether they are right. */
import { countParts } from "../../base/part-mask.ts";
import { ReplicationError } from "../../base/errors.ts";
import { blocksPerPage, digestBytes, type Geometry, PART_BYTES } from "../../base/units.ts";
import { isZero } from "../../base/zero.ts";
import { type Digester } from "../../codec/digest.ts";
import type { PageView } from "./chain.ts";
import { type BlockSources, clearParts, placeParts } from "./sources.ts";
import { saysZero, type TablePage } from "./table.ts";

/** What a block's digest is at the point, or in words why that cannot be told. */
export type BlockVerdict =
  | {
      readonly digest: Uint8Array;
      /** False: of a table page that cannot be proven. A zero is to be believed only when the block is read and is zero. */
      readonly sure: boolean;
      /** The block may be zero as well, whatever the digest says. */
      readonly maybeZero: boolean;
    }
  | { readonly trouble: string };

/** How a block came out. `fetch`: what the replica has of it is needed. */
export type Outcome = "good" | "fetch" | ReplicationError;

export interface AssemblerOptions {
  /** Name of the disk. */
  readonly name: string;
  readonly point: number;
  /** Of the disk at the point. */
  readonly geometry: Geometry;
  readonly digester: Digester;
}

export class BlockAssembler {
  readonly #o: AssemblerOptions;
  readonly #perPage: number;
  readonly #found: Uint8Array;
  readonly #scratch: Uint8Array;

  constructor(options: AssemblerOptions) {
    const { digestKind, blockBytes } = options.geometry;
    this.#o = options;
    this.#perPage = blocksPerPage(digestKind);
    this.#found = new Uint8Array(digestBytes(digestKind));
    this.#scratch = new Uint8Array(blockBytes);
  }

  /** `view` is of a look made after `table` was read; `table`: undefined when every block was in the logs before that. */
  verdict(view: PageView, table: TablePage | undefined, block: number): BlockVerdict {
    const sources = view.sources(block);
    const trouble = view.trouble(sources);
    if (trouble !== undefined) return { trouble };
    if (sources?.digest !== undefined) return { digest: sources.digest, sure: true, maybeZero: false };
    if (table?.checksum === undefined) {
      return {
        trouble:
          "the digest table has nothing of it: it is being built anew, or will be when the disk is opened for writing the next time",
      };
    }
    const at = (block % this.#perPage) * this.#found.length;
    const digest = table.bytes.subarray(at, at + this.#found.length);
    return { digest, sure: table.proven, maybeZero: !table.proven && saysZero(table) };
  }

  isKnownZero(view: PageView, table: TablePage | undefined, block: number): boolean {
    const verdict = this.verdict(view, table, block);
    return !("trouble" in verdict) && verdict.sure && isZero(verdict.digest);
  }

  /** Whether something of the block has to be read from the replica. */
  needsReplica(view: PageView, table: TablePage | undefined, block: number): boolean {
    if (this.isKnownZero(view, table, block)) return false;
    const sources = view.sources(block);
    return sources === undefined || sources.anyMissing;
  }

  /**
   * Makes `target`, a whole block, what it was at the point. `fetched`: it holds what the replica has. Whatever the outcome but `good`, what it
   * holds then is not to be used.
   */
  assemble(
    view: PageView,
    table: TablePage | undefined,
    block: number,
    { target, fetched }: { readonly target: Uint8Array; readonly fetched: boolean },
  ): Outcome {
    const { geometry, digester } = this.#o;
    const sources = view.sources(block);
    const verdict = this.verdict(view, table, block);
    if ("trouble" in verdict) return this.damaged(block, verdict.trouble);
    if (verdict.sure && isZero(verdict.digest)) {
      target.fill(0);
      return "good";
    }
    if (!fetched && (sources === undefined || sources.anyMissing)) return "fetch";
    const lost = this.#place(view, sources, target);
    // What an entry protects need not be overwritten yet, or was overwritten with the same.
    if (lost !== undefined && !fetched) return "fetch";
    target.fill(0, Math.min(target.length, geometry.sizeBytes - block * geometry.blockBytes));
    const zero = digester.digest(target, this.#found, 0);
    if (Buffer.compare(this.#found, verdict.digest) === 0 || (zero && verdict.maybeZero)) return "good";
    if (lost !== undefined) return this.damaged(block, lost.message, lost);
    const kept = sources?.pieces.some(({ entry }) => entry.damaged) === true;
    return this.damaged(
      block,
      kept
        ? "the replica was damaged there already when the block was kept for the point"
        : "its content does not match its digest",
    );
  }

  /** The error for a block that cannot be served. */
  damaged(block: number, why: string, cause?: unknown): ReplicationError {
    const { name, point, geometry } = this.#o;
    const offset = block * geometry.blockBytes;
    return new ReplicationError(
      "store-damaged",
      `disk ${name}: point ${point} cannot be read at offset ${offset} (block ${block}): ${why}. ` +
        "The rest of it can; replicate verify says which other point has good content there",
      { cause, details: { disk: name, point, block, offset, why } },
    );
  }

  /** Overlays what the logs have. Returns the first content that cannot be read; in its place stays what the replica has. */
  #place(view: PageView, sources: BlockSources | undefined, target: Uint8Array): ReplicationError | undefined {
    let lost: ReplicationError | undefined;
    for (const { log, entry, parts } of sources?.pieces ?? []) {
      if (entry.zero) {
        clearParts(target, parts);
        continue;
      }
      const content = this.#scratch.subarray(0, countParts(entry.mask) * PART_BYTES);
      try {
        view.logs[log]?.reader.readContent(entry, content);
      } catch (error) {
        if (!(error instanceof ReplicationError)) throw error;
        lost ??= error;
        continue;
      }
      placeParts(target, entry.mask, parts, content);
    }
    return lost;
  }
}
