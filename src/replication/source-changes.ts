/** What is known of a source beside its bytes: which blocks may have changed since a state the receiver has. */
import type { DirtyBits } from "../track/dirty-bitmap.ts";
import type { PageDigests } from "../table/digest-table.ts";
import type { KnownState } from "../track/known-state.ts";
import type { Opened } from "../wire/messages.ts";
import type { BlockRange } from "./data-cursor.ts";
import type { SendReason } from "./report.ts";

export interface SourceChanges {
  /** Id of the state that is sent; the receiver keeps it with the point. */
  readonly cycle: string;
  /** Cycles relative to which {@link dirty} names every block that may have changed. */
  readonly bases: readonly string[];
  readonly dirty: DirtyBits;
  /**
   * {@link dirty} comes from who alone writes the image. Then what is known of a state of it helps against any state of the receiver; else only against that very state, and
   * against another one everything is compared.
   */
  readonly isExact: boolean;
  /** Blocks to look at although they may be clean: whether {@link dirty} tells the truth. */
  readonly audited?: DirtyBits | undefined;
  /** False: only dirty and audited blocks can be read as they were. When others are needed the send ends with `base-mismatch`. */
  readonly complete: boolean;
  /** Called before the send ends so: it is of this source that more must be read. */
  readonly needsAll?: () => void;
  /** Where it is not complete: as they were are dirty and audited blocks as wide as blocks of this many bytes are that hold them. */
  readonly grainBytes: number;
  /** What an earlier pass left at the receiver, which is no state of its own: {@link dirty} is relative to it. */
  readonly passed?: PageDigests | undefined;
  /** The image as it was at some of {@link bases}. Where the receiver has none of them, pages of which it has something else are compared. */
  readonly states: readonly KnownState[];
  /** Before a receiver is asked to make a point of it: what is sent, for {@link states} of a later send. Durable when it resolves. Not after an audit that missed. */
  readonly keep?: (state: KnownState) => Promise<void>;
  /** An audit missed: {@link states} are not to be believed by the next send. Durable when it resolves; before a receiver is asked to make a point, and when the send fails. */
  readonly missed?: () => Promise<void>;
}

/** What the image looked like at a state its changes are known from. */
export interface KnownBase {
  readonly pages: PageDigests;
  /** The receiver says that it has this state. Else it may have any, and each page that it has otherwise is looked at as a whole. */
  readonly isReceivers: boolean;
}

/** Undefined: every block is to be looked at. A state the receiver does not have is of use where more than the dirty blocks can be read. */
export function knownBase(changes: SourceChanges | undefined, opened: Opened): KnownBase | undefined {
  if (changes === undefined) return undefined;
  const states = changes.states.filter(({ cycle }) => changes.bases.includes(cycle));
  const receivers = changes.passed ?? states.find(({ cycle }) => cycle === opened.cycle)?.pages;
  const pages = receivers ?? (changes.isExact && changes.complete ? states.at(-1)?.pages : undefined);
  if (pages === undefined) return undefined;
  const same = pages.geometry.blockBytes === opened.blockBytes && pages.geometry.digestKind === opened.digestKind;
  return same ? { pages, isReceivers: receivers !== undefined } : undefined;
}

/** A delta is of what a tracker marked; or it is narrowed by it, while the receiver is not where it was left. */
export function reasonWith(reason: SendReason, known: KnownBase | undefined): SendReason {
  if (known === undefined) return reason;
  if (known.isReceivers) return "bitmap";
  return reason === "scan" ? "resync:base-mismatch" : reason;
}

/** Dirty blocks of [first, end), blocks of `blockBytes`, which need not be the bitmap's. Ascending, apart from each other. */
export function dirtyRanges(dirty: DirtyBits, blockBytes: number, first: number, end: number): BlockRange[] {
  const found: { first: number; end: number }[] = [];
  const from = first * blockBytes;
  const to = Math.min(end * blockBytes, dirty.sizeBytes);
  for (let at = Math.floor(from / dirty.blockBytes); at * dirty.blockBytes < to; ) {
    const run = dirty.next(at);
    if (run === undefined || run.first * dirty.blockBytes >= to) break;
    at = run.first + run.count;
    const range = {
      first: Math.max(first, Math.floor((run.first * dirty.blockBytes) / blockBytes)),
      end: Math.min(end, Math.ceil((at * dirty.blockBytes) / blockBytes)),
    };
    const last = found.at(-1);
    if (last !== undefined && range.first <= last.end) last.end = range.end;
    else found.push(range);
  }
  return found;
}

/** Both, ascending, apart from each other. */
export function joinRanges(some: readonly BlockRange[], others: readonly BlockRange[]): readonly BlockRange[] {
  if (others.length === 0) return some;
  const joined: { first: number; end: number }[] = [];
  for (const { first, end } of [...some, ...others].sort((a, b) => a.first - b.first)) {
    const last = joined.at(-1);
    if (last !== undefined && first <= last.end) last.end = Math.max(last.end, end);
    else joined.push({ first, end });
  }
  return joined;
}
