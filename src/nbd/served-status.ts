/** Answers block status requests. */
import type { ServedContext } from "./exported-disk.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { chunks } from "./protocol.ts";
import { encodeStatusPayload } from "./reply-codec.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import type { Cookie } from "./request-codec.ts";

export interface StatusRequest {
  readonly replies: ReplyWriter;
  readonly cookie: Cookie;
  /** By the id the client knows them by. */
  readonly contexts: ReadonlyMap<number, ServedContext>;
  readonly offset: number;
  readonly length: number;
  /** One descriptor a context. */
  readonly one: boolean;
}

/** Replies with a chunk for each context, once all are known; throws what a context threw, before anything was said. */
export async function answerStatus(request: StatusRequest): Promise<void> {
  const { replies, cookie, contexts } = request;
  const payloads: Buffer[] = [];
  for (const [id, context] of contexts) payloads.push(encodeStatusPayload(id, await descriptorsOf(context, request)));
  for (const [index, payload] of payloads.entries()) {
    replies.chunk(cookie, { type: chunks.blockStatus, done: index === payloads.length - 1 }, payload);
  }
}

/** Pairs of length and flags; neighbours with the same flags are one. May end before the range does. */
async function descriptorsOf(context: ServedContext, request: StatusRequest): Promise<number[]> {
  const { offset, length, one } = request;
  const most = 2 * (one ? 1 : nbdLimits.statusDescriptorsMax);
  const descriptors: number[] = [];
  for await (const stretch of context.stretches(offset, length)) {
    const last = descriptors.length - 1;
    if (descriptors[last] === stretch.flags) descriptors[last - 1] = (descriptors[last - 1] ?? 0) + stretch.length;
    else if (descriptors.length === most) break;
    else descriptors.push(stretch.length, stretch.flags);
  }
  return descriptors;
}
