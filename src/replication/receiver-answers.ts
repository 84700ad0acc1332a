/** Answers to a sender's questions, from the table and the replica. */
import type { ControlFrame } from "../transport/link.ts";
import type { AskBlocks, AskPages, AskParts } from "../wire/messages.ts";
import { ReplicationError } from "../base/errors.ts";
import { digestBytes, pageBlocks, pageCount, TABLE_PAGE_BYTES } from "../base/units.ts";
import { wireLimits } from "../wire/wire-limits.ts";
import { encodePages } from "./base-table.ts";
import type { SessionDisk } from "./receiver-disk.ts";

export async function* answerPages(disk: SessionDisk, ask: AskPages): AsyncGenerator<ControlFrame> {
  const { first, count, request } = ask;
  if (first + count > pageCount(disk.geometry)) {
    throw new ReplicationError("protocol-violation", `there is no page ${first + count - 1}`);
  }
  const { pages } = disk;
  const payload = encodePages(first, count, (page) => (pages.isZero(page) ? undefined : pages.get(page)));
  yield { message: { type: "pages", request, first, count }, payload };
}

export async function* answerBlocks(disk: SessionDisk, ask: AskBlocks): AsyncGenerator<ControlFrame> {
  const { pages, request } = ask;
  for (let at = 0; at < pages.length; at += wireLimits.pagesPerAnswerMax) {
    const together = pages.slice(at, at + wireLimits.pagesPerAnswerMax);
    const payload = new Uint8Array(together.length * TABLE_PAGE_BYTES);
    let end = 0;
    for (const page of together) {
      const digests = await disk.page(page);
      const length = pageBlocks(disk.geometry, page).count * digestBytes(disk.geometry.digestKind);
      // A copy: what the disk gives is a view.
      payload.set(digests.subarray(0, length), end);
      end += length;
    }
    const message = { type: "blocks", request, page: together[0] ?? 0, count: together.length } as const;
    yield { message, payload: payload.subarray(0, end) };
  }
}

export async function* answerParts(disk: SessionDisk, ask: AskParts): AsyncGenerator<ControlFrame> {
  const result = await disk.oldParts(ask.blocks);
  const payload = Buffer.concat([result.known, result.parts]);
  yield { message: { type: "parts", request: ask.request, count: ask.blocks.length }, payload };
}
