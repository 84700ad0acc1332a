/** Answers to a sender's questions, from the table and the replica. */
import { ownCopy } from "../base/copy-bytes.ts";
import type { ControlFrame } from "../transport/link.ts";
import type { AskBlocks, AskPages, AskParts } from "../wire/messages.ts";
import { ReplicationError } from "../base/errors.ts";
import { digestBytes, pageBlocks, pageCount } from "../base/units.ts";
import { encodePages } from "./base-table.ts";
import type { SessionDisk } from "./receiver-disk.ts";

/** Frames of one answer that leave together. */
export type Answer = readonly ControlFrame[];

/** Pages answered in one write: a quarter of a MiB. */
const pagesTogether = 64;

export async function* answerPages(disk: SessionDisk, ask: AskPages): AsyncGenerator<Answer> {
  const { first, count, request } = ask;
  if (first + count > pageCount(disk.geometry)) {
    throw new ReplicationError("protocol-violation", `there is no page ${first + count - 1}`);
  }
  const { pages } = disk;
  const payload = encodePages(first, count, (page) => (pages.isZero(page) ? undefined : pages.get(page)));
  yield [{ message: { type: "pages", request, first, count }, payload }];
}

export async function* answerBlocks(disk: SessionDisk, ask: AskBlocks): AsyncGenerator<Answer> {
  const { pages, request } = ask;
  for (let at = 0; at < pages.length; at += pagesTogether) {
    const frames: ControlFrame[] = [];
    for (const page of pages.slice(at, at + pagesTogether)) {
      const digests = await disk.page(page);
      const length = pageBlocks(disk.geometry, page).count * digestBytes(disk.geometry.digestKind);
      frames.push({ message: { type: "blocks", request, page }, payload: ownCopy(digests.subarray(0, length)) });
    }
    yield frames;
  }
}

export async function* answerParts(disk: SessionDisk, ask: AskParts): AsyncGenerator<Answer> {
  const result = await disk.oldParts(ask.blocks);
  const payload = Buffer.concat([result.known, result.parts]);
  yield [{ message: { type: "parts", request: ask.request, count: ask.blocks.length }, payload }];
}
