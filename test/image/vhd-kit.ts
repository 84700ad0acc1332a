/** VHD files written down plainly. */
import { MIB } from "../../src/base/units.ts";
import { sum } from "../../src/image/vhd/footer.ts";
import type { Piece } from "./conformance.ts";
import { bytesOf, writePieces } from "./pieces.ts";

export interface VhdPlan {
  readonly sizeBytes: number;
  readonly type: "fixed" | "dynamic" | "differencing";
  readonly payloadBlockBytes?: number;
  readonly pieces?: readonly Piece[];
  readonly id?: Buffer;
  /** Of a differencing file: id and locators of its parent. */
  readonly parent?: {
    readonly id: Buffer;
    readonly locators: Readonly<Record<string, Buffer>>;
    readonly name?: string;
  };
}

export const firstId = Buffer.alloc(16, 0x11);
export const dynamicHeaderAt = 512;
export const tableAt = 1536;

/** Its bytes, sparse, and where the payload blocks with content begin: their bitmaps. */
export function buildVhd(plan: VhdPlan): {
  readonly pieces: Piece[];
  readonly sizeBytes: number;
  readonly blockPlaces: ReadonlyMap<number, number>;
} {
  const { sizeBytes, type, payloadBlockBytes = 2 * MIB } = plan;
  const footer = footerOf(plan);
  if (type === "fixed") {
    return {
      pieces: [...(plan.pieces ?? []), { offset: sizeBytes, bytes: footer }],
      sizeBytes: sizeBytes + 512,
      blockPlaces: new Map(),
    };
  }
  const entries = Math.ceil(sizeBytes / payloadBlockBytes);
  const table = Buffer.alloc(Math.ceil((Math.max(entries, 1) * 4) / 512) * 512, 0xff);
  const locators = Object.entries(plan.parent?.locators ?? {});
  let end = tableAt + table.length;
  const header = Buffer.alloc(1024);
  header.write("cxsparse", "latin1");
  header.fill(0xff, 8, 16);
  header.writeBigUInt64BE(BigInt(tableAt), 16);
  header.writeUInt32BE(0x10000, 24);
  header.writeUInt32BE(entries, 28);
  header.writeUInt32BE(payloadBlockBytes, 32);
  plan.parent?.id.copy(header, 40);
  Buffer.from(plan.parent?.name ?? "", "utf16le")
    .swap16()
    .copy(header, 64);
  const pieces: Piece[] = [];
  for (const [index, [platform, bytes]] of locators.entries()) {
    const at = 576 + index * 24;
    header.write(platform, at, "latin1");
    header.writeUInt32BE(512, at + 4);
    header.writeUInt32BE(bytes.length, at + 8);
    header.writeBigUInt64BE(BigInt(end), at + 16);
    pieces.push({ offset: end, bytes });
    end += 512;
  }
  header.writeUInt32BE(sum(header, 36), 36);
  const bitmapBytes = Math.ceil(payloadBlockBytes / 512 / 8 / 512) * 512;
  const blockPlaces = new Map<number, number>();
  const bitmaps = new Map<number, Buffer>();
  for (const piece of plan.pieces ?? []) {
    for (let done = 0; done < piece.bytes.length; ) {
      const offset = piece.offset + done;
      const block = Math.floor(offset / payloadBlockBytes);
      const within = offset - block * payloadBlockBytes;
      const length = Math.min(payloadBlockBytes - within, piece.bytes.length - done);
      let place = blockPlaces.get(block);
      if (place === undefined) {
        place = end;
        end += bitmapBytes + payloadBlockBytes;
        blockPlaces.set(block, place);
        table.writeUInt32BE(place / 512, block * 4);
        const bitmap = Buffer.alloc(bitmapBytes);
        bitmaps.set(block, bitmap);
        pieces.push({ offset: place, bytes: bitmap });
      }
      pieces.push({ offset: place + bitmapBytes + within, bytes: piece.bytes.subarray(done, done + length) });
      const bitmap = bitmaps.get(block);
      for (let sector = Math.floor(within / 512); sector * 512 < within + length; sector++) {
        const at = Math.floor(sector / 8);
        if (bitmap !== undefined) bitmap[at] = (bitmap[at] ?? 0) | (0x80 >> (sector % 8));
      }
      done += length;
    }
  }
  pieces.push(
    { offset: 0, bytes: footer },
    { offset: dynamicHeaderAt, bytes: header },
    { offset: tableAt, bytes: table },
    { offset: end, bytes: footer },
  );
  return { pieces, sizeBytes: end + 512, blockPlaces };
}

function footerOf({ sizeBytes, type, id = firstId }: VhdPlan): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.write("conectix", "latin1");
  bytes.writeUInt32BE(2, 8);
  bytes.writeUInt32BE(0x10000, 12);
  if (type === "fixed") bytes.fill(0xff, 16, 24);
  else bytes.writeBigUInt64BE(BigInt(dynamicHeaderAt), 16);
  bytes.write("test", 28, "latin1");
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 40);
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 48);
  // A geometry that has nothing to do with the size.
  bytes.writeUInt16BE(65_535, 56);
  bytes.writeUInt8(16, 58);
  bytes.writeUInt8(255, 59);
  bytes.writeUInt32BE({ fixed: 2, dynamic: 3, differencing: 4 }[type], 60);
  id.copy(bytes, 68);
  bytes.writeUInt32BE(sum(bytes, 64), 64);
  return bytes;
}

/** As a file, sparse. */
export async function writeVhd(path: string, plan: VhdPlan): Promise<ReturnType<typeof buildVhd>> {
  const built = buildVhd(plan);
  await writePieces(path, built);
  return built;
}

export function vhdBytes(plan: VhdPlan): Buffer {
  return bytesOf(buildVhd(plan));
}
