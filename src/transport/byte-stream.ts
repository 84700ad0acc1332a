/**
 * A connection as plain bytes, for protocols that are not ours (NBD): TCP, a unix socket, TLS on either, or the linked streams of `testing/`.
 */
import type { ReplicationError } from "../base/errors.ts";
import type { PeerIdentity } from "./link.ts";

/** Takes what arrives. Its owner says where each piece goes, so that content lands in its place without a copy. */
export interface ByteSink {
  /** Where the next bytes go; not empty, unless the stream is paused. Asked again after each `filled` and each `resume`; the memory is on loan until then, or until another sink takes over. */
  room(): Uint8Array;
  /** `count` bytes, at least one, lie at the start of what `room` returned last. A throw ends the stream with that error. */
  filled(count: number): void;
  /** Once, and nothing after it. Undefined: the peer ended the stream, or it was closed here. */
  ended(error: ReplicationError | undefined): void;
}

export interface ByteStream {
  /** Address of the other side, for people. */
  readonly peer: string;
  /** Who the other side is; undefined without TLS. */
  readonly identity: PeerIdentity | undefined;
  /**
   * What arrives goes to `sink` from now on; nothing is read before the first call. Another call hands over to another sink: it may
   * be made from within `filled`. A sink of a stream that is over hears `ended` at once, in a promise job of its own.
   */
  receive(sink: ByteSink): void;
  /** Queues these, one behind the other. They are on loan until `taken` is called, which it is unless the stream ends before. Nothing is sent once the stream is over. */
  write(parts: readonly Uint8Array[], taken?: () => void): void;
  /** Bytes given to `write` that the system has not taken. */
  readonly bytesQueued: number;
  /** Reads nothing until `resume`: what the peer sends stays in the network. What was read already may still be delivered. */
  pause(): void;
  resume(): void;
  /** Sends what is queued, then ends the stream; waits at most 2 s for the peer. Idempotent. */
  close(): void;
  /** Ends at once; the sink hears `error`. Idempotent. */
  destroy(error?: ReplicationError): void;
}
