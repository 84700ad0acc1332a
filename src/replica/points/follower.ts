/** Keeps the chain of a point up to date while its reader is open. */
import type { Storage } from "../../storage/seam.ts";
import type { DiskPaths } from "../layout.ts";
import { listPoints, orphanLog } from "./point.ts";
import { type ChainParts, type HeldLog, openChain, type PointChain } from "./chain.ts";
import { settleAll } from "../table-files.ts";

export class ChainFollower {
  readonly #parts: ChainParts;
  readonly #isIdle: () => boolean;
  #chain: PointChain;
  /** Logs of earlier chains that no chain has now. */
  #stale: HeldLog[] = [];
  #following: Promise<unknown> = Promise.resolve();

  /** Takes the chain's files over. `isIdle`: nobody but who calls {@link look} uses a chain. */
  constructor(parts: ChainParts, chain: PointChain, isIdle: () => boolean) {
    this.#parts = parts;
    this.#chain = chain;
    this.#isIdle = isIdle;
  }

  /** As of the last look. */
  get chain(): PointChain {
    return this.#chain;
  }

  /**
   * The chain as it is now. Order: points listed → open log read on. A log that is not in the list did not exist then, and what was appended
   * to the open one before the list was made is found. Throws what {@link openChain} throws.
   */
  async look(): Promise<PointChain> {
    const files = await listPoints(this.#storage, this.#paths);
    const chain = this.#chain;
    if (files.newest === chain.newest && files.openLog === chain.hasOpenLog && orphanLog(files) === undefined) {
      chain.refresh();
      return chain;
    }
    const next = this.#following.then(() => this.#follow());
    // Who called has the rejection; the next one only waits.
    this.#following = next.catch(() => undefined);
    return next;
  }

  /** Idempotent. */
  async close(): Promise<void> {
    await closeLogs([...this.#chain.logs, ...this.#stale]);
  }

  get #storage(): Storage {
    return this.#parts.storage;
  }

  get #paths(): DiskPaths {
    return this.#parts.paths;
  }

  /** One at a time. */
  async #follow(): Promise<PointChain> {
    const files = await listPoints(this.#storage, this.#paths);
    const chain = this.#chain;
    if (files.newest === chain.newest && orphanLog(files) === undefined) {
      if (files.openLog && !chain.hasOpenLog) await chain.findOpenLog();
      chain.refresh();
      return chain;
    }
    const next = await openChain(this.#parts, chain.point.point, chain.logs);
    next.refresh();
    this.#chain = next;
    this.#stale.push(...chain.logs.filter(({ file }) => next.logs.every((log) => log.file !== file)));
    if (this.#isIdle()) await closeLogs(this.#stale.splice(0));
    return next;
  }
}

export async function closeLogs(logs: readonly HeldLog[]): Promise<void> {
  await settleAll(logs.map(({ file }) => file.close()));
}
