/**
 * A connection as the layers above see it: frames out, frames in, one end. TLS and the linked pair of `testing/` both implement it.
 */
import type { DecodedFrame, PayloadTarget } from "../wire/frame.ts";
import type { Message } from "../wire/messages.ts";
import type { ReplicationError } from "../base/errors.ts";

/** Who the other side is, by its certificate. */
export interface PeerIdentity {
  /** Common name of the certificate's subject. */
  readonly name: string;
  /** SHA-256 of the certificate, `AA:BB:...`. */
  readonly fingerprint: string;
  /** Address and port, for people. */
  readonly address: string;
  /** True when the certificate's authority was made by `replicate pki` (it carries our extension). */
  readonly ownAuthority: boolean;
}

export interface LinkHandlers {
  /** Gives memory for a payload; see wire/frame.ts. A throw ends the link with that error. */
  readonly payloadTarget: PayloadTarget;
  /** In order, synchronously. A throw ends the link with that error. */
  readonly onFrame: (frame: DecodedFrame) => void;
  /**
   * Exactly once, in a promise job of its own, never inside a call of the link's methods. Undefined: closed here, or by the peer at a frame's
   * boundary. A reset can look like the latter, because the kernel tells it to a write first and the read then finds the end: whether the
   * session was complete only its messages tell.
   */
  readonly onEnd: (error: ReplicationError | undefined) => void;
}

/** A frame that is yet to be encoded. */
export interface ControlFrame {
  readonly message: Message;
  readonly payload?: Uint8Array | undefined;
}

export interface Link {
  readonly peer: PeerIdentity;
  /** Starts delivery. Called once; nothing is read from the socket before. */
  start(handlers: LinkHandlers): void;
  /** Sends a control frame, past the frames of `sendFrame` that wait. Returns false when the socket's buffer is above its mark (the caller may go on). */
  send(message: Message, payload?: Uint8Array): boolean;
  /**
   * Sends bytes that are a whole frame already (head encoded in place before its payload). The array is on loan until the promise settles: it resolves when the
   * socket has taken the bytes, rejects when the link has ended.
   */
  sendFrame(frame: Uint8Array): Promise<void>;
  /** Bytes given to the socket and not yet taken. */
  readonly bytesQueued: number;
  /** Bytes on the wire so far, TLS included where known (TLS handshake too). */
  readonly bytesSent: number;
  readonly bytesReceived: number;
  /** Milliseconds (monotonic) of the last byte received. */
  readonly lastReceived: number;
  /** Sends what is queued, then closes; waits at most 2 s for the peer. Idempotent. */
  close(): Promise<void>;
  /** Ends at once; `onEnd` gets the error. Idempotent. */
  destroy(error: ReplicationError): void;
}
