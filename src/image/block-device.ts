/**
 * The interface in the middle: a disk image as blocks. Everything else is an implementation or a decorator.
 * The caller owns every buffer; the promise is the loan.
 */

/**
 * Contiguous bytes of one kind. `data`: must be read. `zero`: reads as zeros, allocated. `hole`: reads as zeros,
 * takes no space.
 */
export interface Extent {
  readonly kind: "data" | "zero" | "hole";
  readonly offset: number;
  readonly length: number;
}

/** Where the bytes of a range lie, for lanes that read by themselves. Runs are in order and cover the range. */
export type FileRun =
  | { readonly kind: "file"; readonly fd: number; readonly offset: number; readonly length: number }
  | { readonly kind: "zero"; readonly length: number };

export interface BlockReader {
  /** Exact size in bytes; need not be a multiple of anything. */
  readonly sizeBytes: number;
  /** Logical sector: 512 or 4096. */
  readonly sectorBytes: 512 | 4096;
  /**
   * Fills all of `target` with the bytes at `offset`, or throws. The range lies within the disk (else InvariantError).
   * Errors: `image-truncated` (a short read never becomes zeros), `image-unreadable`, `image-damaged`.
   */
  read(target: Uint8Array, offset: number): Promise<void>;
  /**
   * Ascending, contiguous extents that cover exactly the range, without reading data. Evaluated as it is consumed.
   * A reader that does not know answers "all data".
   */
  extents(offset: number, length: number): AsyncIterable<Extent>;
  /** Where the range lies in open files; undefined: only `read` can tell. The descriptors stay valid until close. */
  runs?(offset: number, length: number): readonly FileRun[] | undefined;
  /**
   * Of an image that is written to meanwhile: what {@link runs} says of the range is good until the function returned is called, soon, since writers wait. Left
   * out: it is good while the image is open. See held-runs.ts.
   */
  hold?(offset: number, length: number): () => void;
  close(): Promise<void>;
}

export interface BlockWriter extends BlockReader {
  /** Writes all of `source` at `offset` or throws. Within the disk. */
  write(source: Uint8Array, offset: number): Promise<void>;
  /** Makes the range read as zeros; gives its space back where it can. Within the disk. */
  zero(offset: number, length: number): Promise<void>;
  /** Durable when it resolves. A failed flush means nothing since the last good one counts as written. */
  flush(): Promise<void>;
}
