/** Answers to a sender's questions, from the table and the replica. */
import { ownCopy } from "../base/copy-bytes.ts";
import type { AskBlocks, AskPages, AskParts, Message } from "../wire/messages.ts";
import { ReplicationError } from "../base/errors.ts";
import { digestBytes, pageBlocks, pageCount } from "../base/units.ts";
import { encodePages } from "./base-table.ts";
import type { SessionDisk } from "./receiver-disk.ts";

export interface Answer {
  readonly message: Message;
  readonly payload: Uint8Array;
}

export async function* answerPages(disk: SessionDisk, ask: AskPages): AsyncGenerator<Answer> {
  const { first, count, request } = ask;
  if (first + count > pageCount(disk.geometry)) {
    throw new ReplicationError("protocol-violation", `there is no page ${first + count - 1}`);
  }
  const { pages } = disk;
  const payload = encodePages(first, count, (page) => (pages.isZero(page) ? undefined : pages.get(page)));
  yield { message: { type: "pages", request, first, count }, payload };
}

export async function* answerBlocks(disk: SessionDisk, ask: AskBlocks): AsyncGenerator<Answer> {
  for (const page of ask.pages) {
    const digests = await disk.page(page);
    const length = pageBlocks(disk.geometry, page).count * digestBytes(disk.geometry.digestKind);
    yield { message: { type: "blocks", request: ask.request, page }, payload: ownCopy(digests.subarray(0, length)) };
  }
}

export async function* answerParts(disk: SessionDisk, ask: AskParts): AsyncGenerator<Answer> {
  const result = await disk.oldParts(ask.blocks);
  const payload = Buffer.concat([result.known, result.parts]);
  yield { message: { type: "parts", request: ask.request, count: ask.blocks.length }, payload };
}
