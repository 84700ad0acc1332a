/** What processes on a simulated disk do to it, and what may go wrong. */

export type OperationKind =
  | "create"
  | "write"
  | "truncate"
  | "punch"
  | "sync"
  | "rename"
  | "link"
  | "unlink"
  | "make-directory"
  | "remove-directory"
  | "sync-directory"
  | "set-mode";

/** One call that changes the disk or makes something durable. */
export interface Operation {
  /** From 0, counted for each process. */
  readonly index: number;
  readonly kind: OperationKind;
  readonly path: string;
  /** Of a write: what, and where. */
  readonly bytes?: Uint8Array;
  readonly offset?: number;
  /** Of a truncation: the new length. */
  readonly sizeBytes?: number;
}

/**
 * `kill`: the process ends before the operation has any effect. `errno`: the operation fails with it; a sync forgets what was to be
 * synced. Two take something out of the program, to see what it is good for: `skip` does nothing and reports success; `late` reports success, and does
 * it right after the process's next operation for which `until` is true (never, when there is none).
 */
export type Fault =
  | { readonly kind: "kill" }
  | { readonly kind: "errno"; readonly errno: string }
  | { readonly kind: "skip" }
  | { readonly kind: "late"; readonly until: (operation: Operation) => boolean };

export interface ProcessOptions {
  /** Asked before each operation. */
  readonly fault?: (operation: Operation) => Fault | undefined;
  /** Asked before each read: an errno to fail with. */
  readonly readFault?: (path: string, offset: number) => string | undefined;
  /** False: file modes count. Default true. */
  readonly root?: boolean;
  /** False: `lock` fails with ENOTSUP. Default true. */
  readonly locks?: boolean;
  /** False: the hint to drop a file's page cache does nothing. Default: it is followed. */
  readonly dropsCache?: (path: string) => boolean;
}
