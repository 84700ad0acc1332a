/** Cycles of a tracked disk that looked at all of it, or of the table, one after the other, said aloud: once is what a doubt costs, more is something that is wrong. */
import type { Logger } from "../base/logger.ts";
import type { SendReport } from "./report.ts";

export class WholeCycles {
  readonly #inARow = new Map<string, number>();
  readonly #log: Logger;

  constructor(log: Logger) {
    this.#log = log;
  }

  /** After each cycle. */
  note(reports: readonly Pick<SendReport, "disk" | "reason">[]): void {
    for (const { disk, reason } of reports) {
      const before = this.#inARow.get(disk);
      // A first copy is no doubt.
      const isExpected = reason === "bitmap" || (reason === "initial" && before === undefined);
      const inARow = isExpected ? 0 : (before ?? 0) + 1;
      this.#inARow.set(disk, inARow);
      if (inARow < 2) continue;
      this.#log.warn(
        { disk, reason, inARow },
        `${disk}: it was compared with the receiver in ${inARow} cycles in a row, though what changed should be known after one. Does another sender write to this disk at the receiver, or did an audit miss?`,
      );
    }
  }
}
