/** Small files of every structure, to be damaged; and what a reader gives of them. */
import { MIB } from "../../../src/base/units.ts";
import { ReplicationError } from "../../../src/base/errors.ts";
import { extentsOf, readRange } from "../conformance.ts";
import { bytesOf } from "../pieces.ts";
import { buildVhdx, guids, openBytes, places, type VhdxPlan } from "./kit.ts";

/** All content of payload blocks; nothing else of the files consists of it. */
const fill = 0xa5;
const sizeBytes = 6 * MIB;
const filled = (offset: number, length: number) => ({ offset, bytes: Buffer.alloc(length, fill) });

const parentPlan: VhdxPlan = { sizeBytes, pieces: [filled(0, 2 * MIB)] };
const plain: Readonly<Record<string, VhdxPlan>> = {
  dynamic: { sizeBytes, pieces: [filled(0, MIB), filled(3 * MIB, 2 * MIB)] },
  differencing: {
    sizeBytes,
    dataGuid: "77777777-7777-7777-7777-777777777777",
    parent: { parent_linkage: `{${guids.data}}`, relative_path: ".\\parent.vhdx" },
    pieces: [filled(512, 1024), filled(4 * MIB, 8192)],
  },
};
const parent = { "/images/parent.vhdx": bytesOf(buildVhdx(parentPlan)) };

function withLog(plan: VhdxPlan): VhdxPlan {
  const built = buildVhdx(plan);
  const page = Buffer.alloc(4096);
  for (const piece of built.pieces) {
    if (piece.offset >= places.bat && piece.offset < places.bat + 4096)
      page.set(piece.bytes, piece.offset - places.bat);
  }
  const entry = { tail: 0, flushed: built.sizeBytes, last: built.sizeBytes };
  const zeros = [{ offset: places.bat + 8192, length: 4096 }];
  return {
    ...plan,
    log: [
      { ...entry, sequence: 5n, zeros },
      { ...entry, sequence: 6n, zeros, sectors: [{ offset: places.bat, bytes: page }] },
    ],
  };
}

/** What a reader gives of it: an error, or how much of it is content. */
export async function outcome(bytes: Uint8Array): Promise<"error" | "read"> {
  try {
    const { reader } = await openBytes(bytes, parent);
    // A flipped bit may make a disk of any size.
    const length = Math.min(reader.sizeBytes, 2 * sizeBytes);
    await extentsOf(reader, 0, length);
    reader.runs?.(0, length);
    // Both ends of each payload block.
    for (let offset = 0; offset < length; offset += MIB - 8192 === offset % MIB ? 8192 : MIB - 8192) {
      const some = await readRange(reader, offset, Math.min(8192, length - offset));
      const strange = some.findIndex((byte) => byte !== 0 && byte !== fill);
      if (strange >= 0) throw new Error(`byte ${String(some[strange])} at ${offset + strange} is of no payload block`);
    }
    await reader.close();
    return "read";
  } catch (error) {
    if (!(error instanceof ReplicationError)) throw error;
    return "error";
  }
}

export async function flips(
  bytes: Buffer,
  places: Iterable<number>,
): Promise<{ readonly errors: number; readonly read: number }> {
  let errors = 0;
  let read = 0;
  for (const at of places) {
    const before = bytes[at] ?? 0;
    // Another bit at each place, all eight over eight neighbours.
    bytes[at] = before ^ (1 << ((at * 5) % 8));
    try {
      if ((await outcome(bytes)) === "error") errors++;
      else read++;
    } catch (error) {
      throw new Error(`byte ${at} flipped`, { cause: error });
    } finally {
      bytes[at] = before;
    }
  }
  return { errors, read };
}

export function* range(start: number, end: number, step = 1): Generator<number> {
  for (let at = start; at < end; at += step) yield at;
}

/** By name; each without and with a log. */
export const hostilePlans: readonly { readonly name: string; readonly plan: VhdxPlan }[] = Object.entries(
  plain,
).flatMap(([name, plan]) => [
  { name, plan },
  { name: `${name}, with a log`, plan: withLog(plan) },
]);
