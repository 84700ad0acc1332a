/** What a verb of the command line is, and what it may use of the process. */
import type { ErrorCode } from "../base/errors.ts";

export interface CliIo {
  /** Standard output; the text comes with its line ends. */
  out(text: string): void;
  /** Standard error. */
  err(text: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly cwd: string;
  /** Fires on SIGINT and SIGTERM. */
  readonly signal: AbortSignal;
  /** Standard error is a terminal: progress may be drawn. */
  readonly isTerminal: boolean;
  readonly columns: number;
}

/** A verb as the list of verbs has it. */
export interface VerbEntry {
  readonly name: string;
  /** One line. */
  readonly summary: string;
  readonly load: () => Promise<Verb>;
  /** Stopped, it has nothing to go on with: another run begins anew. */
  readonly beginsAnew?: boolean;
}

export interface Verb {
  /** For `--help`: usage, options, an example. */
  readonly help: string;
  /** Exit codes of errors where this verb has its own. */
  readonly exitCodes?: Partial<Record<ErrorCode, number>>;
  /** Returns the exit code, or throws a ReplicationError, which the frame prints and turns into one. */
  run(args: readonly string[], io: CliIo): Promise<number>;
}

/** For verbs that serve until they are stopped. */
export function stopped(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}
