/** One end of a session driven frame by frame, to say what a correct end never says. */
import type { ReplicationError } from "../../src/base/errors.ts";
import type { Link } from "../../src/transport/link.ts";
import type { DecodedFrame } from "../../src/wire/frame.ts";
import type { Hello, Message, MessageType } from "../../src/wire/messages.ts";

export class EndByHand {
  readonly link: Link;
  readonly frames: DecodedFrame[] = [];
  /** Set when the link has ended; `error` as the link gave it. */
  ended: { readonly error: ReplicationError | undefined } | undefined;
  /** Called with each frame, before anybody waits for it. */
  onFrame: ((frame: DecodedFrame) => void) | undefined;
  #wake: (() => void)[] = [];

  constructor(link: Link) {
    this.link = link;
    link.start({
      payloadTarget: (_message, bytes) => new Uint8Array(bytes),
      onFrame: (frame) => {
        this.frames.push(frame);
        this.onFrame?.(frame);
        for (const wake of this.#wake.splice(0)) wake();
      },
      onEnd: (error) => {
        this.ended = { error };
        for (const wake of this.#wake.splice(0)) wake();
      },
    });
  }

  send(...messages: readonly Message[]): void {
    for (const message of messages) this.link.send(message);
  }

  /** A frame with payload, in the order of `send`. */
  payload(message: Message, payload: Uint8Array): void {
    this.link.send(message, payload);
  }

  /** The next frame of this type that was not taken yet; undefined when the link ended before one came. */
  async next<T extends MessageType>(
    type: T,
  ): Promise<(DecodedFrame & { readonly message: Extract<Message, { readonly type: T }> }) | undefined> {
    for (;;) {
      const at = this.frames.findIndex(({ message }) => message.type === type);
      if (at >= 0) return this.frames.splice(at, 1)[0] as never;
      if (this.ended !== undefined) return undefined;
      await new Promise<void>((resolve) => {
        this.#wake.push(resolve);
      });
    }
  }

  /** The code of the `error` message that came, or of the link's end, or `closed`. */
  async end(): Promise<string> {
    const said = await this.next("error");
    if (said !== undefined) return said.message.code;
    return this.ended?.error?.code ?? "closed";
  }
}

export function helloMessage(instance = "by-hand"): Hello {
  return { type: "hello", version: 1, versionMin: 1, features: [], required: [], instance, software: "test" };
}

/** Turns of the event loop: what is under way in promise jobs and file calls goes on. */
export async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Turns until something is so; the test's own time limit is the limit. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turns(1);
}
