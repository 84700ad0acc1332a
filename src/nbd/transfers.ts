/** Requests of a client whose content takes more than one piece. */
import type { RequestRefusal } from "./request-check.ts";
import type { Cookie } from "./request-codec.ts";

/** A write whose content is being received. */
export interface Incoming extends Cookie {
  readonly flags: number;
  offset: number;
  left: number;
  refusal: RequestRefusal | undefined;
  /** Of an export that is no plain file: where the piece under way is gathered. */
  piece: Buffer | undefined;
  pieceFilled: number;
  /** Pieces being written. */
  readonly writes: Promise<void>[];
}

/** A read that is answered piece by piece. */
export interface Outgoing extends Cookie {
  offset: number;
  left: number;
  first: boolean;
  readonly reads: Promise<void>[];
}
