/** The receiver's digest table as the sender sees it: asked for in pieces, ahead of need, and not kept. */
import { ownCopy } from "../base/copy-bytes.ts";
import { invariant, ReplicationError } from "../base/errors.ts";
import { limits } from "../base/limits.ts";
import { digestBytes, type Geometry, pageBlocks, pageCount } from "../base/units.ts";
import type { PagesAnswer, SenderSession } from "./sender-session.ts";

const pageDigestBytes = 32;
const zeroPage = new Uint8Array(pageDigestBytes);

/** Page digests of one answer. */
interface Chunk {
  readonly first: number;
  readonly digests: Map<number, Uint8Array>;
}

export class BaseTable {
  readonly #session: SenderSession;
  readonly #geometry: Geometry;
  /** The disk as the receiver has it. */
  readonly #known: Geometry;
  readonly #empty: boolean;
  /** Pages the receiver has: a disk that grew has none beyond its old end. */
  readonly #pagesKnown: number;
  readonly #chunks = new Map<number, Promise<Chunk>>();
  /** The last that was looked into. */
  #here: Chunk | undefined;

  constructor(
    session: SenderSession,
    geometry: Geometry,
    options: { readonly empty: boolean; readonly sizeBytes: number },
  ) {
    this.#session = session;
    this.#geometry = geometry;
    this.#empty = options.empty;
    this.#known = { ...geometry, sizeBytes: Math.min(options.sizeBytes, geometry.sizeBytes) };
    this.#pagesKnown = options.empty ? 0 : pageCount({ ...geometry, sizeBytes: options.sizeBytes });
  }

  /** True when the whole table is zero and nothing need be asked. */
  get empty(): boolean {
    return this.#empty;
  }

  /** 32 bytes; all zero for a page of zero blocks. */
  async page(page: number): Promise<Uint8Array> {
    if (page >= this.#pagesKnown) return zeroPage;
    this.#here = await this.#chunk(Math.floor(page / limits.pagesPerRequestMax));
    return this.#of(this.#here, page);
  }

  /** As {@link page}; undefined when it would have to be waited for. */
  held(page: number): Uint8Array | undefined {
    if (page >= this.#pagesKnown) return zeroPage;
    const first = page - (page % limits.pagesPerRequestMax);
    return this.#here?.first === first ? this.#of(this.#here, page) : undefined;
  }

  #of({ first, digests }: Chunk, page: number): Uint8Array {
    if (page - first === limits.pagesPerRequestMax >> 1) {
      const number = Math.floor(page / limits.pagesPerRequestMax);
      // Half way through: the next answer is under way before it is needed, and the one before is forgotten.
      if ((number + 1) * limits.pagesPerRequestMax < this.#pagesKnown) this.#chunk(number + 1).catch(ignore);
      this.#chunks.delete(number - 1);
    }
    return digests.get(page) ?? zeroPage;
  }

  #chunk(number: number): Promise<Chunk> {
    let chunk = this.#chunks.get(number);
    if (chunk === undefined) {
      const first = number * limits.pagesPerRequestMax;
      const count = Math.min(limits.pagesPerRequestMax, this.#pagesKnown - first);
      chunk = this.#session.askPages(first, count).then(decodePages);
      this.#chunks.set(number, chunk);
    }
    return chunk;
  }

  /** Digests of the blocks of a page that exist. */
  async blocks(page: number): Promise<Uint8Array> {
    const [digests] = await this.blocksOf([page]);
    invariant(digests !== undefined, "one page, one answer");
    return digests;
  }

  /** As {@link blocks}, of at most {@link limits.blocksPerRequestMax} pages, in one question. */
  async blocksOf(pages: readonly number[]): Promise<readonly Uint8Array[]> {
    if (pages.length === 0) return [];
    const digests: Uint8Array[] = [];
    for (const { count, payload } of await this.#session.askBlocks(pages)) {
      let at = 0;
      for (const page of pages.slice(digests.length, digests.length + count)) {
        // A disk that grows has its new end as soon as it begins to change: of the page its old end lies in, the last one of an answer, either length will do.
        const last = pageCount(this.#known) - 1;
        const hasGrown = page > last || (page === last && payload.length === at + this.#bytesOf(page, this.#geometry));
        const bytes = this.#bytesOf(page, hasGrown ? this.#geometry : this.#known);
        digests.push(this.#padded(page, payload.subarray(at, at + bytes)));
        at += bytes;
      }
      if (at === payload.length) continue;
      throw new ReplicationError(
        "message-malformed",
        `the receiver gave ${payload.length} bytes of digests of ${count} pages, not ${at}`,
      );
    }
    return digests;
  }

  #bytesOf(page: number, geometry: Geometry): number {
    return pageBlocks(geometry, page).count * digestBytes(geometry.digestKind);
  }

  /** Blocks behind the old end of a growing disk are zero. */
  #padded(page: number, digests: Uint8Array): Uint8Array {
    const bytes = this.#bytesOf(page, this.#geometry);
    if (bytes === digests.length) return digests;
    const padded = new Uint8Array(bytes);
    padded.set(digests);
    return padded;
  }
}

/** A rejection that is seen again by whoever awaits the same promise. */
function ignore(): void {}

function decodePages(answer: PagesAnswer): Chunk {
  const { first, count, payload } = answer;
  const bitBytes = Math.ceil(count / 8);
  const digests = new Map<number, Uint8Array>();
  let at = bitBytes;
  for (let index = 0; index < count; index++) {
    if (((payload[index >> 3] ?? 0) & (1 << (index & 7))) === 0) continue;
    digests.set(first + index, payload.subarray(at, at + pageDigestBytes));
    at += pageDigestBytes;
  }
  if (at !== payload.length) {
    throw new ReplicationError("message-malformed", "the receiver's page digests do not fit their bitmap");
  }
  return { first, digests };
}

/** The payload of `pages`. */
export function encodePages(
  first: number,
  count: number,
  digestOf: (page: number) => Uint8Array | undefined,
): Uint8Array {
  const bits = Buffer.alloc(Math.ceil(count / 8));
  const pieces: Uint8Array[] = [bits];
  for (let index = 0; index < count; index++) {
    const digest = digestOf(first + index);
    if (digest === undefined) continue;
    bits[index >> 3] = (bits[index >> 3] ?? 0) | (1 << (index & 7));
    // A copy: what the table gives is a view.
    pieces.push(ownCopy(digest));
  }
  return Buffer.concat(pieces);
}
