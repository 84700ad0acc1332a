/** The replica of a disk, whatever its file is: a raw image, or a VHDX. For the holder of `apply.lock`; who only reads has {@link ReplicaReader}. */
import type { FileRun } from "../image/block-device.ts";
import type { FileStat } from "../storage/seam.ts";

export type ReplicaFormat = "raw" | "vhdx";

/**
 * Content is read and written by who has the descriptor, at the places told here. Methods throw the system's errors unchanged, and `store-damaged` where
 * the file's tables cannot be made out.
 */
export interface Replica {
  readonly path: string;
  /** Open read-write. */
  readonly fd: number;
  /** The same file past the page cache; see `StorageFile.directFd`. */
  readonly directFd: number | undefined;
  /** Of the disk, as the file has it. */
  readonly sizeBytes: number;
  /** Where blocks lie in the file, each as a number of blocks from its beginning, negative: nowhere, it is zero. Undefined: each at its own number. */
  places(blocks: readonly number[]): readonly number[] | undefined;
  /** The same for blocks that are to be written: those that lie nowhere get a place, and are zero there. Any number of calls at a time. */
  claim(blocks: readonly number[]): Promise<readonly number[]> | undefined;
  /** Where a range of the disk lies. */
  runs(offset: number, length: number): readonly FileRun[];
  /** The first extent of data of the disk at or behind `offset`: everything else is zero. */
  nextData(offset: number): { readonly start: number; readonly end: number } | undefined;
  /** Before the first change of content. */
  touch(): Promise<void>;
  /** Gives the disk another size; what was behind the smaller of both reads as zeros. No write is in flight. */
  resize(sizeBytes: number): Promise<void>;
  /** What was written, claimed and resized is durable when it resolves. */
  datasync(): Promise<void>;
  /** Of the file. */
  stat(): Promise<FileStat>;
  close(): Promise<void>;
}

/** For points, beside a writer: what it returns may be older than what the writer has written since, and a point's logs tell. */
export interface ReplicaReader {
  readonly path: string;
  /** Fills `target`; returns bytes read, fewer only at the end of the disk, behind which all is zero. */
  read(target: Uint8Array, offset: number): Promise<number>;
  close(): Promise<void>;
}
