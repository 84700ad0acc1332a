/** Files and directories of a simulated disk: what readers see, what is durable, and what is in between. */
import type { FileStat } from "../storage/seam.ts";
import { SimulatedContent } from "./simulated-content.ts";

/** Grain at which an un-synced write survives a loss of power. */
const sectorBytes = 512;

type Change =
  | { readonly kind: "write"; readonly bytes: Uint8Array; readonly offset: number }
  | { readonly kind: "truncate"; readonly sizeBytes: number }
  | { readonly kind: "punch"; readonly offset: number; readonly length: number };

/** What may survive a loss of power or not: a sector of a write or a hole, a new length, a change of a directory, an inode's time. */
export type Unsynced = "write" | "punch" | "truncate" | "entry" | "time";

/** True: what is asked about survives. Called once for each thing that may go either way. */
export type Survives = (what: Unsynced) => boolean;

export interface HeldLock {
  readonly kind: "shared" | "exclusive";
  readonly owner: object;
}

export class SimulatedFile {
  readonly inode: number;
  mode: number;
  changedNanos: bigint;
  /** Of the last change of the content. */
  modifiedNanos: bigint;
  locks: HeldLock[] = [];
  #seen = new SimulatedContent();
  #durable = new SimulatedContent();
  #durableNanos: bigint;
  #pending: Change[] = [];
  /** Reads may show what is neither durable nor pending. */
  #forgot = false;

  constructor(inode: number, mode: number, now: bigint) {
    this.inode = inode;
    this.mode = mode;
    this.changedNanos = now;
    this.modifiedNanos = now;
    this.#durableNanos = now;
  }

  /** What reads show. */
  get content(): SimulatedContent {
    return this.#seen;
  }

  /** Takes `bytes` over. */
  write(bytes: Uint8Array, offset: number, now: bigint): void {
    this.#change({ kind: "write", bytes, offset }, now);
  }

  truncate(sizeBytes: number, now: bigint): void {
    this.#change({ kind: "truncate", sizeBytes }, now);
  }

  punch(offset: number, length: number, now: bigint): void {
    this.#change({ kind: "punch", offset, length }, now);
  }

  sync(): void {
    for (const change of this.#pending) make(this.#durable, change);
    this.#pending = [];
    this.#durableNanos = this.changedNanos;
  }

  /** What a failed sync does: the changes are not pending any more and will never be written, though reads still show them. */
  failSync(): void {
    this.#forgot ||= this.#pending.length > 0;
    this.#pending = [];
  }

  /** Reads of the range show again what is durable or pending, and not what a failed sync forgot. */
  dropCache(offset: number, length: number): void {
    if (!this.#forgot) return;
    const truth = this.#durable.clone();
    for (const change of this.#pending) make(truth, change);
    const end = Math.min(offset + length, this.#seen.sizeBytes);
    this.#seen.punch(offset, end - offset);
    for (let data = truth.nextData(offset); data !== undefined && data.start < end; data = truth.nextData(data.end)) {
      const bytes = new Uint8Array(Math.min(data.end, end) - data.start);
      truth.read(bytes, data.start);
      this.#seen.write(bytes, data.start);
    }
  }

  /** Any subset of the changes since the last sync has happened, writes sector by sector. */
  losePower(survives: Survives): void {
    for (const change of this.#pending) {
      for (const part of sectors(change)) if (survives(part.kind)) make(this.#durable, part);
    }
    this.#pending = [];
    // The inode goes its own way: bytes may be new and the time of change old.
    if (!survives("time")) {
      this.changedNanos = this.#durableNanos;
      this.modifiedNanos = this.modifiedNanos < this.changedNanos ? this.modifiedNanos : this.changedNanos;
    }
    this.#durableNanos = this.changedNanos;
    this.#seen = this.#durable.clone();
    this.#forgot = false;
    this.locks = [];
  }

  /** Changes the bytes on the medium, past everything: rot. */
  poke(bytes: Uint8Array, offset: number): void {
    const own = new Uint8Array(bytes);
    this.#durable.write(own, offset);
    this.#seen.write(own, offset);
    // What is pending there goes over it, though reads show it already.
    this.#forgot = true;
  }

  #change(change: Change, now: bigint): void {
    this.#pending.push(change);
    make(this.#seen, change);
    this.changedNanos = now;
    this.modifiedNanos = now;
  }
}

function make(content: SimulatedContent, change: Change): void {
  switch (change.kind) {
    case "write":
      content.write(change.bytes, change.offset);
      return;
    case "truncate":
      content.truncate(change.sizeBytes);
      return;
    case "punch":
      content.punch(change.offset, change.length);
      return;
  }
}

function* sectors(change: Change): Generator<Change> {
  if (change.kind === "truncate") {
    yield change;
    return;
  }
  const length = change.kind === "write" ? change.bytes.length : change.length;
  for (let at = 0; at < length; ) {
    const offset = change.offset + at;
    const count = Math.min(length - at, sectorBytes - (offset % sectorBytes));
    if (change.kind === "write") yield { kind: "write", bytes: change.bytes.subarray(at, at + count), offset };
    else yield { kind: "punch", offset, length: count };
    at += count;
  }
}

export type SimulatedNode = SimulatedFile | SimulatedDirectory;

/** Names that appear and names that go, as one step. */
interface EntryChange {
  readonly remove?: string;
  readonly add?: { readonly name: string; readonly node: SimulatedNode };
}

export class SimulatedDirectory {
  readonly inode: number;
  #seen = new Map<string, SimulatedNode>();
  #durable = new Map<string, SimulatedNode>();
  #pending: EntryChange[] = [];
  #names: readonly string[] | undefined;

  constructor(inode: number) {
    this.inode = inode;
  }

  get entries(): ReadonlyMap<string, SimulatedNode> {
    return this.#seen;
  }

  /** Sorted. */
  get names(): readonly string[] {
    return (this.#names ??= [...this.#seen.keys()].sort());
  }

  change(change: EntryChange): void {
    this.#pending.push(change);
    makeEntry(this.#seen, change);
    this.#names = undefined;
  }

  sync(): void {
    for (const change of this.#pending) makeEntry(this.#durable, change);
    this.#pending = [];
  }

  /** A prefix of the changes since the last sync has happened, or any subset; what is found then loses power itself. */
  losePower(survives: Survives, entries: "prefix" | "any"): void {
    for (const change of this.#pending) {
      if (survives("entry")) makeEntry(this.#durable, change);
      else if (entries === "prefix") break;
    }
    this.#pending = [];
    this.#seen = new Map(this.#durable);
    this.#names = undefined;
    for (const node of this.#seen.values()) {
      if (node instanceof SimulatedFile) node.losePower(survives);
      else node.losePower(survives, entries);
    }
  }
}

function makeEntry(entries: Map<string, SimulatedNode>, { remove, add }: EntryChange): void {
  if (remove !== undefined) entries.delete(remove);
  if (add !== undefined) entries.set(add.name, add.node);
}

export function statOf(node: SimulatedNode, links: number): FileStat {
  const isFile = node instanceof SimulatedFile;
  const changedNanos = isFile ? node.changedNanos : 0n;
  return {
    sizeBytes: isFile ? node.content.sizeBytes : 0,
    allocatedBytes: isFile ? node.content.allocatedBytes : 0,
    kind: isFile ? "file" : "directory",
    device: "0:1",
    inode: node.inode.toString(),
    changedNanos,
    modifiedNanos: isFile ? node.modifiedNanos : 0n,
    mode: isFile ? node.mode : 0o700,
    links,
    sectorBytes: 512,
  };
}
